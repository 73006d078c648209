"""Small changes that turn one plausible map into another: boundaries that shift, regions that stiffen or soften."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

__all__ = ["moves"]

BOUNDARY = 16  # nodes between the windows in which a boundary shifts as one
REGION = 64  # nodes between the windows in which a modulus changes as one
SHARE = 1e-3  # windows with less than this share of all boundary or contrast are left out


def moves(z, shape):
    """Orthonormal basis of the changes of a map that shift its boundaries or scale its contrast.

    With g = |grad z| and c = z - median(z), the fields g w and c w for smooth windows w span, to first order, every
    smooth displacement of the boundaries and change of the contrast. A prior for maps of sharply bounded regions has
    no opinion on either, but its denoiser or critic holds on to where a map is now; along these directions the data
    should decide.

    Parameters
    ----------
    z : numpy.ndarray, shape (N,)
        A plausible map of log x on a grid.
    shape : (int, int)
        Of the grid.

    Returns
    -------
    numpy.ndarray, shape (N, k)
        k is 0 for a homogeneous map.
    """
    field = z.reshape(shape)
    columns = []
    for weight, step in (
        (np.hypot(*np.gradient(field)), BOUNDARY),
        (field - np.median(field), REGION),
    ):
        axial, lateral = (_hats(n, step) for n in shape)
        # weights within each window, w_a(i) w_b(j)
        energy = (axial**2) @ weight**2 @ (lateral**2).T
        for a, b in np.argwhere(energy > SHARE * (weight**2).sum()):
            columns.append((weight * axial[a][:, None] * lateral[b]).ravel())
    if not columns:
        return np.zeros((z.size, 0))
    return np.linalg.qr(np.stack(columns, axis=1))[0]


@lru_cache(maxsize=16)
def _hats(n, step):
    """Piecewise linear partition of unity on n nodes, (windows, n)."""
    centres = np.arange(0, n - 1 + step, step)
    return np.clip(1 - np.abs(np.arange(n) - centres[:, None]) / step, 0, None)
