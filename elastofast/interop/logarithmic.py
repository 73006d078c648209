"""The data term as a function of z = log x, for programs that ask for its value, gradient and proximal map apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.device import device_of
from ..inversion.data_step import minimise_data_step
from ..measurement import Measurement
from ..misfit.fidelity import Fidelity

__all__ = ["LogMisfit"]


class LogMisfit:
    """J(exp z) for z = log x in flat arrays (N,), x in pascals.

    In z every map is a positive modulus, whatever an optimiser or a sampler tries, and steps are relative changes. A
    modulus that cannot be solved has an infinite value and a gradient of zeros, so that line searches and samplers go
    on. The last value and gradient are kept, because most programs ask for them one after the other.

    Parameters
    ----------
    measurement : Measurement
    rtol : float
        Relative tolerance of the linear solves.
    tolerance : float
        Of the proximal map: its gradient falls to this fraction of (z - v) / tau, which it has to balance.
    max_iterations : int
        Largest number of Gauss-Newton steps of the proximal map.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.
    """

    def __init__(
        self, measurement: Measurement, rtol: float = 1e-8, tolerance: float = 1e-3, max_iterations: int = 50
    ) -> None:
        self.fidelity = Fidelity(measurement, rtol=rtol, on_failure="inf")
        self.tolerance, self.max_iterations = float(tolerance), int(max_iterations)
        self._last: tuple[Any, float, Any] | None = None  # a point, the value and the gradient there

    def value(self, z: Any) -> float:
        """J(exp z)."""
        return self._at(z)[0]

    def gradient(self, z: Any) -> Any:
        """The derivative by z, shape (N,)."""
        return self._at(z)[1].copy()

    def proximal(self, v: Any, tau: float) -> Any:
        """The minimiser z of J(exp z) + |z - v|^2 / (2 tau).

        Raises
        ------
        SolveError (a RuntimeError)
            If the modulus exp v itself cannot be solved.

        Warns
        -----
        UserWarning
            If the tolerance is not reached.
        """
        v = self._flat(v)[None]
        return minimise_data_step(self.fidelity, v, np.array([1 / float(tau)]), self.tolerance, self.max_iterations)[0]

    def _flat(self, z):
        z = device_of(z=z).asarray(z)
        if z.size != self.fidelity.measurement.geometry.n_nodes:
            raise ValueError(
                f"z must have {self.fidelity.measurement.geometry.n_nodes} values of log x, got shape {z.shape}"
            )
        return z.reshape(-1).astype(np.float64)

    def _at(self, z):
        z, xp = self._flat(z), self.fidelity.device.xp
        if self._last is None or not bool((self._last[0] == z).all()):
            with np.errstate(over="ignore"):  # beyond the range of numbers is one more modulus that cannot be solved
                x = xp.exp(z)
            value, gradient = self.fidelity(x)
            self._last = z, value, x * gradient if np.isfinite(value) else gradient
        return self._last[1:]
