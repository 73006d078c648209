"""The same measurement on a coarser grid, and maps carried back to the finer one."""

from __future__ import annotations

from functools import reduce
from math import prod

import numpy as np
from scipy.linalg import solve_banded, toeplitz
from scipy.sparse import csr_array, diags_array, eye_array, kron
from scipy.sparse.linalg import cg

from ..backend.device import namespace
from ..boundary import Boundary, check_support
from ..geometry import Grid, Mesh
from ..joint import JointMeasurement
from .coarsen_mesh import coarsen_mesh, refine_mesh, sample_mesh, shared_nodes

__all__ = ["at_nodes_of", "coarsen", "coarsest", "refine", "sample"]

# Nodes along the shortest axis of the coarsest grid: on fewer, coarse maps hardly help as a start. Not studied.
COARSEST_NODES = 48
# Of that, in grids of three axes: coarse levels save more there, and a volume has fewer nodes along each axis. Not
# studied.
VOLUME_SHARE = 1 / 3
# Largest ratio of two noise levels of one component that a plain average of neighbours may mix; beyond it, and where
# something was not measured, the coarse displacement is a weighted fit. Not studied.
MAX_STD_RATIO = 30.0
# Spacings that differ by more than this factor are made more alike by coarsening the finer axis alone. Not studied.
MAX_ASPECT = 2.5
# A coarse node counts as measured if the fine ones about it bring this share of the precision that they would bring if
# all were as good as the best one. Not studied.
MIN_PRECISION_SHARE = 0.05
# Weight of the roughness of the coarse field, over the precision of the best coarse value: it only decides where
# nothing was measured. Not studied.
ROUGHNESS = 1e-4
FIT_RTOL = 1e-6  # of the weighted fit, far below noise
FIT_MAX_ITERATIONS = 500


def coarsest(measurement):
    """The coarsest copy of a measurement from which a run would begin; itself where it is small."""
    while (coarse := coarsen(measurement)) is not None:
        measurement = coarse
    return measurement


def coarsen(measurement, smallest=COARSEST_NODES):
    """The measurement on a grid of half the nodes along each axis, or along some.

    Displacements are fitted by linear interpolation from the coarse nodes, which keeps linear fields exact: by plain
    least squares along each axis if their noise is about even, else by least squares with their precision as weights.
    The noise levels shrink accordingly, and a coarse node about which too little was measured is not measured. Nodal
    forces are distributed by the transposed interpolation, which keeps resultants. Fixed and open dofs go to the
    nearest coarse node.

    An axis is left as it is where it is short already, or where its spacing is much longer than another's.

    Parameters
    ----------
    measurement : Measurement or JointMeasurement
        Of a joint one, each frame.
    smallest : int
        Least number of nodes that a coarsened axis may have; of a grid of three axes `VOLUME_SHARE` of that.

    Returns
    -------
    Measurement or None
        None where a coarse copy makes no sense: on a small grid or mesh, or where the support would be lost.
    """
    if isinstance(measurement, JointMeasurement):
        frames = [coarsen(m, smallest) for m in measurement.frames]
        return JointMeasurement(frames) if all(frames) else None
    m, grid = measurement, measurement.geometry
    if isinstance(grid, Mesh):
        return coarsen_mesh(m, smallest)
    shape = _coarse_shape(grid, smallest if grid.dim == 2 else smallest * VOLUME_SHARE)
    if shape is None:
        return None
    spacing = tuple(h * (n - 1) / (k - 1) for h, n, k in zip(grid.spacing, grid.shape, shape, strict=True))
    coarse = Grid(shape, spacing)
    places = [_places(n, k) for n, k in zip(grid.shape, shape, strict=True)]

    displacement, std = _coarse_displacement(m, places)
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
        force_std = np.where(fixed | open_, 0.0, np.sqrt(force_variance))
        return m.derived(
            geometry=coarse,
            law=m.law.moved(lambda ratios: _averaged(ratios.reshape(grid.shape), places)),
            load=load,
            displacement=displacement,
            displacement_std=std,
            force_std=force_std,
            displacement_correlation=_coarse_correlation(m, coarse),
        )
    except ValueError:
        return None  # the support, or all that was measured, does not survive coarsening


def _coarse_shape(grid, smallest):
    """Nodes along each axis of the coarse grid, None if no axis can be coarsened."""
    long = [n >= 2 * smallest for n in grid.shape]
    finest = min(grid.spacing)
    if all(long):
        halved = [h <= MAX_ASPECT * finest for h in grid.spacing]
    else:
        halved = [own and h <= finest for own, h in zip(long, grid.spacing, strict=True)]
    if not any(halved):
        return None
    return tuple((n + 1) // 2 if own else n for n, own in zip(grid.shape, halved, strict=True))


def _coarse_displacement(m, places):
    """Displacement and standard deviations (d, *coarse shape), infinite where not measured."""
    free, observed = ~m.load.fixed, m.observed
    std = np.where(observed | m.load.fixed, m.displacement_std, np.inf)
    displacements, stds = [], []
    for u, s, noisy, seen in zip(m.displacement, std, free, observed, strict=True):
        if not seen.any():
            value = np.zeros([k for _, _, k in places])
            displacements.append(value)
            stds.append(np.full(value.shape, np.inf))
        elif seen[noisy].all() and s[noisy].max() <= MAX_STD_RATIO * s[noisy].min():
            variance = np.where(noisy, s**2, np.mean(std[free & np.isfinite(std)] ** 2))
            for axis, (cell, share, k) in enumerate(places):
                u, gain = _fit(u, axis, cell, share, k)
                variance = _spread(variance, axis, cell, share, k, average=True) * gain
            displacements.append(u)
            stds.append(np.sqrt(variance))
        else:
            value, own = _weighted_fit(u, s, noisy, seen, places)
            displacements.append(value)
            stds.append(own)
    if m.displacement_correlation is not None:  # averaging takes less off correlated noise
        gains = [_correlation_gain(*both) for both in zip(places, m.displacement_correlation, strict=True)]
        stds = [np.sqrt(np.prod(gains)) * own for own in stds]
    return np.stack(displacements), np.stack(stds)


def _correlation_gain(place, correlation):
    """Variance of a fit in the middle of an axis over the one that `_fit` states for independent noise."""
    interpolation, middle = _interpolation(*place).toarray(), place[2] // 2
    gram = interpolation.T @ interpolation
    weights = interpolation @ np.linalg.solve(gram, np.eye(place[2])[middle])
    return float(weights @ toeplitz(correlation) @ weights * gram[middle].sum())


def _coarse_correlation(m, coarse):
    """The correlation at the distances of the coarse nodes."""
    if m.displacement_correlation is None:
        return None
    fine = m.geometry
    return tuple(
        np.interp(np.arange(k) * coarse_h, np.arange(n) * h, own)
        for own, n, h, k, coarse_h in zip(
            m.displacement_correlation, fine.shape, fine.spacing, coarse.shape, coarse.spacing, strict=True
        )
    )


def _weighted_fit(u, std, noisy, seen, places):
    """Coarse values of one component with the least squares of the residual in standard deviations, and their own.

    The known displacements of fixed dofs take part like the best measured ones. The coarse precision is that of a
    constant field, I^T P 1 with the interpolation I, as for `_fit`.
    """
    best = std[seen].min()
    weights = np.where(seen, (best / np.where(seen, std, 1.0)) ** 2, np.where(noisy, 0.0, 1.0)).ravel()
    interpolation = csr_array(reduce(kron, (_interpolation(*place) for place in places)))
    shape = tuple(k for _, _, k in places)
    precision = (interpolation.T @ weights).reshape(shape)
    most = (interpolation.T @ np.ones(weights.size)).reshape(shape)
    system = interpolation.T @ diags_array(weights) @ interpolation
    smooth = sum(
        reduce(kron, (_second_differences(k) if axis == own else eye_array(k) for axis, k in enumerate(shape)))
        for own in range(len(shape))
    )
    system = csr_array(system + ROUGHNESS * most.max() * smooth)
    start = np.where(precision > 0, (interpolation.T @ (weights * u.ravel())).reshape(shape), 0.0)
    start = (start / np.where(precision > 0, precision, 1.0)).ravel()
    inverse = diags_array(1 / system.diagonal())
    value, _ = cg(
        system, interpolation.T @ (weights * u.ravel()), start, rtol=FIT_RTOL, maxiter=FIT_MAX_ITERATIONS, M=inverse
    )
    measured = precision > MIN_PRECISION_SHARE * most
    std = np.where(measured, best / np.sqrt(np.where(measured, precision, 1.0)), np.inf)
    return value.reshape(shape), std


def _interpolation(cell, share, k):
    """The matrix (n, k) of linear interpolation from k coarse nodes along one axis."""
    n = len(cell)
    rows, columns = np.tile(np.arange(n), 2), np.concatenate([cell, cell + 1])
    return csr_array((np.concatenate([1 - share, share]), (rows, columns)), shape=(n, k))


def _second_differences(k):
    """The matrix of the sum of squared second differences of k values."""
    d = diags_array([np.ones(k - 2), np.full(k - 2, -2.0), np.ones(k - 2)], offsets=[0, 1, 2], shape=(k - 2, k))
    return d.T @ d


def sample(fine, coarse):
    """The coarse measurement with noise as large as that of single displacements of the fine one.

    The discretisation error of the coarse grid is small beside such noise.
    """
    if isinstance(fine, JointMeasurement):
        return JointMeasurement([sample(*both) for both in zip(fine.frames, coarse.frames, strict=True)])
    if isinstance(fine.geometry, Mesh):
        return sample_mesh(fine, coarse)
    nodes = _nearest_nodes(fine.geometry, coarse.geometry)
    # The residual of the fit at the nearest fine node is added, so that coarse and fine nodes need not coincide.
    rest = fine.displacement - refine(coarse.displacement, coarse.geometry, fine.geometry)
    displacement = coarse.displacement + np.stack([component[nodes] for component in rest])
    std = np.where(fine.observed | fine.load.fixed, fine.displacement_std, np.inf)
    std = np.stack([component[nodes] for component in std])
    std = np.where(std > 0, std, coarse.displacement_std)
    return coarse.derived(displacement=displacement, displacement_std=std)


def at_nodes_of(coarse, field, fine):
    """Node field (N,) of a fine grid or mesh at the nodes of a coarse one: the values of the nearest nodes."""
    if coarse is fine or coarse == fine:
        return field
    if isinstance(fine, Mesh):
        return field[shared_nodes(fine, coarse)]
    return field.reshape(fine.shape)[_nearest_nodes(fine, coarse)].ravel()


def _nearest_nodes(fine, coarse):
    """Index of the nodes of a fine grid nearest to those of a coarse one."""
    return np.ix_(
        *(np.rint(np.linspace(0, n - 1, k)).astype(int) for n, k in zip(fine.shape, coarse.shape, strict=True))
    )


def refine(field, coarse, fine):
    """Node field (..., *node_shape) interpolated linearly to the fine grid or mesh that it was coarsened from."""
    if isinstance(fine, Mesh):
        return refine_mesh(field, fine)
    for axis, (n, k) in enumerate(zip(fine.shape, coarse.shape, strict=True)):
        axis += field.ndim - fine.dim
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
    transposed = _interpolation(cell, share, k).T.tocsr()
    if average:
        transposed = diags_array(1 / transposed.sum(axis=1)) @ transposed
    return np.moveaxis((transposed @ rows.reshape(n, -1)).reshape(k, *rows.shape[1:]), 0, axis)


def _averaged(field, places):
    """Node field (*grid.shape) averaged around the coarse nodes."""
    for axis, (cell, share, k) in enumerate(places):
        field = _spread(field, axis, cell, share, k, average=True)
    return field


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
    component, *fine = np.nonzero(mask)
    nodes = [(cell + (share > 0.5))[i] for (cell, share, _), i in zip(places, fine, strict=True)]
    index = np.ravel_multi_index((component, *nodes), (d, *shape))
    count = np.bincount(index, minlength=d * prod(shape))
    out = (count > 0).reshape(d, *shape)
    if values is None:
        return out, None
    total = np.bincount(index, values[mask], minlength=len(count))
    return out, (total / np.maximum(count, 1)).reshape(d, *shape)
