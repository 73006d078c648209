"""Conjugate gradients for several systems at once, and the Chebyshev semi-iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..backend.batch import dots
from ..backend.device import namespace
from ..backend.elementwise import fused

__all__ = ["Iteration", "RestartedIteration", "conjugate_gradients", "restarted_conjugate_gradients", "semi_iteration"]

# Runs of the iteration, each of which starts from the true residual of the last one. The second run has the drift of
# the recursive residual to make up for, which a few iterations do; more runs only help ill-conditioned systems. Not
# studied.
RUNS = 3


class Iteration(NamedTuple):
    """Outcome of `conjugate_gradients`.

    Attributes
    ----------
    value : array, shape of the right-hand side
    iterations : int
        Of the member that took most.
    preconditioned_residual : array, shape (..., 1) or (..., 1, 1), or None
        Residual of each member in the preconditioner's norm, relative to the right-hand side; None unless it was asked
        for.
    """

    value: Any
    iterations: int
    preconditioned_residual: Any


class RestartedIteration(NamedTuple):
    """Outcome of `restarted_conjugate_gradients`: as `Iteration`, with the true relative residual of each member."""

    value: Any
    iterations: int
    preconditioned_residual: Any
    residual: Any


def conjugate_gradients(
    product: Callable[[Any], Any],
    precondition: Callable[[Any], Any],
    b: Any,
    x0: Any = None,
    *,
    maxiter: int,
    rtol: float | None = None,
    preconditioned_rtol: float | None = None,
    axes: int = 1,
) -> Iteration:
    """Preconditioned conjugate gradients for A x = b, for every member of a batch.

    SciPy's and CuPy's ``cg`` take one system and stop when the norm of its residual is small. This function differs in
    that

    - it takes a batch of systems. Each member has its own step lengths and its own stopping test; a member that has
      ended stays where it is while the others go on;
    - it can also stop on the residual in the preconditioner's norm, sqrt(r^T M r), which for a good preconditioner M
      is about the error in the energy norm;
    - it ends a member at a direction of negative or no curvature, before the step (truncation). The last
      point is then still a descent direction for the quadratic model (Nocedal and Wright, Numerical Optimization,
      algorithm 7.1).

    On a device one number per iteration is copied to the host: whether any member is still active.

    Parameters
    ----------
    product, precondition : callable
        v -> A v and v -> M v, symmetric, for fields of the shape of b; the result must be a new array.
    b : array of float64, shape (..., N), or (..., d, N) with ``axes=2``
        Right-hand sides.
    x0 : array of float64, shape of b, optional
        Initial guess; by default zero.
    maxiter : int
        Largest number of iterations.
    rtol : float, optional
        A member ends when ||r|| <= rtol ||b||, with r the residual of the recursion.
    preconditioned_rtol : float, optional
        A member ends when sqrt(r^T M r) <= preconditioned_rtol sqrt(b^T M b).
    axes : int
        Number of trailing axes that belong to one system.
    """
    xp = namespace(b)
    size: Any = dots(b, b, axes) if rtol is not None or x0 is not None else None
    if x0 is None:
        x, r = xp.zeros_like(b), b.copy()
    else:
        x = xp.where(size > 0, x0, 0.0)
        r = b - product(x)
    active = xp.ones((*b.shape[: b.ndim - axes], *[1] * axes), bool)
    p: Any = None
    rho: Any = None
    before: Any = None
    reference: Any = None
    s: Any = None
    iterations = 0
    while True:
        if rtol is not None:
            active = _above(active, dots(r, r, axes), rtol**2 * size)
        if preconditioned_rtol is not None:
            s = precondition(r)
            before, rho = rho, dots(r, s, axes)
            if reference is None:
                reference = rho if x0 is None else dots(b, precondition(b), axes)
            active = _above(active, rho, preconditioned_rtol**2 * reference)
        if iterations >= maxiter or not bool(active.any()):
            break
        if preconditioned_rtol is None:  # only now, so that a converged residual costs no preconditioning
            s = precondition(r)
            before, rho = rho, dots(r, s, axes)
        if p is None:
            p = s.copy()
        else:
            _turn(p, s, rho, before, active)
        q = product(p)
        curvature = dots(p, q, axes)
        active = _above(active, curvature, 0.0)
        _advance(x, r, p, q, rho, curvature, active)
        iterations += 1
    preconditioned = None
    if preconditioned_rtol is not None:  # rounding makes rho negative where the preconditioner is only semidefinite
        preconditioned = xp.sqrt(xp.maximum(rho, 0.0) / xp.where(reference > 0, reference, 1.0))
    return Iteration(x, iterations, preconditioned)


def restarted_conjugate_gradients(
    product: Callable[[Any], Any],
    precondition: Callable[[Any], Any],
    b: Any,
    x0: Any = None,
    *,
    maxiter: int,
    rtol: float,
    preconditioned_rtol: float | None = None,
    axes: int = 1,
    runs: int = RUNS,
) -> RestartedIteration:
    """`conjugate_gradients` until the true residual b - A x is small.

    The residual of the recursion drifts away from the true one by rounding. When the iteration has ended, the true
    residual is computed, and while it is too large the iteration starts again from there.

    Parameters are those of `conjugate_gradients`, and

    Parameters
    ----------
    runs : int
        Largest number of starts.

    Returns
    -------
    RestartedIteration
        A member has converged if its residual is at most ``rtol`` or its preconditioned residual at most
        ``preconditioned_rtol``; the caller has to look.
    """
    xp = namespace(b)
    size = xp.sqrt(dots(b, b, axes))
    size = xp.where(size > 0, size, 1.0)
    x, iterations = x0, 0
    for _ in range(runs):
        x, more, preconditioned = conjugate_gradients(
            product,
            precondition,
            b,
            x,
            maxiter=maxiter - iterations,
            rtol=rtol,
            preconditioned_rtol=preconditioned_rtol,
            axes=axes,
        )
        iterations += more
        rest = b - product(x)
        residual = xp.sqrt(dots(rest, rest, axes)) / size
        converged = residual <= rtol
        if preconditioned_rtol is not None:
            converged = converged | (preconditioned <= preconditioned_rtol)
        if bool(converged.all()) or iterations >= maxiter:
            break
    return RestartedIteration(x, iterations, preconditioned, residual)


def semi_iteration(low: float, high: float, count: int) -> list[tuple[float, float]]:
    """Coefficients (momentum, gain) of ``count`` steps of the Chebyshev semi-iteration for a spectrum from low to high.

    Saad, Iterative Methods for Sparse Linear Systems, section 12.3.
    """
    middle, radius = (high + low) / 2, (high - low) / 2
    steps, rho = [(0.0, 1 / middle)], radius / middle
    for _ in range(count - 1):
        following = 1 / (2 * middle / radius - rho)
        steps.append((following * rho, 2 * following / radius))
        rho = following
    return steps


@fused
def _above(xp, active, value, goal):
    return active & (value > goal)


@fused
def _turn(xp, p, s, rho, before, active):
    """Make p the next search direction of the active members."""
    p *= xp.where(active, rho / xp.where(active, before, 1.0), 0.0)
    p += s


@fused
def _advance(xp, x, r, p, q, rho, curvature, active):
    """Move the solution x and the residual r of the active members along p; q = A p."""
    step = xp.where(active, rho / xp.where(active, curvature, 1.0), 0.0)
    x += step * p
    r -= step * q
