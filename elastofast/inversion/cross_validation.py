"""Prior weight of a joint reconstruction: the one whose maps of some frames predict the others best.

Frames have independent noise, so that the misfit of frames which a map was not fitted to is an unbiased estimate of its
prediction error (but for a constant). Unlike Stein's estimate, see `sure`, it needs no effective number of parameters,
which is underestimated where the prior is weak: the linearised problem does not know that maps bend to the noise. The
price is that maps of half of the frames want less weight than maps of all.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..joint import JointMeasurement
from ..misfit.fidelity import Fidelity
from .gauss_newton import gauss_newton
from .problem import Iterate, Problem
from .sure import DECREASE_TOL, FIRST_WEIGHT, MAX_ITERATIONS, MAX_PARAMETERS, RATIO, effective_parameters, search

__all__ = ["cross_validated_weight", "halves"]


def halves(measurement: JointMeasurement) -> list[JointMeasurement] | None:
    """Every other frame, and the rest; None of a single frame, or where one half alone would know the scale."""
    frames = measurement.frames
    if len(frames) < 2:
        return None
    both = [JointMeasurement(frames[::2]), JointMeasurement(frames[1::2])]
    return both if both[0].load.force.any() == both[1].load.force.any() else None


def cross_validated_weight(problem: Problem, folds: list[Fidelity]) -> tuple[float, Iterate]:
    """The weight for maps of half of the frames, and a map to start from.

    Parameters
    ----------
    problem : Problem
        Of one joint measurement; its prior is a `LinearizablePrior`. Its report is told of each weight that was tried.
    folds : list of two Fidelity
        The data terms of both halves.
    """
    least = min(float(fold.n_data / fold.frames) for fold in folds)
    searching = search(MAX_PARAMETERS * least)
    maps: dict[int | None, list[Iterate]] = {None: [problem.start] * 2}
    exponent, origin = next(searching)
    while True:
        weight = np.array([FIRST_WEIGHT * RATIO**exponent])
        maps[exponent], risk, parameters = [], 0.0, 0.0
        for fold, other, start in zip(folds, folds[::-1], maps[origin], strict=True):
            trial = replace(problem, fidelity=fold, weight=weight, start=start, report=_silent)
            point, _ = gauss_newton(trial, tolerance=DECREASE_TOL, max_iterations=MAX_ITERATIONS)
            maps[exponent].append(Iterate(point.z, dual=point.dual))
            risk += 2 * float(other.evaluate(np.exp(point.z), problem.rtol).value[0])
            found = effective_parameters(fold, problem.prior, weight, point, problem.rtol, problem.movable)
            parameters += float(found[0]) / 2
        mean = sum(point.z for point in maps[exponent]) / 2
        reached = Iterate(mean, problem.fidelity.evaluate(np.exp(mean), problem.rtol), problem.prior.value(mean))
        problem.report(reached, weight, np.ones(1), np.full(1, np.nan), np.ones(1, bool))
        try:
            exponent, origin = searching.send((risk, parameters))
        except StopIteration as end:
            weight, best = end.value
            return weight, Iterate(sum(point.z for point in maps[best]) / 2)


def _silent(point, weight, step, norm, accepted):
    """No member is to stop, and nobody is told of single steps."""
    return np.zeros(len(accepted), bool)
