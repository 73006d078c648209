"""Noise that nobody stated, estimated from the displacement, against the noise that was added."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

import elastofast as ef
from elastofast.inversion.noise_estimate import NoiseEstimate, estimate_noise
from elastofast.plots import plot_result

N = 49
GRID = ef.Grid((N, N), (8e-4, 8e-4))
LAW = ef.PlaneStress(0.45)
LOAD = ef.compression(GRID, pressure=100.0)
TRUTH = np.where(np.hypot(*(GRID.points.T - 19e-3)).reshape(GRID.shape) < 6e-3, 4e4, 1e4)
CLEAN = ef.solve_forward(ef.ElasticForm(GRID, LAW), TRUTH, LOAD)
LEVEL = np.sqrt(np.mean(CLEAN**2)) * 10 ** (-35 / 20)


def noise(std, width=0.0, seed=0, shape=GRID.shape):
    """Noise with a standard deviation for each component, blurred over ``width`` nodes."""
    fields = np.random.default_rng(seed).standard_normal((2, *shape))
    if width:
        fields = np.stack([gaussian_filter(field, width, mode="wrap") for field in fields])
    return np.reshape(std, (2, 1, 1)) * fields / fields.std(axis=(1, 2), keepdims=True)


def measurement(u, load=LOAD, **options):
    return ef.Measurement(GRID, LAW, load, np.where(load.fixed, 0.0, u), **options)


def test_independent_noise_is_found_for_each_component():
    std = np.array([LEVEL, 3 * LEVEL])
    found = estimate_noise(measurement(CLEAN + noise(std)))
    np.testing.assert_allclose(found.std, std, rtol=0.05)
    assert found.correlation_length == (0.0, 0.0)


@pytest.mark.parametrize("width", [1.0, 2.0])
def test_correlated_noise_is_found_with_its_length(width):
    """Blurring by a Gaussian of width w gives a correlation length of 2 w."""
    found = estimate_noise(measurement(CLEAN + noise([LEVEL, LEVEL], width)))
    np.testing.assert_allclose(found.std, LEVEL, rtol=0.1)
    np.testing.assert_allclose(found.correlation_length, 2 * width * 8e-4, rtol=0.2)


def test_missing_values_outliers_and_open_edges_do_not_mislead():
    u = CLEAN + noise([LEVEL, LEVEL])
    hit = np.random.default_rng(1).random(GRID.shape) < 0.01
    u[0][hit] += 40 * LEVEL
    u[1, 15:24, 4:10] = np.nan
    np.testing.assert_allclose(estimate_noise(measurement(u)).std, LEVEL, rtol=0.1)
    free = ef.Boundary(open=np.broadcast_to(LOAD.open | edges(), LOAD.open.shape))
    u = CLEAN + noise([LEVEL, LEVEL])
    u[1] = np.nan
    found = estimate_noise(ef.Measurement(GRID, LAW, free, u))
    assert np.isinf(found.std[1]) and found.std[0] == pytest.approx(LEVEL, rel=0.1)
    assert "not measured" in str(found)


def edges():
    mask = np.ones((2, *GRID.shape), bool)
    mask[:, 1:-1, 1:-1] = False
    return mask


def test_a_mesh_gets_a_standard_deviation():
    grid = ef.Grid((25, 25), (16e-4, 16e-4))
    first = (np.arange(24)[:, None] * 25 + np.arange(24)).reshape(-1, 1)
    mesh = ef.Mesh(grid.points, first + np.array([0, 1, 26, 25]))
    load = ef.compression(mesh, pressure=100.0)
    clean = ef.solve_forward(ef.ElasticForm(mesh, LAW), TRUTH[::2, ::2].ravel(), load)
    u = np.where(load.fixed, 0.0, clean + noise([LEVEL, LEVEL], shape=grid.shape).reshape(clean.shape))
    found = estimate_noise(ef.Measurement(mesh, LAW, load, u))
    np.testing.assert_allclose(found.std, LEVEL, rtol=0.1)
    assert found.correlation_length == (0.0, 0.0) and found.autocorrelation == ()


def test_too_few_displacements_are_refused():
    grid = ef.Grid((9, 9), (4e-3, 4e-3))
    load = ef.compression(grid, pressure=100.0)
    u = ef.solve_forward(ef.ElasticForm(grid, LAW), np.full(grid.shape, 1e4), load)
    with pytest.raises(
        ef.DataError, match=r"displacement_std was not given, and 15\d measured .* too few .*: state it"
    ):
        ef.reconstruct(ef.Measurement(grid, LAW, load, u))


def test_reconstruct_estimates_warns_and_draws(tmp_path):
    m = measurement(CLEAN + noise([LEVEL, LEVEL]))
    assert not m.noise_known and "noise not known" in repr(m)
    with pytest.raises(ValueError, match=r"displacement_std was not given.*estimate_noise"):
        ef.Fidelity(m)
    with pytest.warns(UserWarning, match=r"displacement_std was not given. It is estimated .*: displacement_std \d"):
        result = ef.reconstruct(m, prior="tv")
    stated = ef.reconstruct(result.noise.applied(m), prior="tv")
    np.testing.assert_array_equal(result.modulus, stated.modulus)
    assert stated.noise is None and abs(result.chi2 - 1) < 0.1
    figure = plot_result(result, m, tmp_path / "r.png")
    assert any("estimated noise" in axes.get_title(loc="left") for axes in figure.axes)
    for name in ("m.h5", "m.npz"):
        m.save(tmp_path / name)
        again = ef.load_measurement(tmp_path / name)
        assert not again.noise_known
        np.testing.assert_array_equal(again.displacement, m.displacement)


def test_an_estimate_is_applied_where_something_was_measured():
    u = CLEAN.copy()
    u[0, 3, 4] = np.nan
    m = measurement(u)
    stated = NoiseEstimate(np.array([1e-6, np.inf]), (1e-3, 0.0), ()).applied(m)
    assert stated.noise_known and np.isinf(stated.displacement_std[0, 3, 4])
    assert stated.displacement_std[0, 0, 0] == 1e-6 and np.isinf(stated.displacement_std[1]).all()
    assert stated.displacement_correlation[0][1] == pytest.approx(np.exp(-((8e-4 / 1e-3) ** 2)))


def test_a_poisson_ratio_that_is_estimated_does_not_count_as_noise():
    """At the stated ratio the noise would be 1.4 times as strong, and correlated."""
    grid = ef.Grid((33, 33), (1e-3, 1e-3))
    truth, _ = ef.inclusion(grid, (14e-3, 18e-3), 6e-3, modulus=40e3, background=12e3)
    m = ef.simulate(grid, ef.PlaneStress(0.495), ef.compression(grid, pressure=100.0), truth, snr=35.0)
    with pytest.warns(UserWarning, match="displacement_std was not given"):
        found = ef.reconstruct(
            ef.Measurement(grid, ef.PlaneStress(0.35), m.load, m.displacement),
            prior="tv",
            poisson="estimate",
            progress=False,
        )
    np.testing.assert_allclose(found.noise.std, m.displacement_std[:, 16, 16], rtol=0.05)
    assert found.noise.correlation_length == (0.0, 0.0)
    assert found.poisson == pytest.approx(0.495, abs=0.005)
