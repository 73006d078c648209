"""What the data say about a finished map, and what is done about maps that they reject."""

import re

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

import elastofast as ef
from elastofast.inversion import members
from elastofast.inversion.evidence import FALSE_ALARM, held_back, poisson_cause, prediction, residual

GRID = ef.Grid((33, 33), (1e-3, 1e-3))
LAW = ef.PlaneStress(0.495)
LOAD = ef.compression(GRID, pressure=100.0)
TRUTH, _ = ef.inclusion(GRID, (16e-3, 16e-3), 6e-3, modulus=50e3, background=12e3)
OTHER, _ = ef.inclusion(GRID, (10e-3, 20e-3), 6e-3, modulus=50e3, background=12e3)


class Known:
    """A prior whose idea of the true map never changes."""

    def __init__(self, x):
        self.z = np.log(x).ravel()

    def target(self, z, shape):
        return np.broadcast_to(self.z, z.shape)


def scan(snr=35.0, seed=1, law=LAW, truth=TRUTH):
    return ef.simulate(GRID, law, LOAD, truth, snr=snr, seed=seed)


def stated(m, **changes):
    """The measurement with something else stated about it."""
    names = ("geometry", "law", "load", "displacement", "displacement_std", "reference")
    return ef.Measurement(**{name: getattr(m, name) for name in names} | changes)


def measured(noise, std=1e-6, load=LOAD, grid=GRID):
    """A measurement of a field of zeros, so that its residual is its noise."""
    return ef.Measurement(grid, LAW, load, np.where(load.fixed, 0.0, std * noise), std)


def test_false_alarms_are_as_frequent_as_stated():
    """Residuals of the true displacement: their probabilities are uniform but for the caution of the bounds."""
    rng = np.random.default_rng(0)
    holes = np.full((2, 33, 33), 1e-6)
    holes[:, 8:14, 5:20] = np.inf
    for std in (1e-6, holes):
        found = [residual(measured(rng.normal(size=(2, 33, 33)), std), np.zeros((2, 33, 33))) for _ in range(300)]
        probabilities = np.array([one.probability for one in found])
        assert not any(one.correlated for one in found)
        for level in (0.05, 0.2):
            alarms = (probabilities < level).sum()
            assert 0.3 * level < alarms / 300 < level + 3 * np.sqrt(level / 300)
        assert not (probabilities < FALSE_ALARM).any()
        assert np.mean([one.level for one in found]) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("kind", ["smooth", "local"])
def test_structure_in_a_residual_is_found_whatever_level_is_stated(kind):
    noise = np.random.default_rng(1).normal(size=(2, 33, 33))
    i, j = np.indices((33, 33))
    bump = {"smooth": 0.4 * np.cos(np.pi * i / 33), "local": 3.0 * ((i - 20) ** 2 + (j - 9) ** 2 < 9)}[kind]
    for scale in (1.0, 3.0):
        found = residual(measured(scale * (noise + bump)), np.zeros((2, 33, 33)))
        assert found.structured and found.white and not found.correlated
        assert found.level == pytest.approx(scale**2, rel=0.15)


def correlated(noise, std=1e-6, length=2.5e-3):
    return stated(measured(noise, std), displacement_correlation=length)


def drawn(m, rng):
    """Noise of a measurement's own model, in units of 1e-6 m."""
    normal = rng.standard_normal((2, m.geometry.n_nodes))
    return 1e6 * ef.Fidelity(m)._noise.draw(normal).reshape(2, *m.geometry.shape)


def test_stated_correlation_gives_no_false_alarms_and_structure_is_still_found():
    rng, zero = np.random.default_rng(0), np.zeros((2, 33, 33))
    m = correlated(np.ones((2, 33, 33)))
    found = [residual(correlated(drawn(m, rng)), zero) for _ in range(100)]
    assert not any(one.structured for one in found)
    assert np.mean([one.correlated for one in found]) < 0.1
    i = np.indices((33, 33))[0]
    bump = 1.5 * np.cos(2 * np.pi * i / 33)
    assert residual(correlated(drawn(m, rng) + bump), zero).structured
    white = residual(correlated(rng.standard_normal((2, 33, 33))), zero)  # not correlated as stated
    assert not white.structured


def test_data_held_back_are_independent_where_noise_is_correlated():
    rng = np.random.default_rng(1)
    m = correlated(np.ones((2, 33, 33)))
    products, squares = [], []
    for seed in range(40):
        pair = held_back(correlated(drawn(m, rng)), 33, seed)
        one, other = (p.displacement / p.displacement_std for p in pair)
        products.append((one * other).sum())
        squares.append([(one**2).sum(), (other**2).sum()])
    assert abs(np.mean(products)) < 0.1 * np.mean(squares)
    first, second = np.mean(squares, axis=0)
    assert first == pytest.approx(second, rel=0.1)


def test_correlated_noise_is_called_so_and_no_map_is_rejected_for_it():
    noise = gaussian_filter(np.random.default_rng(1).normal(size=(2, 33, 33)), (0, 0.7, 0.7))
    found = residual(measured(noise / noise.std()), np.zeros((2, 33, 33)))
    assert found.correlated and not found.structured


def test_the_poisson_ratio_that_would_explain_a_misfit_is_found():
    m = stated(scan(law=ef.PlaneStress(0.46)), law=LAW)
    cause = poisson_cause(m, TRUTH)
    assert cause.poisson == pytest.approx(0.46, abs=0.01) and cause.share > 0.8
    other = poisson_cause(scan(snr=45.0), OTHER)  # the right model with a wrong map
    assert other.share < 0.1


def test_data_held_back_are_independent_and_have_the_stated_noise():
    clean = scan(snr=300.0).displacement
    std = np.sqrt(np.mean(clean**2)) * 10 ** (-35 / 20)
    free = ~LOAD.fixed
    products, squares = [], []
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(size=clean.shape)  # as a caller might simulate it
        pair = held_back(stated(scan(), displacement=clean + std * noise, displacement_std=std), 33, seed)
        one, other = (((m.displacement - clean) / m.displacement_std)[free] for m in pair)
        products.append(one @ other)
        squares.append([one @ one, other @ other])
    n = free.sum()
    assert abs(np.mean(products)) < 4 * np.sqrt(n / 40)
    np.testing.assert_allclose(np.mean(squares, axis=0), n, rtol=4 * np.sqrt(2 / n / 40))


def test_the_prediction_of_data_held_back_ranks_maps_by_their_true_error():
    clean = ef.solve_forward(ef.ElasticForm(GRID, LAW), TRUTH, LOAD)
    fitted, other = held_back(scan(), 33)
    assert fitted.geometry == GRID  # too small to be coarsened
    std = other.displacement_std[0, 0, 0]
    found = prediction(other, clean + 0.3 * std, clean + 0.1 * std)
    expected = (~LOAD.fixed).sum() * (0.3**2 - 0.1**2)
    assert abs(found.excess - expected) < 4 * found.std
    assert found.std == pytest.approx(2 * 0.2 * np.sqrt((~LOAD.fixed).sum()))
    large = ef.Grid((65, 66), (1e-3, 1e-3))
    load = ef.compression(large, pressure=100.0)
    pair = held_back(ef.simulate(large, LAW, load, np.full((65, 66), 1e4)), 32)
    assert [m.geometry.shape for m in pair] == [(33, 33)] * 2


def test_a_map_that_the_data_do_not_reject_is_kept():
    result = ef.reconstruct(scan(), prior=Known(TRUTH))
    assert (result.prior, result.fallback, len(result.comparison)) == ("Known", "", 1)
    assert result.comparison[0]["probability"] > FALSE_ALARM
    assert 0.9 < result.chi2 < 1.1 and "reject" not in result.message


def test_a_prior_that_good_data_reject_gives_way():
    """First to less of itself, then to total variation; the result says so."""
    m = scan(snr=45.0)
    result = ef.reconstruct(m, prior=Known(OTHER))
    tv = ef.reconstruct(m, prior="tv")
    assert (result.prior, result.fallback) == ("tv", "prior")
    np.testing.assert_array_equal(result.modulus, tv.modulus)
    assert [(row["prior"], row["change"]) for row in result.comparison] == [
        ("Known", ""),
        ("Known", "weight x 0.03"),
        ("tv", ""),
    ]
    assert [row["probability"] < FALSE_ALARM for row in result.comparison] == [True, True, False]
    assert "The data reject the map of prior 'Known'" in result.message and result.seconds > tv.seconds

    near = TRUTH * np.exp(0.03 * np.sin(np.arange(33) / 4))  # less of the prior is enough
    result = ef.reconstruct(scan(snr=40.0), prior=Known(near))
    assert (result.prior, result.fallback) == ("Known", "weight")
    assert result.comparison[1]["weight"] == pytest.approx(0.03 * result.comparison[0]["weight"])


def test_a_given_weight_is_the_callers_decision_but_the_message_names_the_prior():
    first = ef.reconstruct(scan(snr=45.0), prior=Known(OTHER), weight=1e4)
    assert (first.prior, first.fallback, first.comparison) == ("Known", "", [])
    assert first.chi2 > 1.3 and "not explained under prior 'Known'" in first.message


def test_a_wrong_poisson_ratio_is_blamed_on_the_model():
    m = stated(scan(law=ef.PlaneStress(0.46)), law=LAW)
    result = ef.reconstruct(m, prior=Known(TRUTH))
    assert (result.prior, result.fallback) == ("Known", "trust")
    assert re.search(r"Poisson ratio of about 0\.4[56]\d in place of 0\.495", result.message)
    assert result.weight == pytest.approx(16 * result.comparison[0]["weight"])
    assert ef.metrics.relative_l2(result.modulus, TRUTH) < 0.05
    assert ef.metrics.relative_l2(ef.reconstruct(m, prior="tv").modulus, TRUTH) > 0.2


def test_noise_larger_than_stated_is_measured_and_used():
    m = scan()
    understated = stated(m, displacement_std=m.displacement_std / 3)
    result, right = ef.reconstruct(understated, prior=Known(TRUTH)), ef.reconstruct(m, prior=Known(TRUTH))
    assert result.fallback == "noise" and "times the stated displacement_std" in result.message
    assert result.chi2 == pytest.approx(9 * right.chi2, rel=0.02)  # of the stated level, as documented
    assert result.history[-1]["chi2"] == pytest.approx(result.chi2, rel=1e-6)
    np.testing.assert_allclose(result.modulus, right.modulus, rtol=0.02)


def test_a_list_gives_what_single_measurements_give(monkeypatch):
    monkeypatch.setattr(members, "threads", lambda nodes, count: 1)  # one after another, in order
    scans, seen = [scan(snr=45.0), scan(truth=OTHER)], []
    prior = Known(OTHER)
    together = ef.reconstruct(scans, prior=prior, progress=lambda entry: seen.append(entry["member"]))
    for m, result in zip(scans, together, strict=True):
        alone = ef.reconstruct(m, prior=prior)
        np.testing.assert_array_equal(result.modulus, alone.modulus)
        assert result.fallback == alone.fallback
    assert seen == sorted(seen) and set(seen) == {0, 1}


def test_an_interrupted_fallback_keeps_the_map_so_far():
    def stop(entry):
        if entry["shape"] == (33, 33) and len(seen) and entry["iteration"] == 1:
            raise KeyboardInterrupt
        seen.append(entry)

    seen = []
    result = ef.reconstruct(scan(snr=45.0), prior=Known(OTHER), progress=stop)
    assert (result.status, result.prior) == ("interrupted", "Known")
