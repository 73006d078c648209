"""Priors: values against direct sums, gradients and curvatures against differences, mesh independence."""

from itertools import permutations

import numpy as np
import pytest

import elastofast as ef
from elastofast.priors import Tikhonov, TotalVariation

GRID = ef.Grid((7, 9), (1e-3, 2e-3))


def triangles(n=9):
    i, j = np.meshgrid(np.arange(n - 1), np.arange(n - 1), indexing="ij")
    a = (i * n + j).ravel()
    cells = np.concatenate([np.stack([a, a + 1, a + n], 1), np.stack([a + 1, a + n + 1, a + n], 1)])
    p = np.stack(np.meshgrid(np.linspace(0, 1, n), np.linspace(0, 1, n), indexing="ij"), -1).reshape(-1, 2)
    return ef.Mesh(0.03 * p, cells)


def tetrahedra(n=4):
    """Cubes of a lattice, each cut into six tetrahedra around a diagonal."""
    corner = np.stack(np.meshgrid(*[np.arange(n - 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    steps = np.array([np.cumsum(np.eye(3, dtype=int)[list(order)], axis=0) for order in permutations(range(3))])
    paths = np.concatenate([np.zeros((6, 1, 3), int), steps], axis=1)
    cells = (corner[:, None, None] + paths).reshape(-1, 4, 3) @ [n * n, n, 1]
    lattice = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1).reshape(-1, 3)
    return ef.Mesh(0.01 * (lattice + 0.1 * np.random.default_rng(4).standard_normal(lattice.shape)), cells)


GEOMETRIES = {"grid": GRID, "square": ef.Grid((6, 5), (1e-3, 1e-3)), "mesh": triangles(), "solid": tetrahedra()}


def modulus(geometry, seed=0):
    return 1e4 * np.exp(0.4 * np.random.default_rng(seed).standard_normal(geometry.node_shape))


@pytest.mark.parametrize("kind", [Tikhonov, TotalVariation])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_gradient_is_the_derivative(kind, geometry):
    prior, x = kind(geometry), modulus(geometry)
    direction = 1e4 * np.random.default_rng(1).standard_normal(geometry.node_shape)
    step = 1e-5
    difference = (prior(x + step * direction)[0] - prior(x - step * direction)[0]) / (2 * step)
    assert np.vdot(prior(x)[1], direction) == pytest.approx(difference, rel=1e-6)


def test_values_are_the_sums_they_claim():
    x = modulus(GRID)
    z, (h0, h1) = np.log(x), GRID.spacing
    d0, d1 = np.zeros_like(z), np.zeros_like(z)
    d0[:-1], d1[:, :-1] = np.diff(z, axis=0) / h0, np.diff(z, axis=1) / h1
    body, cell, s = np.sqrt(6 * h0 * 8 * h1), np.sqrt(h0 * h1), 1e-2
    assert Tikhonov(GRID)(x)[0] == pytest.approx(0.5 * (d0**2 + d1**2).sum() * h0 * h1, rel=1e-12)
    tv = (np.sqrt(d0**2 + d1**2 + (s / cell) ** 2) - s / cell).sum() * h0 * h1 / body
    assert TotalVariation(GRID, smoothing=s)(x)[0] == pytest.approx(tv, rel=1e-12)


@pytest.mark.parametrize("kind", [Tikhonov, TotalVariation])
def test_constant_maps_cost_nothing_and_a_checkerboard_does(kind):
    prior = kind(GRID)
    assert prior(np.full(GRID.shape, 3e4))[0] == pytest.approx(0, abs=1e-12)
    board = np.exp(0.5 * (-1.0) ** np.add.outer(np.arange(7), np.arange(9)))
    assert prior(board)[0] > 0.1


def test_total_variation_of_a_step_does_not_depend_on_the_mesh():
    values = []
    for n in (33, 65, 129):
        grid = ef.Grid((n, n), (0.04 / (n - 1),) * 2)
        x = np.where(np.arange(n)[:, None] < n // 2, 1.0, np.e) * np.ones(n)
        values.append(TotalVariation(grid, smoothing=1e-4)(x)[0])
    assert values == pytest.approx([1, 1, 1], rel=0.05)  # a unit jump across the width of a square


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_tikhonov_curvature_is_its_second_derivative(geometry):
    prior, rng = Tikhonov(geometry), np.random.default_rng(2)
    z, v = np.log(modulus(geometry)).ravel(), rng.standard_normal(geometry.n_nodes)
    model = prior.linearize(z)
    change = prior.linearize(z + v).gradient - model.gradient
    assert np.allclose(model.curvature(v), change, rtol=1e-10, atol=1e-12)
    dense = np.stack([model.curvature(e) for e in np.eye(len(z))])
    assert np.allclose(np.diag(dense), model.diagonal)


def settled_dual(prior, z):
    """The normalised gradient of z: where the dual's own steps end, a twentieth of the way left after each."""
    dual = prior.start_dual()
    for _ in range(20):
        dual = prior.step_dual(dual, z, np.zeros_like(z))
    return dual


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_total_variation_model_is_the_hessian_at_the_optimal_dual_and_positive_at_any(geometry):
    prior, rng = TotalVariation(geometry), np.random.default_rng(3)
    z = np.log(modulus(geometry)).ravel()
    dual = settled_dual(prior, z)  # at its optimum the model is the Hessian of R
    model = prior.linearize(z, dual)
    v, step = rng.standard_normal(len(z)), 1e-6
    change = (prior.linearize(z + step * v, dual).gradient - prior.linearize(z - step * v, dual).gradient) / (2 * step)
    assert np.allclose(model.curvature(v), change, rtol=1e-5, atol=1e-6 * np.abs(change).max())
    dense = np.stack([model.curvature(e) for e in np.eye(len(z))])
    assert np.allclose(dense, dense.T)
    if geometry.dim == 2:
        ratio = np.diag(dense) / model.diagonal  # the preconditioner leaves out how the axes couple
        assert ratio.min() > 0.05 and ratio.max() < 5
    for _ in range(5):  # any dual of length below one gives a positive semidefinite model, and stays that short
        dz = rng.standard_normal(len(z))
        dual = prior.step_dual(dual * 0.99, z, dz)
        assert (dual**2).sum(axis=0).max() <= 1
        w = rng.standard_normal(len(z))
        assert np.vdot(w, prior.linearize(z, dual).curvature(w)) >= 0


def test_members_of_a_batch_have_their_own_models():
    prior, rng = TotalVariation(GRID), np.random.default_rng(6)
    z, dz, v = 0.4 * rng.standard_normal((3, 4, GRID.n_nodes))
    dual = prior.step_dual(prior.start_dual(), z, dz)
    together = prior.linearize(z, dual)
    for k in range(4):
        alone = prior.linearize(z[k], prior.step_dual(prior.start_dual(), z[k], dz[k]))
        assert together.value[k] == pytest.approx(alone.value, rel=1e-13)
        for many, one in (
            (together.gradient, alone.gradient),
            (together.curvature(v), alone.curvature(v[k])),
            (together.diagonal, alone.diagonal),
        ):
            assert np.allclose(many[k], one, rtol=1e-12, atol=1e-13)


def test_batches_have_one_value_each_and_bad_maps_are_refused():
    prior, x = Tikhonov(GRID), np.stack([modulus(GRID, 1), modulus(GRID, 2)])
    values, gradients = prior(x)
    assert values.shape == (2,) and gradients.shape == x.shape
    assert values[1] == prior(x[1])[0]
    with pytest.raises(ValueError, match="x must be positive and finite"):
        prior(-x)
    with pytest.raises(ValueError, match=r"x must have shape \(..., \(7, 9\)\), got \(3, 3\)"):
        prior(np.ones((3, 3)))
    with pytest.raises(ValueError, match="smoothing must be positive"):
        TotalVariation(GRID, smoothing=0)
