"""Explicit energies: their automatic weight, and the critic's squared distance."""

import numpy as np
import pytest

import elastofast as ef
from elastofast import priors


@pytest.fixture(scope="module")
def scan():
    grid = ef.Grid((33, 33), (1e-3, 1e-3))
    x, _ = ef.inclusion(grid, (15e-3, 17e-3), 6e-3, 40e3, 12e3)
    return ef.simulate(grid, ef.PlaneStress(0.45), ef.compression(grid, pressure=100.0), x, snr=35.0, seed=3)


def error(result, m):
    return ef.metrics.relative_l2(result.modulus, m.reference)


def test_a_sound_energy_keeps_its_weight(scan):
    tv = priors.TotalVariation(scan.geometry)
    result = ef.reconstruct(scan, prior=lambda x: tv(x))
    raw = ef.reconstruct(scan, prior="none")
    assert result.optimizer == "l-bfgs" and not result.fallback and error(result, scan) < 0.9 * error(raw, scan)
    assert [row["prior"] for row in result.comparison] == ["none", result.prior]


@pytest.mark.parametrize("kind", ["stiffer", "wrong map", "steep"])
def test_a_harmful_energy_does_not_return_a_worse_map(scan, kind):
    rng = np.random.default_rng(0)
    there = rng.integers(0, 33, 2)

    def energy(x):
        z = np.log(x)
        if kind == "stiffer":  # unbounded below: the stiffer the truer
            return -40.0 * z.sum(), -40.0 / x
        if kind == "steep":  # one node is all that matters
            gradient = np.zeros_like(x)
            gradient[tuple(there)] = -1e3 / x[tuple(there)]
            return -1e3 * z[tuple(there)], gradient
        away = z - np.log(12e3)  # a map without the lesion
        return 50.0 * (away**2).sum(), 100.0 * away / x

    result = ef.reconstruct(scan, prior=energy)
    raw = ef.reconstruct(scan, prior="none")
    assert error(result, scan) <= 1.02 * error(raw, scan), result.message
    if result.fallback:
        assert "too much for prior" in result.message and len(result.comparison) > 2
    if result.fallback == "prior":
        assert result.prior == "none" and np.array_equal(result.modulus, raw.modulus)


@pytest.mark.parametrize("kind", ["stiffer", "sound"])
def test_several_frames_are_rehearsed_too(scan, kind):
    """An energy that makes the map stiffer does no harm, and a sound one is kept."""
    u, rng = scan.displacement, np.random.default_rng(7)
    other = scan.derived(displacement=u + rng.normal(size=u.shape) * scan.displacement_std)
    tv = priors.TotalVariation(scan.geometry)
    energies = {"stiffer": lambda x: (-40.0 * np.log(x).sum(), -40.0 / x), "sound": lambda x: tv(x)}
    result = ef.reconstruct([scan, other], energies[kind], joint=True)
    raw = ef.reconstruct([scan, other], "none", joint=True)
    assert len(result.comparison) > 1 and len(result.frame_chi2) == 2
    if kind == "stiffer":
        assert error(result, scan) <= 1.02 * error(raw, scan), result.message
    else:
        assert not result.fallback and error(result, scan) < 0.9 * error(raw, scan)


def test_a_given_weight_is_taken_as_it_is(scan):
    tv = priors.TotalVariation(scan.geometry)
    result = ef.reconstruct(scan, prior=lambda x: tv(x), weight=50.0, max_iterations=3)
    assert result.weight == 50.0 and not result.comparison


# the critic's energy -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def squared(scan):
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    return priors.SquaredCritic(priors.Critic.load(), scan.geometry)


def test_the_energy_is_half_the_squared_distance_with_its_true_gradient(scan, squared):
    rng = np.random.default_rng(0)
    z = np.log(scan.reference)[None] + 0.1 * rng.normal(size=(2, 33, 33))
    flat = z.reshape(2, -1)
    away = flat - squared.critic.target(flat, (33, 33))
    np.testing.assert_allclose(squared.value(flat), 0.5 * (away**2).sum(axis=1), rtol=1e-5)
    model, d = squared.linearize(flat), rng.normal(size=flat.shape)
    step = 1e-3
    slope = (squared.value(flat + step * d) - squared.value(flat - step * d)) / (2 * step)
    np.testing.assert_allclose((model.gradient * d).sum(axis=1), slope, rtol=5e-3)
    value, gradient = squared(np.exp(z))
    np.testing.assert_allclose(value, model.value, rtol=1e-6)
    np.testing.assert_allclose(gradient * np.exp(z), model.gradient.reshape(z.shape), rtol=1e-5, atol=1e-9)
    single, _ = squared(np.exp(z[0]))
    assert isinstance(single, float) and single == pytest.approx(value[0])
    with pytest.raises(ValueError, match="the energy was made for"):
        squared.check(ef.Grid((34, 33), (1e-3, 1e-3)))


@pytest.mark.parametrize("optimizer", ["gauss-newton", "l-bfgs"])
def test_the_objective_falls_at_every_accepted_step(scan, squared, optimizer):
    raw, weight = ef.reconstruct(scan, prior="none"), 100.0
    maps, fidelity = [raw.modulus], ef.Fidelity(scan)

    result = ef.reconstruct(
        scan, prior=squared, weight=weight, optimizer=optimizer, start=raw.modulus, max_iterations=25
    )
    objective = [entry["objective"] for entry in result.history]
    first = fidelity(maps[0])[0] + weight * squared(maps[0])[0]
    assert (np.diff([first, *objective]) < 0).all()
    last = fidelity(result.modulus)[0] + weight * squared(result.modulus)[0]
    assert last == pytest.approx(objective[-1], rel=1e-4)
    assert error(result, scan) < error(raw, scan)
