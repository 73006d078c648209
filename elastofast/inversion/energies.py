"""The automatic weight of explicit energies of which only value and gradient are known.

An energy may be anything: unbounded below, or blind to errors that the data do not see either. No weight can then be
computed in advance that is safe. The run therefore starts from the unregularised map, with the weight that balances
noise and prior there, and its map has to hold against the unregularised one: the data must not reject it, and in a
rehearsal on a known map it must not be worse. Otherwise less weight is tried, and in the end the unregularised map is
returned, with a message that says so.

The rehearsal is a parametric bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 6.5): the
map of total variation is taken for the truth, its displacement gets new noise of the stated level, and what the energy
makes of it is compared with that truth. Unlike data held back from the fit, this also shows what the data do not see:
an energy that makes maps stiffer where nothing speaks against it predicts data as well as any other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..backend.device import to_host
from ..geometry import Grid
from ..joint import JointMeasurement
from ..measurement import Measurement
from ..result import Result
from .evidence import fresh_noise, residual
from .multilevel import Multilevel
from .options import Options

__all__ = ["with_safe_weight"]

REDUCTION = 10.0  # of the weight from one attempt to the next; not studied
ATTEMPTS = 4
SEED = 5  # of the noise of the rehearsal


class _Run(NamedTuple):
    """A run that was made, for the record."""

    result: Result
    change: str


def with_safe_weight(measurement: Measurement | JointMeasurement, options: Options, start=None) -> Result:
    """Reconstruct with an energy and a weight with which it does no harm, as far as the data can tell.

    Parameters
    ----------
    measurement : Measurement or JointMeasurement
    options : Options
        Its ``rehearsal`` are those of the unregularised map and of total variation.
    start : array or Result, optional
        In place of the unregularised map.

    Returns
    -------
    Result
        With ``comparison``, and the fallback "prior" if no weight was safe; then it is the unregularised map.
    """
    assert options.rehearsal is not None
    unregularised, unlearned = options.rehearsal
    plain = _made(measurement, unregularised)
    if plain.status in ("failed", "interrupted"):
        return plain
    runs, reasons = [_Run(plain, "")], list[str]()
    weight: str | float = "auto"
    rehearsal = None
    for _ in range(ATTEMPTS):
        result = _made(measurement, options, plain.modulus if start is None else start, weight)
        runs.append(_Run(result, f"weight {result.weight:.3g}"))
        if result.status == "interrupted":
            return result
        reason = _rejected(measurement, result, plain)
        if not reason:
            rehearsal = rehearsal or _Rehearsal.of(measurement, _made(measurement, unlearned), unregularised)
            reason = rehearsal.harm(options, result.weight)
        if not reason:
            return _finished(result, runs, reasons, "weight" if reasons else "")
        reasons.append(f"Weight {result.weight:.3g} was too much for prior {options.prior_name!r}: {reason}.")
        weight = result.weight / REDUCTION
    reasons.append("This is the unregularised map.")
    return _finished(plain, runs, reasons, "prior")


class _Rehearsal(NamedTuple):
    """A measurement of a known map, and its unregularised map."""

    measurement: Measurement
    truth: np.ndarray
    plain: Result

    @classmethod
    def of(cls, measurement, known, unregularised) -> _Rehearsal:
        """New noise on the displacement of a known map."""
        noise = fresh_noise(measurement, np.random.default_rng(SEED))
        rehearsed = measurement.derived(displacement=to_host(known.displacement) + noise)
        return cls(rehearsed, to_host(known.modulus), _made(rehearsed, unregularised))

    def harm(self, options, weight) -> str:
        """What speaks against a weight; nothing if its map is no worse than the unregularised one."""
        result = _made(self.measurement, options, self.plain.modulus, weight)
        own, plain = (np.linalg.norm(to_host(one.modulus) - self.truth) for one in (result, self.plain))
        if own <= plain:
            return ""
        return f"on a measurement of a known map, its error was {own / plain:.3g} times that of the unregularised map"


def _made(measurement, options, start=None, weight="auto") -> Result:
    return Multilevel([measurement], [start], [weight], options).results()[0]


def _rejected(measurement, result, plain) -> str:
    """Why the data reject a map; nothing where they do not, or reject the unregularised map as well."""
    if result.status == "failed":
        return "a linear solve failed"
    if isinstance(measurement.geometry, Grid):
        before, after = (residual(measurement, one.displacement) for one in (plain, result))
        if after.structured and not before.structured:
            return f"the data reject its map (chi2 {result.chi2:.3g})"
    return ""


def _finished(result, runs, reasons, fallback) -> Result:
    """The result with the record of all that was tried."""
    rows = [
        {"prior": run.result.prior, "change": run.change, "weight": run.result.weight, "chi2": run.result.chi2,
         "status": run.result.status}
        for run in runs
    ]  # fmt: skip
    return replace(
        result,
        message=" ".join([result.message, *reasons]),
        fallback=fallback,
        comparison=rows,
        seconds=sum(run.result.seconds for run in runs),
        timing={name: sum(run.result.timing[name] for run in runs) for name in result.timing},
    )
