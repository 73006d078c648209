"""Damped Gauss-Newton in z = log x for the data term plus a prior that can be linearised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..backend.batch import column, dots, numbers
from ..backend.elementwise import fused
from ..errors import SolveError
from ..misfit.curvature import DataCurvature, curvature_scale, truncated_newton_step
from ..misfit.fidelity import Evaluation
from ..priors.protocol import LinearizablePrior
from .coarsen import COARSEST_NODES
from .problem import Iterate, Optimizer, Problem
from .stopping import SmallSteps

__all__ = ["GaussNewton", "first_step", "gauss_newton"]

# Inner conjugate gradients. Earlier measurements gave about 12 steps; no script repeats them.
CG_STEPS = 12
CG_TOLERANCE = 0.1
# From the outer step LONG_RUN on, a run follows a long valley: each outer step gets EXTRA_CG_STEPS more inner steps
# than the one before it. Not studied.
LONG_RUN = 12
EXTRA_CG_STEPS = 4
# Line search: a step has to achieve this share of the decrease that the slope promises (Armijo), or it is halved.
ARMIJO = 1e-4
MAX_HALVINGS = 8
# When no step lowers the objective, the solves may be what stands in the way: they are made more accurate by this
# factor, but not beyond the tightest tolerance.
TIGHTEN = 1e-2
TIGHTEST_RTOL = 1e-8
MAX_STEP = 1.0  # in log x: no value changes by more than a factor of e in one step
# Relative decrease of the objective below which a step counts as small (exact gradient), on a coarse and on the finest
# level: a coarse map is only a start, the finest one is the result.
DECREASE_TOL = {False: 2e-4, True: 1e-5}
FROZEN_STEP_TOL = 2e-3  # rms step in log x below which a step of the frozen fixed point counts as small
# Steps on one level. The frozen fixed point either settles soon or wanders.
MAX_ITERATIONS = {"exact": 60, "frozen": 20}


class GaussNewton(Optimizer):
    """Damped Gauss-Newton, coarse to fine; see `gauss_newton`."""

    name = "gauss-newton"
    batched = True
    coarsest_nodes = COARSEST_NODES

    def supports(self, prior: Any) -> bool:
        """Whether there is no prior, or one that can be linearised."""
        return prior is None or isinstance(prior, LinearizablePrior)

    def minimise(self, problem: Problem) -> tuple[Iterate, np.ndarray]:
        """As `gauss_newton`, with the tolerance and the limit that suit the level and the gradient."""
        return gauss_newton(
            problem,
            tolerance=DECREASE_TOL[problem.finest],
            max_iterations=problem.max_iterations or MAX_ITERATIONS[problem.fidelity.kind],
        )


class _Model(NamedTuple):
    """The objective about a point: value (B,), gradient (B, N), curvature of the steps that the bounds allow."""

    value: np.ndarray
    gradient: Any
    free: Any  # 1 where z may move, 0 where a bound holds it
    data_curvature: DataCurvature
    finish: Callable[[Any, Any], Any]  # the curvature of all from that of the data, see `truncated_newton_step`
    prior_diagonal: Any


class _Trial(NamedTuple):
    """Where a line search ended: the map, what is known there, and which members accept it."""

    z: Any
    data: Evaluation | None
    prior: np.ndarray | float
    decrease: np.ndarray
    step: np.ndarray
    accepted: np.ndarray


def gauss_newton(problem: Problem, *, tolerance: float, max_iterations: int, active=True):
    """Minimise J(x) + weight R(x) over z = log x, for each member of a batch by itself.

    Each step solves (H + weight B) d = -gradient by a few iterations of conjugate gradients, with H = D^T Gamma^-1 D,
    one or two fixed multigrid cycles in place of each solve in Gamma^-1, and B the prior's curvature. With the frozen
    gradient the same step minimises the paper's problem with Gamma fixed, and Gamma is updated after it.

    Members that have ended stay where they are. Where a solve does not converge for one member, all take shorter
    steps.

    Parameters
    ----------
    problem : Problem
        Its prior is None or a `LinearizablePrior`.
    tolerance : float
        Exact gradient: a step that lowers the objective by less than this fraction of it counts as small.
    max_iterations : int
    active : array of bool, shape (B,), optional
        Which members are to move at all.

    Returns
    -------
    Iterate
    status : array of str, shape (B,)
        "converged", "max_iterations", "stalled" or "stopped".
    """
    fidelity, prior = problem.fidelity, problem.prior
    exact, xp = fidelity.kind == "exact", fidelity.device.xp
    z, dual, rtol = problem.start.z, problem.start.dual, problem.rtol
    members = len(z)
    weight = np.broadcast_to(np.asarray(problem.weight, dtype=float), members)
    active = np.broadcast_to(active, members).copy()
    status = np.full(members, "max_iterations", dtype=object)
    now = problem.start.data if problem.start.data is not None else fidelity.evaluate(np.exp(z), rtol)
    converged = SmallSteps(members)
    data_diagonal = None  # mean diagonal of H at the first point
    prior_value = np.zeros(members) if prior is None else prior.value(z)
    for number in range(max_iterations):
        model = _linearize(problem, weight, z, dual, now)
        if data_diagonal is None:
            data_diagonal = curvature_scale(model.data_curvature, z)
        d = truncated_newton_step(
            model.data_curvature,
            -model.gradient * model.free,
            model.prior_diagonal + data_diagonal,
            steps=CG_STEPS + EXTRA_CG_STEPS * max(0, number - LONG_RUN),
            tolerance=CG_TOLERANCE,
            finish=model.finish,
        )
        slope = numbers(dots(model.gradient, d))
        # Where the bounds hold every value, no step is left to take.
        at_rest = ~numbers((model.gradient * model.free).any(axis=-1))
        status[active & ~(slope < 0)] = "stalled"
        status[active & at_rest] = "converged"
        active &= slope < 0
        if not active.any():
            break
        trial = _line_search(problem, weight, z, now, d, model.value, slope, active, rtol)
        accepted, after = trial.accepted, trial.data
        trial_z = trial.z
        if (accepted != active).any():
            trial_z = xp.where(column(accepted, z), trial_z, z)
            if rtol <= TIGHTEST_RTOL:
                status[active & ~accepted] = "stalled"
                active &= accepted
            rtol = min(rtol, max(TIGHTEN * rtol, TIGHTEST_RTOL))
            after = fidelity.evaluate(np.exp(trial_z), rtol)
        assert after is not None
        if not accepted.any():
            now = after
            if not active.any():
                break
            continue
        change = trial_z - z
        if prior is not None:
            stepped = prior.step_dual(dual, z, change)
            if stepped is not None and not accepted.all():
                stepped = xp.where(column(accepted, stepped), stepped, 0.0 if dual is None else dual)
            dual = stepped
            prior_value = np.where(accepted, trial.prior, prior_value)
        z, now = trial_z, after
        point = Iterate(z, now, prior_value, dual)
        norm = np.sqrt(numbers(dots(model.gradient * model.free, model.gradient)))
        stop = accepted & problem.report(point, weight, trial.step, norm, accepted)
        # The frozen problem changes with every step, so there the map has to come to rest.
        size = np.sqrt(numbers(dots(change, change)) / z.shape[-1])
        # Most of the objective is noise, and each further frame adds as much again, which no map takes away.
        scale = np.abs(model.value) / fidelity.frames
        small = trial.decrease <= tolerance * scale if exact else size <= FROZEN_STEP_TOL
        ended = converged(small, accepted)
        status[active & ended] = "converged"
        status[stop] = "stopped"
        active &= ~stop & ~ended
        if not active.any():
            break
    return Iterate(z, now, prior_value, dual), status


def _linearize(problem, weight, z, dual, now) -> _Model:
    """The objective about z, where the data term is `now`."""
    x = np.exp(z)
    gradient, value = x * now.gradient, now.value
    of_data = problem.fidelity.curvature(x, now)
    if problem.prior is None:
        free = _free(z, gradient, problem.limits)
        return _Model(value, gradient, free, of_data, lambda product, v: product * free, 0.0)
    of_prior = column(weight, z)
    model = problem.prior.linearize(z, dual)
    gradient = gradient + of_prior * model.gradient
    free = _free(z, gradient, problem.limits)

    def finish(product, v):
        return _combined(product, model.curvature(v), of_prior, free)

    return _Model(value + weight * model.value, gradient, free, of_data, finish, of_prior * model.diagonal)


def _line_search(problem, weight, z, now, d, value, slope, active, rtol) -> _Trial:
    """Steps along d, shortened for each member until it has a sufficient decrease; for all where a solve fails."""
    fidelity, prior = problem.fidelity, problem.prior
    exact, xp = fidelity.kind == "exact", fidelity.device.xp
    step = first_step(d)
    after = None
    for _ in range(MAX_HALVINGS):
        trial = xp.where(column(active, z), np.clip(z + column(step, z) * d, *problem.limits), z)
        try:
            after = fidelity.evaluate(np.exp(trial), rtol)
            data_value = after.value if exact else now.frozen(np.exp(trial))
        except SolveError:  # too wild a modulus for the solver: a shorter step
            data_value = np.inf
        prior_value = 0.0 if prior is None else prior.value(trial)
        decrease = value - (data_value + weight * prior_value)
        accepted = active & (decrease >= -ARMIJO * step * slope)
        if (accepted == active).all():
            break
        step = np.where(accepted, step, step / 2)
    return _Trial(trial, after, prior_value, decrease, step, accepted)


def first_step(d):
    """Step lengths (B,), at most one, with which no value of directions d (B, N) moves by more than `MAX_STEP`."""
    return np.minimum(1.0, MAX_STEP / np.maximum(numbers(np.abs(d).max(axis=-1)), 1e-300))


def _free(z, gradient, limits):
    """1 where z may move, 0 where a bound holds it."""
    low, high = limits
    held = ((z <= low) & (gradient > 0)) | ((z >= high) & (gradient < 0))
    return (~held).astype(float)


@fused
def _combined(xp, data, prior, weight, free):
    """The curvature's products of data and prior where the map may move."""
    total = weight * prior
    total += data
    total *= free
    return total
