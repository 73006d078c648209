"""The scale of the modulus where no nodal force is known: by measured total forces."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.batch import column, numbers
from ..backend.device import to_host
from ..priors.protocol import Linearization

__all__ = ["HeldScale", "force_factor", "has_total_force"]

# Standard deviation of the mean of log x that stands for its being held: far below what any force is measured to, far
# above what the solves leave. Not studied.
HELD_STD = 1e-3


def has_total_force(measurement: Any) -> bool:
    """Whether a total force was measured, in some frame."""
    return any(m.load.total_force is not None for m in measurement.frames)


def force_factor(measurement: Any, x: Any, u: Any) -> tuple[float, float, float] | None:
    """By what a modulus has to be multiplied for the body to answer with the measured total force.

    Of several frames with one, the least-squares solution: weighted by their precision where all state a standard
    deviation, else as if a load cell measured all equally well.

    Parameters
    ----------
    measurement : Measurement or JointMeasurement
    x : array, shape (N,)
    u : array, shape (d, N) or (frames, d, N)
        The displacement that belongs to the modulus, in metres.

    Returns
    -------
    factor, measured, predicted : float
        The forces in newtons are of the frame with the largest; None if no total force was measured.

    Raises
    ------
    ValueError
        If a measured force has the wrong sign.
    """
    m, found = measurement, []
    for frame, own in zip(m.frames, u.reshape(len(m.frames), m.geometry.dim, -1), strict=True):
        total = frame.load.total_force
        if total is None:
            continue
        predicted = float(to_host(m.form.force(x, own)[total.component])[total.nodes.ravel()].sum())
        if not predicted * total.value > 0:
            raise ValueError(
                f"load.total_force is {total.value:g} N, but the reconstructed body answers with {predicted:g} N: "
                "check the sign of the force and of the displacement"
            )
        found.append((total.value, predicted, total.std))
    if not found:
        return None
    measured, predicted, std = np.transpose(found)
    weight = std**-2.0 if std.all() else np.ones(len(std))
    factor = (weight * measured * predicted).sum() / (weight * predicted**2).sum()
    return float(factor), *max(found, key=lambda one: abs(one[0]))[:2]


class HeldScale:
    """A prior that can be linearised, and that the mean of log x is a given number.

    Parameters
    ----------
    prior : object
        A `LinearizablePrior`, which may have an energy too.
    mean : numpy.ndarray, shape (B,)
    weight : numpy.ndarray, shape (B,)
        The weight of the prior, by which this object will be multiplied too.
    """

    def __init__(self, prior: Any, mean: np.ndarray, weight: np.ndarray) -> None:
        self._prior, self._mean = prior, mean
        self._stiffness = 1 / (weight * HELD_STD**2)
        self.start_dual, self.step_dual = prior.start_dual, prior.step_dual

    def _away(self, z):
        return numbers(z.mean(axis=-1)) - self._mean

    def value(self, z):
        """R and the term of the mean, at z (B, N)."""
        return self._prior.value(z) + 0.5 * self._stiffness * self._away(z) ** 2

    def linearize(self, z, dual) -> Linearization:
        """The energy about z, with the curvature that belongs to a dual variable."""
        model, n = self._prior.linearize(z, dual), z.shape[-1]
        stiffness = column(self._stiffness, z) / n

        def curvature(v):
            return model.curvature(v) + stiffness * v.mean(axis=-1, keepdims=True)

        return Linearization(
            model.value + 0.5 * self._stiffness * self._away(z) ** 2,
            model.gradient + stiffness * column(self._away(z), z),
            curvature,
            model.diagonal + stiffness / n,
        )

    def __call__(self, x):
        """Value and gradient per pascal of one map."""
        value, gradient = self._prior(x)
        away = float(np.log(x).mean() - self._mean[0])
        stiffness = self._stiffness[0]
        return value + 0.5 * stiffness * away**2, gradient + stiffness * away / (x.size * x)
