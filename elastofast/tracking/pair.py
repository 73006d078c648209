"""Tracking of a pair of frames, coarse to fine; see docs/tracking.md."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage, signal

from ..geometry import Grid
from .accuracy import (
    correlation_length,
    correlation_of_errors,
    covariance_of_samples,
    dependence,
    standard_deviation,
)
from .field import Tracking
from .frames import KINDS, Frames, as_pair, as_spacing, check_extent
from .predictor import SPLINE, at_samples, outliers, predictor, warp
from .spectrum import kind_of, matched_filter, spectrum
from .windows import Windows, find_peak, flatten, not_empty, refine

__all__ = ["track", "track_sequence"]

# The window holds this many independent samples by default. Chosen on simulated speckle: with half as many, and a
# correlation of .8, 1 % of the lateral displacements are false peaks.
INDEPENDENT = 50
FEWEST = 12  # independent samples in a window, below which peaks are false and a standard deviation means nothing
# Overlap of neighbouring windows by default. More of it adds nodes, but hardly information: what the nodes between say
# is correlated with what their neighbours say, and reconstructions have to undo that.
OVERLAP = 0.5
SEARCH = 0.025  # default range of the search over the extent of the frame, that is the largest mean strain
COARSE = 2.0  # size of the coarse windows over that of the final ones
COARSE_SAMPLES = 3  # samples of the envelope in the reciprocal of its bandwidth
COARSE_OVERLAP = 0.75
COARSE_SMOOTH = 1.0  # nodes; as SMOOTH, for the coarse windows. Not studied.
COARSE_TOLERANCE = 0.1  # samples by which coarse peaks may scatter; 0.1 is the tolerance of Westerweel and Scarano
AGREEMENT = 0.7  # nodes over which neighbours have to agree on a peak, see `find_peak`
# Standard deviation, over the size of a window, of the filter that makes the displacement a predictor. Noise within a
# window must not return through it, and the field should not be smoothed more than needed: on simulated speckle with a
# lesion, .5, 1, 1.5 and 2 give errors of .393, .395, .421 and .589 um, and the stated standard deviation is 18 % too
# small with .5 and 4 % with 1.
SMOOTH = 1.0
STEPS = 2  # Gauss-Newton steps of each kind; a third changes results by less than 1 % of their standard deviation
# samples in a period, and in the reciprocal of the bandwidth, below which frames are resampled for interpolation and
# derivatives
PERIOD_SAMPLES, BAND_SAMPLES = 6, 3
CORRELATED = 0.5  # correlation below which a node is not measured: false peaks may be as high. Not studied.
# Distance of windows from the edges of a frame, in reciprocals of the bandwidth, that is about the size of a speckle:
# what filters make of the edge stays where it is, and within this distance biases displacements towards zero.
MARGIN = 1.0
INSIDE = 0.9  # part of a window that has to lie inside of both frames
DECORRELATED = 0.7  # median correlation below which a pair is warned about: the noise has the power of the signal
FEWEST_NODES = 0.05  # share of nodes that has to be measured
LOST = 0.2  # share of nodes not measured that is warned about
# A range that was too small: searched again in one this many times as large, this share of the windows is better
# correlated by this much outside of it. Not studied; the largest of many false correlations grows by less.
WIDER, OUTSIDE, BETTER = 3, 0.05, 0.2

CAUSES = (
    "Likely causes: motion out of the image plane, too large a compression between the frames, frames that do not "
    "belong together or are in the wrong order, motion beyond the search range, or noise."
)


def track(
    reference: ArrayLike,
    deformed: ArrayLike,
    spacing: Sequence[float] | None = None,
    *,
    window: float | Sequence[float] | None = None,
    step: float | Sequence[float] | None = None,
    search: float | Sequence[float] | None = None,
    kind: str | None = None,
) -> Tracking:
    """Track the displacement of tissue from one ultrasound frame to another.

    The frames are compared in overlapping windows by normalised cross-correlation, coarse to fine: the envelopes in
    large windows by whole samples; the signals, once the deformed frame is warped by that displacement; and, warped
    again, Gauss-Newton steps to the peak of the correlation (least-squares registration; Lucas and Kanade, 1981).
    The last of these are done after the filter that suits the noise, which is found from the aligned frames (Knapp and
    Carter, 1976). Between the steps the displacement is regularised: neighbours have to agree on a peak, outliers are
    replaced (Westerweel and Scarano, 2005), and the field is smoothed. The field that is returned is not smoothed.

    Parameters
    ----------
    reference, deformed : array_like of float, shape (axial samples, lateral lines)
        Radio-frequency signals, or brightness (B-mode, linear or logarithmic). Samples that are masked or zero are
        taken as outside of the image.
    spacing : (float, float)
        Distance between axial samples and between lateral lines in metres, see `sample_spacing`.
    window : float or (float, float), optional
        Size of the windows in metres; by default square, with 50 independent samples of speckle.
    step : float or (float, float), optional
        Distance between the centres of neighbouring windows in metres; by default half of the window.
    search : float or (float, float), optional
        Largest displacement in metres; by default 2.5 % of the extent of the frame.
    kind : {"rf", "b-mode"}, optional
        By default "rf" where the spectrum of the scan lines has a carrier.

    Returns
    -------
    Tracking
        The displacement u with deformed(X + u(X)) = reference(X), its standard deviation and correlation length.

    Raises
    ------
    TypeError
        If spacing is missing or a frame holds complex numbers.
    ValueError
        If frames differ in shape, are not finite, equal or constant; if window, step or search do not fit the frames;
        if the displacement is larger than the search range; or if nothing could be measured.

    Warns
    -----
    UserWarning
        If the frames are badly correlated.

    Examples
    --------
    >>> import elastofast as ef
    >>> spacing = ef.tracking.sample_spacing(sampling_frequency=40e6, pitch=0.15e-3)
    >>> tracking = ef.track(before, after, spacing)  # doctest: +SKIP
    >>> m = tracking.measurement(ef.PlaneStrain(0.495))  # doctest: +SKIP
    """
    spacing = as_spacing(spacing)
    a, b = as_pair(reference, deformed)
    check_extent(a.shape, spacing)
    if kind not in (None, *KINDS):
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return _Pair(a, b, spacing, kind, window, step, search).track()


def track_sequence(
    frames: Frames | Sequence[ArrayLike] | np.ndarray,
    spacing: Sequence[float] | None = None,
    *,
    reference: str = "first",
    **options: Any,
) -> Iterator[Tracking]:
    """Track a sequence of frames.

    Parameters
    ----------
    frames : Frames, or array_like of shape (n, axial samples, lateral lines)
    spacing : (float, float)
        See `track`.
    reference : {"first", "previous"}, optional
        What each frame is compared with. Errors of results that share a frame are correlated with each other.
    **options
        Other arguments of `track`.

    Yields
    ------
    Tracking
        One for each frame but the first.
    """
    if reference not in ("first", "previous"):
        raise ValueError(f"reference must be 'first' or 'previous', got {reference!r}")
    data = frames.data if isinstance(frames, Frames) else frames
    if len(data) < 2:
        raise ValueError(f"frames must be two or more, got {len(data)}")
    before = [0 if reference == "first" else i - 1 for i in range(1, len(data))]
    return (track(data[j], data[i], spacing, **options) for i, j in enumerate(before, start=1))


class _Fit(NamedTuple):
    """Displacement of the nodes in samples, where it is good, and what `refine` says about it."""

    total: np.ndarray
    good: np.ndarray
    correlation: np.ndarray
    inverse: np.ndarray
    energy: np.ndarray
    gradient: list[np.ndarray]
    difference: np.ndarray


class _Pair:
    """One pair of frames, its sampling, and the steps of its tracking. All arrays have the axes axial and lateral."""

    def __init__(self, a, b, spacing, kind, window, step, search):
        axial, lateral = spectrum(a, 0), spectrum(a, 1)
        kind = kind_of(axial) if kind is None else kind
        needed = [BAND_SAMPLES * axial.bandwidth, BAND_SAMPLES * lateral.bandwidth]
        if kind == "rf":
            needed[0] = PERIOD_SAMPLES * axial.frequency
        factors = np.maximum(1, np.ceil(needed)).astype(int)
        self.a, self.b = (_finer(x, factors) for x in (a, b))
        self.kind, self.spacing = kind, np.array(spacing) / factors
        self.bands = bands = np.array([axial.bandwidth, lateral.bandwidth]) / factors
        frequency = axial.frequency / factors[0]
        envelope = bands / ((2, 1) if kind == "rf" else (1, 1))
        self.coarsening = np.maximum(1, 1 / (COARSE_SAMPLES * envelope)).astype(int)
        # samples within which the right peak lies after the coarse search, and within which a step leads to it
        self.ambiguity = np.array([1 / (2 * frequency) if kind == "rf" else self.coarsening[0], self.coarsening[1]])
        self.basin = 1 / (4 * np.array([frequency if kind == "rf" else bands[0], bands[1]]))
        self.margin = MARGIN / bands
        self._choose_windows(np.prod(bands / self.spacing), window, step, search)

    def _choose_windows(self, density, window, step, search):
        """Sizes in metres, checked, for a density of independent samples per square metre."""
        extent = (np.array(self.a.shape) - 1) * self.spacing
        side = np.sqrt(INDEPENDENT / density)
        self.window = _lengths("window", window, (side, side))
        if (few := density * np.prod(self.window)) < FEWEST:
            raise ValueError(
                f"window must hold at least {FEWEST} independent samples of speckle, {_mm(self.window)} holds "
                f"{few:.1f}; by default it is {_mm((side, side))}"
            )
        self.step = _lengths("step", step, (1 - OVERLAP) * self.window)
        self.search = _lengths("search", search, SEARCH * extent)
        if (self.step > self.window).any():
            raise ValueError(f"step must not be larger than the window, {_mm(self.window)}, got {_mm(self.step)}")
        if (self.window + 2 * self.step > extent - 2 * self.margin * self.spacing).any():
            raise ValueError(
                f"window {_mm(self.window)} and step {_mm(self.step)} leave fewer than 3 nodes along an axis of the "
                f"frame, {_mm(extent)}"
            )
        if (self.search > extent / 2).any():
            raise ValueError(f"search must be at most half of the frame, {_mm(extent)}, got {_mm(self.search)}")
        self.coarse_window = np.minimum(COARSE * self.window, extent / 2)

    def track(self) -> Tracking:
        size = tuple(self.window / self.spacing)
        windows = _windows(self.a.shape, size, self.step / self.spacing, self.margin)
        self.present = [not_empty(x, size) & _within(x.shape, self.margin) for x in (self.a, self.b)]
        a, b = (flatten(x, size) for x in (self.a, self.b))
        fit = self._refine(windows, a, b, *self._among_periods(windows, a, b, self._coarse()))
        correlation = fit.correlation
        self._warn(correlation, fit.good)

        if self.kind == "rf":  # brightness, where noise is not additive, gets 8 % less accurate by the filter
            seen = windows.nearest(fit.good)
            optimal = matched_filter(a * seen, (a + fit.difference) * seen, self.bands)
            a, b = (flatten(optimal(x), size) for x in (a, b))
            fit = self._refine(windows, a, b, fit.total, fit.good, trusted=correlation > CORRELATED)

        covariances = [covariance_of_samples(g, fit.difference, size) for g in fit.gradient]
        factors = np.array(
            [
                dependence(windows, g, fit.difference, c, fit.good)
                for g, c in zip(fit.gradient, covariances, strict=True)
            ]
        )
        std = standard_deviation(fit.correlation, fit.inverse, fit.energy, factors, windows.n)
        lengths, tables = [], []
        for axis, step in enumerate(self.step / self.spacing):
            apart = np.arange(0.0, 2 * size[axis], step)
            lengths.append(np.mean([correlation_length(c, size, axis) for c in covariances]))
            tables.append(np.mean([correlation_of_errors(c, size, axis, apart) for c in covariances], axis=0))
        metres = self.spacing[:, None, None]
        return Tracking(
            grid=Grid(windows.node_shape, tuple(self.step)),
            displacement=np.where(fit.good, fit.total * metres, np.nan),
            displacement_std=np.where(fit.good, std * metres, np.inf),
            correlation_length=_pair(lengths * self.spacing),
            error_correlation=(tables[0], tables[1]),
            correlation=correlation,
            origin=_pair([c[0] * h for c, h in zip(windows.centres, self.spacing, strict=True)]),
            window=_pair(self.window),
            kind=self.kind,
        )

    def _among_periods(self, windows, a, b, field):
        """Displacement of the nodes up to a fraction of a period, from the coarse one of the samples."""
        nodes = np.ix_(*(np.rint(c).astype(int) for c in windows.centres))
        warped, _ = warp(ndimage.spline_filter(b, order=SPLINE, mode="nearest"), self.present[1], field)
        peak, _, _ = find_peak(windows, a, warped, _whole(self.ambiguity), AGREEMENT)
        total = np.array([component[nodes] for component in field]) + peak
        return total, ~outliers(total, COARSE_TOLERANCE * self.ambiguity)

    def _refine(self, windows, a, b, total, good, trusted=None) -> _Fit:
        """Gauss-Newton steps from a displacement of the nodes, of which the good ones are followed.

        ``trusted`` says where the frames are correlated well enough; by default this is asked of these images.
        """
        spline = ndimage.spline_filter(b, order=SPLINE, mode="nearest")
        for _ in range(STEPS):
            base = predictor(total, good, tuple(SMOOTH * self.window / self.step))
            warped, inside = warp(spline, self.present[1], at_samples(base, windows.centres, a.shape))
            inside &= self.present[0]
            step, correlation, inverse, gradient, energy = refine(windows, a, warped, inside)
            good = (np.abs(step) < self.basin[:, None, None]).all(axis=0)
            good &= correlation > CORRELATED if trusted is None else trusted
            good &= windows(inside.astype(float)) > INSIDE * windows.n
            self._check_measured(correlation, good)
            total = np.where(good, base + step, base)
            good &= ~outliers(total, np.median(np.abs(step[:, good]), axis=1))
        return _Fit(total, good, correlation, inverse, energy, gradient, (warped - a) * inside)

    def _coarse(self) -> np.ndarray:
        """Displacement in each sample, from the envelopes in large windows."""
        small = [_block_means(_envelope(x) if self.kind == "rf" else x, self.coarsening) for x in (self.a, self.b)]
        spacing = self.spacing * self.coarsening
        size = self.coarse_window / spacing
        windows = _windows(small[0].shape, tuple(size), (1 - COARSE_OVERLAP) * size)
        a, b = (flatten(x, tuple(size)) for x in small)
        field, correlation, at_edge = find_peak(windows, a, b, _whole(self.search / spacing), AGREEMENT)
        if ((correlation < CORRELATED) | at_edge).mean() > OUTSIDE:
            wide = np.minimum(WIDER * self.search / spacing, np.array(a.shape) / 2)
            self._check_range(find_peak(windows, a, b, _whole(wide), AGREEMENT), correlation, spacing)
        good = ~outliers(field, np.full(2, COARSE_TOLERANCE))
        field = predictor(field, good, (COARSE_SMOOTH, COARSE_SMOOTH)) * self.coarsening[:, None, None]
        centres = tuple(c * q + (q - 1) / 2 for c, q in zip(windows.centres, self.coarsening, strict=True))
        return at_samples(field, centres, self.a.shape)

    def _check_range(self, found, correlation, spacing):
        """Raise if displacements outside of the search range explain the frames far better."""
        field, better, _ = found
        metres = np.abs(field) * spacing[:, None, None]
        outside = (metres > self.search[:, None, None]).any(axis=0) & (better > correlation + BETTER)
        if outside.mean() > OUTSIDE:
            largest = metres[:, outside].max(axis=1)
            raise ValueError(
                f"the displacement is larger than the search range {_mm(self.search)}: the frames fit far better with "
                f"up to {_mm(largest)} (axial x lateral); enlarge search, or take frames that are closer in time"
            )

    def _check_measured(self, correlation, good):
        if good.sum() < good.size * FEWEST_NODES:
            raise ValueError(
                f"nothing could be tracked: the median correlation of both frames is {np.nanmedian(correlation):.2f}, "
                f"and above {CORRELATED} in {(correlation > CORRELATED).mean():.0%} of the windows. {CAUSES}"
            )

    def _warn(self, correlation, good):
        median = np.nanmedian(correlation)
        if median < DECORRELATED or 1 - good.mean() > LOST:
            warnings.warn(
                f"the frames are badly correlated: the median correlation is {median:.2f}, and {1 - good.mean():.0%} "
                f"of the displacements could not be measured. {CAUSES}",
                stacklevel=4,
            )


def _lengths(name, value, default) -> np.ndarray:
    """Axial and lateral length in metres."""
    try:
        lengths = np.broadcast_to(np.asarray(default if value is None else value, dtype=np.float64), (2,))
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be one or two lengths in metres (axial, lateral), got {value!r}") from None
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError(f"{name} must be positive and finite (metres), got {value!r}")
    return lengths


def _pair(values) -> tuple[float, float]:
    axial, lateral = map(float, values)
    return axial, lateral


def _mm(lengths) -> str:
    return " x ".join(f"{1e3 * x:.3g}" for x in lengths) + " mm"


def _whole(reach) -> tuple[int, int]:
    axial, lateral = np.maximum(1, np.ceil(reach))
    return int(axial), int(lateral)


def _windows(shape, size, step, margin=(0.0, 0.0)) -> Windows:
    """As many windows as fit into an image, in its middle."""
    counts = [int((n - 2 * m - w) / s) + 1 for n, w, s, m in zip(shape, size, step, margin, strict=True)]
    centres = [(n - 1) / 2 + s * (np.arange(k) - (k - 1) / 2) for n, s, k in zip(shape, step, counts, strict=True)]
    return Windows(shape, tuple(map(float, size)), tuple(centres))


def _finer(image, factors) -> np.ndarray:
    """An image with this many times as many samples along each axis, up to the last one of the original."""
    for axis, factor in enumerate(factors):
        if factor > 1:
            last = (image.shape[axis] - 1) * factor + 1
            image = signal.resample_poly(image, factor, 1, axis=axis, padtype="edge").take(np.arange(last), axis)
    return image


def _within(shape, margin) -> np.ndarray:
    """Samples that keep a distance from the edges of an image."""
    axial, lateral = (np.minimum(i := np.arange(n), n - 1 - i) >= m for n, m in zip(shape, margin, strict=True))
    return np.logical_and.outer(axial, lateral)


def _envelope(image) -> np.ndarray:
    return np.abs(signal.hilbert(image, axis=0))


def _block_means(image, block) -> np.ndarray:
    """The mean of each block of samples; an incomplete block at the end is left out."""
    p, q = block
    m, n = (k // b for k, b in zip(image.shape, block, strict=True))
    return image[: m * p, : n * q].reshape(m, p, n, q).mean(axis=(1, 3))
