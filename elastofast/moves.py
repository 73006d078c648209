"""Small changes that turn one plausible map into another: boundaries that shift, regions that stiffen or soften."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np
import scipy.sparse as sp

from .arrays import home_of, namespace, to_host

__all__ = ["moves", "neighbourhood_range"]

BOUNDARY = 16  # nodes between the windows in which a boundary shifts as one
REGION = 64  # nodes between the windows in which a modulus changes as one
SHARE = 1e-3  # windows with less than this share of all boundary or contrast are left out
RIDGE = 1e-9  # of the fields' own squares: two windows may all but agree on a small lesion


def moves(z, shape) -> Callable:
    """Projection onto the changes of a map that shift its boundaries or scale its contrast.

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

    Returns
    -------
    callable
        ``project(v)`` gives the part of v (N,) in the span of the fields: nothing for a homogeneous map.
    """
    home, field = home_of(z=z), to_host(z).reshape(shape)
    boundary, contrast = np.hypot(*np.gradient(field)), field - np.median(field)
    fields = sp.hstack([_windowed(boundary, BOUNDARY), _windowed(contrast, REGION)], format="csr")
    if not fields.shape[1]:
        return np.zeros_like
    across = fields.T.tocsr()
    gram = (across @ fields).toarray()
    gram[np.diag_indices_from(gram)] *= 1 + RIDGE
    inverse = home.xp.asarray(np.linalg.inv(gram))
    fields, across = home.matrix(fields), home.matrix(across)
    return lambda v: fields @ (inverse @ (across @ v))


def neighbourhood_range(field):
    """Least and greatest value of the 3 x 3 nodes around each node of a field (n0, n1), in any array library."""
    padded = namespace(field).pad(field, 1, mode="edge")
    rows, columns = field.shape
    around = [padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return reduce(np.minimum, around), reduce(np.maximum, around)


def _windowed(weight, step):
    """The fields weight * w for the windows w, step nodes apart, that hold some of it: sparse, shape (N, windows)."""
    axial, lateral = (_hats(n, step) for n in weight.shape)
    windows = sp.kron(axial, lateral, format="csr")  # (N, all windows)
    fields = windows.multiply(weight.reshape(-1, 1)).tocsc()
    energy = fields.power(2).sum(axis=0).ravel()
    return fields[:, energy > SHARE * (weight**2).sum()]


def _hats(n, step):
    """Piecewise linear partition of unity on n nodes, sparse, shape (n, windows)."""
    centres = np.arange(0, n - 1 + step, step)
    return sp.csr_array(np.clip(1 - np.abs(np.arange(n)[:, None] - centres) / step, 0, None))
