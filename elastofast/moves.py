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
    z : array, shape (..., N)
        Plausible maps of log x on a grid. The fields are found on the processor wherever they live.
    shape : (int, int)
        Of the grid.
    which : array of bool, shape (B,), optional
        Members of a batch that have such moves; the others are left alone.
    """

    def __init__(self, z, shape, which=None):
        home, maps = home_of(z=z), to_host(z).reshape(-1, *shape)
        which = np.ones(len(maps), bool) if which is None else which
        found = [_matrices(field if moves else np.zeros_like(field)) for field, moves in zip(maps, which, strict=True)]
        self.none = not any(matrices[0].shape[0] for matrices in found)
        if not self.none:
            self._across, self._inverse, self._fields, self._contrast_rows, self._contrasts = (
                home.matrix(parts[0] if len(parts) == 1 else sp.block_diag(parts, format="csr"))
                for parts in zip(*found, strict=True)
            )

    def part(self, v):
        """The part of v (..., N) in the span of all fields."""
        return v * 0.0 if self.none else self._spanned(self._fields, self._inverse, v)

    def contrast(self, v):
        """What of that part changes the contrast."""
        return v * 0.0 if self.none else self._spanned(self._contrasts, self._contrast_rows, v)

    def _spanned(self, fields, inverse, v):
        return (fields @ (inverse @ (self._across @ v.reshape(-1)))).reshape(v.shape)


def _matrices(field):
    """For one map (n0, n1): products with all fields, inverse of the fields' own products, and the fields; the rows of
    that inverse for the fields that change the contrast, and these fields.
    """
    boundaries = _windowed(np.hypot(*np.gradient(field)), BOUNDARY)
    contrasts = _windowed(field - np.median(field), REGION)
    fields = sp.hstack([boundaries, contrasts], format="csr")
    across = fields.T.tocsr()
    gram = (across @ fields).toarray()
    gram[np.diag_indices_from(gram)] *= 1 + RIDGE
    inverse = np.linalg.inv(gram)
    rows = inverse[boundaries.shape[1] :]
    return across, sp.csr_array(inverse), fields, sp.csr_array(rows), contrasts.tocsr()


def plateau_range(field):
    """Between which values plausible fields (..., n0, n1) lie at each node, in any array library.

    The least and the greatest of the 3 x 3 medians within three nodes: the levels on both sides where a boundary is
    near. A speck of a node or two does not count.
    """
    xp = namespace(field)
    median = xp.median(xp.stack(_views(field, 1)), axis=0)
    # a window in two dimensions is one along each axis
    low, high = (
        reduce(choose, _views(reduce(choose, _views(median, 3, -1)), 3, -2))
        for choose in (np.minimum, np.maximum)
    )
    return low, high


def _views(field, reach, axis=None):
    """Fields (..., n0, n1) shifted by up to ``reach`` nodes along one axis or both, their edges repeated."""
    xp, (rows, columns) = namespace(field), field.shape[-2:]
    down, across = (reach if axis in (None, k) else 0 for k in (-2, -1))
    padded = xp.pad(field, (*[(0, 0)] * (field.ndim - 2), (down, down), (across, across)), mode="edge")
    return [
        padded[..., i : i + rows, j : j + columns] for i in range(2 * down + 1) for j in range(2 * across + 1)
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
