"""Reconstruction with priors that know the way to the nearest plausible map: critics and denoisers."""

from __future__ import annotations

import numpy as np

from .form import inner
from .newton import LONGEST_STEP, Iterate, conjugate_gradients, data_curvature

__all__ = ["half_quadratic_splitting"]

STEPS = 16  # of the schedule
FIRST = 0.1  # weight of the first step over the mean curvature of the data term
CG_STEPS = 12
CG_TOLERANCE = 0.05
AT_REST = 2e-3  # rms step in log x at the last weight that ends the run
FURTHER = 8  # steps at the last weight at most


def half_quadratic_splitting(fidelity, prior, weight, start, *, scale, rtol, max_iterations, limits, report):
    """Minimise J(x) + weight / 2 |z - P(z)|^2 over z = log x, P(z) being the prior's idea of the true map.

    Each step is a damped Gauss-Newton one towards target = P(z): (H + rho) d = -(gradient of J) - rho (z - target)
    (Geman and Yang, IEEE Trans. Image Process. 4, 1995; with a denoiser as P this is plug-and-play: Venkatakrishnan,
    Bouman and Wohlberg 2013; Zhang et al., IEEE TPAMI 44, 2022). rho grows geometrically from ``FIRST * scale`` to
    ``weight``: the first steps find what the data see, the later ones what makes it a plausible map.

    Parameters
    ----------
    fidelity : Fidelity
    prior : object with ``target``
        ``target(z, shape)`` gives P(z) for z of shape (N,) and the grid's shape.
    weight : float
        Of the last steps.
    start : Iterate
        Only z is used, and data if present.
    scale : float
        Mean curvature of the data term, see `curvature_scale`.
    rtol : float
        Tolerance of the forward and adjoint solves.
    max_iterations : int
        Number of steps of the schedule.
    limits : tuple of float or None
        Bounds on z.
    report : callable
        Called with each Iterate, step length, norm of the gradient, and weight; returns True to stop.

    Returns
    -------
    Iterate
    status : {"converged", "max_iterations", "stalled", "stopped"}
    """
    z = start.z
    now = start.data if start.data is not None else fidelity.evaluate(np.exp(z), rtol)
    for number in range(max_iterations + FURTHER):
        share = min(1.0, number / max(max_iterations - 1, 1))
        rho = (FIRST * scale) ** (1 - share) * weight**share
        x = np.exp(z)
        target = prior.target(z, fidelity.measurement.geometry.shape) if number else z  # the start says nothing yet
        curvature = data_curvature(fidelity, x, now)
        gradient = x * now.gradient + rho * (z - target)
        d = conjugate_gradients(
            lambda v, rho=rho, curvature=curvature: curvature(v) + rho * v,
            -gradient,
            np.full(z.size, rho + scale),
            steps=CG_STEPS,
            tolerance=CG_TOLERANCE,
        )
        step = min(1.0, LONGEST_STEP / np.abs(d).max())
        for _ in range(8):
            trial = z + step * d if limits is None else np.clip(z + step * d, *limits)
            try:
                after = fidelity.evaluate(np.exp(trial), rtol)
                break
            except RuntimeError:  # too wild a modulus for the solver: a shorter step
                step /= 2
        else:
            return Iterate(z, now, 0.0, None), "stalled"
        moved = np.sqrt(np.mean((trial - z) ** 2))
        value = 0.5 * inner(z - target, z - target)
        z, now = trial, after
        point = Iterate(z, now, value, None)
        if report(point, step, np.sqrt(inner(gradient, gradient)), rho):
            return point, "stopped"
        if number >= max_iterations and moved <= AT_REST:
            return point, "converged"
    return point, "max_iterations"
