"""From a measurement, or a list of them, to maps of the modulus."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from contextvars import copy_context
from dataclasses import replace
from functools import cache
from threading import Event
from typing import Any, overload

import numpy as np

from ..backend.processors import thread_pool, threads
from ..measurement import Measurement
from ..misfit.free_poisson import with_poisson
from ..priors import registry
from ..priors.learned import PostProcessing
from ..priors.protocol import Prior
from ..result import Result
from .causes import likely_cause
from .fallback import judged
from .history import stopping
from .multilevel import Multilevel
from .noise_estimate import estimate_noise
from .options import Options
from .outliers import NOISES, without, without_outliers
from .poisson import PoissonEstimate, estimate_poisson

__all__ = ["Result", "reconstruct"]

logger = logging.getLogger(__name__)


@overload
def reconstruct(measurement: Measurement, *arguments: Any, **options: Any) -> Result: ...
@overload
def reconstruct(measurement: Sequence[Measurement], *arguments: Any, **options: Any) -> list[Result | None]: ...
def reconstruct(
    measurement: Measurement | Sequence[Measurement],
    prior: str | Prior | PostProcessing = "auto",
    weight: float | str | Sequence[float] = "auto",
    *,
    gradient: str = "exact",
    optimizer: str | None = None,
    start: Any = None,
    bounds: tuple[float, float] | None = None,
    noise: str = "auto",
    poisson: str = "stated",
    max_iterations: int | None = None,
    step: float = 0.7,
    progress: bool | Callable[[dict[str, Any]], object] | None = None,
) -> Result | list[Result | None]:
    """Modulus map that explains a measurement and is plausible under a prior.

    Minimises J(x) + weight R(x), with the Gamma-weighted data term J of `Fidelity` and a prior R.

    Parameters
    ----------
    measurement : Measurement or list of Measurement
        What was measured. Its reference modulus is never looked at. Where the noise level is not known, it is estimated
        first (see `estimate_noise`), and the result's ``noise`` has it. Of a list, those on a GPU that share geometry,
        law, which dofs are fixed and open, and whether forces are noisy, take their steps in one go, each its own. On
        the processor, measurements of up to 2^17 nodes are worked on side by side, in OMP_NUM_THREADS threads; results
        do not depend on their number. All others are worked on one after another.
    prior : {"auto", "tv", "tikhonov", "none", "critic", "pnp", "unet"} or object
        "auto" is "critic" or "tv", whichever suits the measurement better (docs/method.md); the result's ``prior``,
        ``comparison`` and ``message`` say which and why. The critic takes part on plane grids of 96 nodes or more along
        each axis with nearly square pixels and no open dofs, where torch is installed and neither weight nor optimizer
        is given. Maps of any learned prior that the data reject give way to less of the prior, and then to "tv", unless
        weight or max_iterations is given.
        Total variation or first-order Tikhonov of log x; "none" is the maximum-likelihood iteration stopped at the
        first map with chi2 <= 1 (discrepancy principle). Learned ones, with the weights shipped with the package: an
        adversarial critic, plug-and-play with a DnCNN, and a UNet that corrects the unregularised map. Or an object,
        see `elastofast.priors`.
    weight : "auto" or float, or a list of float
        Prior weight. "auto" needs displacement_std to be right, but no ground truth. For Gauss-Newton it minimises
        an unbiased estimate of the prediction error on a coarse copy of the data (see `elastofast.inversion.sure`). For
        priors with a target it is a fixed power of the data term's mean curvature, for those that only give a
        gradient the norm of the data gradient that noise alone causes over the norm of the prior's.
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
    bounds : (float, float), optional
        Smallest and largest modulus in pascals; default a hundredth and a hundred times the start's mean.
    noise : {"auto", "gaussian", "robust"}
        What is done about outliers. "auto" leaves out displacements that jump against their neighbours and, where the
        data are not explained, those that contradict all others by many standard deviations; "robust" looks for the
        latter in any case; "gaussian" keeps everything. The result's ``rejected`` says which.
    poisson : {"stated", "estimate"}
        "estimate" finds one Poisson ratio for the whole body from the data; that of the measurement's law is only where
        the search begins. The result's ``poisson`` and ``poisson_interval`` have it. If the data cannot tell it, there
        is a warning, and the stated one is used.
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
    """
    if noise not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(map(repr, NOISES))}, got {noise!r}")
    if poisson not in ("stated", "estimate"):
        raise ValueError(
            f"poisson must be 'stated' or 'estimate', got {poisson!r}; a number belongs into the measurement's law"
        )
    single = isinstance(measurement, Measurement)
    members = [measurement] if isinstance(measurement, Measurement) else _members(measurement)
    starts = [start] if single else _for_each(start, None, "start", len(members))
    weights = [weight] if single else _for_each(weight, "auto", "weight", len(members))
    load = cache(registry.load)

    @cache  # one prior for all measurements on a geometry
    def checked_on(geometry, automatic_weight, open_edges):
        return Options.checked(
            geometry, automatic_weight, open_edges, prior=prior, gradient=gradient, optimizer=optimizer, bounds=bounds,
            max_iterations=max_iterations, step=step, progress=progress, load=load,
        )  # fmt: skip

    checked = [
        checked_on(m.geometry, isinstance(w, str) and w == "auto", bool(m.load.open.any()))
        for m, w in zip(members, weights, strict=True)
    ]

    estimates = {k: _estimated(m, progress) for k, m in enumerate(members) if not m.noise_known}
    members = [estimates[k].applied(m) if k in estimates else m for k, m in enumerate(members)]

    def solve(own: dict[int, Measurement]) -> dict[int, Result]:
        """The results of some of the members; those that Ctrl-C left untouched are missing."""
        ratios: dict[int, PoissonEstimate] = {}
        if poisson == "estimate":
            ratios = {k: estimate_poisson(m, checked[k], None if single else k) for k, m in own.items()}
            own = {k: with_poisson(m, ratios[k].used) for k, m in own.items()}
        groups = _groups(own, checked)
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
                found = runs.pop(group[0]).results()  # popped, so that the memory of a finished run is free
                found = judged([own[k] for k in group], found, checked[group[0]], None if single else group)
            except Exception as error:
                if not single:
                    error.add_note(f"in the reconstruction of measurement {', '.join(map(str, group))} of the list")
                raise
            for k, result in zip(group, found, strict=True):
                logger.info("measurement %d: %r, weight %.3g: %s", k, result, result.weight, result.message)
            return found

        nodes = max((m.geometry.n_nodes for m in own.values()), default=0)
        on_device = any(m.device.is_gpu for m in own.values())
        workers = 1 if on_device else threads(nodes, len(groups))
        results: dict[int, Result] = {}
        for group, found in _finished(finish, groups, workers):
            results |= dict(zip(group, found, strict=True))
        return {k: _with_estimate(result, ratios.get(k)) for k, result in results.items()}

    results = without_outliers(dict(enumerate(members)), noise, solve)
    results |= {k: replace(results[k], noise=estimate) for k, estimate in estimates.items() if k in results}
    for k, result in results.items():
        used = members[k] if result.rejected is None else without(members[k], result.rejected)
        if result.poisson != used.law.poisson:
            used = with_poisson(used, result.poisson)
        cause = likely_cause(used, result, checked[k])
        if cause:
            results[k] = replace(result, message=f"{result.message} {cause}")
    return results[0] if single else [results.get(k) for k in range(len(members))]


def _estimated(m, progress):
    """The noise of a measurement whose level is not known."""
    estimate = estimate_noise(m, progress)
    warnings.warn(
        f"displacement_std was not given. It is estimated from what no modulus explains: {estimate}. A wrong Poisson "
        "ratio, load or support counts as noise there: state the noise if it is known",
        stacklevel=3,
    )
    return estimate


def _finished(finish, groups, workers):
    """Groups and their results, as far as Ctrl-C leaves them; if it leaves none, it is raised."""
    if workers <= 1:
        some = False
        for group in groups:
            try:
                found = finish(group)
            except KeyboardInterrupt:
                if not some:
                    raise
                return
            some = True
            yield group, found
            if any(result.status == "interrupted" for result in found):
                return
        return
    stop, results = Event(), {}
    token = stopping.set(stop)
    try:
        with thread_pool(workers) as pool:
            places = {pool.submit(copy_context().run, finish, group): k for k, group in enumerate(groups)}

            def end():
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)

            try:
                for future in as_completed(places):
                    results[places[future]] = found = future.result()
                    if any(result.status == "interrupted" for result in found):
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                end()
                for future, k in places.items():  # those that were running have ended with their last map, or without
                    if not future.cancelled() and future.exception() is None:
                        results[k] = future.result()
                if not results:
                    raise
            except BaseException:
                end()
                raise
    finally:
        stopping.reset(token)
    yield from ((groups[k], results[k]) for k in sorted(results))


def _with_estimate(result: Result, estimate: PoissonEstimate | None) -> Result:
    if estimate is None:
        return result
    interval = estimate.low, estimate.high
    return replace(result, poisson_interval=interval, message=f"{result.message} {estimate.text}")


def _members(measurements) -> list[Measurement]:
    """A sequence of measurements, checked."""
    if not isinstance(measurements, list | tuple):
        raise TypeError(f"measurement must be a Measurement or a list of them, got {type(measurements).__name__}")
    for k, m in enumerate(measurements):
        if not isinstance(m, Measurement):
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


def _groups(members: dict[int, Measurement], options: list[Options]) -> list[list[int]]:
    """Which members take their steps together: on a device those that share everything but their numbers.

    In host memory each is a group of its own; small ones are worked on side by side, see `backend.processors`.
    """
    groups: list[list[int]] = []
    for k, m in members.items():
        together = options[k].optimizer.batched and m.device.is_gpu and m.displacement_correlation is None
        for group in groups if together else ():
            if _alike(members[group[0]], m):
                group.append(k)
                break
        else:
            groups.append([k])
    return groups


def _alike(one: Measurement, other: Measurement) -> bool:
    """Whether two measurements can be worked on as one batch."""

    def kind(m):
        return m.geometry, m.law, m.device, bool(m.force_std[m.load.loaded].any())

    return kind(one) == kind(other) and all(
        np.array_equal(getattr(one.load, name), getattr(other.load, name)) for name in ("fixed", "open")
    )
