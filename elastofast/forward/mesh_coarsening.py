"""A coarser mesh of the same body, and the interpolation from it: for multigrid and for coarse copies of a measurement.

An independent set of nodes is kept, corners and edges of the body first; of the others, each is moved onto a neighbour
that is kept, and the cells between the two vanish (edge collapse; Hoppe et al., Mesh optimization, SIGGRAPH 1993). Such
a step is taken only if no cell is turned inside out or becomes much worse than it was, and if the body keeps its shape;
a node for which there is no such step is kept as well. So the nodes of the coarse mesh are nodes of the fine one, and
about one in four (in three dimensions one in six to eight) of them.
"""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from ..geometry import Mesh
from .compile import njit

__all__ = ["CoarseMesh", "coarser"]

# Quality (1 for equilateral cells, 0 for flat ones) that cells of a coarse mesh have to have, unless those around the
# node were worse, and share of the volume around a node that a step may change at a curved surface. Not studied.
QUALITY = {2: 0.3, 3: 0.15}
VOLUME_CHANGE = 0.05
# Length of the mean unit normal at a boundary node, in steps of which nodes are sorted: corners before edges before
# faces. Not studied.
NORMAL_STEP = 0.05
INSIDE = 1e-9  # how far below zero the barycentric coordinates of a node in its cell may be by rounding
NEAR_CELLS = 40  # among which the cell is looked for of a node that is in none of those around its place


class CoarseMesh(NamedTuple):
    """Outcome of `coarser`.

    Attributes
    ----------
    mesh : Mesh
    interpolation : scipy.sparse.csr_array, shape (N, N of the coarse mesh)
        Linear inside the coarse cells; rows sum to one.
    place : array of int, shape (N,)
        Coarse node onto which each node was moved; its own if it is kept.
    kept : array of int, shape (N of the coarse mesh,)
        The node that each coarse node is.
    """

    mesh: Mesh
    interpolation: csr_array
    place: np.ndarray
    kept: np.ndarray


_known: WeakKeyDictionary[Mesh, CoarseMesh | None] = WeakKeyDictionary()


def coarser(mesh: Mesh) -> CoarseMesh | None:
    """A mesh of about half the resolution, made once; None if less than a third of the nodes could be removed.

    Parameters
    ----------
    mesh : Mesh
    """
    if mesh not in _known:
        _known[mesh] = _coarse(mesh)
    return _known[mesh]


def _coarse(mesh):
    d, n = mesh.dim, mesh.n_nodes
    rows, columns = np.repeat(mesh.cells, d + 1, axis=1).ravel(), np.tile(mesh.cells, d + 1).ravel()
    graph = csr_array((np.ones(rows.size, bool), (rows, columns)), shape=(n, n))
    order = _corners_first(mesh)
    keep = _independent(graph.indptr, graph.indices, order)
    cells = mesh.cells.copy()
    target = _collapse(mesh.points, cells, keep, order, QUALITY[d], VOLUME_CHANGE)
    alive = cells[:, 0] >= 0
    kept = np.flatnonzero(target == np.arange(n))
    if len(kept) > 2 / 3 * n or not alive.any():
        return None
    number = np.full(n, -1)
    number[kept] = np.arange(len(kept))
    coarse = Mesh._of(mesh.points[kept], number[cells[alive]], mesh.mean_dilatation)
    place = number[target]
    weights, corners = _locate(mesh.points, coarse.points, coarse.cells, place, *_cells_of_nodes(coarse))
    away = np.flatnonzero(weights.min(axis=1) < -INSIDE)
    if len(away):
        weights[away], corners[away] = _locate_again(mesh.points[away], coarse)
    weights = np.maximum(weights, 0.0)  # nodes outside a curved surface
    weights /= weights.sum(axis=1, keepdims=True)
    weights[kept], corners[kept] = 0, place[kept][:, None]
    weights[kept, 0] = 1
    interpolation = csr_array(
        (weights.ravel(), corners.ravel(), np.arange(0, n * (d + 1) + 1, d + 1)), shape=(n, len(kept))
    )
    interpolation.sum_duplicates()
    interpolation.eliminate_zeros()
    return CoarseMesh(coarse, interpolation, place, kept)


def _corners_first(mesh):
    """Nodes in the order in which they are considered for being kept: corners, edges, faces, the interior."""
    d, n = mesh.dim, mesh.n_nodes
    # every facet with the node opposite to it
    facets = np.concatenate([np.delete(mesh.cells, k, axis=1) for k in range(d + 1)])
    opposite = mesh.cells.T.ravel()
    _, first, counts = np.unique(np.sort(facets, axis=1), axis=0, return_index=True, return_counts=True)
    facets, opposite = facets[first[counts == 1]], opposite[first[counts == 1]]
    p = mesh.points[facets]
    edges = p[:, 1:] - p[:, :1]
    normals = np.stack([-edges[:, 0, 1], edges[:, 0, 0]], 1) if d == 2 else np.cross(edges[:, 0], edges[:, 1])
    normals *= -np.sign(np.einsum("ij,ij->i", normals, mesh.points[opposite] - p[:, 0]))[:, None]
    size = np.linalg.norm(normals, axis=1)
    total = np.bincount(facets.ravel(), np.repeat(size, d), n)
    mean = np.stack([np.bincount(facets.ravel(), np.repeat(part, d), n) for part in normals.T], 1)
    key = np.full(n, 2.0)
    boundary = total > 0
    key[boundary] = np.linalg.norm(mean[boundary], axis=1) / total[boundary]
    return np.argsort(np.rint(key / NORMAL_STEP), kind="stable")


def _cells_of_nodes(mesh):
    """For each node the cells around it, as CSR (indptr, cells)."""
    order = np.argsort(mesh.cells.ravel(), kind="stable")
    indptr = np.searchsorted(mesh.cells.ravel()[order], np.arange(mesh.n_nodes + 1))
    return indptr, order // mesh.cells.shape[1]


@njit(nogil=True, cache=True)
def _independent(indptr, nodes, order):
    """Greedy independent set: a node is kept unless a neighbour is."""
    keep = np.zeros(len(order), np.bool_)
    taken = np.zeros(len(order), np.bool_)
    for v in order:
        if not taken[v]:
            keep[v] = True
            for k in range(indptr[v], indptr[v + 1]):
                taken[nodes[k]] = True
    return keep


@njit(nogil=True, cache=True)
def _signed(points, cell, point, corner):
    """Volume of a cell, times d factorial, in which a point is in place of a corner (of none: -1)."""
    d = points.shape[1]
    e = np.empty((3, 3))
    for i in range(d):
        origin = point[i] if corner == 0 else points[cell[0], i]
        for a in range(d):
            e[a, i] = (point[i] if corner == a + 1 else points[cell[a + 1], i]) - origin
    if d == 2:
        return e[0, 0] * e[1, 1] - e[0, 1] * e[1, 0]
    return (
        e[0, 0] * (e[1, 1] * e[2, 2] - e[1, 2] * e[2, 1])
        - e[0, 1] * (e[1, 0] * e[2, 2] - e[1, 2] * e[2, 0])
        + e[0, 2] * (e[1, 0] * e[2, 1] - e[1, 1] * e[2, 0])
    )


@njit(nogil=True, cache=True)
def _measure(points, cell, v, w):
    """Volume and quality (mean ratio; Liu and Joe, BIT 34, 1994) of a cell in which node w replaces node v."""
    d = points.shape[1]
    p = np.empty((4, 3))
    for a in range(d + 1):
        node = w if cell[a] == v else cell[a]
        for i in range(d):
            p[a, i] = points[node, i]
    squares = 0.0
    for a in range(d + 1):
        for b in range(a):
            for i in range(d):
                squares += (p[a, i] - p[b, i]) ** 2
    e = p[1:] - p[0]
    if d == 2:
        volume = (e[0, 0] * e[1, 1] - e[0, 1] * e[1, 0]) / 2
        return volume, 4 * np.sqrt(3.0) * volume / squares
    volume = (
        e[0, 0] * (e[1, 1] * e[2, 2] - e[1, 2] * e[2, 1])
        - e[0, 1] * (e[1, 0] * e[2, 2] - e[1, 2] * e[2, 0])
        + e[0, 2] * (e[1, 0] * e[2, 1] - e[1, 1] * e[2, 0])
    ) / 6
    return volume, np.sign(volume) * 12 * (3 * abs(volume)) ** (2 / 3) / squares


@njit(nogil=True, cache=True)
def _contains(cell, node):
    for other in cell:
        if other == node:
            return True
    return False


@njit(nogil=True, cache=True)
def _touches(cells, head, following, v, u, w, together):
    """Whether an intact cell around v has node u, and node w as well or not."""
    entry = head[v]
    while entry >= 0:
        cell = cells[entry // cells.shape[1]]
        entry = following[entry]
        if cell[0] >= 0 and _contains(cell, u) and _contains(cell, w) == together:
            return True
    return False


@njit(nogil=True, cache=True)
def _keeps_connected(cells, head, following, v, w):
    """Whether the body stays as connected as it is when v is moved onto w (link condition).

    A common neighbour of both has to share a cell with both, or else the body would be joined there by less than a
    face; and it has to keep a cell.
    """
    entry = head[v]
    while entry >= 0:
        cell = cells[entry // cells.shape[1]]
        entry = following[entry]
        if cell[0] < 0:
            continue
        for u in cell:
            if u == v or u == w:
                continue
            elsewhere = _touches(cells, head, following, w, u, v, False)
            if _touches(cells, head, following, v, u, w, True):
                if not elsewhere and not _touches(cells, head, following, v, u, w, False):
                    return False
            elif elsewhere:
                return False
    return True


@njit(nogil=True, cache=True)
def _collapse(points, cells, keep, order, floor, volume_change):
    """Move every node that is not kept onto a neighbour that is, if that is possible; cells that vanish get nodes -1.

    Returns the node that each node was moved onto, its own number if it stays.
    """
    n, k = len(points), cells.shape[1]
    target = np.arange(n)
    # the cells around each node as linked lists of entries, the entry of corner a of cell m being m * k + a
    head, tail, following = np.full(n, -1), np.full(n, -1), np.full(cells.size, -1)
    for m in range(len(cells)):
        for a in range(k):
            v = cells[m, a]
            following[m * k + a] = head[v]
            if head[v] < 0:
                tail[v] = m * k + a
            head[v] = m * k + a
    wanted = keep.copy()
    for v in np.concatenate((order[::-1], order[::-1])):  # what was in the way of a node may be gone the second time
        if wanted[v] or target[v] != v:
            continue
        keep[v] = False
        before, worst = 0.0, 1.0
        entry = head[v]
        while entry >= 0:
            cell = cells[entry // k]
            if cell[0] >= 0:
                volume, quality = _measure(points, cell, -1, -1)
                before += volume
                worst = min(worst, quality)
            entry = following[entry]
        best, best_quality = -1, min(floor, worst)
        entry = head[v]
        while entry >= 0:
            cell = cells[entry // k]
            entry = following[entry]
            for w in cell:
                if w < 0 or w == v or w == best or not keep[w]:
                    continue
                after, least = 0.0, 1.0
                other = head[v]
                while other >= 0 and least >= best_quality:
                    changed = cells[other // k]
                    other = following[other]
                    if changed[0] >= 0 and not _contains(changed, w):
                        volume, quality = _measure(points, changed, v, w)
                        after += volume
                        least = min(least, quality)
                if least < best_quality or least <= 0 or abs(after - before) > volume_change * before:
                    continue
                if _keeps_connected(cells, head, following, v, w):
                    best, best_quality = w, least
        if best < 0:
            keep[v] = True
            continue
        target[v] = best
        entry = head[v]
        while entry >= 0:
            cell = cells[entry // k]
            if cell[0] >= 0:
                if _contains(cell, best):
                    cell[:] = -1
                else:
                    for a in range(k):
                        if cell[a] == v:
                            cell[a] = best
            entry = following[entry]
        following[tail[best]] = head[v]
        tail[best] = tail[v]
    for v in range(n):
        while target[target[v]] != target[v]:
            target[v] = target[target[v]]
    return target


@njit(nogil=True, cache=True)
def _locate(points, coarse_points, cells, place, indptr, cells_of):
    """Barycentric coordinates of every node in the cell around its place that contains it, or nearly does."""
    n, d = points.shape
    weights, corners = np.zeros((n, d + 1)), np.zeros((n, d + 1), np.int64)
    own = np.empty(d + 1)
    for v in range(n):
        nearest = -np.inf
        for at in range(indptr[place[v]], indptr[place[v] + 1]):
            cell = cells[cells_of[at]]
            total = 0.0
            for a in range(d + 1):  # volumes of the cells in which the point takes a corner's place
                own[a] = _signed(coarse_points, cell, points[v], a)
                total += own[a]
            own /= total
            if own.min() > nearest:
                nearest = own.min()
                weights[v], corners[v] = own, cell
    return weights, corners


def _locate_again(points, mesh):
    """The same for some points, among the cells whose centres are near."""
    centres = mesh.points[mesh.cells].mean(axis=1)
    _, near = cKDTree(centres).query(points, k=range(1, min(NEAR_CELLS, len(centres)) + 1))
    p = mesh.points[mesh.cells[near]]  # (points, cells, corners, d)
    edges = (p[:, :, 1:] - p[:, :, :1]).swapaxes(-1, -2)
    own = np.linalg.solve(edges, (points[:, None] - p[:, :, 0])[..., None])[..., 0]
    own = np.concatenate([1 - own.sum(axis=-1, keepdims=True), own], axis=-1)
    best = own.min(axis=-1).argmax(axis=1)
    at = np.arange(len(points))
    return own[at, best], mesh.cells[near[at, best]]
