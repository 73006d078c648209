"""The data have the last word: what is done about maps of learned priors that the data reject.

A prior with a target holds its maps near what it was trained on. Where the truth is something else, its default weight
would override good data. Finished maps are therefore judged, see `evidence`, and replaced in steps:

1. Noise larger than is stated: once more with the noise level that the residual shows.
2. The data reject the map, and another Poisson ratio would explain why: once more with `NOISE_INFLATION` times the
   noise variance. Total variation would bend its map until it explains the fault of the model.
3. The data reject the map, and the model is not to blame: less of the prior (`LESS`), if the data do not reject that
   and it predicts data held back from the fit better than total variation; else total variation.
4. The data reject that map too: step 2, since the model must be wrong in some other way (above `CHI2_LIMIT`).

Where the choice of the prior was left to us ("auto"), the prior also has to be better than total variation. Step 3 then
goes to total variation at once, and so do maps that the data do not reject, but that had not come to rest, are unlike
the maps of the prior, or predict data that were held back from the fit less well than total variation does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..backend.device import device_of, to_host
from ..priors.learned import SMALLEST_NODES
from ..priors.protocol import SplittingSettings, TargetPrior
from ..result import Result, message
from .evidence import Residual, held_back, poisson_cause, prediction, rescaled, residual
from .multilevel import Multilevel
from .options import Options

__all__ = ["judged"]

# Factor on the noise variance where the model is wrong: the best one on validation maps with a wrong Poisson ratio.
NOISE_INFLATION = 16.0
# Another Poisson ratio is suspected where it would explain this share of what a map leaves beyond noise, and taken for
# the reason where it does so for the map that trusts the data less: that map is hardly bent by the model's fault. Right
# models gave up to .05 and .1, Poisson ratios wrong by .005 to .03 gave .36 to .77 and .8 (benchmarks/evidence.py).
SUSPECTED_SHARE = 0.2
CONFIRMED_SHARE = 0.5
# Data that no prior explains are trusted less from this chi2 on. Below it, a fault of the model is small, and so is
# what it does to the map.
CHI2_LIMIT = 1.2
NOISE_LIMIT = 1.2  # noise variance over the stated one above which the stated level counts as wrong. Not studied
LESS = 0.03  # share of the prior's weight in its second attempt, see benchmarks/evidence.py
# A map that the data reject too is preferred to the first one if it takes this share off what that leaves of them.
REMOVED_SHARE = 0.5


def judged(
    measurements: Sequence, results: list[Result], options: Options, places: list[int] | None = None
) -> list[Result]:
    """Results that the data do not reject, or that say so.

    Parameters
    ----------
    measurements : sequence of Measurement
        Those of a group that took its steps together.
    results : list of Result
        With the automatic weight of ``options``.
    options : Options
        Its ``unlearned`` are the options of the last step; None leaves the results as they are.
    places : list of int, optional
        Numbers of the members in the caller's list.

    Returns
    -------
    list of Result
        With ``fallback`` and ``comparison``. After Ctrl-C the best maps so far, with the status "interrupted".
    """
    if options.unlearned is None or options.splitting is None or results[0].status in ("interrupted", "failed"):
        return results
    choice = _Choice(options, options.splitting, options.unlearned)
    places = list(range(len(results))) if places is None and len(results) > 1 else places
    cases = [
        _Case(m, result, None if places is None else places[k])
        for k, (m, result) in enumerate(zip(measurements, results, strict=True))
    ]
    try:
        _judge(cases, choice)
    except KeyboardInterrupt:
        for case in cases:
            case.interrupted = True
    return [case.finished() for case in cases]


class _Choice(NamedTuple):
    """What can be chosen from: the prior that is judged, with its settings, and total variation."""

    options: Options
    settings: SplittingSettings
    unlearned: Options

    def weighed(self, **settings) -> Options:
        """The options of the prior with other settings of the splitting."""
        return replace(self.options, splitting=self.settings._replace(**settings))


class _Case:
    """One measurement, the map that is kept for it at the moment, and the record of all that were tried."""

    def __init__(self, measurement, result, place):
        self.measurement, self.place = measurement, place
        self.level = 1.0  # noise variance of the measurement over the stated one
        self.rows, self.runs, self.reasons = [], [], []
        self.interrupted = False
        self.keep(result, self.tried(result, ""), "")

    def tried(self, result, change) -> Residual:
        """Enter a map in the record; returns the test of what it leaves of the data."""
        left = residual(self.measurement, result.displacement)
        self.runs.append(result)
        self.rows.append(
            {
                "prior": result.prior,
                "change": change,
                "weight": self.level * result.weight,
                "chi2": self.level * result.chi2,
                "probability": left.probability,
                "status": result.status,
            }
        )
        return left

    def keep(self, result, left, fallback):
        """Take a map for the answer until there is a better one."""
        self.result, self.residual, self.fallback = result, left, fallback

    @property
    def kept(self) -> tuple[Result, Residual, str]:
        """What `keep` was given."""
        return self.result, self.residual, self.fallback

    def finished(self) -> Result:
        """The result that is handed out: numbers refer to the stated noise level, seconds to all that was tried."""
        result, level = self.result, self.level
        scaled = {"weight", "objective", "data", "chi2"}
        status = "interrupted" if self.interrupted else result.status
        chi2, frames = level * result.chi2, [level * own for own in result.frame_chi2]
        return replace(
            result,
            status=status,
            message=" ".join(
                [
                    message(status, chi2, result.prior, True, result.held, relative=result.relative, frames=frames),
                    *self.reasons,
                ]
            ),
            chi2=chi2,
            frame_chi2=frames,
            weight=level * result.weight,
            history=[{k: v * level if k in scaled else v for k, v in entry.items()} for entry in result.history],
            seconds=sum(run.seconds for run in self.runs),
            timing={name: sum(run.timing[name] for run in self.runs) for name in result.timing},
            fallback=self.fallback,
            comparison=self.rows,
        )


def _judge(cases: list[_Case], choice: _Choice) -> None:
    """Replace the maps of some cases, see the head of this file."""
    options, name = choice.options, choice.options.prior_name
    inflated = choice.weighed(noise_inflation=NOISE_INFLATION)
    for case in cases:
        level = case.residual.level
        if level > NOISE_LIMIT and case.residual.white:
            case.measurement, case.level = rescaled(case.measurement, level), level
            case.reasons.append(
                f"The residual shows {np.sqrt(level):.3g} times the stated displacement_std; the map is for that level."
            )
            _replace([case], options, f"noise variance x {level:.3g}", "noise")
        if case.residual.correlated:
            case.reasons.append(
                f"The noise is correlated {_otherwise(case.measurement)}, so that its structure could not be told from "
                f"that of a wrong map: whether prior {name!r} suits the data was not tested."
            )
    rejected, doubtful = [case for case in cases if case.residual.structured], []
    for case in rejected:
        first = case.kept
        case.reasons.append(f"The data reject the map of prior {name!r} (chi2 {case.level * case.result.chi2:.3g}).")
        if _share_of_poisson(case) > SUSPECTED_SHARE:
            _replace([case], inflated, f"noise variance x {NOISE_INFLATION:g}", "trust")
            cause = poisson_cause(case.measurement, case.result.modulus)
            if cause is not None and cause.share > CONFIRMED_SHARE:
                case.reasons.append(
                    f"A Poisson ratio of about {cause.poisson:.3f} in place of {case.measurement.law.poisson:g} would "
                    f"explain {cause.share:.0%} of what it leaves of them: the model is wrong rather than the prior, "
                    f"and the data were trusted less (noise variance x {NOISE_INFLATION:g})."
                )
                continue
            case.keep(*first)
        doubtful.append(case)
    if options.automatic:
        accepted = [case for case in cases if case not in rejected and not case.residual.correlated]
        doubtful += _inferior(accepted, choice)
    else:
        less = choice.weighed(weight=LESS * choice.settings.weight, limiter_slack=np.inf)
        _replace(doubtful, less, f"weight x {LESS:g}", "weight")
        enough = [case for case in doubtful if case.fallback == "weight" and not case.residual.structured]
        doubtful = [case for case in doubtful if case not in enough]
        worse = _outpredicted(enough, less, choice.unlearned)
        doubtful += worse
        for case in enough:
            if case not in worse:
                case.reasons.append(f"This is its map with {LESS:g} times the prior's weight.")
    before = [(case, case.kept) for case in doubtful]
    _replace(doubtful, choice.unlearned, "", "prior")
    for case, first in before:
        left_before, left_now = (result.chi2 - 1 for result in (first[0], case.result))
        if not (case.residual.structured and left_now > (1 - REMOVED_SHARE) * left_before):
            case.reasons.append(f"This is the map of prior {case.result.prior!r}.")
            continue
        case.keep(*first)
        if first[0].chi2 < CHI2_LIMIT:
            case.reasons.append(f"That of prior {case.rows[-1]['prior']!r} explains them hardly better.")
            continue
        case.reasons.append(
            f"The map of prior {case.rows[-1]['prior']!r} does not explain them either: the model or the bounds must "
            f"be wrong. The data were trusted less (noise variance x {NOISE_INFLATION:g})."
        )
        _replace([case], inflated, f"noise variance x {NOISE_INFLATION:g}", "trust")


def _otherwise(measurement) -> str:
    """How the noise is correlated, next to what was stated."""
    return "between neighbouring nodes" if measurement.displacement_correlation is None else "otherwise than stated"


def _share_of_poisson(case: _Case) -> float:
    """Share of the misfit of a case that another Poisson ratio would explain."""
    cause = poisson_cause(case.measurement, case.result.modulus)
    return 0.0 if cause is None else cause.share


def _run(measurements: Sequence, options: Options, places) -> list[Result]:
    """Reconstruct with the automatic weight; all end with KeyboardInterrupt if one was interrupted."""
    count = len(measurements)
    places = None if None in places else list(places)
    found = Multilevel(list(measurements), [None] * count, ["auto"] * count, options, places).results()
    if found[0].status == "interrupted":
        raise KeyboardInterrupt
    return found


def _replace(cases: list[_Case], options: Options, change: str, fallback: str) -> None:
    """Reconstruct once more, and keep the new maps unless a solve failed."""
    if not cases:
        return
    found = _run([case.measurement for case in cases], options, [case.place for case in cases])
    for case, result in zip(cases, found, strict=True):
        left = case.tried(result, change)
        if result.status != "failed":
            case.keep(result, left, fallback)


def _inferior(cases: Iterable[_Case], choice: _Choice) -> list[_Case]:
    """Those whose map total variation is likely to surpass, though the data do not reject it."""
    name, inferior, equal = choice.options.prior_name, [], []
    for case in cases:
        distance = _distance(case, choice.options.prior)
        case.rows[-1]["distance"] = distance
        usual = _usual_distance(case.result.weight, choice.settings)
        if case.result.status not in ("converged", "undetermined"):
            case.reasons.append(f"The map of prior {name!r} had not come to rest: the data still pulled at it.")
            inferior.append(case)
        elif distance > usual:
            case.reasons.append(
                f"The data drew the map of prior {name!r} away from the maps that the prior was trained for (rms "
                f"distance in log x {distance:.2g}, usual are up to {usual:.2g})."
            )
            inferior.append(case)
        else:
            equal.append(case)
    return inferior + _outpredicted(equal, choice.options, choice.unlearned)


def _outpredicted(cases: list[_Case], options: Options, unlearned: Options) -> list[_Case]:
    """Those for which total variation predicts data better that were held back from the fit."""
    if not cases:
        return []
    worse = []
    fitted, other = zip(*(held_back(case.measurement, SMALLEST_NODES) for case in cases), strict=True)
    places = [case.place for case in cases]
    pairs = zip(*(_run(fitted, one, places) for one in (options, unlearned)), strict=True)
    for case, data, pair in zip(cases, other, pairs, strict=True):
        excess = prediction(data, *(result.displacement for result in pair))
        case.runs += pair
        case.rows[-1]["held_back"] = excess
        if excess.excess > 0:
            case.reasons.append(
                f"On data held back from the fit, prior {pair[1].prior!r} predicts better than {pair[0].prior!r} "
                f"(squared error less by {excess.excess:.3g}, standard deviation {excess.std:.2g}, in units of the "
                "noise variance)."
            )
            worse.append(case)
    return worse


def _usual_distance(weight: float, settings: SplittingSettings) -> float:
    """Largest distance of right maps from their target, for a weight that the settings led to."""
    h = (weight / settings.weight) ** (1 / settings.growth) if settings.growth else 1.0
    return settings.plausible * max(h, 1.0) ** -settings.plausible_decay


def _distance(case: _Case, prior: TargetPrior) -> float:
    """Root mean square of z - P(z) for the map of a case."""
    x = case.result.modulus
    with case.measurement.device.activated():
        z = np.log(device_of(modulus=x).asarray(x)).reshape(1, -1)
        away = to_host(z - prior.target(z, case.measurement.geometry.node_shape))
    return float(np.sqrt(np.mean(away**2)))
