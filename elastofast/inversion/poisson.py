"""A Poisson ratio that is not known: estimated from the measurement, with an interval.

The ratio is found together with a map under total variation, on a copy of the measurement that is coarse where the
measurement is large; the displacement of the whole body tells it, for which few nodes are enough. All that follows
takes the estimate for known. The interval is that of the profile likelihood: the ratios at which the objective, once
more minimised over the map, is higher than at its minimum by half of the 95 % quantile of the chi-square distribution
with one degree of freedom.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.stats import chi2

from ..measurement import Measurement
from ..misfit.free_poisson import FreePoisson, poisson_range, with_poisson
from .coarsen import coarsest
from .multilevel import Multilevel
from .options import Options

__all__ = ["FreeRun", "PoissonEstimate", "estimate_poisson"]

CONFIDENCE = 0.95
RISE = 0.5 * float(chi2.ppf(CONFIDENCE, 1))  # of the objective at the ends of the interval
# The profile is probed at this many standard deviations for a given map. If the rise there is less than PROBED_RISE,
# because the map can make up for the change, the next probe is PROBE_RATIO times as far away. Not studied.
PROBE, PROBE_RATIO, PROBED_RISE = 4.0, 3.0, 0.5
# Standard deviation that is added for the errors of the coarse copy and of the prior's pull, which the profile does not
# know: they were up to .0015 on phantoms of 41 x 41 to 129 x 129 nodes at 35 and 55 dB, in both plane laws.
SYSTEMATIC = 0.001
# Half-width of the interval above which the data do not tell the ratio: an error of .03 is what spoils maps.
WIDEST = 0.03


class PoissonEstimate(NamedTuple):
    """An estimated Poisson ratio.

    Attributes
    ----------
    value : float
        The most likely one.
    low, high : float
        Ends of its 95 % interval.
    stated : float
        The one that the measurement's law had.
    told : bool
        Whether the data tell it. If not, the stated one is used.
    """

    value: float
    low: float
    high: float
    stated: float
    told: bool

    @property
    def used(self) -> float:
        """The ratio to go on with."""
        return self.value if self.told else self.stated

    @property
    def text(self) -> str:
        """One sentence for the user."""
        found = (
            f"The Poisson ratio was estimated as {self.value:.4f} (95 % interval {self.low:.4f} to {self.high:.4f}; "
            f"{self.stated:g} was stated)"
        )
        if self.told:
            edge = " That is the smallest that is considered: something else must be wrong." if self.value <= 0 else ""
            return f"{found}.{edge}"
        return (
            f"{found}: the data cannot tell it, and {self.stated:g} was used. A force, plates whose displacement is "
            "known, free edges, or the lateral component would tell more."
        )


def estimate_poisson(measurement: Measurement, options: Options, place: int | None = None) -> PoissonEstimate:
    """The Poisson ratio of a measurement; the one in its law is where the search begins.

    Parameters
    ----------
    measurement : Measurement
    options : Options
        Those of the reconstruction, of which only ``progress`` matters.
    place : int, optional
        Number of the measurement in the caller's list.

    Raises
    ------
    ValueError
        If no map was found because linear solves failed.

    Warns
    -----
    UserWarning
        If the data do not tell the ratio.
    """
    m = coarsest(measurement)
    own = Options.total_variation(m, progress=options.progress)
    places = None if place is None else [place]
    run = FreeRun([m], [None], ["auto"], replace(own, prior_name="tv, Poisson ratio free"), places)
    result = run.results()[0]
    _stop_unless_finished(result.status)
    poisson, curvature, best, start = run.found()

    def rise(value):
        """Of the objective from its minimum, at another ratio and the map that suits that one best."""
        probe = Multilevel([with_poisson(m, value)], [start], [result.weight], own, places)
        _stop_unless_finished(probe.results()[0].status)
        return probe.objective - best

    step = PROBE / np.sqrt(curvature)
    low, high = (_end(rise, poisson, way * step, poisson_range(m.law)) for way in (-1, 1))
    told = high - low <= 2 * WIDEST
    estimate = PoissonEstimate(poisson, low, high, measurement.law.poisson, told)
    if not told or poisson <= poisson_range(m.law)[0]:
        warnings.warn(estimate.text, stacklevel=2)
    return estimate


class FreeRun(Multilevel):
    """A run with a free Poisson ratio, which each data term takes over from the one before it."""

    _last: FreePoisson | None = None

    def _fidelity(self, measurements) -> FreePoisson:
        fidelity = FreePoisson.of_batch(measurements, "exact", self.rtol)
        if self._last is not None:
            fidelity.poisson = self._last.poisson
        self._last = fidelity
        self.data_watches.append(fidelity.watch)
        return fidelity

    @property
    def poisson(self) -> float:
        """The ratio of the last evaluation."""
        assert self._last is not None
        return self._last.poisson

    def found(self):
        """The ratio, the curvature of J by it at the map, the objective, and the map."""
        fidelity = self._last
        assert fidelity is not None and self.reached is not None
        x = np.exp(self.reached[1].z)
        fidelity.evaluate(x, self.rtol)
        return (
            fidelity.poisson,
            fidelity.poisson_curvature,
            self.objective,
            x.reshape(fidelity.measurement.geometry.node_shape),
        )


def _stop_unless_finished(status):
    if status == "interrupted":
        raise KeyboardInterrupt
    if status == "failed":
        raise ValueError(
            'poisson="estimate" found no map, because linear solves failed: check load and displacement, or state a '
            "Poisson ratio that is nearer to the true one"
        )


def _end(rise, best, step, limits):
    """Where the profile has risen by `RISE`, on the side of a first step from its minimum."""
    while True:
        probed = float(np.clip(best + step, *limits))
        if probed == best:
            return best
        risen = rise(probed)
        if risen >= PROBED_RISE or probed in limits:
            reach = np.hypot(np.sqrt(RISE / max(risen, 1e-12)) * (probed - best), np.sqrt(2 * RISE) * SYSTEMATIC)
            return float(np.clip(best + np.copysign(reach, step), *limits))
        step *= PROBE_RATIO
