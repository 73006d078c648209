"""How accurate a tracked displacement is: its standard deviation, and how far errors are correlated.

A window sums g e over its samples, where g is the gradient of the images and e = b(x + u) - a(x) is what they differ
by when they are aligned. With the Hessian H, the error of the displacement is H^-1 sum g e and its covariance is
H^-1 M H^-1, where M is the covariance of that sum. If the samples were independent, M would be the sum of g^2 times the
mean of e^2; they are not, and M is ``dependence`` times as large. For signals and noise of one flat band this is the
Cramer-Rao bound of Walker and Trahey (IEEE Trans. UFFC 42, 1995),

    var = (1 / rho^2 - 1) / (2 T B (2 pi)^2 (f0^2 + B^2 / 12)),

with the correlation rho, the duration T of the window, the bandwidth B and the centre frequency f0. Here, the
mean-square frequency and the number of independent samples are measured, and the lateral component has the same
formula.
"""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage, special

from .windows import Windows

__all__ = [
    "correlation_length",
    "correlation_of_errors",
    "covariance_of_samples",
    "dependence",
    "standard_deviation",
]

PARTS = 2  # parts of a window along each axis, whose sums are compared
# Windows, the standard deviation of the Gaussian by which that scatter is averaged: noise changes with depth, and about
# 4 pi 2^2 = 50 separate windows with 3 degrees of freedom each still give the standard deviation to 7 %. The average is
# a geometric one, so that it is hardly moved by windows that hold a discontinuity; MEAN_LOG is the mean logarithm of
# chi-square over its PARTS^2 - 1 = 3 degrees of freedom.
NEIGHBOURHOOD = 2.0
MEAN_LOG = float(special.digamma(1.5) + np.log(2 / 3))
HALF = 0.5  # correlation at which the length is read
HALF_OF_GAUSSIAN = np.sqrt(np.log(2))  # where exp(-t^2) is one half


def covariance_of_samples(gradient: np.ndarray, difference: np.ndarray, size: tuple[float, ...]) -> np.ndarray:
    """Correlation of g e between two samples by their distance, if g and e are independent and stationary.

    Parameters
    ----------
    gradient, difference : numpy.ndarray
        g along one axis, and e, in each sample.
    size : tuple of float
        Window in samples: distances up to that are considered.

    Returns
    -------
    numpy.ndarray
        One at distance zero, which is in the middle.
    """
    shape = [fft.next_fast_len(n, real=True) for n in gradient.shape]
    both = np.ones(shape)
    for field in (gradient, difference):
        both *= fft.irfft2(np.abs(fft.rfft2(field - field.mean(), shape)) ** 2, shape)
    reach = [int(np.ceil(s)) for s in size]
    lags = np.ix_(*(np.arange(-r, r + 1) % n for r, n in zip(reach, shape, strict=True)))
    return both[lags] / both[0, 0]


def _overlap(distance, size):
    """Part of a window that it shares with another at a distance along one axis."""
    return np.maximum(1 - np.abs(distance) / size, 0.0)


def _sum_of_shared(covariance, size, shift=(0.0, 0.0)):
    """Covariance of the sums over two windows of a size at a distance, over that of one sample and one size."""
    lags = [np.arange(n) - n // 2 for n in covariance.shape]
    first, second = (_overlap(lag + s, w) for lag, s, w in zip(lags, shift, size, strict=True))
    return float(first @ covariance @ second)


def dependence(
    windows: Windows, gradient: np.ndarray, difference: np.ndarray, covariance: np.ndarray, good: np.ndarray
) -> np.ndarray:
    """Variance of the sum of g e over a window, over what it would be for independent samples; at every node.

    It is measured by replication: each window is divided into parts, whose sums scatter about their mean, and the
    scatter is averaged over the neighbourhood. The parts are neighbours and therefore not quite independent, which
    ``covariance`` corrects.

    Parameters
    ----------
    windows : Windows
    gradient, difference : numpy.ndarray
        g along one axis, and e, in each sample.
    covariance : numpy.ndarray
        From `covariance_of_samples`.
    good : numpy.ndarray of bool, shape windows.node_shape
        The windows that are considered.

    Returns
    -------
    numpy.ndarray, shape windows.node_shape
    """
    part = tuple(s / PARTS for s in windows.size)
    offsets = [s * (np.arange(PARTS) - (PARTS - 1) / 2) for s in part]
    centres = tuple((o[:, None] + c).ravel() for o, c in zip(offsets, windows.centres, strict=True))
    sums = Windows(windows.shape, part, centres)(gradient * difference)
    sums = sums.reshape(PARTS, windows.node_shape[0], PARTS, windows.node_shape[1])
    scatter = ((sums - sums.mean((0, 2), keepdims=True)) ** 2).sum((0, 2))
    independent = windows(gradient**2) * windows(difference**2) / windows.n
    log = np.log(np.maximum(np.where(good, scatter / np.where(good, independent, 1.0), 1.0), np.finfo(float).tiny))

    steps = [(c[-1] - c[0]) / (len(c) - 1) for c in windows.centres]
    around = [NEIGHBOURHOOD * s / h for s, h in zip(windows.size, steps, strict=True)]
    mean = ndimage.gaussian_filter(log, around) / ndimage.gaussian_filter(good.astype(float), around)
    whole, one = (_sum_of_shared(covariance, size) for size in (windows.size, part))
    return np.exp(mean - MEAN_LOG) / (one / whole - 1 / PARTS**2)


def standard_deviation(
    correlation: np.ndarray, inverse: np.ndarray, energy: np.ndarray, dependences: np.ndarray, n: float
) -> np.ndarray:
    """Standard deviation of both components at every node in samples, shape (2, *nodes).

    Parameters
    ----------
    correlation, inverse, energy : numpy.ndarray
        From `refine`.
    dependences : numpy.ndarray, shape (2, *nodes)
        From `dependence`, for each component.
    n : float
        Samples in a window.
    """
    difference = 2 * (1 - correlation)  # sum of e^2 over the window, of normalised images
    moment = dependences * energy * difference / n
    return np.sqrt(np.einsum("...ij,j...->i...", inverse**2, moment))


def correlation_of_errors(
    covariance: np.ndarray, size: tuple[float, ...], axis: int, distances: np.ndarray
) -> np.ndarray:
    """Correlation of the errors of two windows at distances along an axis, in samples.

    It is the overlap of the windows that correlates them, and a little more that samples are correlated themselves.
    What results is nearly a triangle. For windows of one size it is a positive semi-definite function.
    """
    shifts = [(d, 0.0) if axis == 0 else (0.0, d) for d in distances]
    values = np.array([_sum_of_shared(covariance, size, shift) for shift in shifts])
    return values / _sum_of_shared(covariance, size)


def correlation_length(covariance: np.ndarray, size: tuple[float, ...], axis: int) -> float:
    """The length in samples for which exp(-(h / length)^2) is one half where the correlation of errors is."""
    distances = np.linspace(0.0, 2 * size[axis], 81)
    values = correlation_of_errors(covariance, size, axis, distances)
    below = int(np.argmax(values < HALF))
    return float(np.interp(HALF, values[[below, below - 1]], distances[[below, below - 1]]) / HALF_OF_GAUSSIAN)
