"""Displacements that cannot be what the rest says: peaks that a tracker hopped to, wrapped phases, dropouts.

They are found in two ways. Before a run, the normalised median test of particle image velocimetry (Westerweel and
Scarano, Exp. Fluids 39, 2005) compares each displacement with its neighbours: the displacement is continuous whatever
the modulus, so that isolated jumps have no other cause. After a run, a displacement whose residual is many standard
deviations, while most residuals are as large as the noise says, contradicts the equilibrium of all others; so do the
blocks whose inside looks smooth. What is found is left out, that is, taken as not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..backend.device import to_host
from ..geometry import Grid
from ..measurement import Measurement
from ..result import CHI2_RANGE, Result

__all__ = ["NOISES", "contradicting", "jumps", "without_outliers"]

NOISES = ("auto", "gaussian", "robust")

# Difference from the median of the neighbours, in units of what noise and the neighbours' own scatter make plausible,
# above which a displacement is a jump: far beyond Gaussian noise.
JUMP = 6.0
NEIGHBOURHOOD = 5  # nodes along each axis of the test
# Where a fifth of the neighbours differ from their medians too, as along the boundary of a lesion at little noise, a
# displacement has to differ this many times as much. Not studied.
SHARED_PERCENTILE, SHARED = 80, 5.0
# Residual above which a displacement contradicts the others, in units of the typical residual (MAD times the median)
# or of the standard deviation, whichever is larger. Not studied.
CONTRADICTION = 6.0
MAX_SHARE = 0.05  # of all displacements: more are no outliers
# Share of the excess of chi2 that a run without outliers has to take off for the search to go on: outliers that are the
# cause take off nearly all of it, and a wrong model leaves nearly all of it.
LEAST_EXPLAINED = 0.5
MAX_ROUNDS = 4  # runs, each without what the one before contradicted
MAD = 1.4826  # from the median of absolute deviations to a standard deviation


def without_outliers(
    members: dict[int, Measurement], noise: str, solve: Callable[[dict[int, Measurement]], dict[int, Result]]
) -> dict[int, Result]:
    """Results without the displacements that are outliers; these are in their ``rejected``.

    Parameters
    ----------
    members : dict of int to Measurement
    noise : {"auto", "gaussian", "robust"}
        "gaussian" keeps all displacements. "auto" looks for contradictions only where the data are not explained, and
        takes them back if the rest is not explained either. "robust" looks for them in any case.
    solve : callable
        From some of the members to their results.
    """
    if noise == "gaussian":
        return solve(members)
    rejected = {k: jumps(m) for k, m in members.items()}
    used = {k: _without(m, rejected[k]) for k, m in members.items()}
    results = solve(used)
    first, final = dict(results), {k: mask.copy() for k, mask in rejected.items()}
    hopeless: set[int] = set()
    for _ in range(MAX_ROUNDS):
        again = {}
        for k, result in results.items():
            if (
                k in hopeless
                or result.status in ("interrupted", "failed")
                or (noise == "auto" and result.chi2 <= CHI2_RANGE[1])
            ):
                continue
            new = contradicting(used[k], result)
            if new.any():
                final[k] = final[k] | new
                again[k] = used[k] = _without(members[k], final[k])
        if not again:
            break
        found = solve(again)
        hopeless |= {k for k, new in found.items() if noise == "auto" and not _explains(new, results[k])}
        results = results | found
    for k, result in results.items():
        if noise == "auto" and not result.chi2 <= CHI2_RANGE[1]:
            result, final[k] = first[k], rejected[k]
        results[k] = _reported(members[k], result, final[k])
    return results


def _explains(new, old):
    """Whether leaving outliers out took enough off what the data leave unexplained."""
    return new.chi2 - 1 <= (1 - LEAST_EXPLAINED) * (old.chi2 - 1)


def _reported(m, result, rejected):
    """The result, with what was left out and why."""
    count = int(rejected.sum())
    if not count:
        return result
    text = (
        f" {count} of {int(m.observed.sum())} displacements were left out as outliers, see `rejected`; "
        'noise="gaussian" keeps them.'
    )
    return replace(result, rejected=rejected, message=result.message + text)


def jumps(m: Measurement) -> np.ndarray:
    """Displacements that differ from their neighbours as noise does not, a mask of shape (d, *node_shape).

    Only on grids; on a mesh none.
    """
    from scipy.ndimage import median_filter, percentile_filter

    found = np.zeros(m.displacement.shape, bool)
    fields = m.displacement, m.displacement_std, m.observed, found
    if not isinstance(m.geometry, Grid) or min(m.geometry.shape) < 2 * NEIGHBOURHOOD:
        return found
    # the components, of all frames
    for own, std, seen, out in zip(*(a.reshape(-1, *m.geometry.shape) for a in fields), strict=True):
        if not seen.any():
            continue
        trend = _filled(own, seen)
        middle = median_filter(trend, NEIGHBOURHOOD, mode="reflect")
        rest = np.abs(trend - middle)
        if not (seen & (rest > JUMP * std)).any():  # the usual case: no need for the dearer filters
            continue
        scatter = MAD * median_filter(rest, NEIGHBOURHOOD, mode="reflect")
        shared = percentile_filter(rest, SHARED_PERCENTILE, NEIGHBOURHOOD, mode="reflect")
        level = np.where(seen, std, np.inf)
        out[...] = seen & (rest > np.maximum(JUMP * np.maximum(scatter, level), SHARED * shared))
    return found


def contradicting(m: Measurement, result: Result) -> np.ndarray:
    """Measured displacements that the map's own displacement contradicts, a mask of shape (d, *node_shape).

    Empty if there are too many, which says that the model is wrong.
    """
    residual = np.where(m.observed, np.abs(m.displacement - to_host(result.displacement)), 0.0)
    size = residual / np.where(m.observed, m.displacement_std, 1.0)
    found = m.observed & (size > CONTRADICTION * max(MAD * float(np.median(size[m.observed])), 1.0))
    return found if found.sum() <= MAX_SHARE * m.observed.sum() else np.zeros_like(found)


def _without(m, rejected):
    """The measurement with these displacements not measured."""
    if not rejected.any():
        return m
    return m.derived(displacement_std=np.where(rejected, np.inf, m.displacement_std))


def _filled(field, seen):
    """A field with the value of the nearest measured node where nothing was measured."""
    from scipy.ndimage import distance_transform_edt

    if seen.all():
        return field
    nearest = distance_transform_edt(~seen, return_distances=False, return_indices=True)
    return field[tuple(nearest)]
