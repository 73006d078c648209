"""Reconstruction with priors that know the way to the nearest plausible map: critics and denoisers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..backend.batch import column, dots, numbers
from .gauss_newton import Iterate, conjugate_gradients, data_curvature, first_step
from .unpenalised import Moves, plateau_range

__all__ = ["Settings", "half_quadratic_splitting", "schedule_steps"]

STEPS = 10  # of the schedule, where the data say little
SLOWER = 0.3  # power of the data term's mean curvature, up to ten, by which there are more where they say much
FIRST = 1.0  # weight of the first step over the mean curvature of the data term
CG_STEPS = 12
CG_TOLERANCE = 0.05
WORTH = 0.5  # fall of J that a step at the last weight must bring: what one fitted number takes away from pure noise
AT_REST = 2e-4  # rms step in log x at the last weight that ends the run in any case
FURTHER = 25  # steps at the last weight, by default
SETTLE = 30  # steps towards the anchor at most
FIRMLY = 300.0  # weight of these steps over that of the first of the schedule
SETTLED = 0.005  # rms step in log x after which nothing is left of the start
FREE = 5  # steps before boundaries and contrasts are known well enough to be moved


class Settings(NamedTuple):
    """What suits a prior.

    Attributes
    ----------
    weight, growth : float
        The weight of the last steps is weight h^growth, with h the mean curvature of the data term. 1 suits a prior
        whose errors follow the noise, 0 one whose errors do not.
    loose : float
        Weight along the `moves`, over h.
    slack : float
        In log x, by which a moved map may leave the levels of its target around a node.
    """

    weight: float = 100.0
    growth: float = 1.0
    loose: float = 3.0
    slack: float = np.inf


def schedule_steps(scale):
    """Length of the schedule for a mean curvature of the data term in log x."""
    return round(STEPS * min(max(scale, 1.0), 10.0) ** SLOWER)


def half_quadratic_splitting(
    fidelity,
    prior,
    weight,
    start,
    *,
    anchor,
    first,
    loose,
    slack,
    scale,
    worth,
    rtol,
    steps,
    max_iterations,
    limits,
    report,
    going=True,
):
    """Minimise J(x) + weight / 2 |z - P(z)|^2 over z = log x, P(z) being the prior's idea of the true map, for each
    member of a batch by itself.

    Each step is a damped Gauss-Newton one towards target = P(z): (H + rho) d = -(gradient of J) - rho (z - target)
    (Geman and Yang, IEEE Trans. Image Process. 4, 1995; with a denoiser as P this is plug-and-play: Venkatakrishnan,
    Bouman and Wohlberg 2013; Zhang et al., IEEE TPAMI 44, 2022). rho grows geometrically from ``first`` to
    ``weight``: the first steps find what the data see, the later ones what makes it a plausible map. A denoiser or
    critic also holds a map's boundaries and contrasts where they are; from the sixth step on the weight along such
    `moves` is a small one, so that the data still decide about them when the map is all but plausible. To first order a
    boundary that shifts leaves overshoots, which would grow from step to step: from then on the map stays, but for
    ``slack``, between the levels that the target has around a node, its contrast changed as the step has it. So the
    limiters of advection schemes work.

    Parameters
    ----------
    fidelity : Fidelity
    prior : object with ``target``
        ``target(z, shape)`` gives P(z) for z of shape (..., N) and the grid's shape.
    weight : float
        Of the last steps. This and all other numbers may be arrays (B,) as well.
    start : Iterate
        Only z is used, and data if present.
    anchor : array, shape (B, N), or None
        Map to which the run is pulled firmly, until it rests, and then by the schedule's first step, so that the result
        does not depend on the start. None: the start is trusted.
    first : float
        Weight of the first step.
    loose : float
        Weight along the moves.
    slack : float
        How far the map may leave the target's levels; one for all members.
    scale : float
        Mean curvature of the data term, see `curvature_scale`.
    worth : float
        Fall of J that a step at the last weight has to bring. Boundaries move a little in each step, the longer the
        more by what the noise says; so this tells when to leave them.
    rtol : float
        Tolerance of the forward and adjoint solves; one for all members.
    steps, max_iterations : int
        Number of steps of the schedule, and of all after the settling.
    limits, going
        As in `gauss_newton`.
    report : callable
        As in `gauss_newton`; it also gets the weights (B,).

    Returns
    -------
    Iterate
    status : array of str, shape (B,)
        "converged", "max_iterations", "stalled" or "stopped".
    """
    z, shape, xp = start.z, fidelity.measurement.geometry.node_shape, fidelity.device.xp
    members = len(z)
    weight, first, loose, scale, worth, steps, max_iterations = (
        np.broadcast_to(a, members) for a in (weight, first, loose, scale, worth, steps, max_iterations)
    )
    going = np.broadcast_to(going, members).copy()
    status = np.full(members, "max_iterations", dtype=object)
    now = start.data if start.data is not None else fidelity.evaluate(np.exp(z), rtol)
    number = np.full(members, 0 if anchor is None else -SETTLE)  # of the step, below zero while settling
    value = np.zeros(members)
    while going.any():
        share = np.clip(number / np.maximum(steps - 1, 1), 0.0, 1.0)
        rho = np.where(number >= 0, first ** (1 - share) * weight**share, FIRMLY * first)
        x = np.exp(z)
        resting = z if anchor is None else anchor
        target = resting if (number <= 0).all() else xp.where(column(number > 0, z), prior.target(z, shape), resting)
        curvature = data_curvature(fidelity, x, now)
        free = going & (number >= FREE)
        moves = Moves(target, shape, free) if free.any() else None
        strength, less = column(rho, z), column(np.where(free, np.maximum(rho - loose, 0.0), 0.0), z)

        def pull(v, strength=strength, less=less, moves=moves):
            return strength * v - less * moves.part(v) if moves else strength * v

        gradient = x * now.gradient + pull(z - target)
        d = conjugate_gradients(
            lambda v, pull=pull, curvature=curvature: curvature(v) + pull(v),
            -gradient,
            column(rho + scale, z),
            steps=CG_STEPS,
            tolerance=CG_TOLERANCE,
        )
        step = first_step(d)
        for _ in range(8):
            trial = z + column(step, z) * d
            if moves and slack < np.inf:
                changed = target + moves.contrast(trial - target)
                low, high = (a.reshape(z.shape) for a in plateau_range(changed.reshape(-1, *shape)))
                trial = xp.where(column(free, z), np.clip(trial, low - slack, high + slack), trial)
            trial = xp.where(column(going, z), np.clip(trial, *limits), z)
            try:
                after = fidelity.evaluate(np.exp(trial), rtol)
                break
            except RuntimeError:  # too wild a modulus for the solver: a shorter step
                step = step / 2
        else:
            status[going] = "stalled"
            break
        moved = np.sqrt(numbers(dots(trial - z, trial - z)) / z.shape[-1])
        value = np.where(going, 0.5 * numbers(dots(z - target, z - target)), value)
        before, (z, now) = now.value, (trial, after)
        point = Iterate(z, now, value, None)
        stop = going & report(point, step, np.sqrt(numbers(dots(gradient, gradient))), going, rho)
        done = going & (number >= steps) & ((moved <= AT_REST) | (before - now.value <= worth))
        status[done], status[stop] = "converged", "stopped"
        number = np.where((number < 0) & (step == 1) & (moved <= SETTLED), 0, number + 1)
        going &= ~(stop | done) & (number < max_iterations)
    return Iterate(z, now, value, None), status
