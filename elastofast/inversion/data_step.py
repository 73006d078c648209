"""The data step of half-quadratic splitting by itself, and its derivatives by implicit differentiation."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..backend.batch import column, dots, numbers
from ..backend.device import attribute_on
from ..errors import SolveError
from ..forward.krylov import conjugate_gradients
from ..misfit.curvature import DataCurvature, curvature_scale, truncated_newton_step
from ..misfit.fidelity import Fidelity

__all__ = ["minimise_data_step", "pull_back_data_step"]

# Gauss-Newton steps, solved to the accuracy that steps with an approximate Hessian can use. Not studied.
CG_STEPS = 30
CG_TOLERANCE = 0.03
MAX_HALVINGS = 12
SUFFICIENT = 1e-4  # share of the expected decrease that a step must bring (Armijo)
# The linear system of the derivatives, in the preconditioner's norm.
DERIVATIVE_STEPS = 200
DERIVATIVE_TOLERANCE_PER_RTOL = 0.1  # times the tolerance of the solves


def minimise_data_step(fidelity: Fidelity, target: Any, weight: Any, tolerance: float, max_iterations: int) -> Any:
    """The minimiser z of J(exp z) + weight / 2 |z - target|^2, by damped Gauss-Newton steps.

    Parameters
    ----------
    fidelity : Fidelity
        J, with the exact gradient.
    target : array, shape (B, N)
        Of z = log x.
    weight : array, shape (B,)
    tolerance : float
        The iteration ends when each member's gradient has fallen to this fraction of that at its target.
    max_iterations : int

    Returns
    -------
    array, shape (B, N)

    Raises
    ------
    SolveError
        If a solve fails whatever the step, or the iteration does not reach the tolerance.
    """
    rho, z = column(weight, target), target
    goal: Any = None
    now = fidelity.evaluate(np.exp(z))
    for _ in range(max_iterations + 1):
        x = np.exp(z)
        gradient = x * now.gradient + rho * (z - target)
        size = numbers(dots(gradient, gradient))
        goal = size if goal is None else goal
        active = size > tolerance**2 * goal
        if not active.any():
            return z
        curvature = DataCurvature(fidelity, x, now)
        diagonal = rho + np.maximum(curvature_scale(curvature, z), 0.0)
        d = truncated_newton_step(
            curvature, -gradient, diagonal, CG_STEPS, CG_TOLERANCE, finish=partial(_plus_weight, rho)
        )
        z, now = _damped(fidelity, target, rho, z, now, gradient, d, active)
    worst = float(np.sqrt((size / np.maximum(goal, np.finfo(float).tiny)).max()))
    raise SolveError(
        f"the data step stopped after {max_iterations} iterations with {worst:.1e} of the target's gradient left, "
        f"{tolerance:.1e} was asked for: raise the weight, max_iterations or the tolerance"
    )


def _plus_weight(rho, product, v):
    return product + rho * v


def _damped(fidelity, target, rho, z, now, gradient, d, active):
    """The map and its data term after a step along d that lowers the objective."""
    half = 0.5 * numbers(rho)
    before = now.value + half * numbers(dots(z - target, z - target))
    slope = numbers(dots(gradient, d))
    step = np.where(active, 1.0, 0.0)
    for _ in range(MAX_HALVINGS):
        trial = z + column(step, z) * d
        try:
            after = fidelity.evaluate(np.exp(trial))
        except SolveError:  # too wild a modulus for the solver: a shorter step
            step = step / 2
            continue
        value = after.value + half * numbers(dots(trial - target, trial - target))
        rounding = 8 * fidelity.rtol * np.abs(before)
        lower = value <= before + SUFFICIENT * step * slope + rounding
        if lower.all():
            return trial, after
        step = np.where(lower, step, step / 2)
    raise SolveError("no step of the data step lowers its objective: a smaller rtol of the solves may help")


def pull_back_data_step(
    fidelity: Fidelity, z: Any, target: Any, weight: Any, cotangent: Any
) -> tuple[Any, np.ndarray, Any, Any]:
    """What a functional of the minimiser z has for derivatives by what z depends on (implicit function theorem).

    With H the Hessian of the objective in z and q = H^-1 c, c being the derivative of the functional by z (cotangent):
    weight q by the target, -q^T (z - target) by the weight, and by the data minus the derivative of q^T dJ/dz.

    Returns
    -------
    by_target : array, shape (B, N)
    by_weight : numpy.ndarray, shape (B,)
    by_displacement, by_force : arrays, shape (B, d, N)
        By the measured displacement, zero where nothing was measured, and by the known forces.
    """
    x, rho = np.exp(z), column(weight, z)
    now = fidelity.evaluate(x)
    slope = x * now.gradient  # the derivative of exp in the chain rule

    def product(q):
        return x * fidelity.hessian_product(now, x * q)[0] + (slope + rho) * q

    scale = np.maximum(curvature_scale(DataCurvature(fidelity, x, now), z), 0.0)
    q = conjugate_gradients(
        product,
        lambda r: r / (rho + scale),
        cotangent,
        maxiter=DERIVATIVE_STEPS,
        preconditioned_rtol=DERIVATIVE_TOLERANCE_PER_RTOL * fidelity.rtol,
    ).value
    form = fidelity.measurement.form
    _, _, dz = fidelity.hessian_product(now, x * q)
    # dJ/du_m = -K(x) z and dJ/df = z with the multiplier z; along a change of x, both change
    by_displacement = form.force(x * q, now.multiplier) + form.force(x, dz)
    by_displacement *= ~attribute_on(fidelity.device, fidelity.measurement.load, "fixed").reshape(dz.shape[-2:])
    return rho * q, -numbers(dots(q, z - target)), by_displacement, -dz
