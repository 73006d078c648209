"""Small changes that turn one plausible map into another: boundaries that shift, regions that stiffen or soften."""

from __future__ import annotations

from functools import lru_cache, reduce

import numpy as np
import scipy.sparse as sp

from .arrays import home_of, namespace, to_host

__all__ = ["Moves", "plateau_range"]

BOUNDARY = 16  # nodes between the windows in which a boundary shifts as one
REGION = 64  # nodes between the windows in which a modulus changes as one
SHARE = 1e-3  # windows with less than this share of all boundary or contrast are left out
RIDGE = 1e-9  # of the fields' own squares: two windows may all but agree on a small lesion


class Moves:
    """The changes of a map that shift its boundaries or scale its contrast.

    With g = |grad z| and c = z - median(z), the fields g w and c w for smooth windows w span, to first order, every
    smooth displacement of the boundaries and change of the contrast. A prior for maps of sharply bounded regions has
    no opinion on either, but its denoiser or critic holds on to where a map is now; along these directions the data
    should decide.

    Parameters
    ----------
    z : array, shape (N,)
        A plausible map of log x on a grid. The fields are found on the processor wherever it lives.
    shape : (int, int)
        Of the grid.
    """

    def __init__(self, z, shape):
        home, field = home_of(z=z), to_host(z).reshape(shape)
        boundaries = _windowed(np.hypot(*np.gradient(field)), BOUNDARY)
        contrasts = _windowed(field - np.median(field), REGION)
        fields = sp.hstack([boundaries, contrasts], format="csr")
        self.none = not fields.shape[1]
        if self.none:
            return
        across = fields.T.tocsr()
        gram = (across @ fields).toarray()
        gram[np.diag_indices_from(gram)] *= 1 + RIDGE
        inverse = np.linalg.inv(gram)
        self._inverse = home.xp.asarray(inverse)
        self._contrast_rows = home.xp.asarray(inverse[boundaries.shape[1] :])
        self._across, self._fields = home.matrix(across), home.matrix(fields)
        self._contrasts = home.matrix(contrasts.tocsr())

    def part(self, v):
        """The part of v (N,) in the span of all fields."""
        return v * 0.0 if self.none else self._fields @ (self._inverse @ (self._across @ v))

    def contrast(self, v):
        """What of that part changes the contrast."""
        return v * 0.0 if self.none else self._contrasts @ (self._contrast_rows @ (self._across @ v))


def plateau_range(field):
    """Between which values a plausible field (n0, n1) lies at each node, in any array library.

    The least and the greatest of the 3 x 3 medians within three nodes: the levels on both sides where a boundary is
    near. A speck of a node or two does not count.
    """
    xp = namespace(field)
    median = xp.median(xp.stack(_views(field, 1)), axis=0)
    # a window in two dimensions is one along each axis
    low, high = (
        reduce(choose, _views(reduce(choose, _views(median, 3, 1)), 3, 0))
        for choose in (np.minimum, np.maximum)
    )
    return low, high


def _views(field, reach, axis=None):
    """A field shifted by up to ``reach`` nodes along one axis or both, its edges repeated."""
    xp, (rows, columns) = namespace(field), field.shape
    down, across = (reach if axis in (None, k) else 0 for k in range(2))
    padded = xp.pad(field, ((down, down), (across, across)), mode="edge")
    return [
        padded[i : i + rows, j : j + columns] for i in range(2 * down + 1) for j in range(2 * across + 1)
    ]


def _windowed(weight, step):
    """The fields weight * w for the windows w, step nodes apart, that hold some of it: sparse, shape (N, windows)."""
    fields = _windows(weight.shape, step).multiply(weight.reshape(-1, 1)).tocsc()
    energy = fields.power(2).sum(axis=0).ravel()
    return fields[:, energy > SHARE * (weight**2).sum()]


@lru_cache(maxsize=4)  # two kinds of window on two grids; a run asks at every step
def _windows(shape, step):
    """All windows of a grid, sparse, shape (N, windows)."""
    axial, lateral = (_hats(n, step) for n in shape)
    return sp.kron(axial, lateral, format="csr")


def _hats(n, step):
    """Piecewise linear partition of unity on n nodes, sparse, shape (n, windows)."""
    centres = np.arange(0, n - 1 + step, step)
    return sp.csr_array(np.clip(1 - np.abs(np.arange(n)[:, None] - centres) / step, 0, None))
