"""The displacement that the next, finer step of tracking starts from: neighbours regularise it, pixels follow it.

Fields have the shape (2, *nodes) and hold displacements in samples.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.interpolate import NearestNDInterpolator, RectBivariateSpline, griddata

__all__ = ["at_samples", "extrapolated", "outliers", "predictor", "warp"]

# the universal outlier detection of Westerweel and Scarano (Exp. Fluids 39, 2005), with their radius of two nodes for
# noisy data; a larger threshold than their 2, which rejects 2 to 5 % of Gaussian noise
RADIUS = 2
THRESHOLD = 4.0
SPLINE = 3  # degree of the splines by which images and displacements are interpolated
PADDING = 4  # nodes beyond the edge of the grid to which a displacement is continued


def outliers(field: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
    """Nodes that differ from the median of their neighbours by far more than the neighbours do.

    Parameters
    ----------
    field : numpy.ndarray, shape (2, *nodes)
        Finite.
    tolerance : numpy.ndarray, shape (2,)
        Scatter of each component that is always allowed, in samples.

    Returns
    -------
    numpy.ndarray of bool, shape nodes
    """
    around = np.ones((2 * RADIUS + 1,) * 2, bool)
    around[RADIUS, RADIUS] = False
    found = np.zeros(field.shape[1:], bool)
    for component, allowed in zip(field, tolerance, strict=True):
        away = np.abs(component - ndimage.median_filter(component, footprint=around, mode="nearest"))
        scatter = ndimage.median_filter(away, footprint=around, mode="nearest")
        found |= away > THRESHOLD * (scatter + allowed)
    return found


def predictor(field: np.ndarray, good: np.ndarray, smooth: tuple[float, float]) -> np.ndarray:
    """A smooth field that follows the good nodes.

    Parameters
    ----------
    field : numpy.ndarray, shape (2, *nodes)
    good : numpy.ndarray of bool, shape nodes
        The other nodes are interpolated from these.
    smooth : (float, float)
        Standard deviation of the Gaussian filter along each axis, in nodes.
    """
    return np.array([_smoothed(_filled(component, good), smooth) for component in field])


def _filled(component, good):
    if good.all():
        return component
    around = good & ndimage.binary_dilation(~good, iterations=RADIUS)
    points, values, wanted = np.argwhere(around), component[around], np.argwhere(~good)
    filled = component.copy()
    filled[~good] = NearestNDInterpolator(points, values)(wanted)
    if np.ptp(points, axis=0).all():  # else there are no triangles to interpolate in
        linear = griddata(points, values, wanted)
        filled[~good] = np.where(np.isnan(linear), filled[~good], linear)
    return filled


def extrapolated(component: np.ndarray, width: tuple[int, int]) -> np.ndarray:
    """Continued beyond its edges by odd reflection, which keeps a linear function linear."""
    return np.pad(component, [(w, w) for w in width], mode="reflect", reflect_type="odd")


def _smoothed(component, smooth):
    """Gaussian filter that leaves linear functions as they are, up to the edges."""
    width = tuple(min(int(np.ceil(4 * s)), n - 1) for s, n in zip(smooth, component.shape, strict=True))
    wide = ndimage.gaussian_filter(extrapolated(component, width), smooth, mode="nearest")
    return wide[tuple(slice(w, w + n) for w, n in zip(width, component.shape, strict=True))]


def at_samples(field: np.ndarray, centres: tuple[np.ndarray, ...], shape: tuple[int, ...]) -> np.ndarray:
    """A field on nodes interpolated to all samples of an image, shape (2, *shape)."""
    width = tuple(min(PADDING, n - 1) for n in field.shape[1:])
    axes = []
    for c, w in zip(centres, width, strict=True):
        axes.append(c[0] + (c[-1] - c[0]) / (len(c) - 1) * np.arange(-w, len(c) + w))
    degree = [min(SPLINE, len(axis) - 1) for axis in axes]
    samples = [np.arange(n) for n in shape]
    return np.array(
        [RectBivariateSpline(*axes, extrapolated(c, width), kx=degree[0], ky=degree[1])(*samples) for c in field]
    )


def warp(spline: np.ndarray, present: np.ndarray, displacement: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image b(x + u(x)), and where there is something of b at x + u(x).

    Parameters
    ----------
    spline : numpy.ndarray
        Coefficients of b from ``scipy.ndimage.spline_filter`` with order `SPLINE` and mode "nearest".
    present : numpy.ndarray of bool, shape spline.shape
        Where b is not empty.
    displacement : numpy.ndarray, shape (2, *spline.shape)
        u in samples.
    """
    moved = [sample + u for sample, u in zip(np.indices(spline.shape), displacement, strict=True)]
    inside = np.logical_and.reduce([(m >= 0) & (m <= n - 1) for m, n in zip(moved, spline.shape, strict=True)])
    if not present.all():
        inside &= ndimage.map_coordinates(present.astype(np.uint8), moved, order=0, mode="nearest") > 0
    return ndimage.map_coordinates(spline, moved, order=SPLINE, mode="nearest", prefilter=False), inside
