"""The data step of half-quadratic splitting by itself, and its derivatives by implicit differentiation."""

from __future__ import annotations

import warnings
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

# The inner iteration. With a tolerance of .03 the outer one took up to twice as many steps at a weight of 20, and 100
# inner steps changed nothing (two simulated maps of 64 x 64 nodes, 35 dB).
CG_STEPS = 30
CG_TOLERANCE = 0.1
MAX_HALVINGS = 12
ROUNDING = (
    10.0  # gradients of this times the tolerance of the solves, times that of the noise, are rounding. Not studied
)
SUFFICIENT = 1e-4  # share of the expected decrease that a step must bring (Armijo)
# The linear system of the derivatives: its tolerance in the preconditioner's norm is this share of that of the data
# step, whose error the derivatives have in any case.
DERIVATIVE_STEPS = 300
DERIVATIVE_TOLERANCE_SHARE = 0.1
SOLVE_SHARE = 0.1  # tolerance of the solves in its products, over that of the data step


def minimise_data_step(fidelity: Fidelity, target: Any, weight: Any, tolerance: float, max_iterations: int) -> Any:
    """The minimiser z of J(exp z) + weight / 2 |z - target|^2, by damped Gauss-Newton steps.

    Their Hessian is the approximate one of the other optimisers, with which they converge linearly: on most maps of
    64 x 64 nodes at 35 dB in 5 to 14 steps for weights from 400 down to 20. At small weights and from far away some
    runs creep along a bent valley. Neither Newton steps with the exact Hessian nor L-BFGS were better there.

    Parameters
    ----------
    fidelity : Fidelity
        J, with the exact gradient.
    target : array, shape (B, N)
        Of z = log x.
    weight : array, shape (B,)
    tolerance : float
        The iteration ends when each member's gradient has fallen to this fraction of weight (z - target), which it has
        to balance.
    max_iterations : int

    Returns
    -------
    array, shape (B, N)

    Raises
    ------
    SolveError
        If a solve fails whatever the step, or no step lowers the objective.

    Warns
    -----
    UserWarning
        If the tolerance is not reached.
    """
    rho, z = column(weight, target), target
    now = fidelity.evaluate(np.exp(z))
    for _ in range(max_iterations + 1):
        x = np.exp(z)
        pull = rho * (z - target)
        gradient = x * now.gradient + pull
        curvature = DataCurvature(fidelity, x, now)
        scale = curvature_scale(curvature, z)
        size = np.sqrt(numbers(dots(gradient, gradient)))
        goal = tolerance * np.sqrt(numbers(dots(pull, pull)))
        goal += ROUNDING * fidelity.rtol * np.sqrt(np.maximum(numbers(scale), 0.0) * z.shape[-1])
        active = size > goal
        if not active.any():
            return z
        d = truncated_newton_step(
            curvature, -gradient, rho + scale, CG_STEPS, CG_TOLERANCE, finish=partial(_plus_weight, rho)
        )
        z, now = _damped(fidelity, target, rho, z, now, gradient, d, active)
    warnings.warn(
        f"the data step stopped after {max_iterations} iterations with {float((size / goal).max()):.2g} times the "
        f"gradient that a tolerance of {tolerance:.1e} allows, so its derivatives are inexact too: raise the weight, "
        "max_iterations or the tolerance",
        stacklevel=2,
    )
    return z


def _hessian(fidelity, x, now):
    """The product with the Hessian of J(exp z) in z = log x."""
    slope = x * now.gradient  # from the second derivative of exp
    return lambda v: x * fidelity.hessian_product(now, x * v)[0] + slope * v


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
    fidelity: Fidelity, z: Any, target: Any, weight: Any, cotangent: Any, tolerance: float
) -> tuple[Any, np.ndarray, Any, Any]:
    """What a functional of the minimiser z has for derivatives by what z depends on (implicit function theorem).

    With H the Hessian of the objective in z and q = H^-1 c, c being the derivative of the functional by z (cotangent):
    weight q by the target, -q^T (z - target) by the weight, and by the data minus the derivative of q^T dJ/dz.

    The system is solved to a share of ``tolerance``, that of the data step.

    Returns
    -------
    by_target : array, shape (B, N)
    by_weight : numpy.ndarray, shape (B,)
    by_displacement, by_force : arrays, shape (B, d, N)
        By the measured displacement, zero where nothing was measured, and by the known forces.
    """
    x, rho = np.exp(z), column(weight, z)
    now = fidelity.evaluate(x, max(fidelity.rtol, SOLVE_SHARE * tolerance))
    hessian = _hessian(fidelity, x, now)
    diagonal = rho + curvature_scale(DataCurvature(fidelity, x, now), z)
    q = conjugate_gradients(
        lambda v: hessian(v) + rho * v,
        lambda r: r / diagonal,
        cotangent,
        maxiter=DERIVATIVE_STEPS,
        preconditioned_rtol=DERIVATIVE_TOLERANCE_SHARE * tolerance,
    ).value
    form = fidelity.measurement.form
    _, _, dz = fidelity.hessian_product(now, x * q)
    # dJ/du_m = -K(x) z and dJ/df = z with the multiplier z; along a change of x, both change
    by_displacement = form.force(x * q, now.multiplier) + form.force(x, dz)
    by_displacement *= ~attribute_on(fidelity.device, fidelity.measurement.load, "fixed").reshape(dz.shape[-2:])
    return rho * q, -numbers(dots(q, z - target)), by_displacement, -dz
