"""L-BFGS in z = log x, for priors of which only value and gradient are known."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.batch import dots, numbers
from ..backend.device import to_host
from ..errors import PriorError, SolveError
from ..priors.protocol import EnergyPrior
from .problem import Iterate, Optimizer, Problem

__all__ = ["LBFGS", "quasi_newton"]

# Memory, limit and tolerance of SciPy's L-BFGS-B. Not studied; runs took 100 to 120 evaluations in early measurements.
PAIRS = 30
MAX_ITERATIONS = 200
DECREASE_TOL = 1e-6


class LBFGS(Optimizer):
    """L-BFGS-B on the finest level; see `quasi_newton`."""

    name = "l-bfgs"
    needs_derivative = True

    def supports(self, prior: Any) -> bool:
        """Whether there is no prior, or one with an energy."""
        return prior is None or isinstance(prior, EnergyPrior)

    def minimise(self, problem: Problem) -> tuple[Iterate, list[str]]:
        """See `quasi_newton`."""
        return quasi_newton(problem)


def quasi_newton(problem: Problem) -> tuple[Iterate, list[str]]:
    """Minimise J(x) + weight R(x) over z = log x by L-BFGS-B (SciPy's), for a batch of one.

    Parameters
    ----------
    problem : Problem
        Its prior is None or an `EnergyPrior`.

    Returns
    -------
    Iterate
    status : list of str
        "converged", "max_iterations", "stalled" or "stopped".
    """
    from scipy.optimize import minimize

    fidelity, prior, start = problem.fidelity, problem.prior, problem.start
    shape, xp = fidelity.measurement.geometry.node_shape, fidelity.device.xp
    (weight,) = numbers(problem.weight)
    bounds = zip(*(np.broadcast_to(to_host(own), start.z.shape).ravel() for own in problem.limits), strict=True)
    latest: dict[str, Any] = {}

    def objective(z):
        own = xp.array(z).reshape(start.z.shape)
        x = np.exp(own)
        try:
            data = fidelity.evaluate(x, problem.rtol)
        except SolveError:  # too wild a modulus for the solver: a bowl, so that the line search comes back
            if not latest:
                raise
            away, height = z - latest["host"], 1 + abs(latest["value"])
            return latest["value"] + height, 2 * height / (away @ away) * away
        value, slope = (0.0, x * 0.0) if prior is None else prior(x.reshape(shape))
        if not (latest or np.isfinite(float(value))):
            raise PriorError(f"the prior's energy is {float(value)} at the start: it must be finite there")
        gradient = x * (data.gradient + weight * slope.reshape(x.shape))
        latest["host"], latest["point"] = z.copy(), Iterate(own, data, numbers(float(value)))
        latest["norm"] = np.sqrt(numbers(dots(gradient, gradient)))
        latest["value"] = float(data.value[0]) + weight * float(value)
        return latest["value"], to_host(gradient).ravel()

    class Stop(Exception):
        pass

    def accepted(z):
        point = latest["point"]
        if not np.array_equal(z, latest["host"]):
            objective(z)
            point = latest["point"]
        latest["best"] = point
        if problem.report(point, np.array([weight]), np.ones(1), latest["norm"], np.ones(1, bool)).any():
            raise Stop

    options = {
        "maxiter": problem.max_iterations or MAX_ITERATIONS,
        "maxcor": PAIRS,
        "ftol": DECREASE_TOL / fidelity.frames,
    }
    try:
        found = minimize(
            objective,
            to_host(start.z).ravel(),
            jac=True,
            method="L-BFGS-B",
            callback=accepted,
            bounds=list(bounds),
            options=options,
        )
    except Stop:
        return latest["best"], ["stopped"]
    status = {0: "converged", 1: "max_iterations"}.get(found.status, "stalled")
    return latest.get("best") or latest["point"], [status]
