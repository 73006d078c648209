"""The prior's weight where the caller leaves it to us: from the data and their stated noise alone.

Half-quadratic splitting chooses its own, from the settings of its prior, see `splitting.HalfQuadraticSplitting`.
"""

from __future__ import annotations

import numpy as np

from ..backend.batch import dots, numbers
from ..errors import PriorError
from ..joint import JointMeasurement
from ..priors.protocol import LinearizablePrior
from .coarsen import sample
from .cross_validation import cross_validated_weight, halves
from .problem import Iterate, Problem
from .sure import predictive_weight

__all__ = ["choose_weight"]

# The best weight grows with the number of data to about this power: .3 to .5 on phantoms, 65 x 65 to 512 x 512 nodes.
GROWTH = 0.45
# On a device, several maps of up to this many nodes take their steps in hardly more time than one map. This many
# weights are then tried at once; more than most searches take would cost more than they save (benchmarks/gpu.py).
SIDE_BY_SIDE_NODES = 128**2
SIDE_BY_SIDE = 5


def choose_weight(problem: Problem, evaluated: Iterate, fine, level, make_fidelity) -> tuple[np.ndarray, Iterate]:
    """Weights on the finest level for every member, and a point to start the present level from.

    A prior that can be linearised gets the weight that minimises an unbiased estimate of the prediction error (see
    `sure`), tried on this, the coarsest level, with the noise of single displacements of the finest one. Several
    frames get the one whose maps of some frames predict the others best (see `cross_validation`). Any other energy gets
    the ratio of the gradient that noise alone causes to the prior's own.

    Parameters
    ----------
    problem : Problem
        Of the coarsest level, its weight not used.
    evaluated : Iterate
        Its start, with the data term.
    fine, level : list of Measurement
        The members on the finest and on this level.
    make_fidelity : callable
        From a list of measurements to their `Fidelity`.
    """
    if not isinstance(problem.prior, LinearizablePrior):
        return _balanced(problem, evaluated), problem.start
    trial = fine if problem.finest else [sample(m, coarse) for m, coarse in zip(fine, level, strict=True)]
    nodes = level[0].geometry.n_nodes
    growth = (fine[0].geometry.n_nodes / nodes) ** GROWTH
    folds = halves(trial[0]) if isinstance(trial[0], JointMeasurement) else None
    if folds is not None:
        of_half, found = cross_validated_weight(problem, [make_fidelity([fold]) for fold in folds])
        return np.array([of_half * growth * len(folds) ** GROWTH]), found
    at_once = SIDE_BY_SIDE if problem.fidelity.device.is_gpu and nodes <= SIDE_BY_SIDE_NODES else 1
    weight, found = predictive_weight(problem, make_fidelity(trial * at_once), at_once)
    return weight * growth, found


def _balanced(problem: Problem, point: Iterate) -> np.ndarray:
    """Norm of the data gradient in log x that noise alone causes, over that of the prior's gradient."""
    fidelity = problem.fidelity
    x = np.exp(point.z)
    assert point.data is not None
    noise = x * fidelity.noise_gradient(x, point.data, np.random.default_rng(0), problem.rtol)
    value, slope = problem.prior(x.reshape(fidelity.measurement.geometry.node_shape))
    slope = x * np.ravel(slope)
    if not np.isfinite(float(value)):
        raise PriorError(f"the prior's energy is {float(value)} at the start: it must be finite there")
    size = numbers(dots(slope, slope))
    if not (size > 0).all():
        raise ValueError("the prior has no slope at the start, so weight 'auto' has no meaning; give a number")
    return np.sqrt(numbers(dots(noise, noise)) / size)
