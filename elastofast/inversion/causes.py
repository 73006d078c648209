"""Why a map does not explain the data: what else could be true of the measurement is tried, one thing at a time.

chi2 far above one has many causes. Each of them is a change of the measurement's description: another Poisson ratio,
edges about which less is claimed, components or axes in another order or with other signs. Maps are fitted under each,
by total variation with one and the same weight on a coarse copy, and the change that takes most off the misfit is
named, with what to do about it; the search ends at the first that explains the data. Only runs with a bad chi2 pay for
that.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..backend.batch import numbers
from ..backend.device import to_host
from ..boundary import Boundary
from ..errors import SolveError
from ..geometry import Grid
from ..measurement import Measurement
from ..misfit.fidelity import Fidelity
from ..misfit.free_poisson import poisson_range
from ..result import CHI2_RANGE, HELD_SHARE, Result
from .coarsen import coarsest
from .evidence import residual
from .initial import homogeneous
from .multilevel import Multilevel
from .options import Options
from .poisson import CONFIDENCE, FreeRun, estimate_poisson

__all__ = ["likely_cause"]

WEIGHT = 250.0  # of total variation, as the automatic one is on grids of 41 to 65 nodes at 35 dB
HEAVY = 1e4  # weights of total variation above this were not chosen from the data
MAX_ITERATIONS = 15  # of a fit; those under a wrong model take many and end nowhere
# The first change that leaves no more than EXPLAINED of chi2 beyond one is named; else the best one, if it takes at
# least NAMED_SHARE off the excess. Not studied beyond the tests.
EXPLAINED = CHI2_RANGE[1] - 1
NAMED_SHARE = 0.5
# A homogeneous body has to fit a rearranged displacement this much better, in J, for it to be tried at all.
REARRANGED = 0.5
# Difference of the estimated Poisson ratio from the stated one that is told. Not studied.
BENT = 0.005
# Mean moduli in pascals beyond these are no soft tissue's, nor those of phantoms: wrong units shift them by 1e3 or 1e6.
PLAUSIBLE = 100.0, 3e6
RTOL = 1e-5  # of the solves for homogeneous bodies


class _Change(NamedTuple):
    """Another description of a measurement, and what to tell the user if it explains the data."""

    measurement: Measurement
    advice: str


def likely_cause(measurement: Measurement, result: Result, options: Options) -> str:
    """What a user should be told about a map that does not explain the data; empty if nothing was found out.

    Parameters
    ----------
    measurement : Measurement
        What the map was fitted to.
    result : Result
    options : Options
        Those of the run.

    Returns
    -------
    str
        A sentence or two.
    """
    rested = result.status in ("converged", "undetermined", "stalled", "failed") or (
        result.status == "max_iterations" and options.max_iterations is None
    )
    if not rested:
        return ""
    m = measurement
    if not result.chi2 > CHI2_RANGE[1]:
        return _implausible(result) or (_bent(m, result, options) if result.status == "max_iterations" else "")
    if isinstance(m.geometry, Grid):
        left = residual(m, result.displacement)
        if left.white and not left.structured and left.level > CHI2_RANGE[1]:
            return (
                f"What is left is white noise of {np.sqrt(left.level):.3g} times the stated displacement_std: that is "
                "too small."
            )
    m = coarsest(m)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _found(m, result, options.limits)
        except KeyboardInterrupt:  # the map is there
            return ""


def _implausible(result):
    mean = np.exp(np.log(to_host(result.modulus)).mean())
    if result.relative or PLAUSIBLE[0] < mean < PLAUSIBLE[1]:
        return ""
    return (
        f"The mean modulus is {mean:.2g} Pa, unlike that of soft tissue: check the units of the force (newtons) or "
        "pressure (pascals), to which it is proportional."
    )


def _bent(m, result, options):
    """A modulus can be bent until it makes up for a wrong Poisson ratio, with chi2 at one, but hardly comes to rest."""
    if result.poisson_interval is not None:
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = estimate_poisson(m, replace(options, progress=None))
        except (ValueError, KeyboardInterrupt):  # no better ratio was found; the map is there
            return ""
    if not found.told or abs(found.value - found.stated) < BENT:
        return ""
    return (
        f"The map did not come to rest, as happens when it makes up for a wrong Poisson ratio: {found.value:.3f} "
        f"({CONFIDENCE:.0%} interval {found.low:.3f} to {found.high:.3f}) suits the data better than {found.stated:g}. "
        'Do not rely on the map; poisson="estimate" takes the better one.'
    )


def _found(m, result, limits):
    weight = WEIGHT
    excess, run = _fit(m, weight)
    if excess <= EXPLAINED:
        if limits.known is not None:
            return _without_known(m, run.reached[1].z, limits)
        mean = float(np.exp(run.reached[1].z.mean()))
        if limits.given and result.held > HELD_SHARE:
            return (
                f"Without bounds, total variation explains them with a mean modulus of {mean:.3g} Pa: check the units "
                "of the force or pressure (newtons, pascals), or widen the bounds."
            )
        if result.prior != "tv" or result.weight > HEAVY:
            return (
                f"Total variation with its usual weight explains them: the weight ({result.weight:.3g}) is too large, "
                f"or prior {result.prior!r} was made for other tissue."
            )
        weight, excess = result.weight, result.chi2 - 1  # its map is bent, too, only more so
    best = ""
    excess = excess if np.isfinite(excess) else result.chi2 - 1
    least = (1 - NAMED_SHARE) * excess
    for advice, left in _tried(m, result, weight):
        if left <= EXPLAINED:
            return f"Tried on a coarse copy, this explains them: {advice}."
        if left < least:
            least, best = left, advice
    if not best:
        return (
            "Neither another Poisson ratio, nor edges of which less is claimed, nor other axes or signs explain them: "
            "displacement_std may be too small, or the tissue not linear and isotropic."
        )
    return f"Tried on a coarse copy, this explains {1 - least / excess:.0%} of what is left: {best}."


def _without_known(m, z, limits):
    """What to tell where a map explains the data whose modulus, z = log x, is held nowhere."""
    text = "Without known moduli, total variation explains them"
    if not m.load.force.any():  # the scale is that of the known moduli
        return f"{text}: the contrasts within known, or its region, contradict the data."
    held = to_host(limits.movable(m.geometry, z)).ravel() == 0
    if not held.any():  # a region so small that a coarse copy has none of its nodes
        return f"{text}: check known, and the units of the force or pressure (newtons, pascals)."
    means = np.exp([to_host(z).ravel()[held].mean(), np.log(limits.known[np.isfinite(limits.known)]).mean()])
    return (
        f"{text}, with a mean modulus of {means[0]:.3g} Pa where known has {means[1]:.3g} Pa: check known, and the "
        "units of the force or pressure (newtons, pascals)."
    )


def _tried(m, result, weight) -> Iterator[tuple[str, float]]:
    """What to tell about each change, and the excess of chi2 under it, the most specific changes first."""
    for change in _rearranged(m):
        yield change.advice, _fit(change.measurement, weight)[0]
    if result.poisson_interval is None and not m.law.is_map:
        left, run = _fit(m, weight, FreeRun)
        changed = left < np.inf and abs(run.poisson - m.law.poisson) >= BENT
        if changed and run.poisson > poisson_range(m.law)[0]:
            advice = f"a Poisson ratio of about {run.poisson:.3f} in place of {m.law.poisson:g}"
            yield f'{advice}; poisson="estimate" finds it', left
    for change in _edges(m):
        yield change.advice, _fit(change.measurement, weight)[0]


def _fit(m, weight: float, kind: type[Multilevel] = Multilevel) -> tuple[float, Any]:
    """chi2 beyond one of a map under another description, infinite where that allows none, and the run."""
    try:
        run = kind([m], [None], [weight], Options.total_variation(m, max_iterations=MAX_ITERATIONS))
        result = run.results()[0]
    except (ValueError, SolveError):
        return np.inf, None
    if result.status == "interrupted":
        raise KeyboardInterrupt
    return (max(result.chi2 - 1, 0.0) if np.isfinite(result.chi2) else np.inf), run


def _edges(m) -> Iterator[_Change]:
    """Descriptions that claim less about some of the edges: their displacement is measured and their force unknown."""
    load = m.load
    held, pushed = load.fixed.any(axis=0), (load.force != 0).any(axis=0)
    edge = _boundary_nodes(m.geometry) & ~load.open.all(axis=0)
    free = edge & ~held & ~pushed
    which = {
        "where displacements are fixed, the tissue may not be held as the load says (friction, a tilted plate): "
        'try compression(..., contact="bonded") or contact="measured", or mark the dofs there as open': held,
        "where forces are applied, they may not be as the load says (an uneven pressure, friction): mark the dofs "
        'there as open, as compression(contact="measured") does, and state a measured total_force': pushed,
        "neither fixed nor loaded edges may be as the load says: mark the dofs there as open, as "
        'compression(contact="measured") does': held | pushed,
        "edges that the load leaves free may not be free: mark their dofs as open": free,
        "more than one edge may not be as the load says: mark all as open": edge | held,
    }
    seen: list[np.ndarray] = []
    for advice, nodes in which.items():
        if nodes.any() and not any((nodes == other).all() for other in seen):
            seen.append(nodes)
            yield _Change(_opened(m, nodes), advice)


def _boundary_nodes(geometry):
    """Nodes on the boundary of the body, a mask of shape node_shape."""
    nodes = np.zeros(geometry.node_shape, bool)
    if isinstance(geometry, Grid):
        nodes[...] = True
        nodes[(slice(1, -1),) * geometry.dim] = False
        return nodes
    d = geometry.dim
    faces = np.sort(np.concatenate([np.delete(geometry.cells, i, axis=1) for i in range(d + 1)]), axis=1)
    faces, counts = np.unique(faces, axis=0, return_counts=True)
    nodes[faces[counts == 1]] = True
    return nodes


def _opened(m, nodes):
    """The measurement with all dofs of some nodes open; what was fixed there is measured as well as the rest."""
    load, opened = m.load, np.broadcast_to(nodes, m.load.fixed.shape)
    other = Boundary(
        fixed=load.fixed & ~opened,
        displacement=np.where(opened, 0.0, load.displacement),
        force=np.where(opened, 0.0, load.force),
        open=load.open | opened,
    )
    return m.derived(load=other, displacement_std=np.where(load.fixed & opened, m.level, m.displacement_std))


def _rearranged(m) -> Iterator[_Change]:
    """The displacement with other signs, or with components or axes in another order, where a homogeneous body fits
    that better.
    """
    if not isinstance(m.geometry, Grid) or m.geometry.dim != 2:
        return
    u, std = m.displacement, np.where(m.load.fixed, np.inf, m.displacement_std)
    sign = np.array([1.0, -1.0]).reshape(2, 1, 1)
    tried = {
        "the lateral displacement seems to have the wrong sign": (sign * u, std),
        "the displacement seems to have the wrong sign": (-u, std),
        "the components of the displacement seem to be in the wrong order: axial comes first": (u[::-1], std[::-1]),
        "depth seems to run upwards: axis 0 has to begin at the transducer": (u[:, ::-1], std[:, ::-1]),
        "depth seems to run upwards, and the axial displacement too": (-sign * u[:, ::-1], std[:, ::-1]),
    }
    if m.geometry.shape[0] == m.geometry.shape[1]:
        turned = u.transpose(0, 2, 1)
        tried["the axes seem to be interchanged: axis 0 is depth"] = turned, std.transpose(0, 2, 1)
        tried["axes and components seem to be interchanged: axial comes first"] = (
            turned[::-1],
            std[::-1].transpose(0, 2, 1),
        )
    found = [(REARRANGED * _homogeneous_misfit(m), "", m)]
    for advice, (field, own) in tried.items():
        other = m.derived(displacement=field, displacement_std=np.where(m.load.fixed, m.level, own))
        found.append((_homogeneous_misfit(other), advice, other))
    for misfit, advice, other in sorted(found, key=lambda one: one[0]):
        if not misfit < found[0][0]:
            break
        yield _Change(other, advice)


def _homogeneous_misfit(m):
    """J of the homogeneous body that fits best; infinite if the displacement goes against the load."""
    try:
        fidelity = Fidelity.of_batch([m], "exact", RTOL)
        return numbers(fidelity.evaluate(np.exp(homogeneous(m)).reshape(1, -1)).value).item()
    except (ValueError, SolveError):
        return np.inf
