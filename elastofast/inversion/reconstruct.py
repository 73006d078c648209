"""From a measurement, or a list of them, to maps of the modulus."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Literal, overload

import numpy as np

from ..joint import JointMeasurement
from ..measurement import Measurement
from ..misfit.free_poisson import with_poisson
from ..priors import registry
from ..priors.learned import PostProcessing
from ..priors.protocol import Prior
from ..result import Result
from .causes import likely_cause
from .energies import with_safe_weight
from .fallback import judged
from .members import groups_of, side_by_side
from .multilevel import Multilevel
from .noise_estimate import estimate_noise
from .options import Options
from .outliers import NOISES, without_outliers
from .poisson import PoissonEstimate, estimate_poisson

__all__ = ["Result", "reconstruct"]

logger = logging.getLogger(__name__)


@overload
def reconstruct(measurement: Measurement | JointMeasurement, *arguments: Any, **options: Any) -> Result: ...
@overload
def reconstruct(
    measurement: Sequence[Measurement], *arguments: Any, joint: Literal[True], **options: Any
) -> Result: ...
@overload
def reconstruct(
    measurement: Sequence[Measurement | JointMeasurement], *arguments: Any, **options: Any
) -> list[Result | None]: ...
def reconstruct(  # type: ignore[misc]  # mypy sees no place for `joint` among the arguments of the second overload
    measurement: Measurement | JointMeasurement | Sequence[Measurement | JointMeasurement],
    prior: str | Prior | PostProcessing = "auto",
    weight: float | str | Sequence[float] = "auto",
    *,
    gradient: str = "exact",
    optimizer: str | None = None,
    start: Any = None,
    bounds: tuple[Any, Any] | None = None,
    known: Any = None,
    noise: str = "auto",
    poisson: str = "stated",
    joint: bool = False,
    max_iterations: int | None = None,
    step: float = 0.7,
    progress: bool | Callable[[dict[str, Any]], object] | None = None,
) -> Result | list[Result | None]:
    """Modulus map that explains a measurement and is plausible under a prior.

    Minimises J(x) + weight R(x), with the Gamma-weighted data term J of `Fidelity` and a prior R.

    Parameters
    ----------
    measurement : Measurement or JointMeasurement, or a list of them
        What was measured. Its reference modulus is never looked at. Where the noise level is not known, it is estimated
        first (see `estimate_noise`), and the result's ``noise`` has it. Each entry of a list gets a map of its own,
        unless ``joint`` says otherwise. Of a list, those on a GPU that share geometry,
        law, which dofs are fixed and open, and whether forces are noisy, take their steps in one go, each its own. On
        the processor, measurements of up to 2^17 nodes are worked on side by side, in OMP_NUM_THREADS threads; results
        do not depend on their number. All others are worked on one after another.
    prior : {"auto", "tv", "tikhonov", "none", "critic", "pnp", "unet"} or object
        "auto" is "critic" or "tv", whichever suits the measurement better (docs/method/learned.md); the result's
        ``prior``, ``comparison`` and ``message`` say which and why. The critic takes part on plane grids of 96 nodes or
        more along each axis without open dofs, where torch is installed and neither weight nor optimizer is given.
        Pixels of up to 4 : 1 are interpolated to square ones for its network; those are counted then. Maps of any
        learned prior that the data reject give way to less of the prior, and then to "tv", unless weight or
        max_iterations is given.
        Total variation or first-order Tikhonov of log x; "none" is the maximum-likelihood iteration stopped at the
        first map with chi2 <= 1 (discrepancy principle). Learned ones, with the weights shipped with the package: an
        adversarial critic, plug-and-play with a DnCNN, and a UNet that corrects the unregularised map. Or an object,
        see `elastofast.priors`.
    weight : "auto" or float, or a list of float
        Prior weight. "auto" needs displacement_std to be right, but no ground truth. For Gauss-Newton it minimises
        an unbiased estimate of the prediction error on a coarse copy of the data (see `elastofast.inversion.sure`), or
        for several frames the error with which some predict the others. For
        priors with a target it is a fixed power of the data term's mean curvature, for those that only give a
        gradient the norm of the data gradient that noise alone causes over the norm of the prior's at the unregularised
        map, and less of it where the map does not hold against that one (`elastofast.inversion.energies`).
    gradient : {"exact", "frozen"}
        Exact gradient of J, or the paper's fixed point, which treats Gamma as constant in each step.
    optimizer : {"gauss-newton", "splitting", "l-bfgs", "descent"}, optional
        Default Gauss-Newton on log x, coarse to fine; half-quadratic splitting for priors with a target (critic,
        plug-and-play); L-BFGS for those that only give a gradient.
        "descent" is projected gradient descent on x; with ``gradient="frozen"`` it is the paper's, with Gamma frozen
        for 100 steps and then updated.
    start : array_like, shape node_shape, or Result, or a list of one for each measurement, optional
        Initial modulus in pascals; default the best homogeneous one. No coarse levels are visited then, so an
        interrupted run is resumed by ``start=result, weight=result.weight``. Splitting takes only a Result for more
        than a first guess: its map does not depend on an array given here.
    bounds : (float, float) or pair of array_like of shape node_shape, optional
        Smallest and largest modulus in pascals, for all nodes or for each; default a hundredth and a hundred times the
        start's mean. Where no force is known, a total force or known moduli have to fix the scale.
    known : array_like, shape node_shape, optional
        The modulus in pascals where it is known, as that of a gel pad or of a phantom's background, and NaN (or masked)
        where it is sought. It is held in all steps. Where no force is known, it fixes the scale of the modulus.
    noise : {"auto", "gaussian", "robust"}
        What is done about outliers. "auto" leaves out displacements that jump against their neighbours and, where the
        data are not explained, those that contradict all others by many standard deviations; "robust" looks for the
        latter in any case; "gaussian" keeps everything. The result's ``rejected`` says which.
    poisson : {"stated", "estimate"}
        "estimate" finds one Poisson ratio for the whole body from the data; that of the measurement's law is only where
        the search begins. The result's ``poisson`` and ``poisson_interval`` have it. If the data cannot tell it, there
        is a warning, and the stated one is used.
    joint : bool
        Whether the list holds frames of one body, such as those of a compression sequence or under different loads, for
        which one map is sought: the same as a `JointMeasurement` of them.
    max_iterations : int, optional
        Limit on outer steps of a level; default 60 (Gauss-Newton; 20 with the frozen gradient), 31 to 45 (splitting,
        after up to 30 towards the homogeneous map), 200 (L-BFGS), 100 (descent, between updates of its
        step length and, with the frozen gradient, of Gamma).
    step : float
        Step length of "descent" in units of one over the largest curvature; above 2 it diverges.
    progress : bool or callable, optional
        True shows a bar; a callable gets each history entry, with the place in a list as ``member``, and may be called
        by other threads, by one at a time. Ctrl-C ends the run with the map of the last step.

    Returns
    -------
    Result, or list of Result
        For a list in its order; None for those that Ctrl-C left untouched.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or the measurement cannot determine a modulus.

    Warns
    -----
    UserWarning
        If the noise level was not given, with the estimated one.

    Examples
    --------
    >>> result = ef.reconstruct(m, prior="tv")  # doctest: +SKIP
    >>> print(result.status, result.chi2)  # doctest: +SKIP
    >>> result = ef.reconstruct([pressed, sheared], prior="tv", joint=True)  # doctest: +SKIP
    """
    if not isinstance(noise, str) or noise not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(map(repr, NOISES))}, got {noise!r}")
    if not isinstance(poisson, str) or poisson not in ("stated", "estimate"):
        raise ValueError(
            f"poisson must be 'stated' or 'estimate', got {poisson!r}; a number or a map belongs into the "
            "measurement's law"
        )
    if joint and not isinstance(measurement, JointMeasurement):
        measurement = JointMeasurement(measurement)  # type: ignore[arg-type]
    single = isinstance(measurement, Measurement | JointMeasurement)
    members: list[Any] = [measurement] if single else _members(measurement)
    if poisson == "estimate" and any(isinstance(m, JointMeasurement) for m in members):
        raise ValueError(
            "poisson is 'estimate', which is not implemented for several frames: estimate it from one of them, and "
            "state it in the law of all"
        )
    if poisson == "estimate" and any(m.law.is_map for m in members):
        raise ValueError("poisson is 'estimate', which finds one ratio, but the measurement's law has a map of it")
    starts = [start] if single else _for_each(start, None, "start", len(members))
    weights = [weight] if single else _for_each(weight, "auto", "weight", len(members))
    load = cache(registry.load)

    @cache  # one prior for all measurements on a geometry
    def checked_on(geometry, automatic_weight, open_edges):
        return Options.checked(
            geometry, automatic_weight, open_edges, prior=prior, gradient=gradient, optimizer=optimizer, bounds=bounds,
            max_iterations=max_iterations, step=step, progress=progress, load=load,
            known=known,
        )  # fmt: skip

    checked = [
        checked_on(m.geometry, isinstance(w, str) and w == "auto", bool(m.load.open.any()))
        for m, w in zip(members, weights, strict=True)
    ]

    given = list(members)  # before anything is estimated
    estimates = {}
    for k, m in enumerate(members):
        if not m.noise_known:
            members[k], estimates[k] = _with_noise(m, progress, checked[k] if poisson == "estimate" else None)

    def solve(own: dict[int, Any]) -> dict[int, Result]:
        """The results of some of the members; those that Ctrl-C left untouched are missing."""
        ratios: dict[int, PoissonEstimate] = {}
        if poisson == "estimate":
            ratios = {k: estimate_poisson(m, checked[k], None if single else k) for k, m in own.items()}
            own = {k: with_poisson(m, ratios[k].used) for k, m in own.items()}
        groups = groups_of(own, checked)
        runs = {
            group[0]: Multilevel(
                [own[k] for k in group],
                [starts[k] for k in group],
                [weights[k] for k in group],
                checked[group[0]],
                places=None if single else group,
            )
            for group in groups
        }

        def finish(group: list[int]) -> list[Result]:
            try:
                run = runs.pop(group[0])
                if checked[group[0]].rehearsal is not None:
                    found = [with_safe_weight(own[k], checked[k], starts[k]) for k in group]
                else:
                    found = run.results()
                del run  # so that the memory of a finished run is free
                found = judged([own[k] for k in group], found, checked[group[0]], None if single else group)
            except Exception as error:
                if not single:
                    error.add_note(f"in the reconstruction of measurement {', '.join(map(str, group))} of the list")
                raise
            for k, result in zip(group, found, strict=True):
                logger.info("measurement %d: %r, weight %.3g: %s", k, result, result.weight, result.message)
            return found

        results = dict(side_by_side(finish, groups, own))
        return {k: _with_estimate(result, ratios.get(k)) for k, result in results.items()}

    results = without_outliers(dict(enumerate(members)), noise, solve)
    results |= {k: replace(results[k], noise=estimate) for k, estimate in estimates.items() if k in results}
    settings = {
        "prior": prior if isinstance(prior, str) else type(prior).__name__, "gradient": gradient,
        "optimizer": optimizer, "noise": noise, "poisson": poisson, "max_iterations": max_iterations, "step": step,
    }  # fmt: skip
    for k, result in results.items():
        own: Any = weights[k] if isinstance(weights[k], str) else float(weights[k])  # type: ignore[arg-type]
        results[k] = replace(
            result, bounds=bounds, known=known, checksum=given[k].checksum,
            settings={**settings, "weight": own, "started": starts[k] is not None},
        )  # fmt: skip
    for k, result in results.items():
        if checked[k].note and result.prior == checked[k].prior_name:
            results[k] = result = replace(result, message=f"{result.message} {checked[k].note}")
        if isinstance(members[k], JointMeasurement):  # whose message names the frames that are not explained
            continue
        cause = likely_cause(result.taken(members[k]), result, checked[k])
        if cause:
            results[k] = replace(result, message=f"{result.message} {cause}")
    return results[0] if single else [results.get(k) for k in range(len(members))]


def _with_noise(m, progress, options):
    """A measurement with the noise that it does not state, and that noise; of several frames one for each, or None.

    With options the Poisson ratio is not known either. A wrong one counts as noise, so that the noise is estimated
    again at the ratio that is found with the first estimate.
    """
    found = [None if frame.noise_known else estimate_noise(frame, progress) for frame in m.frames]
    if options is not None and found[0] is not None:  # of one frame
        ratio = estimate_poisson(found[0].applied(m), options)
        if ratio.told:
            found = [estimate_noise(with_poisson(m, ratio.value), progress)]
    stated = [frame if noise is None else noise.applied(frame) for frame, noise in zip(m.frames, found, strict=True)]
    joint = isinstance(m, JointMeasurement)
    text = "; ".join(f"frame {k}: {own}" if joint else str(own) for k, own in enumerate(found) if own is not None)
    warnings.warn(
        f"displacement_std was not given. It is estimated from what no modulus explains: {text}. A wrong Poisson "
        "ratio, load or support counts as noise there: state the noise if it is known",
        stacklevel=3,
    )
    return (JointMeasurement(stated), found) if joint else (stated[0], found[0])


def _with_estimate(result: Result, estimate: PoissonEstimate | None) -> Result:
    if estimate is None:
        return result
    interval = estimate.low, estimate.high
    return replace(result, poisson_interval=interval, message=f"{result.message} {estimate.text}")


def _members(measurements) -> list[Measurement | JointMeasurement]:
    """A sequence of measurements, checked."""
    if not isinstance(measurements, list | tuple):
        raise TypeError(f"measurement must be a Measurement or a list of them, got {type(measurements).__name__}")
    for k, m in enumerate(measurements):
        if not isinstance(m, Measurement | JointMeasurement):
            raise TypeError(f"measurement must be a list of Measurements, its entry {k} is {type(m).__name__}")
    return list(measurements)


def _for_each(value, default, name: str, count: int) -> list:
    """One value for all members or a sequence of one for each, as a list."""
    if isinstance(value, np.ndarray) and name == "weight" and value.ndim == 1:
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} must be one for all or one for each of {count} measurements, got {len(value)}")
    for k, one in enumerate(value):
        if one is None or isinstance(one, str):
            raise ValueError(f"{name} may be {default!r} for all measurements only, its entry {k} is {one!r}")
    return list(value)
