"""The Poisson ratio as an unknown: the data term at the ratio that suits each modulus best.

J depends on the Poisson ratio nu through K alone. By the envelope theorem its slope at a given modulus is

    dJ/dnu = -z^T c,   c = (dK/dnu) u_hat,

and since c is how the force residual changes with nu, c^T Gamma^-1 c is its Gauss-Newton curvature. The displacement of
a body is almost linear in nu, up to the incompressible limit, so that two or three Newton steps find the best nu.

`FreePoisson` does that in every evaluation (variable projection: Golub and Pereyra, SIAM J. Numer. Anal. 10, 1973).
Optimisers see a data term in the modulus alone, and the Poisson ratio moves along from the first step on. A search
around whole reconstructions would have to begin with maps that a wrong ratio has bent already, and these are no start
to come back from.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.batch import dots, numbers
from ..forward.form import ElasticForm
from ..laws import Law, poisson_rate
from ..measurement import Measurement
from .fidelity import Evaluation, Fidelity

__all__ = ["FreePoisson", "poisson_derivatives", "poisson_range", "with_poisson"]

# Poisson ratios that are considered: tissue is not auxetic, and multigrid needs several times the iterations beyond.
SMALLEST, LARGEST = 0.0, 0.4995
# The search ends where another step would take less than this fraction off J, far less than a step of an optimiser.
ENERGY_TOL = 1e-6
MAX_EVALUATIONS = 12  # of J in one search; two or three are usual


def poisson_range(law: Law) -> tuple[float, float]:
    """Smallest and largest Poisson ratio that is considered for a law."""
    return SMALLEST, min(LARGEST, law.poisson_limit - (0.5 - LARGEST))


def with_poisson(measurement: Measurement, poisson: float) -> Measurement:
    """The measurement with another Poisson ratio in its law."""
    return measurement.derived(law=measurement.law.with_poisson(poisson))


def poisson_derivatives(fidelity: Fidelity, x: Any, now: Evaluation) -> tuple[float, float, Any]:
    """Slope and Gauss-Newton curvature of J by the Poisson ratio at a given modulus, and c = (dK/dnu) u_hat.

    Parameters
    ----------
    fidelity : Fidelity
        Of one measurement, with the exact gradient.
    x : array, shape (N,) or (1, N)
        Modulus in pascals.
    now : Evaluation
        What ``fidelity`` gives there.
    """
    m, xp = fidelity.measurement, fidelity.device.xp
    rate = ElasticForm(m.geometry, poisson_rate(m.law))
    force = rate.force(x, now.linearization_point)
    c = xp.where(fidelity.equations, force.reshape(now.multiplier.shape), 0.0)
    return -numbers(dots(now.multiplier, c, 2)).item(), 2 * numbers(now.energy(c)).item(), c


class FreePoisson(Fidelity):
    """`Fidelity` with the exact gradient of one measurement, whose Poisson ratio is unknown.

    Attributes
    ----------
    poisson : float
        The ratio of the last evaluation, from which the search of the next one begins.
    poisson_curvature : float
        Of J by the Poisson ratio there, at that modulus.
    """

    def _set_up(self, measurements, gradient, rtol, on_failure="raise"):
        super()._set_up(measurements, gradient, rtol, on_failure)
        self.n_data = self.n_data - 1
        self.poisson_curvature = 0.0

    @property
    def poisson(self) -> float:
        """The present Poisson ratio."""
        return self.measurement.law.poisson

    @poisson.setter
    def poisson(self, value: float) -> None:
        if value == self.poisson:
            return
        # The field that continues prescribed displacements into the body may stay: it is one of many that would do.
        self.measurement = with_poisson(self.measurement, value)
        self.make_solver = self._solver_maker()
        if self._open_dofs is not None:
            self._open_dofs.form = self.measurement.form

    def evaluate(self, x: Any, rtol: float | None = None) -> Evaluation:
        """The data term at a checked modulus (N,) or (1, N), at the Poisson ratio that suits it best."""
        low, high = poisson_range(self.measurement.law)
        least, origin, step = np.inf, self.poisson, 0.0
        for _ in range(MAX_EVALUATIONS):
            now = super().evaluate(x, rtol)
            value = numbers(now.value).item()
            if value > least:  # beyond the range in which J is nearly quadratic
                step /= 2
            else:
                slope, self.poisson_curvature, c = poisson_derivatives(self, x, now)
                least, origin = value, self.poisson
                step = float(np.clip(origin - slope / self.poisson_curvature, low, high)) - origin
            if abs(step * slope) <= ENERGY_TOL * least:
                break
            self.poisson = origin + step
        return self._projected(now, c) if low < self.poisson < high else now

    def _projected(self, now: Evaluation, c: Any) -> Evaluation:
        """The evaluation with the curvature of J at the best Poisson ratio: G - G c (G c)^T / (c^T G c) in place of G,
        which approximates Gamma^-1.
        """
        weighted = now.weighting(c)
        size = dots(c, weighted, 2)

        def weighting(r):
            return now.weighting(r) - dots(weighted, r, 2) / size * weighted

        if now.open_dofs is None or now.weighting_with_open is None:
            return now._replace(weighting=weighting)
        both = now.weighting_with_open
        z, q = both(c, self.device.xp.zeros((*c.shape[:-2], now.open_dofs.count)))
        energy = dots(c, z, 2)[..., 0]

        def weighting_with_open(r, p):
            own, at_open = both(r, p)
            share = (dots(z, r, 2)[..., 0] + dots(q, p)) / energy
            return own - share[..., None] * z, at_open - share * q

        return now._replace(weighting=weighting, weighting_with_open=weighting_with_open)
