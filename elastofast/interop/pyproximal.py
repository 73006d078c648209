"""The data term as a proximal operator of pyproximal."""

from __future__ import annotations

from typing import Any

from pyproximal.ProxOperator import ProxOperator, _check_tau

from ..measurement import Measurement
from .logarithmic import LogMisfit

__all__ = ["Misfit"]


class Misfit(ProxOperator):
    """J(exp z) with its gradient and its proximal map, for pyproximal's methods.

    Parameters
    ----------
    measurement : Measurement
    rtol, tolerance, max_iterations
        See `elastofast.interop.logarithmic.LogMisfit`.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    The variable is z = log x, flat, with x in pascals. J is not convex in it, so that the methods' proofs of
    convergence do not apply, and the minimiser that `prox` finds is the local one next to its argument. The value of a
    modulus that cannot be solved is infinite, so that backtracking shortens its step.

    Examples
    --------
    >>> from pyproximal.optimization.primal import ADMM  # doctest: +SKIP
    >>> z, _ = ADMM(Misfit(m), pyproximal.TV(m.geometry.shape, 5.0), z0, tau=0.01)  # doctest: +SKIP
    """

    def __init__(
        self, measurement: Measurement, rtol: float = 1e-8, tolerance: float = 1e-3, max_iterations: int = 50
    ) -> None:
        super().__init__(None, hasgrad=True)
        self.misfit = LogMisfit(measurement, rtol, tolerance, max_iterations)

    def __call__(self, x: Any) -> float:
        """J(exp x)."""
        return self.misfit.value(x)

    @_check_tau
    def prox(self, x: Any, tau: float) -> Any:
        """The minimiser z of J(exp z) + |z - x|^2 / (2 tau)."""
        return self.misfit.proximal(x, tau)

    def grad(self, x: Any) -> Any:
        """The derivative of J(exp x) by x."""
        return self.misfit.gradient(x)
