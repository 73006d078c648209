"""The paper's optimizer: projected gradient descent on x with the covariance frozen for a number of steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.batch import dots, numbers
from ..backend.device import namespace
from ..priors.protocol import EnergyPrior
from .problem import Iterate, Optimizer, Problem

__all__ = ["ProjectedGradient", "projected_descent"]

STEPS = 100  # between two updates of Gamma (the paper's number)
UPDATES = 5  # of Gamma at most; not studied
REST_TOL = 1e-3  # relative change of x between two updates below which the fixed point counts as reached; not studied
POWER_STEPS = 15  # of the power iteration for the largest curvature
DIFFERENCE = 1e-4  # step of gradient differences, over the mean modulus


class ProjectedGradient(Optimizer):
    """The paper's projected gradient descent on the finest level; see `projected_descent`."""

    name = "descent"

    def supports(self, prior: Any) -> bool:
        """Whether there is no prior, or one with an energy."""
        return prior is None or isinstance(prior, EnergyPrior)

    def minimise(self, problem: Problem) -> tuple[Iterate, list[str]]:
        """See `projected_descent`."""
        return projected_descent(problem, steps=problem.max_iterations or STEPS)


def projected_descent(problem: Problem, steps: int) -> tuple[Iterate, list[str]]:
    """Equations 6 and 7 of the paper: x <- x - eps gradient within the bounds, Gamma updated every ``steps`` steps.

    The paper's step 0.7 is in its own units; here the problem's ``step_length`` is in units of one over the largest
    eigenvalue of the frozen problem's Hessian, so that it means the same on every mesh. With the frozen gradient the
    steps minimise 1/2 |f - D(u_m) x|^2 in Gamma^-1 plus the prior; with the exact one they descend J itself.

    Parameters
    ----------
    problem : Problem
        Of a batch of one; its prior is None or an `EnergyPrior`.
    steps : int
        Steps between updates of Gamma.

    Returns
    -------
    Iterate
    status : list of str
        "converged", "max_iterations" or "stopped".
    """
    fidelity, prior, rtol = problem.fidelity, problem.prior, problem.rtol
    x = np.exp(problem.start.z)
    shape, (weight,) = fidelity.measurement.geometry.node_shape, numbers(problem.weight)

    def of_prior(x):
        return np.ravel(prior(x.reshape(shape))[1]).reshape(x.shape)

    prior_gradient = of_prior if prior is not None and weight else None
    low, high = map(np.exp, problem.limits)
    for _ in range(UPDATES):
        now = fidelity.evaluate(x, rtol)
        begin = x
        eps = problem.step_length / _largest_curvature(fidelity, prior_gradient, weight, x, now)
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
        point = problem.start._replace(z=np.log(x), data=after, prior=numbers(value))
        norm = np.sqrt(numbers(dots(gradient, gradient)))
        if problem.report(point, np.array([weight]), np.array([eps]), norm, np.ones(1, bool)).any():
            return point, ["stopped"]
        if np.linalg.norm(x - begin) <= REST_TOL * np.linalg.norm(begin):
            return point, ["converged"]
    return point, ["max_iterations"]


def _largest_curvature(fidelity, prior_gradient, weight, x, now):
    """Largest eigenvalue of the Hessian in x, by power iteration; the prior's part from gradient differences."""
    data = fidelity.curvature(np.ones_like(x), now)
    v = namespace(x).asarray(np.random.default_rng(0).standard_normal(x.shape))
    value = 1.0
    base = None if prior_gradient is None else prior_gradient(x)
    for _ in range(POWER_STEPS):
        v /= np.linalg.norm(v)
        w = data(v)
        if base is not None:
            small = DIFFERENCE * x.mean()
            w = w + weight * (prior_gradient(x + small * v) - base) / small
        value = float(np.linalg.norm(w))
        v = w
    return value
