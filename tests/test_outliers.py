"""Outliers: which displacements are left out, that no others are, and what that does to the map."""

import numpy as np
import pytest

import elastofast as ef
from elastofast.inversion.outliers import jumps

N = 65
GRID = ef.Grid((N, N), (6e-4, 6e-4))
LAW = ef.PlaneStress(0.495)
LOAD = ef.compression(GRID, pressure=100.0)
TRUTH = np.where(np.hypot(*(GRID.points.T - 19e-3)).reshape(GRID.shape) < 6e-3, 4e4, 1e4)
CLEAN = ef.solve_forward(ef.ElasticForm(GRID, LAW), TRUTH, LOAD)


def measured(snr, seed=0):
    std = np.sqrt(np.mean(CLEAN**2)) * 10 ** (-snr / 20)
    noise = std * np.random.default_rng(seed).standard_normal(CLEAN.shape)
    return np.where(LOAD.fixed, 0.0, CLEAN + noise), std


def measurement(u, std):
    return ef.Measurement(GRID, LAW, LOAD, np.where(LOAD.fixed, 0.0, u), std)


def error(result):
    return np.linalg.norm(result.modulus - TRUTH) / np.linalg.norm(TRUTH)


@pytest.mark.parametrize(("snr", "most"), [(25, 1), (35, 1), (50, 1), (60, 4)])
def test_gaussian_noise_and_lesions_do_not_jump(snr, most):
    """Of 25,152 displacements hardly any; at 60 dB a few at the boundary of the lesion, which noise does not hide."""
    assert sum(int(jumps(measurement(*measured(snr, seed))).sum()) for seed in range(3)) <= most


def test_single_outliers_are_found_and_do_no_harm():
    u, std = measured(35)
    hit = np.random.default_rng(1).random(GRID.shape) < 0.02
    hit &= ~LOAD.fixed[0]
    spoiled = u.copy()
    spoiled[0][hit] += 30 * std * np.random.default_rng(2).choice([-1, 1], int(hit.sum()))
    clean, result = (ef.reconstruct(measurement(field, std), prior="tv") for field in (u, spoiled))
    assert clean.rejected is None
    assert np.array_equal(result.rejected[0], hit) and not result.rejected[1].any()
    assert f"{hit.sum()} of" in result.message and abs(result.chi2 - 1) < 0.1
    assert error(result) < 1.1 * error(clean)


def test_a_wrapped_block_is_found_by_what_it_contradicts():
    u, std = measured(50)
    block = (0, slice(39, 52), slice(39, 52))
    spoiled = u.copy()
    spoiled[block] += 1.5e-4
    result = ef.reconstruct(measurement(spoiled, std), prior="tv")
    assert result.rejected[block].mean() > 0.95 and result.rejected.sum() < 1.8 * result.rejected[block].sum()
    assert error(result) < 1.25 * error(ef.reconstruct(measurement(u, std), prior="tv"))


def test_a_wrong_model_is_not_taken_for_outliers():
    """A wrong Poisson ratio leaves large residuals in whole regions: chi2 goes on saying so."""
    u, std = measured(50)
    wrong = ef.Measurement(GRID, ef.PlaneStress(0.3), LOAD, u, std)
    result = ef.reconstruct(wrong, prior="tv")
    assert result.rejected is None and result.chi2 > 1.3


def test_gaussian_noise_keeps_everything_and_other_words_are_refused():
    u, std = measured(35)
    u[0, 20, 20] += 50 * std
    assert ef.reconstruct(measurement(u, std), prior="tv", noise="gaussian", max_iterations=3).rejected is None
    with pytest.raises(ValueError, match="noise must be one of 'auto', 'gaussian', 'robust', got 'white'"):
        ef.reconstruct(measurement(u, std), noise="white")
