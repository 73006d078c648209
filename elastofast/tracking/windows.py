"""Overlapping windows of two images: sums over all of them at once, their correlation, and its peak.

Images have the axes axial and lateral; positions, sizes and displacements are in samples.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage, sparse

__all__ = ["Windows", "derivatives", "find_peak", "flatten", "not_empty", "refine"]

# first derivative by central differences of sixth order: for 6 samples a period its error is .7 %
DERIVATIVE = np.array([-1, 9, -45, 0, 45, -9, 1]) / 60
EMPTY_PARTS = 8  # windows in this many parts along each axis, the size of a constant patch that is taken as empty
EMPTY = 1e-12  # variance over the largest one of the image, below which a window is taken as empty


class Windows:
    """Rectangular windows of one size, centred at the nodes of a grid.

    Parameters
    ----------
    shape : tuple of int
        Samples of the image along each axis.
    size : tuple of float
        Samples of a window along each axis; a sample that is partly inside counts in part.
    centres : tuple of array_like
        Centres of the windows along each axis.
    """

    def __init__(self, shape: tuple[int, ...], size: tuple[float, ...], centres: tuple[ArrayLike, ...]) -> None:
        self.shape, self.size = shape, size
        self.centres = tuple(np.asarray(c, dtype=np.float64) for c in centres)
        self.node_shape = tuple(len(c) for c in self.centres)
        self.n = float(np.prod(size))
        self._axial, self._lateral = map(_sums, shape, size, self.centres)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Sum of an image over each window, shape ``node_shape``."""
        return (self._lateral @ (self._axial @ image).T).T

    def nearest(self, field: np.ndarray) -> np.ndarray:
        """In each sample, the value of a field at the nearest node."""
        nodes = [
            np.clip(np.rint(np.interp(np.arange(n), c, np.arange(len(c)))), 0, len(c) - 1).astype(int)
            for n, c in zip(self.shape, self.centres, strict=True)
        ]
        return field[np.ix_(*nodes)]


def _sums(n, size, centres) -> sparse.csr_array:
    """Matrix (windows, samples) of the part of each sample that lies in each window along one axis."""
    first = np.floor(centres - size / 2 + 0.5).astype(int)
    samples = first[:, None] + np.arange(int(np.ceil(size)) + 1)
    low = np.maximum(samples - 0.5, (centres - size / 2)[:, None])
    high = np.minimum(samples + 0.5, (centres + size / 2)[:, None])
    part = np.maximum(high - low, 0.0)
    row = np.broadcast_to(np.arange(len(centres))[:, None], samples.shape)
    inside = (part > 0) & (samples >= 0) & (samples < n)
    return sparse.csr_array((part[inside], (row[inside], samples[inside])), shape=(len(centres), n))


def flatten(image: np.ndarray, size: tuple[float, ...]) -> np.ndarray:
    """The image with local mean zero and local variance one, so that no bright spot dominates a window."""
    mean, deviation = _local_moments(image, size)
    return np.where(np.isnan(deviation), 0.0, (image - mean) / deviation)


def _local_moments(image, size):
    """Mean and standard deviation around each sample; the latter is NaN where the image is empty."""
    whole = [max(1, round(s)) for s in size]
    mean = ndimage.uniform_filter(image, whole)
    variance = ndimage.uniform_filter(image**2, whole) - mean**2
    return mean, np.sqrt(np.where(variance > EMPTY * variance.max(), variance, np.nan))


def not_empty(image: np.ndarray, size: tuple[float, ...]) -> np.ndarray:
    """Where an image is not constant over a small part of a window, as it is outside of the imaged region."""
    patch = [max(3, round(s / EMPTY_PARTS)) for s in size]
    return ndimage.maximum_filter(image, patch) > ndimage.minimum_filter(image, patch)


def derivatives(image: np.ndarray) -> list[np.ndarray]:
    """Derivative per sample along each axis."""
    return [ndimage.correlate1d(image, DERIVATIVE, axis=axis, mode="nearest") for axis in range(image.ndim)]


class _Moments:
    """Sum and norm of an image in each window, about the mean of the window; NaN where a window is empty."""

    def __init__(self, windows, image, n):
        self.sum = windows(image)
        norm2 = windows(image**2) - self.sum**2 / n
        self.norm = np.sqrt(np.where(norm2 > EMPTY * windows.n, norm2, np.nan))  # of flattened images, variance one


def find_peak(
    windows: Windows, a: np.ndarray, b: np.ndarray, reach: tuple[int, int], smooth: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The whole-sample displacement with the largest correlation, refined by a parabola along each axis.

    Parameters
    ----------
    windows : Windows
    a, b : numpy.ndarray
        Flattened images.
    reach : (int, int)
        Largest displacement along each axis in samples.
    smooth : float
        The correlation of each displacement is averaged over neighbouring nodes, by a Gaussian whose standard deviation
        is this many nodes, before the largest is taken: neighbours have to agree, so that lone false peaks do not win.

    Returns
    -------
    displacement : numpy.ndarray, shape (2, *node_shape)
    correlation : numpy.ndarray, shape node_shape
        At that displacement, averaged over the neighbours.
    at_edge : numpy.ndarray of bool, shape node_shape
        Where the largest correlation lies at the end of the range that was searched.
    """
    of_a, lags = _Moments(windows, a, windows.n), [np.arange(-r, r + 1) for r in reach]
    padded = np.pad(b, [(r, r) for r in reach], mode="edge")
    mean, deviation = _local_moments(padded, windows.size)
    nodes = [np.rint(c).astype(int) for c in windows.centres]
    volume = np.empty((*(len(lag) for lag in lags), *windows.node_shape))
    for i, j in product(range(len(lags[0])), range(len(lags[1]))):
        moved = np.ix_(nodes[0] + i, nodes[1] + j)  # the windows of b, to half a sample
        covariance = windows(a * padded[i : i + a.shape[0], j : j + a.shape[1]]) - of_a.sum * mean[moved]
        volume[i, j] = covariance / (of_a.norm * np.sqrt(windows.n) * deviation[moved])
    volume = ndimage.gaussian_filter(np.nan_to_num(volume), (0, 0, smooth, smooth), mode="nearest")

    best = np.unravel_index(volume.reshape(-1, *windows.node_shape).argmax(axis=0), volume.shape[:2])
    node = np.indices(windows.node_shape)
    displacement = np.empty((2, *windows.node_shape))
    at_edge = np.zeros(windows.node_shape, bool)
    for axis, (lag, peak) in enumerate(zip(lags, best, strict=True)):
        ends = (peak == 0) | (peak == len(lag) - 1)
        middle = np.clip(peak, 1, len(lag) - 2)
        low, mid, high = (
            volume[(*(middle + d if k == axis else best[k] for k in range(2)), *node)] for d in (-1, 0, 1)
        )
        curvature = np.where(ends, np.inf, 2 * mid - low - high)
        displacement[axis] = lag[peak] + (high - low) / (2 * np.maximum(curvature, np.finfo(float).tiny))
        at_edge |= ends
    return displacement, volume[(*best, *node)], at_edge


def refine(
    windows: Windows, a: np.ndarray, b: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray], np.ndarray]:
    """One Gauss-Newton step towards the peak of the normalised cross-correlation of two nearly aligned images.

    This is the least-squares registration of Lucas and Kanade (1981) for images that are normalised in each window. The
    gradient is the mean of both images' gradients, so that the step is exactly zero for equal images and noise in
    either causes no bias; the Hessian is the product of one image's gradient with the other's, which is free of the
    power of the noise.

    Parameters
    ----------
    windows : Windows
    a, b : numpy.ndarray
        Flattened images.
    inside : numpy.ndarray of bool
        The samples that count; windows may lack some, but an image that ends would hold its displacement fast.

    Returns
    -------
    step : numpy.ndarray, shape (2, *node_shape)
        The displacement d for which b(x + d) fits a(x) best; NaN where there is no peak.
    correlation : numpy.ndarray, shape node_shape
        Normalised cross-correlation without displacement; NaN where a window is empty.
    inverse : numpy.ndarray, shape (*node_shape, 2, 2)
        Inverse of the Hessian of half the squared difference of the normalised images.
    gradient : list of two numpy.ndarray
        The mean gradient of both images, in each sample.
    energy : numpy.ndarray, shape (2, *node_shape)
        Sum of its squares over each window, for the normalised images.
    """
    da, db = ([inside * d for d in derivatives(x)] for x in (a, b))
    a, b, n = inside * a, inside * b, np.maximum(windows(inside.astype(float)), 1.0)
    of_a, of_b = _Moments(windows, a, n), _Moments(windows, b, n)
    both = of_a.norm * of_b.norm
    correlation = (windows(a * b) - of_a.sum * of_b.sum / n) / both
    slope, hessian = np.empty((2, *windows.node_shape)), np.empty((2, 2, *windows.node_shape))
    for i in range(2):
        sum_a, sum_b = windows(da[i]), windows(db[i])
        slope[i] = (
            (windows(da[i] * b) - sum_a * of_b.sum / n) / both
            - (windows(da[i] * a) - sum_a * of_a.sum / n) / of_a.norm**2
            + (windows(db[i] * b) - sum_b * of_b.sum / n) / of_b.norm**2
            - (windows(db[i] * a) - sum_b * of_a.sum / n) / both
        ) / 2
        for j in range(2):
            hessian[i, j] = (windows(da[i] * db[j]) + windows(da[j] * db[i])) / (2 * both)
    determinant = hessian[0, 0] * hessian[1, 1] - hessian[0, 1] ** 2
    peak = (determinant > 0) & (hessian[0, 0] > 0)
    adjugate = np.array([[hessian[1, 1], -hessian[0, 1]], [-hessian[0, 1], hessian[0, 0]]])
    inverse = np.where(peak, adjugate / np.where(peak, determinant, 1.0), np.nan)
    step = -np.einsum("ij...,j...->i...", inverse, slope)
    gradient = [(p + q) / 2 for p, q in zip(da, db, strict=True)]
    energy = np.array([windows(g**2) for g in gradient]) / both
    return step, correlation, np.moveaxis(inverse, (0, 1), (-2, -1)), gradient, energy
