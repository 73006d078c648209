"""What a map shows of the prior alone: smooth variations of the modulus that the data do not determine.

A map cannot tell: where the data say nothing, a prior that prefers flat maps gives one, and so does a homogeneous body.
The Hessian of the data term tells, as in `diagnose`, but at the map itself, whose stresses may determine what those of
a homogeneous body do not, and at a small share of the cost: at the coarsest map of a run, for a few variations, and
with one multigrid cycle in place of a solve.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh, null_space

from ..backend.device import to_host
from ..boundary import axis_names, directions, pieces
from ..errors import SolveError
from ..misfit.fidelity import Fidelity
from ..misfit.joint import data_term
from .limits import Limits
from .problem import Iterate

__all__ = ["Undetermined", "undetermined"]

# Variations are combinations of hat functions, so many along each axis: fewer do not see a region that a fourth of the
# body takes up along an axis, more cost more.
HATS = {2: 4, 3: 3}
# Standard deviations of log modulus by the data alone, of a variation with a root mean square of one. Nobody needs data
# to know the modulus of tissue to a factor of about e, so that beyond UNKNOWN they say nothing. HARDLY is where it is
# commented on: with open edges, where the estimate is a lower bound, homogeneous bodies reach .64 to .68 at any noise
# (docs/method/trust.md).
UNKNOWN, HARDLY = 1.0, 0.6
# Share of the data below which a gain in chi2 is what a map takes from the noise alone. A contrast that gains no more
# than that determines other variations to no better than HARDLY. Not studied further.
NOISE = 0.1
ALONG_ONE_AXIS = 0.8  # share of the weak variations that depends on one coordinate alone, for which they are named
REGION = 0.5  # share of all variations of a node that are weak, from which on its modulus is not determined
WORTHLESS = 0.8  # share of the variations that are weak, from which on the data are said to determine nothing
SMALLEST_REGION = 0.05  # share of the nodes of a region that is named
SMALL = 1e-3  # largest square of a hat function that is no variation, because the modulus below it is known


class Undetermined(NamedTuple):
    """What the data do not determine of a map.

    Attributes
    ----------
    what : str
        In words; empty if there is nothing.
    std : float
        The largest standard deviation of log modulus, by the data alone, of a variation with a root mean square of one.
    """

    what: str
    std: float


def undetermined(
    fidelity: Fidelity, measurements: list, point: Iterate, first: Iterate | None, rtol: float, limits: Limits
) -> list[Undetermined]:
    """What the data do not determine of maps: an `Undetermined` for each.

    Displacements of open dofs are taken for given, so that its standard deviation is a lower bound where there are any.

    Parameters
    ----------
    fidelity : Fidelity
        Of the measurements.
    measurements : list of Measurement, or of one JointMeasurement
    point : Iterate
        The maps, z of shape (B, N).
    first : Iterate or None
        The homogeneous maps that the run began with, evaluated. Where they explain the data as well, all contrast of a
        map is noise, and so is what its stresses seem to determine: the homogeneous map is looked at in its place.
    rtol : float
        Tolerance of the solves, where the data term has to be evaluated.
    limits : Limits
        Where the modulus is known.
    """
    geometry, xp = fidelity.measurement.geometry, fidelity.device.xp
    (basis, along), parts = _hats(geometry), _parts(geometry)
    basis = np.concatenate([basis, parts])
    along = [np.concatenate([own, np.zeros((len(parts), own.shape[1]))]) for own in along]
    movable = limits.movable(geometry, point.z)
    if movable is not None:
        basis = basis * to_host(movable)
    weights = geometry.node_weights.ravel() / geometry.node_weights.sum()
    size = basis**2 @ weights
    kept = size > SMALL * size.max()
    basis, along = basis[kept], [own[kept] for own in along]
    if fidelity.kind != "exact":  # the noise in the measured field would look like stresses
        fidelity = data_term(measurements, "exact", rtol)
        point, first = point._replace(data=None), first and first._replace(data=None)
    hats = xp.asarray(basis)

    def evaluation(at):
        return at.data if at.data is not None else fidelity.evaluate(np.exp(at.z), rtol)

    def hessians(at):
        """Those in the coefficients of the hats, (B, K, K)."""
        curvature = fidelity.curvature(np.exp(at.z), at.data)
        return np.stack([to_host(curvature(xp.zeros_like(at.z) + hat) @ hats.T) for hat in hats], axis=1)

    try:
        now = evaluation(point)
        point = point._replace(data=now)
        flat = np.zeros(len(measurements), bool)
        if first is not None:
            before = evaluation(first)
            first = first._replace(data=before)
            flat = np.ravel(2 * (before.value - now.value) < NOISE * fidelity.n_data)
        found = hessians(first if flat.all() else point)
        if flat.any() and not flat.all():
            found = np.where(flat[:, None, None], hessians(first), found)
    except SolveError:  # the run itself has to deal with that
        return [Undetermined("", 0.0)] * len(measurements)
    without_scale = limits.known is None
    return [
        _weakest(own, basis, along, weights, geometry, without_scale and not m.load.force.any())
        for m, own in zip(measurements, found, strict=True)
    ]


def _hats(geometry):
    """Products of hat functions along the axes at the nodes, (K, N), and for each axis the coefficients, (K, n), of
    functions of its coordinate alone.
    """
    points, dim = geometry.points, geometry.dim
    n = HATS[dim]
    low, size = points.min(axis=0), np.ptp(points, axis=0)
    places = (points - low) / size * (n - 1)
    index = np.array(list(np.ndindex(*[n] * dim)))
    hats = np.maximum(0.0, 1 - np.abs(places.T[None] - index[:, :, None])).prod(axis=1)
    return hats, [np.eye(n)[index[:, axis]] for axis in range(dim)]


def _parts(geometry):
    """The nodes of each unconnected piece of a body but one, (pieces - 1, N)."""
    piece = pieces(geometry)
    return (piece == np.arange(piece.max())[:, None]).astype(float)


def _weakest(hessian, basis, along, weights, geometry, relative):
    """The `Undetermined` of one member, from its Hessian in the coefficients of the hats."""
    mass = (basis * weights) @ basis.T
    space = null_space((basis @ weights)[None]) if relative else np.eye(len(basis))
    values, vectors = eigh(space.T @ (hessian + hessian.T) @ space / 2, space.T @ mass @ space)
    std = 1 / np.sqrt(np.maximum(values, np.finfo(float).tiny))
    vectors = space @ vectors
    weak = vectors[:, std > HARDLY]
    return Undetermined(_named(weak, vectors, mass, basis, along, geometry) if weak.size else "", float(std[0]))


def _named(weak, vectors, mass, basis, along, geometry):
    """What some variations are: everything, those along one axis, those of a region, or just some."""
    if weak.shape[1] > WORTHLESS * vectors.shape[1]:
        return "anything about the modulus"
    density = (weak.T @ basis) ** 2
    share = density.sum(axis=0) / np.maximum(((vectors.T @ basis) ** 2).sum(axis=0), np.finfo(float).tiny)
    region = share > REGION
    count = pieces(geometry).max() + 1
    if weak.shape[1] < count:
        return f"the ratio of the moduli of the {count} unconnected pieces of the body"
    if region.mean() > SMALLEST_REGION:
        inside = geometry.points[region]
        sides = ", ".join(
            f"{name} {1e3 * a:.3g} to {1e3 * b:.3g} mm"
            for name, a, b in zip(directions(geometry), inside.min(axis=0), inside.max(axis=0), strict=True)
        )
        return f"the modulus of {region.mean():.0%} of the nodes ({sides})"
    for axis, own in enumerate(along):
        own = own[:, own.any(axis=0)]
        inner = own.T @ mass @ own
        projected = np.linalg.solve(inner, own.T @ mass @ weak)
        if (projected * (inner @ projected)).sum() > ALONG_ONE_AXIS * weak.shape[1]:
            return f"how the modulus varies along {axis_names(geometry)[axis]}"
    return f"{weak.shape[1]} of {vectors.shape[1]} smooth variations of the modulus"
