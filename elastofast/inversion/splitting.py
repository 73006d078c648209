"""Half-quadratic splitting, for priors that name a target: critics and denoisers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..backend.batch import column, dots, numbers
from ..errors import SolveError
from ..joint import JointMeasurement
from ..misfit.curvature import curvature_scale, truncated_newton_step
from ..misfit.joint import data_term
from ..priors.learned import SMALLEST_NODES
from ..priors.protocol import TargetPrior, splitting_settings
from .gauss_newton import first_step
from .problem import Iterate, Optimizer, Problem
from .unpenalised import UnpenalisedDirections, plateau_range

__all__ = ["HalfQuadraticSplitting", "Schedule", "half_quadratic_splitting", "schedule_steps"]

# The schedule of the prior's weight rho. The numbers were chosen on validation maps of the training generator, 25 to
# 45 dB (docs/comparison.md); h is the mean curvature of the data term in log x.
SCHEDULE_STEPS = 10  # where the data say little (h <= 1)
SCHEDULE_POWER = 0.3  # the number of steps grows with this power of h, up to h = SCHEDULE_MAX
SCHEDULE_MAX = 10.0
FIRST_WEIGHT_SHARE = 1.0  # rho of the first step, over h
REFINED_SHARE = 0.1  # a level that starts from a coarser one begins with this share of its last weight ...
REFINED_STEPS = 6  # ... and takes this many steps
# After the schedule, steps go on with its last weight.
MAX_FINAL_STEPS = 25
MIN_MISFIT_DECREASE = 0.5  # least decrease of J: what one fitted number takes off the misfit of pure noise
REST_TOL = 2e-4  # rms step in log x that ends a run in any case
# Before the schedule, steps go to the anchor, the best homogeneous map, until nothing is left of the start.
ANCHOR_MAX_STEPS = 30
ANCHOR_WEIGHT = 300.0  # over the weight of the schedule's first step
ANCHOR_TOL = 0.005  # rms step in log x
PENALISED_STEPS = 5  # of the schedule, before boundaries and contrasts are known well enough to be left to the data
# Each step is solved by a few conjugate gradient iterations.
CG_STEPS = 12
CG_TOLERANCE = 0.05
MAX_HALVINGS = 8


class HalfQuadraticSplitting(Optimizer):
    """Half-quadratic splitting, coarse to fine, with a weight that follows from the data term's curvature."""

    name = "splitting"
    batched = True
    chooses_weight = True
    needs_weight = True
    coarsest_nodes = SMALLEST_NODES

    def supports(self, prior: Any) -> bool:
        """Whether the prior names a target."""
        return isinstance(prior, TargetPrior)

    def minimise(self, problem: Problem) -> tuple[Iterate, np.ndarray]:
        """See the class."""
        settings = problem.splitting or splitting_settings(problem.prior)
        curvature, inflation = _mean_curvature(problem), settings.noise_inflation
        if problem.weight is None:
            weight = settings.weight * curvature**settings.growth
        else:
            weight = problem.weight * problem.node_ratio
        begins = problem.coarsest and not problem.resumed
        steps = schedule_steps(curvature / inflation) if begins else np.full(len(curvature), REFINED_STEPS)
        limit = problem.max_iterations or steps + MAX_FINAL_STEPS
        if problem.finest:
            problem.announce_weight(inflation * weight)
        # J / inflation + weight R has the minimiser of J + inflation weight R: the weights, and the decreases of J that
        # are compared with them, are scaled in place of J.
        schedule = Schedule(
            anchor=problem.homogeneous if begins else None,
            first_weight=inflation
            * (np.minimum(FIRST_WEIGHT_SHARE * curvature, weight) if begins else REFINED_SHARE * weight),
            weight=inflation * weight,
            unpenalised_weight=inflation * settings.unpenalised_weight * curvature,
            limiter_slack=settings.limiter_slack,
            curvature=inflation * curvature,
            min_misfit_decrease=np.full(len(curvature), inflation * MIN_MISFIT_DECREASE),
            steps=np.minimum(steps, limit),
            max_iterations=np.broadcast_to(limit, len(curvature)),
        )
        return half_quadratic_splitting(replace(problem, start=problem.start._replace(data=None)), schedule)


def _mean_curvature(problem):
    """Mean curvature of the data term in log x, (B,), at the homogeneous map: weights must not depend on the start."""
    z, fidelity = problem.homogeneous, problem.fidelity
    if fidelity.measurement.displacement_correlation is not None:
        fidelity = data_term([_independent(fidelity.measurement)], fidelity.kind, fidelity.rtol)
    x = np.exp(z)
    now = fidelity.evaluate(x, problem.rtol)
    return numbers(curvature_scale(fidelity.curvature(x, now), z))


def _independent(m):
    """A measurement with independent noise that is as strong as the correlated noise of ``m`` in what is smooth.

    What a prior decides about is smooth. The mean curvature of ``m`` itself is that of rough parts, where correlated
    noise is faint; a prior with such a weight would override the data.
    """
    if isinstance(m, JointMeasurement):
        return JointMeasurement([_independent(frame) for frame in m.frames])
    if m.displacement_correlation is None:
        return m
    repeats = np.prod([2 * table.sum() - 1 for table in m.displacement_correlation])
    return m.derived(displacement_std=np.sqrt(max(repeats, 1.0)) * m.displacement_std, displacement_correlation=None)


def schedule_steps(curvature):
    """Number of steps of the schedule (B,) for mean curvatures (B,) of the data term in log x."""
    growth = [min(max(one, 1.0), SCHEDULE_MAX) ** SCHEDULE_POWER for one in curvature]
    return np.array([round(SCHEDULE_STEPS * factor) for factor in growth])


class Schedule(NamedTuple):
    """The numbers of one run of half-quadratic splitting; arrays have one entry for each member of the batch.

    Attributes
    ----------
    anchor : array, shape (B, N), or None
        Map to which the run is pulled firmly until it rests, and then by the schedule's first step, so that the result
        does not depend on the start. None: the start is trusted, and the first step is drawn to the start itself, that
        is, only damped.
    first_weight, weight : array, shape (B,)
        The prior's weight rho in the first step and in the last ones; it grows geometrically between them.
    unpenalised_weight : array, shape (B,)
        Weight along the unpenalised directions.
    limiter_slack : float
        Largest amount, in log x, by which a map may leave the range of its target's values around a node.
    curvature : array, shape (B,)
        Mean curvature of the data term, which preconditions the inner iteration.
    min_misfit_decrease : array, shape (B,)
        Decrease of J that a step at the last weight has to bring. Boundaries move a little in each step, and the longer
        they do, the more they follow the noise; this says when to leave them.
    steps, max_iterations : array of int, shape (B,)
        Number of steps of the schedule, and of all steps after those to the anchor.
    """

    anchor: Any
    first_weight: np.ndarray
    weight: np.ndarray
    unpenalised_weight: np.ndarray
    limiter_slack: float
    curvature: np.ndarray
    min_misfit_decrease: np.ndarray
    steps: np.ndarray
    max_iterations: np.ndarray

    def weight_at(self, number):
        """Rho of the steps with these numbers (B,); negative ones are steps to the anchor."""
        share = np.clip(number / np.maximum(self.steps - 1, 1), 0.0, 1.0)
        scheduled = self.first_weight ** (1 - share) * self.weight**share
        return np.where(number >= 0, scheduled, ANCHOR_WEIGHT * self.first_weight)


def half_quadratic_splitting(problem: Problem, schedule: Schedule):
    """Alternate v = P(z), the prior's target, and one Gauss-Newton step on J(x) + rho / 2 |z - v|^2 over z = log x.

    The iteration rests where (gradient of J) + rho (z - P(z)) = 0; the left side is in general not the gradient of
    anything. Each member of a batch is worked on by itself. A step solves (H + rho) d = -(gradient of J) - rho (z - v)
    (Geman and Yang, IEEE Trans. Image Process. 4, 1995; with a denoiser as P this is plug-and-play: Venkatakrishnan,
    Bouman and Wohlberg 2013; Zhang et al., IEEE TPAMI 44, 2022). rho grows geometrically: the first steps find what the
    data see, the later ones what makes it a plausible map.

    A denoiser or critic also holds the boundaries and contrasts of a map where they are. After the first
    `PENALISED_STEPS` steps, the weight along such directions (`UnpenalisedDirections`) is therefore a small one, so
    that the data still decide about them when the map is all but plausible. A boundary that is shifted to first order
    leaves overshoots, which would grow from step to step. From then on a limiter, as advection schemes have it, keeps
    the map within the range of values that the target takes around each node, after the target's contrast has been
    changed as much as the step changes it.

    Parameters
    ----------
    problem : Problem
        Its prior is a `TargetPrior`; of the start only z is used, and data if present.
    schedule : Schedule

    Returns
    -------
    Iterate
    status : array of str, shape (B,)
        "converged", "max_iterations", "stalled" or "stopped".
    """
    fidelity, rtol, anchor = problem.fidelity, problem.rtol, schedule.anchor
    z, shape, xp = problem.start.z, fidelity.measurement.geometry.node_shape, fidelity.device.xp
    members = len(z)
    active = np.ones(members, bool)
    status = np.full(members, "max_iterations", dtype=object)
    now = problem.start.data if problem.start.data is not None else fidelity.evaluate(np.exp(z), rtol)
    number = np.full(members, 0 if anchor is None else -ANCHOR_MAX_STEPS)  # of the step, below zero towards the anchor
    prior_value = np.zeros(members)
    while active.any():
        rho = schedule.weight_at(number)
        x = np.exp(z)
        target = z if anchor is None else anchor
        if (number > 0).any():
            target = xp.where(column(number > 0, z), problem.prior.target(z, shape), target)
        curvature = fidelity.curvature(x, now)
        free = active & (number >= PENALISED_STEPS)
        directions = UnpenalisedDirections(target, shape, free) if free.any() else None
        strength = column(rho, z)
        relief = column(np.where(free, np.maximum(rho - schedule.unpenalised_weight, 0.0), 0.0), z)

        def pull(v, strength=strength, relief=relief, directions=directions):
            return strength * v - relief * directions.project(v) if directions else strength * v

        gradient = x * now.gradient + pull(z - target)
        if problem.movable is not None:
            gradient = gradient * problem.movable
        d = truncated_newton_step(
            curvature,
            -gradient,
            column(rho + schedule.curvature, z),
            steps=CG_STEPS,
            tolerance=CG_TOLERANCE,
            finish=partial(_pulled, pull, problem.movable),
        )
        found = _damped_step(problem, schedule.limiter_slack, z, d, target, directions, free, active)
        if found is None:
            status[active] = "stalled"
            break
        trial, after, step = found
        change = np.sqrt(numbers(dots(trial - z, trial - z)) / z.shape[-1])
        # Of the map before the step, since the target of the new one is not known yet: the objective in the history is
        # therefore no merit function.
        prior_value = np.where(active, 0.5 * numbers(dots(z - target, z - target)), prior_value)
        before, (z, now) = now.value, (trial, after)
        point = Iterate(z, now, prior_value)
        stop = active & problem.report(point, rho, step, np.sqrt(numbers(dots(gradient, gradient))), active)
        resting = (change <= REST_TOL) | (before - now.value <= schedule.min_misfit_decrease)
        done = active & (number >= schedule.steps) & resting
        status[done], status[stop] = "converged", "stopped"
        number = np.where((number < 0) & (step == 1) & (change <= ANCHOR_TOL), 0, number + 1)
        active &= ~(stop | done) & (number < schedule.max_iterations)
    return Iterate(z, now, prior_value), status


def _pulled(pull, movable, product, v):
    """The Hessian's product with v from that of the data term, where the map may move."""
    product = product + pull(v)
    return product if movable is None else product * movable


def _damped_step(problem, slack, z, d, target, directions, free, active):
    """The map, its data term and the step lengths (B,) after a step along d, shortened until the data term can be
    evaluated; None if that does not help.
    """
    fidelity, xp = problem.fidelity, problem.fidelity.device.xp
    shape = fidelity.measurement.geometry.node_shape
    step = first_step(d)
    for _ in range(MAX_HALVINGS):
        trial = z + column(step, z) * d
        if directions and slack < np.inf:
            changed = target + directions.project_contrast(trial - target)
            low, high = (a.reshape(z.shape) for a in plateau_range(changed.reshape(-1, *shape)))
            trial = xp.where(column(free, z), np.clip(trial, low - slack, high + slack), trial)
        trial = xp.where(column(active, z), np.clip(trial, *problem.limits), z)
        try:
            return trial, fidelity.evaluate(np.exp(trial), problem.rtol), step
        except SolveError:  # too wild a modulus for the solver: a shorter step
            step = step / 2
    return None
