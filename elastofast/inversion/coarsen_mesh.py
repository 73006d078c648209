"""The same measurement on a coarser mesh."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import cg

from ..boundary import Boundary, check_support

__all__ = ["coarsen_mesh", "refine_mesh", "sample_mesh", "shared_nodes"]

FIT_RTOL = 1e-6  # of the fit of a displacement on the coarse mesh, far below noise
FIT_MAX_ITERATIONS = 500
# Weight of a displacement that was not measured (its value counts as zero), relative to the mean weight: it only
# decides where nothing was measured. Not studied.
UNMEASURED_WEIGHT = 1e-9
# A coarse node counts as measured if this share of the fine nodes about it was. Not studied.
MIN_SHARE = 0.5


def coarsen_mesh(m, smallest):
    """The measurement on a mesh of about half the resolution, or None; see `coarsen.coarsen`.

    The displacement is the linear interpolant on the coarse mesh that fits best, each displacement with its own
    precision, so that what was not measured has no influence.

    Parameters
    ----------
    m : Measurement
        On a `Mesh`.
    smallest : int
        The coarse mesh has at least as many nodes as a square with this many along each edge.
    """
    from ..forward.mesh_coarsening import coarser  # needs Numba, which reconstructions on grids do without

    coarse = coarser(m.geometry) if m.geometry.n_nodes >= smallest**2 else None
    if coarse is None or coarse.mesh.n_nodes < smallest**2:
        return None
    mesh, interpolation, place, _ = coarse
    d, fine = m.geometry.dim, m.geometry.n_nodes
    gather = csr_array((np.ones(fine), (place, np.arange(fine))), shape=(mesh.n_nodes, fine))

    free, observed = ~m.load.fixed, m.observed
    precision = np.where(observed, 1 / np.where(observed, m.displacement_std, 1.0) ** 2, 0.0)
    typical = precision[observed].mean()
    precision[~free] = typical  # what is fixed is to be followed like what was measured
    displacement, std = np.empty((d, mesh.n_nodes)), np.full((d, mesh.n_nodes), np.inf)
    for i, weights in enumerate(precision):
        matrix = interpolation.T @ diags_array(np.maximum(weights, UNMEASURED_WEIGHT * typical)) @ interpolation
        displacement[i], _ = cg(
            matrix,
            interpolation.T @ (weights * m.displacement[i]),
            rtol=FIT_RTOL,
            maxiter=FIT_MAX_ITERATIONS,
            M=diags_array(1 / matrix.diagonal()),
        )
        # The variance of slowly varying noise in the fit is one over a row sum of the matrix of its normal equations.
        total, share = interpolation.T @ weights, interpolation.T @ (weights > 0).astype(float)
        known = share > MIN_SHARE * interpolation.sum(axis=0)
        std[i, known] = 1 / np.sqrt(total[known])

    fixed = (gather @ m.load.fixed.T).T > 0
    open_ = ((gather @ m.load.open.T).T > 0) & ~fixed
    count = np.maximum((gather @ m.load.fixed.T).T, 1)
    value = (gather @ np.where(m.load.fixed, m.load.displacement, 0.0).T).T / count
    force, variance = ((interpolation.T @ field.T).T for field in (m.load.force, m.force_std**2))
    load = Boundary(
        fixed=fixed,
        displacement=np.where(fixed, value, 0.0),
        force=np.where(fixed | open_, 0.0, force),
        open=open_,
    )
    force_std = np.where(fixed | open_, 0.0, np.sqrt(variance))
    try:
        check_support(mesh, load)
        return m.derived(
            geometry=mesh,
            law=m.law.moved(lambda ratios: (interpolation.T @ ratios) / interpolation.sum(axis=0)),
            load=load,
            displacement=displacement,
            displacement_std=std,
            force_std=force_std,
        )
    except ValueError:
        return None  # the support, or all that was measured, does not survive coarsening


def sample_mesh(fine, coarse):
    """The coarse measurement with the single displacements of the nodes that it shares with the fine one; see
    `coarsen.sample`.
    """
    nodes = shared_nodes(fine.geometry, coarse.geometry)
    std = np.where(fine.observed | fine.load.fixed, fine.displacement_std, np.inf)[:, nodes]
    std = np.where(std > 0, std, coarse.displacement_std)
    return coarse.derived(displacement=fine.displacement[:, nodes], displacement_std=std)


def shared_nodes(fine, coarse):
    """Numbers on a fine mesh of the nodes of a coarser one that was made from it."""
    level, kept = fine, []
    while level is not coarse:
        step = _made(level)
        level = step.mesh
        kept.append(step.kept)
    nodes = np.arange(level.n_nodes)
    for each in reversed(kept):
        nodes = each[nodes]
    return nodes


def refine_mesh(field, fine):
    """Node field (..., N) of the coarse mesh of a fine one, interpolated; see `coarsen.refine`."""
    return (_made(fine).interpolation @ field.T).T


def _made(mesh):
    """The coarser mesh of a mesh that is known to have one."""
    from ..forward.mesh_coarsening import coarser

    found = coarser(mesh)
    assert found is not None
    return found
