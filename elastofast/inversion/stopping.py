"""Rules that end an iteration: objects that are told of every step and say which members of a batch may stop.

Thresholds are those of the optimisers: DECREASE_TOL and FROZEN_STEP_TOL in `gauss_newton`, REST_TOL and
MIN_MISFIT_DECREASE in `splitting`, DECREASE_TOL in `lbfgs`, REST_TOL in `projected_gradient`.
"""

from __future__ import annotations

import numpy as np

from ..backend.batch import column
from ..backend.device import namespace

__all__ = ["Discrepancy", "SmallSteps"]


class SmallSteps:
    """Stops a member after two small steps in turn.

    One is not enough: a truncated inner solve gives a small step now and then while there is still much to gain.

    Parameters
    ----------
    members : int
        Size of the batch.
    """

    IN_TURN = 2

    def __init__(self, members: int):
        self._count = np.zeros(members, int)

    def __call__(self, small, accepted):
        """Which members have converged, given which steps were small and which were accepted (bool, (B,))."""
        self._count = np.where(accepted, np.where(small, self._count + 1, 0), self._count)
        return self._count >= self.IN_TURN


class Discrepancy:
    """Morozov's discrepancy principle, for maximum likelihood without a prior: later maps would fit the noise.

    A member stops at its first map with chi2 <= 1, or where chi2 begins to rise, as it may with the frozen gradient.

    Attributes
    ----------
    z : array, shape (B, N), or None
        The maps with the least chi2 so far.
    """

    def __init__(self, members: int):
        self._least = np.full(members, np.inf)
        self.z = None

    def __call__(self, chi2, z, accepted):
        """Which members stop, given chi2 (B,) of the maps z and which members took a step."""
        best = z if self.z is None else self.z
        rising = chi2 >= self._least
        better = accepted & ~rising
        self._least = np.where(better, chi2, self._least)
        self.z = namespace(z).where(column(better, z), z, best)
        return rising | (chi2 <= 1)
