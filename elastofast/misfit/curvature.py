"""The Gauss-Newton Hessian of the data term, and steps with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend.batch import dots
from ..backend.device import namespace
from ..forward.krylov import conjugate_gradients

__all__ = ["DataCurvature", "curvature_scale", "truncated_newton_step"]


class DataCurvature:
    """Gauss-Newton Hessian of the data term in z = log x: v -> x D^T Gamma^-1 D (x v), products with x pointwise.

    In place of Gamma^-1 stands the fixed approximation `Evaluation.weighting`, and D = D(u) is taken at the
    evaluation's linearisation point. Where displacements of open dofs are unknown, this is the Hessian for given
    displacements; `with_open` multiplies by the one in both unknowns.

    Parameters
    ----------
    fidelity : Fidelity
    x : array, shape (..., N)
        The moduli of the evaluation, in pascals. With ones in their place the result is the Hessian in x itself.
    now : Evaluation

    Notes
    -----
    Fields in and out have the shape (..., N). The time of all products is added to ``fidelity.watch``.
    """

    def __init__(self, fidelity: Any, x: Any, now: Any) -> None:
        form, xp, point = fidelity.measurement.form, fidelity.device.xp, now.linearization_point
        point = xp.ascontiguousarray(xp.broadcast_to(point, (*x.shape[:-1], *point.shape[-2:])))
        self._product, self._transposed = form.operators(point)
        self._fidelity, self._x, self._now = fidelity, x, now
        self.open_dofs = now.open_dofs if now.weighting_with_open is not None else None

    def __call__(self, v: Any) -> Any:
        """H v."""
        with self._fidelity.watch:
            t = self._product(self._x * v)
            t *= self._fidelity.equations
            g = self._transposed(self._now.weighting(t))
            g *= self._x
            return g

    def with_open(self, v: Any, p: Any) -> tuple[Any, Any]:
        """The Hessian in both unknowns times (v, p), shapes (..., N) and (..., open dofs)."""
        assert self._now.weighting_with_open is not None
        with self._fidelity.watch:
            t = self._product(self._x * v)
            t *= self._fidelity.equations
            z, q = self._now.weighting_with_open(t, p)
            return self._x * self._transposed(z), q


def truncated_newton_step(
    data: Any,
    b: Any,
    diagonal: Any,
    steps: int,
    tolerance: float,
    finish: Callable[[Any, Any], Any] = lambda product, v: product,
) -> Any:
    """Approximate solution d of (H + R) d = b by a few conjugate gradient iterations from zero.

    The displacements of open dofs are unknowns of the same system, so that the step takes into account that they move
    when the modulus changes: where much of the body's motion is not measured, a modulus can change far more than it
    could for given displacements.

    Parameters
    ----------
    data : DataCurvature, JointCurvature, or any callable
        H.
    b : array, shape (..., N)
        Minus a gradient: every iterate but zero is then a descent direction. Its part by the displacements of open dofs
        is zero, because they are the best ones.
    diagonal : array that broadcasts against b
        Preconditioner.
    steps : int
        Largest number of iterations.
    tolerance : float
        Of the residual in the preconditioner's norm.
    finish : callable, optional
        (H v, v) -> (H + R) v.
    """
    open_dofs = getattr(data, "open_dofs", None)
    if open_dofs is None:
        return conjugate_gradients(
            lambda v: finish(data(v), v),
            lambda r: r / diagonal,
            b,
            maxiter=steps,
            preconditioned_rtol=tolerance,
        ).value
    xp, n = namespace(b), b.shape[-1]

    def product(both):
        v, p = both[..., :n], both[..., n:]
        own, at_open = data.with_open(v, p)
        return xp.concatenate([finish(own, v), at_open], axis=-1)

    def precondition(both):
        return xp.concatenate([both[..., :n] / diagonal, open_dofs.precondition(both[..., n:])], axis=-1)

    rhs = xp.concatenate([b, xp.zeros((*b.shape[:-1], open_dofs.count))], axis=-1)
    return conjugate_gradients(product, precondition, rhs, maxiter=steps, preconditioned_rtol=tolerance).value[..., :n]


def curvature_scale(curvature: Callable[[Any], Any], z: Any) -> Any:
    """Estimate of the mean diagonal element of a Hessian by one random probe of signs (Hutchinson, Commun. Stat.
    Simul. Comput. 19, 1990).

    Parameters
    ----------
    curvature : callable
        v -> H v for fields like z.
    z : array, shape (..., N)
        Only its shape, and where it lives, matter.

    Returns
    -------
    array, shape (..., 1)
    """
    signs = np.random.default_rng(0).choice([-1.0, 1.0], z.shape[-1])
    probe = np.zeros_like(z) + namespace(z).asarray(signs)
    return dots(probe, curvature(probe)) / z.shape[-1]
