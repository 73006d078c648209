"""The same measurement on a coarser grid, and maps carried back to the finer one."""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_banded
from scipy.sparse import csr_array, diags_array

from ..backend.device import namespace
from ..boundary import Boundary, check_support
from ..geometry import Grid
from ..measurement import Measurement

__all__ = ["coarsen", "refine", "sample", "uniform"]

# Nodes along the shorter axis of the coarsest grid: on fewer, coarse maps hardly help as a start. Not studied.
COARSEST_NODES = 48
# Largest ratio of two noise levels that averages of neighbours may mix: beyond it the average would throw the better
# data away. Not studied.
MAX_STD_RATIO = 30.0


def coarsen(measurement, smallest=COARSEST_NODES):
    """The measurement on a grid of half the nodes along each axis.

    Displacements are fitted by linear interpolation from the coarse nodes: least squares along each axis, which keeps
    linear fields exact. The noise levels shrink accordingly. Nodal forces are distributed by the transposed
    interpolation, which keeps resultants. Fixed and open dofs go to the nearest coarse node.

    Parameters
    ----------
    measurement : Measurement
    smallest : int
        Least number of nodes that the shorter axis of the coarse grid may have.

    Returns
    -------
    Measurement or None
        None where a coarse copy makes no sense: on a mesh, a small grid, with noise levels that must not be averaged,
        or where the support would be lost.
    """
    m, grid = measurement, measurement.geometry
    if not isinstance(grid, Grid) or min(grid.shape) < 2 * smallest:
        return None
    if not uniform(m):
        return None
    free, std = ~m.load.fixed, m.displacement_std
    shape = tuple((n + 1) // 2 for n in grid.shape)
    spacing = tuple(h * (n - 1) / (k - 1) for h, n, k in zip(grid.spacing, grid.shape, shape, strict=True))
    coarse = Grid(shape, spacing)
    places = [_places(n, k) for n, k in zip(grid.shape, shape, strict=True)]

    displacement = m.displacement
    variance = np.where(free, std**2, np.mean(std[free] ** 2))
    for axis, (cell, share, k) in enumerate(places, start=1):
        displacement, gain = _fit(displacement, axis, cell, share, k)
        variance = _spread(variance, axis, cell, share, k, average=True) * gain
    force, force_variance = m.load.force, m.force_std**2
    for axis, (cell, share, k) in enumerate(places, start=1):
        force = _spread(force, axis, cell, share, k)
        force_variance = _spread(force_variance, axis, cell, share, k)

    fixed, fixed_value = _nearest(m.load.fixed, places, shape, m.load.displacement)
    open_, _ = _nearest(m.load.open, places, shape)
    open_ &= ~fixed
    load = Boundary(
        fixed=fixed,
        displacement=np.where(fixed, fixed_value, 0.0),
        force=np.where(fixed | open_, 0.0, force),
        open=open_,
    )
    try:
        check_support(coarse, load)
    except ValueError:
        return None  # the support does not survive coarsening
    force_std = np.where(fixed | open_, 0.0, np.sqrt(force_variance))
    return Measurement(coarse, m.law, load, displacement, np.sqrt(variance), force_std, device=m.device)


def uniform(measurement):
    """Whether the noise levels are alike enough to be averaged."""
    std = measurement.displacement_std[~measurement.load.fixed]
    return bool(np.isfinite(std).all() and std.max() <= MAX_STD_RATIO * std.min())


def sample(fine, coarse):
    """The coarse measurement with noise as large as that of single displacements of the fine one.

    The discretisation error of the coarse grid is small beside such noise.
    """
    nodes = np.ix_(
        *(np.rint(np.linspace(0, n - 1, k)).astype(int)
          for n, k in zip(fine.geometry.shape, coarse.geometry.shape, strict=True))
    )  # fmt: skip
    # The residual of the fit at the nearest fine node is added, so that coarse and fine nodes need not coincide.
    rest = fine.displacement - refine(coarse.displacement, coarse.geometry, fine.geometry)
    displacement = coarse.displacement + np.stack([component[nodes] for component in rest])
    std = np.stack([component[nodes] for component in fine.displacement_std])
    std = np.where(std > 0, std, coarse.displacement_std)
    return Measurement(
        coarse.geometry, coarse.law, coarse.load, displacement, std, coarse.force_std, device=fine.device
    )


def refine(field, coarse, fine):
    """Node field (..., *coarse.shape) interpolated linearly to the fine grid that it was coarsened from."""
    for axis, (n, k) in enumerate(zip(fine.shape, coarse.shape, strict=True)):
        axis += field.ndim - 2
        xp = namespace(field)
        cell, share = (xp.asarray(a) for a in _places(n, k)[:2])
        weight = share.reshape(-1, *[1] * (field.ndim - 1 - axis))
        field = np.take(field, cell, axis) * (1 - weight) + np.take(field, cell + 1, axis) * weight
    return field


def _places(n, k):
    """Coarse cell and place in it, from 0 to 1, of n evenly spaced nodes among k."""
    position = np.arange(n) * ((k - 1) / (n - 1))
    cell = np.minimum(position.astype(int), k - 2)
    return cell, position - cell, k


def _spread(field, axis, cell, share, k, average=False):
    """Transposed interpolation along one axis; with ``average`` divided by the weights that arrive."""
    rows, n = np.moveaxis(field, axis, 0), len(cell)
    weights, to = np.concatenate([1 - share, share]), np.concatenate([cell, cell + 1])
    transposed = csr_array((weights, (to, np.tile(np.arange(n), 2))), shape=(k, n))
    if average:
        transposed = diags_array(1 / transposed.sum(axis=1)) @ transposed
    return np.moveaxis((transposed @ rows.reshape(n, -1)).reshape(k, *rows.shape[1:]), 0, axis)


def _fit(field, axis, cell, share, k):
    """Least-squares coarse values along one axis, and the factor by which noise variance shrinks."""
    diagonal = np.bincount(cell, (1 - share) ** 2, k) + np.bincount(cell + 1, share**2, k)
    beside = np.bincount(cell, (1 - share) * share, k)[: k - 1]
    bands = np.zeros((3, k))
    bands[0, 1:], bands[1], bands[2, :-1] = beside, diagonal, beside
    rhs = np.moveaxis(_spread(field, axis, cell, share, k), axis, 0)
    solution = solve_banded((1, 1), bands, rhs.reshape(k, -1)).reshape(rhs.shape)
    # The noise of the fit has the covariance (P^T P)^-1 times the fine variance, with P the interpolation. Its factor
    # for constant fields is one over a row sum of P^T P: it is the slowly varying noise that maps could be fitted to.
    gain = 1 / (diagonal[k // 2] + 2 * beside[k // 2])
    return np.moveaxis(solution, 0, axis), float(gain)


def _nearest(mask, places, shape, values=None):
    """Mask of the coarse nodes nearest to marked fine ones, and the mean of the values that meet there."""
    d = len(mask)
    k, i, j = np.nonzero(mask)
    rows = (places[0][0] + (places[0][1] > 0.5))[i]
    columns = (places[1][0] + (places[1][1] > 0.5))[j]
    index = np.ravel_multi_index((k, rows, columns), (d, *shape))
    count = np.bincount(index, minlength=d * shape[0] * shape[1])
    out = (count > 0).reshape(d, *shape)
    if values is None:
        return out, None
    total = np.bincount(index, values[mask], minlength=len(count))
    return out, (total / np.maximum(count, 1)).reshape(d, *shape)
