"""Difference operators against dense matrices built with loops."""

import numpy as np
import pytest

import elastofast as ef
from elastofast.priors.differences import difference_operator

GRIDS = [ef.Grid((4, 5), (1e-3, 2e-3)), ef.Grid((2, 7), (1e-3, 1e-3))]


def dense(grid):
    """Rows are component times node: forward differences, lengths in cells of mean size, no row on the last line."""
    (n0, n1), (h0, h1) = grid.shape, grid.spacing
    size = np.sqrt(h0 * h1)
    matrix = np.zeros((2, n0, n1, n0, n1))
    for i in range(n0):
        for j in range(n1):
            if i + 1 < n0:
                matrix[0, i, j, i + 1, j], matrix[0, i, j, i, j] = size / h0, -size / h0
            if j + 1 < n1:
                matrix[1, i, j, i, j + 1], matrix[1, i, j, i, j] = size / h1, -size / h1
    return matrix.reshape(2 * grid.n_nodes, grid.n_nodes)


@pytest.mark.parametrize("batch", [(), (1,), (3, 2)], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_grid_differences_are_the_dense_matrix(grid, batch):
    operator, matrix = difference_operator(grid), dense(grid)
    rng, n = np.random.default_rng(0), grid.n_nodes
    z, c = rng.standard_normal((*batch, n)), rng.standard_normal((2, *batch, n))
    field = operator.gradient(z)
    expected = (z @ matrix.T).reshape(*batch, 2, n)
    for axis, part in enumerate(field.parts):
        np.testing.assert_allclose(part, expected[..., axis, :], rtol=1e-13, atol=1e-14)
        lines = np.moveaxis(part.reshape(*batch, *grid.shape), len(batch) + axis, -1)
        assert np.all(lines[..., -1] == 0)
    for part, factor in zip(field.parts, c, strict=True):
        part *= factor
    weighted = np.moveaxis(c, 0, -2) * expected
    back = operator.gradient_back(field)
    np.testing.assert_allclose(back, weighted.reshape(*batch, -1) @ matrix, rtol=1e-12, atol=1e-13)
    # without the scales, into memory that was used before
    scale = np.repeat(operator.scales, n)[:, None]
    again = operator.changes(z, out=field)
    assert again is field
    np.testing.assert_allclose(operator.back(again), z @ ((matrix / scale).T @ (matrix / scale)).T, rtol=0, atol=1e-13)
    diagonal = ((matrix / scale) ** 2).T @ np.moveaxis(c, 0, -2).reshape(-1, 2 * n).T
    np.testing.assert_allclose(operator.diagonal(tuple(c)), diagonal.T.reshape(*batch, n), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_back_is_the_transpose(grid):
    operator, rng = difference_operator(grid), np.random.default_rng(1)
    z, y = rng.standard_normal((2, grid.n_nodes))
    field = operator.changes(y)
    for part in field.parts:
        part *= rng.standard_normal(part.shape)
    assert np.vdot(operator.changes(z).array, field.array) == pytest.approx(np.vdot(z, operator.back(field)), rel=1e-12)


def test_mesh_gradient_of_a_linear_field_is_its_slope():
    points = np.array([[0, 0, 0], [2, 0, 0], [0, 3, 0], [0, 0, 4], [2, 3, 4]]) * 1e-3
    mesh = ef.Mesh(points, [[0, 1, 2, 3], [1, 2, 3, 4]])
    operator, slope = difference_operator(mesh), np.array([1.0, -2.0, 5.0])
    volumes = [2e-3 * 3e-3 * 4e-3 / 6, 2e-3 * 3e-3 * 4e-3 / 3]
    for axis, part in enumerate(operator.gradient(points @ slope).parts):
        np.testing.assert_allclose(part, slope[axis] * np.cbrt(volumes), rtol=1e-12)
    rng = np.random.default_rng(2)
    z, c = rng.standard_normal(5), rng.standard_normal((3, 2))
    columns = np.stack([operator.changes(e).array.ravel() for e in np.eye(5)], axis=-1)
    np.testing.assert_allclose(operator.diagonal(tuple(c)), (columns**2).T @ c.ravel(), rtol=1e-12)
    field = operator.changes(z)
    np.testing.assert_allclose(operator.back(field), columns.T @ field.array.ravel(), rtol=1e-12)
