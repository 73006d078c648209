"""The noise of the measured displacements: which were measured, their precision, and random draws of their noise."""

from __future__ import annotations

from typing import Any

from ..backend.device import Device

__all__ = ["DisplacementNoise"]


class DisplacementNoise:
    """Independent Gaussian noise of the displacements of one measurement, or of a batch.

    Parameters
    ----------
    device : Device
        Where the arrays live.
    std : array, shape (..., d, N)
        Standard deviations in metres.
    observed : array of bool, shape (..., d, N)
        Which displacements were measured.

    Attributes
    ----------
    observed : array of bool, shape (..., d, N)
    weights : array, shape (..., d, N)
        1 / std^2 where measured, zero elsewhere.
    """

    def __init__(self, device: Device, std: Any, observed: Any) -> None:
        xp = self._xp = device.xp
        self.observed = observed
        self._std = xp.where(observed, std, 0.0)
        self.weights = xp.where(observed, 1 / xp.where(observed, std, 1.0) ** 2, 0.0)

    def precision(self, e: Any) -> Any:
        """P e for fields (..., d, N), with P the precision (inverse covariance) of the measured displacements."""
        return self.weights * e

    def draw(self, normal: Any) -> Any:
        """Noise of the measured displacements from standard normal numbers (d, N); zero elsewhere."""
        return self._std * normal
