"""The Gauss-Newton Hessian of the data term, as a function that multiplies by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend.batch import dots
from ..backend.device import namespace
from .fidelity import Evaluation, Fidelity

__all__ = ["curvature_scale", "data_curvature"]


def data_curvature(fidelity: Fidelity, x: Any, now: Evaluation) -> Callable[[Any], Any]:
    """Gauss-Newton Hessian of the data term in z = log x: v -> x D^T Gamma^-1 D (x v), products with x pointwise.

    In place of Gamma^-1 stands the fixed approximation `Evaluation.weighting`, and D = D(u) is taken at the
    evaluation's linearisation point.

    Parameters
    ----------
    fidelity : Fidelity
    x : array, shape (..., N)
        The moduli of the evaluation, in pascals. With ones in their place the result is the Hessian in x itself.
    now : Evaluation

    Returns
    -------
    callable
        Takes and gives node fields (..., N); its time is added to ``fidelity.watch``.
    """
    form, xp, point = fidelity.measurement.form, fidelity.device.xp, now.linearization_point
    point = xp.ascontiguousarray(xp.broadcast_to(point, (*x.shape[:-1], *point.shape[-2:])))
    product, transposed = form.operators(point)

    def apply(v):
        t = product(x * v)
        t *= fidelity.equations
        g = transposed(now.weighting(t))
        g *= x
        return g

    return fidelity.watch.wrap(apply)


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
