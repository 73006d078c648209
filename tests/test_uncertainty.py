"""How sure a map is: against dense algebra, and by how often intervals hold the truth."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from dense import dense_psi
from scipy.special import stdtrit

import elastofast as ef
from elastofast.intervals import Uncertainty, bias_and_spread, extrapolated
from elastofast.inversion import uncertainty as module
from elastofast.inversion.evidence import residual
from elastofast.inversion.uncertainty import _Simulation

GRID = ef.Grid((9, 8), (1e-3, 1e-3))
LAW = ef.PlaneStress(0.4)
LOAD = ef.compression(GRID, pressure=100.0)
TRUTH, LESION = ef.inclusion(GRID, (4e-3, 3e-3), 2e-3, modulus=30e3, background=10e3)
STD = 1e-7
DRAWS = 40  # whose standard deviations are known to 1 / sqrt(80) each


def scan(seed=0, load=LOAD, std=STD, force_std=0.0, **options):
    u = ef.solve_forward(ef.ElasticForm(GRID, LAW), TRUTH, LOAD)
    level = np.where(np.isfinite(std), std, 0.0)
    noise = np.where(load.fixed, 0.0, level * np.random.default_rng(seed).normal(size=u.shape))
    return ef.Measurement(GRID, LAW, load, u + noise, std, force_std, **options)


# The truth is in standard deviations of the noise.
@pytest.mark.parametrize("generations", [1, 2])
@pytest.mark.parametrize(("shrinkage", "truth"), [(0.0, 3.0), (0.1, 1.0), (0.05, 40.0), (0.1, 20.0), (0.5, 0.3)])
def test_intervals_of_a_biased_estimate_hold_the_truth(shrinkage, truth, generations):
    assert 0.84 <= coverage(shrinkage, truth, generations) <= 0.97


@pytest.mark.parametrize(("shrinkage", "truth"), [(0.3, 20.0), (0.5, 50.0)])
def test_intervals_of_a_lesion_that_is_mostly_lost_hold_the_truth(shrinkage, truth):
    """The loss is many standard deviations of the noise, and what is left of it shows a part only."""
    assert coverage(shrinkage, truth, 1) < 0.6 and coverage(shrinkage, truth, 2) > 0.9


def coverage(shrinkage, truth, generations):
    """For estimates that keep a share of truth and noise alike, as a quadratic prior does along an eigenvector."""
    rng, cases, count = np.random.default_rng(1), 20000, 5
    keep = 1 - shrinkage
    estimate = keep * (truth + rng.normal(size=cases))
    noise = rng.normal(size=(count, cases))
    once = keep * (estimate + noise)
    errors, again = once - estimate, keep * (once + noise) - once
    corrections = None
    if generations == 2:
        corrections = extrapolated(errors, again) - errors
        errors = errors + corrections
    bias, spread = bias_and_spread(errors, corrections)
    return (np.abs(estimate - bias - truth) <= stdtrit(count - 1, 0.95) * spread).mean()


def test_the_second_generation_finds_a_bias_that_has_gone_already():
    """Of a lesion that has lost a third, data from the map lose a third of what is left."""
    estimate, keep = 2 / 3, 2 / 3
    once = keep * estimate
    errors = np.array([once - estimate])
    again = np.array([keep * once - once])
    assert estimate - errors[0] == pytest.approx(0.89, abs=0.01)
    assert estimate - extrapolated(errors, again)[0] == pytest.approx(0.96, abs=0.01)


def test_known_moduli_are_held_in_the_repetitions():
    """Without them the scale, which nothing else fixes, differed by 1e9 between the map and its repetitions."""
    moved = ef.compression(GRID, strain=0.01)
    m = ef.simulate(GRID, LAW, moved, TRUTH, snr=50.0)
    known = np.full(GRID.shape, np.nan)
    known[-2:] = TRUTH[-2:]
    result = ef.reconstruct(m, prior="tikhonov", weight=10.0, known=known)
    with pytest.raises(ValueError, match="known must be given: no force is known"):
        ef.uncertainty(replace(result, known=None), m, 3)
    sure = ef.uncertainty(result, m, 3)
    assert not sure.relative and not sure.std[-2:].any() and 0 < sure.std[:-2].min() and sure.std.max() < 0.5
    low, middle, high = sure.mean(LESION)
    assert 20e3 < low <= middle <= high < 40e3
    low, middle, high = sure.mean(np.isfinite(known))
    assert low == pytest.approx(10e3) and high == pytest.approx(10e3)


def test_the_scatter_is_that_of_dense_algebra():
    """With a quadratic prior and little noise, log modulus is the linear map (H + w B)^-1 G of the noise."""
    m, weight = scan(), 3.0
    result = ef.reconstruct(m, "tikhonov", weight)
    sure = ef.uncertainty(result, m, DRAWS)
    psi, x = dense_psi(GRID, LAW), result.modulus.ravel()
    kept = LOAD.loaded.ravel()
    stiffness = np.einsum("n,nij->ij", x, psi)[np.ix_(kept, kept)]
    sensitivity = np.einsum("nij,j->in", psi, np.asarray(result.displacement).ravel())[kept] * x
    forward = -np.linalg.solve(stiffness, sensitivity)  # of the displacement, by log modulus
    hessian = forward.T @ forward / STD**2
    model = ef.priors.Tikhonov(GRID).linearize(np.log(x)[None], None)
    prior = np.stack([model.curvature(e[None])[0] for e in np.eye(x.size)])
    inverse = np.linalg.inv(hessian + weight * prior)
    covariance = inverse @ hessian @ inverse
    found = np.cov(sure.errors.reshape(DRAWS, -1).T)
    assert np.trace(found) == pytest.approx(np.trace(covariance), rel=0.15)
    ratio = np.sqrt(np.diag(found) / np.diag(covariance))
    assert ratio.mean() == pytest.approx(1.0, abs=0.08) and np.abs(ratio - 1).max() < 4 / np.sqrt(2 * DRAWS)
    share = LESION.ravel() / LESION.sum()
    expected = np.sqrt(share @ covariance @ share)
    assert np.sqrt(share @ found @ share) == pytest.approx(expected, rel=3 / np.sqrt(2 * DRAWS))
    assert (sure.std >= sure.errors.std(axis=0)).all()


def simulated(m, result, count):
    simulate, rng = _Simulation(m), np.random.default_rng(0)
    return [simulate(result, simulate.noise(rng)) for _ in range(count)]


def test_data_are_simulated_as_they_were_measured():
    """Noise where there was some, of its size, correlated as it was; forces about those that balance the map."""
    std = np.full((2, *GRID.shape), STD)
    std[0], std[1, 2:4, 3:6] = 2 * STD, np.inf
    forces = np.full(std.shape, 1e-3)
    m = scan(std=std, force_std=forces)
    result = ef.reconstruct(m, "tikhonov", 3.0)
    copies = simulated(m, result, 300)
    free = ~LOAD.fixed & np.isfinite(std)
    noise = np.stack([(copy.displacement - result.displacement)[free] / std[free] for copy in copies])
    assert noise.mean() == pytest.approx(0.0, abs=0.02) and noise.std() == pytest.approx(1.0, abs=0.02)
    assert all(np.array_equal(copy.displacement_std, std) for copy in copies)
    assert all((copy.displacement[LOAD.fixed] == LOAD.displacement[LOAD.fixed]).all() for copy in copies[:3])
    balance = m.form.force(result.modulus, result.displacement)[LOAD.loaded]
    drawn = np.stack([copy.load.force[LOAD.loaded] for copy in copies])
    assert (drawn - balance).std() == pytest.approx(1e-3, rel=0.05)
    assert np.abs((drawn - balance).mean(axis=0)).max() < 1e-3 * 5 / np.sqrt(300)

    m = scan(displacement_correlation=[[1.0, 0.6, 0.2], [1.0]])
    copies = simulated(m, result, 300)
    noise = np.stack([(copy.displacement - result.displacement)[:, 2:-2] / STD for copy in copies])
    assert (noise[:, :, 1:] * noise[:, :, :-1]).mean() == pytest.approx(0.6, abs=0.05)
    assert (noise[..., 1:] * noise[..., :-1]).mean() == pytest.approx(0.0, abs=0.05)


def test_outliers_and_a_noise_level_that_was_found_are_those_of_the_result():
    m = scan()
    result = ef.reconstruct(m, "tikhonov", 3.0)
    rejected = np.zeros(m.displacement.shape, bool)
    rejected[0, 3, 3] = True
    seen = ef.uncertainty(replace(result, rejected=rejected), m, 3)
    expected = ef.uncertainty(result, m.derived(displacement_std=np.where(rejected, np.inf, STD)), 3)
    assert np.array_equal(seen.errors, expected.errors)
    quieter = m.derived(displacement_std=STD / 2)
    found = ef.uncertainty(replace(result, fallback="noise", weight=4 * result.weight), quieter, 3)
    level = residual(quieter, result.displacement).level
    assert np.sqrt(level) == pytest.approx(2.0, rel=0.25)
    scatter, expected = (sure.errors - sure.errors.mean(axis=0) for sure in (found, ef.uncertainty(result, m, 3)))
    np.testing.assert_allclose(scatter, np.sqrt(level) / 2 * expected, atol=3e-3)


def test_noise_that_was_estimated_is_that_of_the_result():
    grid = ef.Grid((17, 16), (5e-4, 5e-4))
    truth, _ = ef.inclusion(grid, (4e-3, 4e-3), 2e-3, modulus=30e3, background=10e3)
    m = ef.simulate(grid, LAW, ef.compression(grid, pressure=100.0), truth, snr=35.0, seed=0)
    m = ef.Measurement(grid, LAW, m.load, m.displacement)
    with pytest.warns(UserWarning, match="displacement_std was not given"):
        result = ef.reconstruct(m, "tikhonov", 3.0)
    found = ef.uncertainty(result, m, 3)
    expected = ef.uncertainty(replace(result, noise=None), result.noise.applied(m), 3)
    assert np.array_equal(found.errors, expected.errors)


@pytest.mark.parametrize("kind", ["relative", "open", "triangles", "plane strain"])
def test_other_bodies(kind):
    geometry, law, truth, lesion = GRID, LAW, TRUTH, LESION
    if kind == "plane strain":
        law = ef.PlaneStrain(0.49)
    if kind == "triangles":
        n = np.arange(72).reshape(9, 8)
        a, b, c, d = (s.ravel() for s in (n[:-1, :-1], n[1:, :-1], n[1:, 1:], n[:-1, 1:]))
        geometry = ef.Mesh(GRID.points[:, ::-1], np.concatenate([np.c_[a, b, c], np.c_[a, c, d]]))
        truth, lesion = truth.ravel(), lesion.ravel()
    load = ef.compression(geometry, **{"strain": 0.01} if kind == "relative" else {"pressure": 100.0})
    m = ef.simulate(geometry, law, load, truth, snr=50.0)
    if kind == "open":
        edges = np.ones(m.displacement.shape, bool)
        edges[:, 1:-1, 1:-1] = False
        m = ef.Measurement(GRID, law, ef.Boundary(open=edges), m.displacement, m.displacement_std)
    result = ef.reconstruct(m, "tv", weight=30.0)
    sure = ef.uncertainty(result, m, 4)
    assert sure.errors.shape == (4, *geometry.node_shape) and np.isfinite(sure.errors).all() and (sure.std > 0).all()
    assert sure.relative == result.relative == (kind in ("relative", "open"))
    if sure.relative:
        axes = tuple(range(1, sure.errors.ndim))
        np.testing.assert_allclose(sure.errors.mean(axis=axes), 0.0, atol=1e-12)
    contrast = sure.contrast(lesion, ~lesion)
    assert contrast.low < contrast.high and 0.3 < contrast.low and contrast.high < 30


def test_regions_nodes_and_draws_agree():
    """Normal errors with a known covariance: intervals and draws have the spread that algebra gives."""
    rng = np.random.default_rng(3)
    shared, own = 0.1 * rng.normal(size=(4000, 1, 1)), 0.05 * rng.normal(size=(4000, 9, 8))
    sure = Uncertainty(TRUTH, shared * LESION + own, shared * LESION + own, GRID)
    inside = np.hypot(0.1, 0.05)
    np.testing.assert_allclose(sure.std[LESION], inside, rtol=0.05)
    np.testing.assert_allclose(sure.std[~LESION], 0.05, rtol=0.06)
    low, estimate, high = sure.interval(0.9)
    np.testing.assert_allclose(np.log(high / low)[LESION], 2 * 1.6449 * inside, rtol=0.05)
    assert np.array_equal(estimate, TRUTH)
    mean, contrast = sure.mean(LESION), sure.contrast(LESION, ~LESION)
    count = np.hypot(0.1, 0.05 / np.sqrt(LESION.sum()))
    assert np.log(mean.high / mean.low) == pytest.approx(2 * 1.6449 * count, rel=0.1)
    assert mean.estimate == pytest.approx(30e3) and contrast.estimate == pytest.approx(3.0)
    assert sure.contrast(LESION, ~LESION, 0.5).high < contrast.high
    draws = np.log(sure.draws(2000, seed=1) / TRUTH)
    assert draws.shape == (2000, 9, 8)
    np.testing.assert_allclose(draws.std(axis=0), sure.std, rtol=0.1)
    one, other = draws[:, LESION].T[:2]
    assert np.corrcoef(one, other)[0, 1] == pytest.approx(0.01 / inside**2, abs=0.05)


def test_a_bias_moves_the_interval_and_widens_the_std():
    rng = np.random.default_rng(4)
    errors = 0.01 * rng.normal(size=(8, 1, 1)) - 0.2 * LESION
    sure = Uncertainty(TRUTH, errors, errors, GRID)
    contrast = sure.contrast(LESION, ~LESION)
    assert contrast.low > contrast.estimate  # the reconstruction loses contrast, so the truth has more
    assert contrast.low < 3 * np.exp(0.2) < contrast.high
    np.testing.assert_allclose(sure.std[LESION], 0.2, rtol=0.1)


@pytest.mark.parametrize(("kept", "warned"), [(0.9, False), (0.5, True)])
def test_a_contrast_that_is_mostly_lost_is_warned_about(kept, warned):
    """Reconstructions keep a share of the logarithm of the contrast, which is a third of what it was."""
    modulus = np.where(LESION, 1.5, 1.0)
    lost = (kept - 1) * np.log(modulus) + 1e-3 * np.random.default_rng(0).normal(size=(5, *GRID.shape))
    sure = Uncertainty(modulus, lost, kept * lost, GRID)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        low, _, high = sure.contrast(LESION, ~LESION)
    assert bool(said) == warned and all("hardly resolved" in str(one.message) for one in said)
    if not warned:
        assert low < 1.5 ** (1 / kept) < high


def test_a_prior_without_a_name_has_to_be_given_again():
    m = scan()

    class Mine(ef.priors.Tikhonov):
        pass

    prior = Mine(GRID)
    result = ef.reconstruct(m, prior, 3.0)
    with pytest.raises(ValueError, match="prior must be given: the result was made with an object, 'Mine'"):
        ef.uncertainty(result, m)
    named = ef.uncertainty(ef.reconstruct(m, "tikhonov", 3.0), m, 3)
    np.testing.assert_allclose(ef.uncertainty(result, m, 3, prior=prior).errors, named.errors, atol=1e-10)


def test_what_goes_wrong_is_said(monkeypatch):
    m = scan()
    result = ef.reconstruct(m, "tikhonov", 3.0)
    for arguments, error, message in (
        ((TRUTH, m), TypeError, "result must be a Result"),
        ((result, TRUTH), TypeError, "measurement must be a Measurement"),
        ((result, m, 2), ValueError, "repetitions must be a whole number, 3 or more, got 2"),
        ((replace(result, status="failed"), m), ValueError, "its status is 'failed'"),
        ((replace(result, displacement=np.zeros((2, 3, 3))), m), ValueError, "does not belong to the measurement"),
    ):
        with pytest.raises(error, match=message):
            ef.uncertainty(*arguments)
    with pytest.warns(UserWarning, match=r"chi2 is 3.00: the data are not explained"):
        sure = ef.uncertainty(replace(result, chi2=3.0), m, 3)
    for call, message in (
        (lambda: sure.mean(LESION[1:]), r"mask must be a mask of bool of shape \(9, 8\)"),
        (lambda: sure.mean(0 * LESION), "mask must be a mask of bool"),
        (lambda: sure.contrast(LESION, LESION), "must not overlap"),
        (lambda: sure.interval(90), "level must be a probability between 0 and 1, got 90"),
        (lambda: sure.draws(0), "count must be a positive whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            call()

    def interrupt(entry):
        if entry.get("member"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ef.uncertainty(result, m, 3, progress=interrupt)

    def failing(measurements, *arguments, **options):
        return [replace(result, status="failed" if k else "converged") for k in range(len(measurements))]

    monkeypatch.setattr("elastofast.inversion.uncertainty.reconstruct", failing)
    with pytest.raises(RuntimeError, match="3 of 4 reconstructions of simulated data failed"):
        ef.uncertainty(result, m, 4)


def test_runs_start_afresh(monkeypatch):
    """Splitting that starts at the map stays near it, and so do the boundaries of its lesions."""
    options = {}

    class Flat:
        def target(self, z, shape):
            return z.mean(axis=-1, keepdims=True) + 0 * z

    def noted(*arguments, **given):
        options.update(given)
        return ef.reconstruct(*arguments, **given)

    monkeypatch.setattr(module, "reconstruct", noted)
    m, prior = scan(), Flat()
    sure = ef.uncertainty(ef.reconstruct(m, prior, weight=30.0), m, 3, prior=prior)
    assert "start" not in options and options["optimizer"] == "splitting"
    assert np.isfinite(sure.std).all() and (sure.std > 0).all()


@pytest.mark.parametrize("suffix", [".npz", ".mat", ".h5", ".vtu"])
def test_a_saved_result_keeps_how_sure_it_is(tmp_path, suffix):
    pytest.importorskip("h5py")
    m = scan()
    result = ef.reconstruct(m, "tikhonov", 3.0)
    assert result.std is None
    result.uncertainty = ef.uncertainty(result, m, 3)
    result.save(tmp_path / f"x{suffix}")
    if suffix == ".vtu":
        meshio = pytest.importorskip("meshio")
        assert np.array_equal(meshio.read(tmp_path / "x.vtu").point_data["log_modulus_std"], result.std.ravel())
        return
    modulus, geometry, info = ef.load_modulus(tmp_path / f"x{suffix}")
    assert np.array_equal(info["log_modulus_std"], result.std)
    again = Uncertainty(
        modulus, info["log_modulus_errors"], info["log_modulus_errors_again"], geometry, info["relative"]
    )
    np.testing.assert_allclose(
        again.contrast(LESION, ~LESION), result.uncertainty.contrast(LESION, ~LESION), rtol=1e-12
    )
