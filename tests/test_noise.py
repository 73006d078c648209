"""Correlated noise of the displacements against dense matrices, and what it changes in a reconstruction."""

import numpy as np
import pytest
from scipy.linalg import toeplitz
from scipy.ndimage import gaussian_filter

import elastofast as ef
from elastofast.backend.device import HOST
from elastofast.inversion.coarsen import coarsen
from elastofast.misfit import noise as noise_module
from elastofast.misfit.fidelity import Fidelity
from elastofast.misfit.noise import WHITE_SHARE, CorrelatedNoise

SHAPE = (7, 9)
GRID = ef.Grid(SHAPE, (1e-3, 2e-3))
CORRELATIONS = (0.8 ** np.arange(7.0), np.exp(-((np.arange(9) / 2) ** 2)))


def dense_covariance(std, observed):
    """The covariance matrix of the measured displacements, component after component."""
    smooth = np.kron(toeplitz(CORRELATIONS[0]), toeplitz(CORRELATIONS[1]))
    each = (1 - WHITE_SHARE) * smooth + WHITE_SHARE * np.eye(smooth.shape[0])
    full = np.kron(np.eye(2), each) * np.outer(std, std)
    return full[np.ix_(observed, observed)]


@pytest.mark.parametrize("missing", ["none", "edge and a node", "many"])
@pytest.mark.parametrize("columns", [True, False])
def test_precision_and_covariance_are_the_dense_ones(missing, columns, monkeypatch):
    rng = np.random.default_rng(0)
    if not columns:  # conjugate gradients in place of the columns of the precision
        monkeypatch.setattr(noise_module, "MAX_COLUMN_VALUES", 0)
    std = rng.uniform(1e-7, 1e-6, (2, *SHAPE))
    observed = np.ones((2, *SHAPE), bool)
    if missing == "edge and a node":
        observed[0, -1] = observed[1, 3, 4] = False
    elif missing == "many":
        observed[:, rng.random(SHAPE) < 0.3] = False
    model = CorrelatedNoise(HOST, std.reshape(2, -1), observed.reshape(2, -1), SHAPE, CORRELATIONS)
    places = np.flatnonzero(observed)
    covariance = dense_covariance(std.ravel(), places)
    e = rng.standard_normal((2, GRID.n_nodes)) * std.reshape(2, -1)
    expected = np.linalg.solve(covariance, e.ravel()[places])
    found = model.precision(e).ravel()
    np.testing.assert_allclose(found[places], expected, atol=1e-6 * np.abs(expected).max())
    assert not np.delete(found, places).any()
    product = model.covariance(expected_field := np.where(observed, found.reshape(2, *SHAPE), 0).reshape(2, -1))
    np.testing.assert_allclose(product.ravel()[places], covariance @ expected_field.ravel()[places], rtol=1e-9)


def test_draws_have_the_stated_covariance():
    rng = np.random.default_rng(1)
    std = np.full((2, GRID.n_nodes), 2e-7)
    model = CorrelatedNoise(HOST, std, np.ones(std.shape, bool), SHAPE, CORRELATIONS)
    draws = np.stack([model.draw(rng.standard_normal(std.shape)).ravel() for _ in range(4000)]) / 2e-7
    covariance = dense_covariance(np.ones(std.size), np.arange(std.size))
    assert np.abs(draws.T @ draws / len(draws) - covariance).max() < 7 / np.sqrt(len(draws))


@pytest.mark.parametrize("kind", ["compression", "all open", "force noise"])
def test_data_term_and_gradient_are_those_of_the_dense_covariance(kind):
    """J against r^T Gamma^-1 r with the dense Gamma, its gradient against differences of that."""
    rng = np.random.default_rng(2)
    law, load = ef.PlaneStress(0.4), ef.compression(GRID, pressure=100.0)
    form, x = ef.ElasticForm(GRID, law), rng.uniform(1e4, 3e4, SHAPE)
    u = ef.solve_forward(form, x, load)
    std, force_std = 1e-6, 1e-3 if kind == "force noise" else 0.0
    if kind == "all open":
        is_open = np.zeros((2, *SHAPE), bool)
        is_open[:, [0, -1]] = is_open[:, :, [0, -1]] = True
        load = ef.Boundary(open=is_open)
    u = np.where(load.fixed, 0, u + std * rng.standard_normal(u.shape))
    m = ef.Measurement(GRID, law, load, u, std, force_std, displacement_correlation=CORRELATIONS)
    rows, noisy = np.flatnonzero(load.loaded), np.flatnonzero(~load.fixed)
    covariance = dense_covariance(np.full(u.size, std), noisy)

    def dense(x):
        k = form.stiffness(x).toarray()[rows]
        r = load.force.ravel()[rows] - k @ u.ravel()
        gamma = k[:, noisy] @ covariance @ k[:, noisy].T + force_std**2 * np.eye(len(rows))
        return 0.5 * r @ np.linalg.solve(gamma, r)

    at = 1.1 * x
    value, gradient = Fidelity(m, rtol=1e-10)(at)
    assert abs(value - dense(at)) < 1e-5 * value
    direction, h = at * rng.standard_normal(SHAPE), 1e-4
    slope = (dense(at + h * direction) - dense(at - h * direction)) / (2 * h)
    assert abs(np.vdot(gradient, direction) - slope) < 1e-4 * abs(slope)


def test_coarse_copies_of_correlated_noise_keep_its_statistics():
    """The noise that coarsening leaves against the level that the coarse measurement states."""
    rng = np.random.default_rng(3)
    grid, law = ef.Grid((96, 96), (4e-4, 4e-4)), ef.PlaneStress(0.4)
    load, length = ef.compression(grid, strain=0.01), 4 * 4e-4
    width = length / 2 / 4e-4
    noise = np.stack([gaussian_filter(c, width, mode="wrap") for c in rng.standard_normal((2, *grid.shape))])
    noise *= 1e-6 / noise.std()
    smooth = np.linspace(0, 1e-4, 96)[:, None] * np.ones(grid.shape)
    m = ef.Measurement(
        grid, law, load, np.where(load.fixed, load.displacement, smooth + noise), 1e-6, displacement_correlation=length
    )
    coarse, clean = coarsen(m), coarsen(ef.Measurement(grid, law, load, np.stack([smooth, smooth]), 1e-6))
    inside = (slice(None), slice(4, -4), slice(4, -4))
    left = (coarse.displacement - clean.displacement)[inside]
    assert abs(left[1].std() / coarse.displacement_std[inside][1].mean() - 1) < 0.25
    expected = np.exp(-((np.arange(48) * coarse.geometry.spacing[0] / length) ** 2))
    np.testing.assert_allclose(coarse.displacement_correlation[0], expected, atol=0.02)


def test_stating_the_correlation_gives_a_better_map():
    """On a grid of half the nodes of the one that the data come from; chi2 is then about one."""
    rng = np.random.default_rng(5)
    n = 65
    fine, grid = (ef.Grid((k, k), (38.4e-3 / (k - 1),) * 2) for k in (2 * n - 1, n))
    law, inside = ef.PlaneStress(0.495), lambda g: np.hypot(*(g.points.T - 19.2e-3)).reshape(g.shape) < 6e-3
    truth = {g: np.where(inside(g), 4e4, 1e4) for g in (fine, grid)}
    u = ef.solve_forward(ef.ElasticForm(fine, law), truth[fine], ef.compression(fine, pressure=100.0))[:, ::2, ::2]
    noise = np.stack([gaussian_filter(c, 1.5, mode="wrap") for c in rng.standard_normal(u.shape)])
    std = 10 ** (-35 / 20) * np.sqrt(np.mean(u**2))
    load, length = ef.compression(grid, pressure=100.0), 3 * grid.spacing[0]
    u = np.where(load.fixed, 0, u + noise * std / noise.std())
    maps = {
        c: ef.reconstruct(ef.Measurement(grid, law, load, u, std, displacement_correlation=c), prior="tv")
        for c in (None, length)
    }
    error = {c: np.linalg.norm(r.modulus - truth[grid]) / np.linalg.norm(truth[grid]) for c, r in maps.items()}
    assert maps[None].chi2 < 0.7 and abs(maps[length].chi2 - 1) < 0.3
    assert error[length] < 0.7 * error[None]


def test_a_learned_prior_does_not_override_data_with_correlated_noise():
    """Its weight is that for independent noise as strong as this one in what is smooth. That of the rough parts, where
    correlated noise is faint, would make the map all but homogeneous.
    """
    pytest.importorskip("torch")
    grid, law = ef.Grid((97, 97), (4e-4, 4e-4)), ef.PlaneStress(0.45)
    truth, _ = ef.inclusion(grid, (19e-3, 19e-3), 6e-3, modulus=40e3, background=10e3)
    load, length = ef.compression(grid, pressure=100.0), 4 * 4e-4
    u = ef.solve_forward(ef.ElasticForm(grid, law), truth, load)
    noise = np.stack([gaussian_filter(c, 2.0, mode="wrap") for c in np.random.default_rng(0).standard_normal(u.shape)])
    std = 10 ** (-45 / 20) * np.sqrt(np.mean(u**2))
    m = ef.Measurement(
        grid, law, load, np.where(load.fixed, 0.0, u + noise * std / noise.std()), std, displacement_correlation=length
    )
    result = ef.reconstruct(m, prior="critic")
    assert np.linalg.norm(result.modulus - truth) < 0.15 * np.linalg.norm(truth)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1e-3, "displacement_correlation must be finite lengths"),
        (1.0, "longer than the grid"),
        ([1e-3] * 3, "for each of 2 axes, got 3"),
        ([[0.9, 0.5], [1.0]], "begins with 1"),
    ],
)
def test_correlations_that_do_not_fit_are_refused(value, message):
    load = ef.compression(GRID, pressure=100.0)
    u = np.where(load.fixed, 0, np.full((2, *SHAPE), 1e-6))
    with pytest.raises(ValueError, match=message):
        ef.Measurement(GRID, ef.PlaneStress(0.4), load, u, 1e-7, displacement_correlation=value)
