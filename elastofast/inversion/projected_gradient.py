"""The paper's optimizer: projected gradient descent on x with the covariance frozen for a number of steps."""

from __future__ import annotations

import numpy as np

from ..backend.batch import dots, numbers
from ..backend.device import namespace
from .gauss_newton import data_curvature

__all__ = ["projected_descent"]

UPDATES = 5  # of Gamma


def projected_descent(fidelity, prior, weight, start, *, length, steps, rtol, limits, report):
    """Equations 6 and 7 of the paper: x <- x - eps grad within the bounds, Gamma updated after every ``steps`` steps.

    The paper's step 0.7 is in its own units; here ``length`` is in units of one over the largest eigenvalue of the
    frozen problem's Hessian, so that it means the same on every mesh. With the frozen gradient the steps minimise
    1/2 |f - D(u_m) x|^2 in Gamma^-1 plus the prior; with the exact one they descend J itself.

    Parameters
    ----------
    fidelity : Fidelity
    prior : callable, or None
    weight : float
    start : Iterate
    length : float
    steps : int
        Steps between updates of Gamma.
    rtol, limits, report
        As in `gauss_newton`; for a batch of one.

    Returns
    -------
    Iterate
    status : list of str
        "converged", "max_iterations" or "stopped".
    """
    x = np.exp(start.z)
    shape, (weight,) = fidelity.measurement.geometry.node_shape, numbers(weight)

    def of_prior(x):
        return np.ravel(prior(x.reshape(shape))[1]).reshape(x.shape)

    prior_gradient = of_prior if prior is not None and weight else None
    low, high = map(np.exp, limits)
    for _ in range(UPDATES):
        now = fidelity.evaluate(x, rtol)
        begin = x
        eps = length / _largest_curvature(fidelity, prior_gradient, weight, x, now)
        for _ in range(steps):
            if fidelity.kind == "exact":
                now = fidelity.evaluate(x, rtol)
                gradient = now.gradient
            else:
                gradient = now.frozen_gradient(x)
            if prior_gradient is not None:
                gradient = gradient + weight * prior_gradient(x)
            x = np.clip(x - eps * gradient, low, high)
        after = fidelity.evaluate(x, rtol)
        value = 0.0 if prior is None else float(prior(x.reshape(shape))[0])
        point = start._replace(z=np.log(x), data=after, prior=numbers(value))
        if report(point, np.array([eps]), np.sqrt(numbers(dots(gradient, gradient))), np.ones(1, bool)).any():
            return point, ["stopped"]
        if np.linalg.norm(x - begin) <= 1e-3 * np.linalg.norm(begin):
            return point, ["converged"]
    return point, ["max_iterations"]


def _largest_curvature(fidelity, prior_gradient, weight, x, now):
    """Largest eigenvalue of the Hessian in x, by power iteration; the prior's part from gradient differences."""
    data = data_curvature(fidelity, np.ones_like(x), now)
    v = namespace(x).asarray(np.random.default_rng(0).standard_normal(x.shape))
    value = 1.0
    base = None if prior_gradient is None else prior_gradient(x)
    for _ in range(15):
        v /= np.linalg.norm(v)
        w = data(v)
        if base is not None:
            small = 1e-4 * x.mean()
            w = w + weight * (prior_gradient(x + small * v) - base) / small
        value = float(np.linalg.norm(w))
        v = w
    return value
