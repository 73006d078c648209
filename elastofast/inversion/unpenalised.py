"""Small changes that turn one plausible map into another, along which a prior should not be asked: boundaries that
shift, regions that become stiffer or softer.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..backend.device import device_of, namespace, to_host

__all__ = ["UnpenalisedDirections", "plateau_range"]

# Distance in nodes between the windows in which a boundary shifts as one, and in which a contrast changes as one. No
# study of these two numbers is kept.
BOUNDARY_SPACING = 16
CONTRAST_SPACING = 64
MIN_SHARE = 1e-3  # windows that hold less than this share of all boundary or contrast are left out
# Relative regularisation of the Gram matrix: the fields of two windows may be all but parallel on a small lesion.
RIDGE = 1e-9


class UnpenalisedDirections:
    """The space of changes of a map that shift its boundaries or scale its contrast.

    With g = |grad z| and c = z - median(z), the fields g w and c w for smooth windows w span, to first order, every
    smooth displacement of the boundaries and every smooth change of the contrast. A prior for maps of sharply bounded
    regions prefers none of these maps to another. Its denoiser or critic nevertheless pulls towards the boundaries and
    contrasts that a map has at the moment; along these directions the data should decide.

    Parameters
    ----------
    z : array, shape (..., N)
        Plausible maps of log x on a grid.
    shape : (int, int)
        Of the grid.
    which : array of bool, shape (B,), optional
        Members of a batch that have such directions; for the others the space is zero.
    """

    def __init__(self, z, shape, which=None):
        device = device_of(z=z)
        xp, maps, windows = device.xp, z.reshape(-1, *shape), _windows(tuple(shape), device)
        edges = xp.hypot(*xp.gradient(maps, axis=(-2, -1)))
        contrast = maps - xp.median(maps, axis=(-2, -1), keepdims=True)
        self._weights, self._hats = xp.stack([edges, contrast], axis=1), windows.hats
        sums = to_host(windows.sums(self._weights))  # the only copy, for which a device has to be waited for
        which = np.ones(len(maps), bool) if which is None else which
        self._chosen, self._places, self._inverse = map(device.upload, windows.solve(sums, which))

    def project(self, v):
        """Orthogonal projection of v (..., N) onto the space."""
        return self._spanned(v, slice(None))

    def project_contrast(self, v):
        """The share of that projection that changes the contrast."""
        return self._spanned(v, slice(1, None))

    def _spanned(self, v, kinds):
        axial, lateral = self._hats
        fields = self._weights * v.reshape(-1, 1, *self._weights.shape[2:])
        products = _contract(fields, lateral, axial).take(self._chosen)
        coefficients = (self._inverse @ products).take(self._places[:, kinds])
        changes = self._weights[:, kinds] * _contract(coefficients, axial.T, lateral.T)
        return changes.sum(axis=1).reshape(v.shape)


def plateau_range(field):
    """Least and greatest value that fields (..., n0, n1) take around each node, apart from specks of a node or two.

    These are the least and the greatest of the 3 x 3 medians within three nodes: near a boundary, the values of the
    regions on both of its sides. Works in any array library.

    Returns
    -------
    low, high : array, shape (..., n0, n1)
    """
    ndimage, members = device_of(field=field).ndimage, (1,) * (field.ndim - 2)
    median = ndimage.median_filter(field, size=(*members, 3, 3), mode="nearest")
    low, high = (
        extreme(median, size=(*members, 7, 7), mode="nearest")
        for extreme in (ndimage.minimum_filter, ndimage.maximum_filter)
    )
    return low, high


class _Windows:
    """The windows of a grid (n0, n1): each a lateral hat times an axial one of the same kind.

    So sums over the grid of a map times all windows, or times all products of two of them, are products of the map
    with two small matrices: of hats, (n0, m0) and (n1, m1), or of products of two hats.
    """

    def __init__(self, shape, device):
        axial, lateral = (_Hats(n) for n in shape)
        self.hats = device.upload(axial.values), device.upload(lateral.values)
        self._pairs = [tuple(map(device.upload, pairs)) for pairs in zip(axial.pairs, lateral.pairs, strict=True)]
        # `sums` has the product of windows (j, i) and (l, k) at lateral[j, l] + axial[i, k]
        widths, heights = (np.array([pairs.shape[1] for pairs in axis.pairs]) for axis in (axial, lateral))
        starts = np.cumsum(heights * widths) - heights * widths
        both = lateral.kind[:, None] + lateral.kind
        self._lateral, self._axial = starts[both] + widths[both] * lateral.place, axial.place
        self._windows = np.nonzero(lateral.kind[:, None] == axial.kind)
        self._kind = axial.kind[self._windows[1]]
        self._shape = 2, len(lateral.kind), len(axial.kind)

    def sums(self, weights):
        """Sums over the grid for each member of weights (B, 2, n0, n1), in one row: products of two fields whose hats
        overlap, then the squares of both weights.
        """
        edges, contrast = weights[:, 0], weights[:, 1]
        products = zip((edges**2, edges * contrast, contrast**2), self._pairs, strict=True)
        sums = [_contract(product, lateral, axial).reshape(len(weights), -1) for product, (axial, lateral) in products]
        return namespace(weights).concatenate([*sums, (weights**2).sum(axis=(-2, -1))], axis=1)

    def solve(self, sums, which):
        """Choose the windows that count and invert the matrix of their fields' products, on the host.

        Returns
        -------
        chosen : array of int, shape (B, n, 1)
            Where a flattened array (B, 2, m1, m0), with an entry for any two hats, has the chosen windows.
        places : array of int, shape (B, 2, m1, m0)
            Where a flattened array (B, n + 1) has the coefficients: the last of a member is for all other windows.
        inverse : array, shape (B, n + 1, n)
            Zero in the last row, and where a member has fewer windows.
        """
        lateral, axial = self._windows
        energy, total = sums[:, self._lateral[lateral, lateral] + self._axial[axial, axial]], sums[:, self._kind - 2]
        enough = (energy > MIN_SHARE * total) & which[:, None]
        numbers, members, size = enough.sum(axis=1), len(enough), np.prod(self._shape)
        n = max(numbers.max(), 1)
        entries = np.ravel_multi_index((self._kind, lateral, axial), self._shape)
        chosen, places = np.zeros((members, n), int), np.full((members, size), n)
        inverse = np.zeros((members, n + 1, n))
        for k, (own, number) in enumerate(zip(enough, numbers, strict=True)):
            j, i = lateral[own], axial[own]
            gram = sums[k, self._lateral[np.ix_(j, j)] + self._axial[np.ix_(i, i)]]
            gram[np.diag_indices(number)] *= 1 + RIDGE
            inverse[k, :number, :number] = np.linalg.inv(gram)
            chosen[k, :number], places[k, entries[own]] = entries[own], np.arange(number)
        member = np.arange(members)[:, None]
        chosen, places = chosen + size * member, places + (n + 1) * member
        return chosen[..., None], places.reshape(members, *self._shape), inverse


@lru_cache(maxsize=4)  # a run asks at every step
def _windows(shape, device):
    return _Windows(shape, device)


class _Hats:
    """Piecewise linear partitions of unity on n nodes, for boundaries (kind 0) and for contrast (kind 1).

    Attributes
    ----------
    values : array, shape (n, m)
        All hats, those for boundaries first.
    kind : array of int, shape (m,)
    pairs : list of arrays, shape (n, p)
        Products of two hats that overlap, of kinds whose sum is 0, 1 and 2; the last product is zero.
    place : array of int, shape (m, m)
        Which of those products belongs to two hats.
    """

    def __init__(self, n):
        kinds = [_partition(n, step) for step in (BOUNDARY_SPACING, CONTRAST_SPACING)]
        self.values, self.kind = np.hstack(kinds), np.repeat([0, 1], [hats.shape[1] for hats in kinds])
        overlap, both = np.triu(self.values.T @ self.values > 0), self.kind[:, None] + self.kind
        self.pairs, self.place = [], np.empty(both.shape, int)
        for k in range(3):
            i, j = np.nonzero(overlap & (both == k))
            self.pairs.append(np.pad(self.values[:, i] * self.values[:, j], ((0, 0), (0, 1))))
            self.place[both == k] = len(i)
            self.place[i, j] = self.place[j, i] = np.arange(len(i))


def _partition(n, step):
    """Piecewise linear partition of unity on n nodes, shape (n, hats)."""
    centres = np.arange(0, n - 1 + step, step)
    return np.clip(1 - np.abs(np.arange(n)[:, None] - centres) / step, 0, None)


def _contract(fields, last, other):
    """Fields (..., n, k) times matrices (k, p) and (n, q): (..., p, q)."""
    xp = namespace(fields)
    return xp.tensordot(xp.tensordot(fields, last, 1), other, (-2, 0))  # each is one matrix product for all members
