"""What the spectrum of a frame says: period, speckle size, whether there is a carrier, and what filter suits it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage

from .windows import flatten

__all__ = ["Spectrum", "kind_of", "matched_filter", "spectrum"]

PARTS = 4  # parts of a frame along each axis, whose brightness is equalised first
FLOOR = 10.0  # percentile of the power spectrum that is taken for white noise
# Share of the power at less than half of the mean frequency, below which a signal has a carrier. With a Gaussian
# spectrum it is .31 without a carrier, and .05 with one and a bandwidth (at half the amplitude) of 100 %.
BASEBAND = 0.15
# Bandwidth over the standard deviation by which power spectra are smoothed for `matched_filter`: fine enough for the
# shape of the band, and a mean over hundreds of frequencies. Not studied.
RESOLUTION = 16
LEAST_NOISE = 1e-3  # noise over its largest spectral density, which keeps `matched_filter` out of empty bands


class Spectrum(NamedTuple):
    """Power spectrum along one axis, without its floor of white noise; frequencies in cycles per sample.

    ``frequency`` is its mean, ``bandwidth`` the two-sided width of a flat spectrum with as many independent samples,
    (int S)^2 / int S^2, and ``baseband`` the share of the power below half of the mean frequency.
    """

    frequency: float
    bandwidth: float
    baseband: float


def spectrum(image: np.ndarray, axis: int) -> Spectrum:
    """Spectrum of a frame along an axis, averaged over the other one."""
    level = flatten(image, tuple(n / PARTS for n in image.shape))
    power = (np.abs(fft.rfft(level, axis=axis)) ** 2).mean(axis=1 - axis)
    power = np.maximum(power - np.percentile(power, FLOOR), 0.0)
    frequency = fft.rfftfreq(level.shape[axis])
    total = power.sum()
    mean = frequency @ power / total
    bandwidth = 2 * frequency[1] * total**2 / (power**2).sum()
    return Spectrum(float(mean), float(bandwidth), float(power[frequency < mean / 2].sum() / total))


def kind_of(axial: Spectrum) -> str:
    """Whether a frame holds radio-frequency signals, which have a carrier, or brightness, which has none."""
    return "rf" if axial.baseband < BASEBAND else "b-mode"


def matched_filter(a: np.ndarray, b: np.ndarray, bandwidths: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The filter after which the correlation of two frames finds their displacement with the least variance.

    It weights frequencies by what they tell about the displacement: ``|H|^2 = gamma^2 / ((1 - gamma^2) S)`` with the
    spectrum S of the signal and the coherence gamma of the frames (the maximum-likelihood processor of Knapp and
    Carter, IEEE Trans. ASSP 24, 1976). With noise of the spectrum N in both frames, gamma = S / (S + N) and
    ``|H|^2 = S / (N (2 S + N))``. S and N follow from the spectra of the mean of both frames, S + N / 2, and of their
    difference, 2 N. The filter whitens the signal where frames differ by decorrelation, whose spectrum is that of the
    signal, and leaves it nearly as it is where they differ by white noise.

    Parameters
    ----------
    a, b : numpy.ndarray
        Frames that are aligned.
    bandwidths : numpy.ndarray, shape (2,)
        Two-sided bandwidth along each axis in cycles per sample; spectra are smoothed over a part of it.

    Returns
    -------
    callable
        The filter, for frames of the same shape.
    """
    mean, difference = (_smooth_power(x, bandwidths) for x in ((a + b) / 2, b - a))
    noise = np.maximum(difference / 2, LEAST_NOISE * difference.max())
    signal = np.maximum(mean - noise / 2, 0.0)
    gain = np.sqrt(signal / (noise * (2 * signal + noise)))
    return lambda image: fft.irfft2(gain * fft.rfft2(image, axes=(1, 0)), s=image.shape[::-1], axes=(1, 0))


def _smooth_power(image, bandwidths):
    """Power spectrum by the frequencies of ``rfft2``, smoothed."""
    power = np.abs(fft.rfft2(image, axes=(1, 0))) ** 2
    width = [w * n / RESOLUTION for w, n in zip(bandwidths, image.shape, strict=True)]
    return ndimage.gaussian_filter(power, width, mode=("nearest", "wrap"))
