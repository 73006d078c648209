"""Where the nodes are: structured grids and simplex meshes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property, reduce
from math import factorial, prod

import numpy as np
from numpy.typing import ArrayLike

from .errors import refuse_masked

# Difference of areas, relative to them, below which the two diagonals of a quadrilateral count as equally good.
EQUAL = 1e-9
# Distance of two nodes over the size of the body, below which they count as one.
COINCIDENT = 1e-9
# Of a centre that is to count as inside another cell: the least barycentric coordinate.
INSIDE = 1e-6
# Cells whose centres are nearest to that of a cell, among which overlapping ones are looked for. Not studied.
NEAR_CENTRES = 8


@dataclass(frozen=True)
class Grid:
    """Structured grid of rectangular cells, in three dimensions of rectangular blocks.

    Parameters
    ----------
    shape : tuple of int
        Number of nodes along each axis, two or more each. Axis 0 is axial (depth), the last one lateral. A volume has
        the elevational axis between them, so that ``field[:, k]`` is an image as a two-dimensional grid has it.
    spacing : tuple of float
        Distance between neighbouring nodes along each axis, in metres. Component i of a displacement is along axis i.

    Raises
    ------
    ValueError
        If the grid has not two or three axes, an axis has fewer than two nodes, or a spacing is not positive and
        finite.

    Examples
    --------
    >>> import elastofast as ef
    >>> ef.Grid(shape=(512, 512), spacing=(75e-6, 75e-6)).n_nodes
    262144
    >>> ef.Grid(shape=(64, 32, 64), spacing=(3e-4, 6e-4, 3e-4)).dim
    3
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]

    def __post_init__(self):
        try:
            shape = tuple(int(n) for n in self.shape)
            whole = all(n == m for n, m in zip(shape, self.shape, strict=True))
        except (TypeError, ValueError, OverflowError):
            whole = False
        if not whole:
            raise ValueError(f"shape must hold whole numbers of nodes, one an axis, got {self.shape!r}")
        try:
            spacing = tuple(float(h) for h in np.atleast_1d(self.spacing))
        except (TypeError, ValueError):
            raise ValueError(f"spacing must hold numbers (metres), one an axis, got {self.spacing!r}") from None
        if len(shape) != len(spacing):
            raise ValueError(
                f"spacing must have one entry per axis of shape ({len(shape)}), got {len(spacing)}: {spacing}"
            )
        if len(shape) not in (2, 3):
            raise ValueError(
                f"shape must have 2 axes (axial, lateral) or 3 (axial, elevational, lateral), got {len(shape)}"
            )
        if min(shape) < 2:
            raise ValueError(f"shape needs at least 2 nodes along every axis, got {shape}")
        if not all(np.isfinite(h) and h > 0 for h in spacing):
            raise ValueError(f"spacing must be positive and finite (metres), got {spacing}")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "spacing", spacing)

    @property
    def dim(self) -> int:
        """Number of space dimensions d."""
        return len(self.shape)

    @property
    def axial(self) -> int:
        """Number of the axial axis and displacement component, along which the body is compressed."""
        return 0

    @property
    def node_shape(self) -> tuple[int, ...]:
        """Shape of one node field, ``grid.shape``."""
        return self.shape

    @property
    def n_nodes(self) -> int:
        """Number of nodes N."""
        return prod(self.shape)

    @cached_property
    def points(self) -> np.ndarray:
        """Node coordinates in metres, shape (N, d), column i along axis i."""
        axes = [h * np.arange(n) for n, h in zip(self.shape, self.spacing, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, self.dim)

    @cached_property
    def node_weights(self) -> np.ndarray:
        """Volume (2-D: area, m^2) that belongs to each node, shape (N,); they sum to the body's volume."""
        axes = []
        for n, h in zip(self.shape, self.spacing, strict=True):
            w = np.full(n, h)
            w[[0, -1]] = h / 2
            axes.append(w)
        return reduce(np.multiply.outer, axes).ravel()


class Mesh:
    """Mesh of simplices: triangles in 2-D, tetrahedra in 3-D. Quadrilaterals and hexahedra are split into them.

    Parameters
    ----------
    points : array_like of float, shape (N, d)
        Node coordinates in metres, d = 2 or 3. Column i is the coordinate of displacement component i.
    cells : array_like of int, shape (M, d + 1) or (M, 2^d)
        Zero-based node numbers of each simplex, in any orientation; or of each quadrilateral or hexahedron in the order
        of VTK and meshio (around the bottom, then around the top). A quadrilateral becomes two triangles, a hexahedron
        six tetrahedra with the same nodes, and ``mesh.cells`` are these.
    mean_dilatation : bool
        Whether elements are to be free of locking: in plane strain and in three dimensions the volumetric term then
        sees the mean dilatation around each node. With False they are the ordinary ones, which are much too stiff where
        tissue is nearly incompressible; they are there for data that were computed with them.

    Raises
    ------
    ValueError
        If coordinates are not finite, cells name nodes that do not exist, a cell has no area, a node belongs to no
        cell, or cells overlap: the same cell twice, three cells at one face, or two on the same side of it. The message
        names the cells.
    """

    def __init__(self, points: ArrayLike, cells: ArrayLike, mean_dilatation: bool = True) -> None:
        for name, array in (("points", points), ("cells", cells)):
            refuse_masked(array, name)
        try:
            points = np.array(points, dtype=np.float64, order="C")
        except (TypeError, ValueError) as error:
            raise ValueError(f"points must hold numbers (metres), one row a node: {error}") from None
        try:
            cells = np.array(cells)
        except ValueError as error:
            raise ValueError(f"cells must hold node numbers, one row a cell: {error}") from None
        if points.ndim != 2 or points.shape[1] not in (2, 3):
            raise ValueError(f"points must have shape (N, 2) or (N, 3), got {points.shape}")
        if not np.isfinite(points).all():
            bad = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
            raise ValueError(f"points must be finite, node {bad} is {points[bad]}")
        d = points.shape[1]
        if cells.ndim != 2 or cells.shape[1] not in (d + 1, 2**d) or len(cells) == 0:
            raise ValueError(
                f"cells must have shape (M, {d + 1}) for {d}-D points, got {cells.shape} "
                f"({'quadrilaterals' if d == 2 else 'hexahedra'} (M, {2**d}) are split)"
            )
        if not np.issubdtype(cells.dtype, np.integer):
            raise ValueError(f"cells must hold integers, got dtype {cells.dtype}")
        if cells.min() < 0 or cells.max() >= len(points):
            raise ValueError(
                f"cells must hold node numbers from 0 to {len(points) - 1}, "
                f"got {cells.min()} to {cells.max()} (numbering starts at zero)"
            )
        cells = np.ascontiguousarray(cells, dtype=np.int64)
        if cells.shape[1] == 2**d:
            cells = _triangles(points, cells) if d == 2 else _tetrahedra(cells)
        edges = points[cells[:, 1:]] - points[cells[:, :1]]
        volume = np.linalg.det(edges) / (2.0 if d == 2 else 6.0)
        size = np.abs(edges).max(axis=(1, 2)) ** d
        flat = np.flatnonzero(np.abs(volume) <= 1e-12 * size)
        if len(flat):
            raise ValueError(f"cells must have positive area; cell {flat[0]} {cells[flat[0]]} has none")
        lonely = np.setdiff1d(np.arange(len(points)), cells)
        if len(lonely):
            raise ValueError(f"every node must belong to a cell; {len(lonely)} do not, the first is node {lonely[0]}")
        # one orientation for all, so that volumes are positive
        flip = volume < 0
        cells[np.ix_(flip, [0, 1])] = cells[np.ix_(flip, [1, 0])]
        _refuse_overlap(points, cells)
        _warn_of_doubled_nodes(points)
        self._set(points, cells, np.abs(volume), bool(mean_dilatation))

    @classmethod
    def _of(cls, points, cells, mean_dilatation) -> Mesh:
        """A mesh of oriented cells that need no checks."""
        self = cls.__new__(cls)
        edges = points[cells[:, 1:]] - points[cells[:, :1]]
        self._set(points, cells, np.linalg.det(edges) / factorial(points.shape[1]), mean_dilatation)
        return self

    def _set(self, points, cells, volumes, mean_dilatation):
        self.points, self.cells, self.cell_volumes, self.mean_dilatation = points, cells, volumes, mean_dilatation
        for a in (points, cells, volumes):
            a.setflags(write=False)

    def __repr__(self):
        return f"Mesh({self.n_nodes} nodes, {len(self.cells)} {'triangles' if self.dim == 2 else 'tetrahedra'})"

    @property
    def dim(self) -> int:
        """Number of space dimensions d."""
        return self.points.shape[1]

    @property
    def axial(self) -> int:
        """Number of the axial coordinate and displacement component, along which the body is compressed: the last."""
        return self.dim - 1

    @property
    def node_shape(self) -> tuple[int, ...]:
        """Shape of one node field, (N,)."""
        return (len(self.points),)

    @property
    def n_nodes(self) -> int:
        """Number of nodes N."""
        return len(self.points)

    @cached_property
    def node_weights(self) -> np.ndarray:
        """Volume (2-D: area, m^2) that belongs to each node, shape (N,); they sum to the body's volume."""
        share = np.repeat(self.cell_volumes / (self.dim + 1), self.dim + 1)
        return np.bincount(self.cells.ravel(), share, minlength=self.n_nodes)

    @classmethod
    def read(cls, path) -> Mesh:
        """Read the triangles and quadrilaterals, or the tetrahedra and hexahedra, of any file that meshio knows.

        Parameters
        ----------
        path : path-like
            Mesh file; coordinates in metres. Planar files with a constant third coordinate become 2-D.

        Raises
        ------
        ValueError
            If the file cannot be read or holds none of these cells.
        """
        import meshio

        try:
            file = meshio.read(path)
        except (Exception, SystemExit) as error:  # meshio ends the process on some foreign files
            raise ValueError(f"path: cannot read a mesh from {str(path)!r}: {error}") from error
        cells, points = file.cells_dict, file.points
        if "tetra" in cells or "hexahedron" in cells:
            found = [cells[kind] for kind in ("tetra",) if kind in cells]
            found += [_tetrahedra(cells[kind]) for kind in ("hexahedron",) if kind in cells]
        elif "triangle" in cells or "quad" in cells:
            if points.shape[1] == 3:
                if np.ptp(points[:, 2]) > 1e-9 * np.ptp(points):
                    raise ValueError(f"path: the cells of {str(path)!r} do not lie in a plane z = constant")
                points = points[:, :2]
            found = [cells[kind] for kind in ("triangle",) if kind in cells]
            found += [_triangles(points, cells[kind]) for kind in ("quad",) if kind in cells]
        else:
            raise ValueError(
                f"path: {str(path)!r} holds neither triangles nor tetrahedra, only {sorted(cells) or 'no cells'}"
            )
        used = np.concatenate(found)
        nodes, numbers = np.unique(used, return_inverse=True)  # drop nodes of lines, points, other blocks
        return cls(points[nodes], numbers.reshape(used.shape))


def _triangles(points: np.ndarray, quadrilaterals: np.ndarray) -> np.ndarray:
    """Two triangles for each quadrilateral, by the diagonal that leaves the larger of the smaller areas."""
    a, b, c, d = quadrilaterals.T
    ways = [((a, b, c), (a, c, d)), ((a, b, d), (b, c, d))]

    def area(triangle):
        p, q, r = (points[node] for node in triangle)
        return np.linalg.det(np.stack([q - p, r - p], axis=1))

    areas = [np.stack([area(triangle) for triangle in way]) for way in ways]
    turn = np.sign(areas[0].sum(axis=0))
    second = (turn * areas[1]).min(axis=0) > (turn * areas[0]).min(axis=0) + EQUAL * np.abs(areas[0]).max(axis=0)
    first, other = (np.concatenate([np.stack(triangle, axis=1) for triangle in way]) for way in ways)
    return np.where(np.tile(second, 2)[:, None], other, first)


def _tetrahedra(hexahedra: np.ndarray) -> np.ndarray:
    """Six tetrahedra for each hexahedron: its node of least number with two triangles of each face that lacks the node.

    A face is cut by the diagonal through its own node of least number, so that cells on both sides cut it the same way.
    """
    faces = np.array([[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]])
    apex = hexahedra.argmin(axis=1)
    found = []
    for face in faces:
        lacking = np.flatnonzero(~np.isin(apex, face))
        corners = hexahedra[lacking][:, face]
        turned = (corners.argmin(axis=1)[:, None] + np.arange(4)) % 4
        p, q, r, s = np.take_along_axis(corners, turned, axis=1).T
        top = hexahedra[lacking, apex[lacking]]
        found += [np.stack([p, q, r, top], axis=1), np.stack([p, r, s, top], axis=1)]
    return np.concatenate(found)


def _refuse_overlap(points, cells):
    """Raise ValueError for cells that lie over each other.

    Cells that are there twice, and faces (2-D: edges) with more than one cell on a side, are found by numbers alone.
    What remains are parts of a mesh that overlap without a common face. They are found by the centres of cells that lie
    in other cells.
    """
    count, k = cells.shape
    first, number = _equal_rows(np.sort(cells, axis=1), len(points))
    if len(first) < count:
        again = np.setdiff1d(np.arange(count), first)
        raise ValueError(
            f"cells must be different; {len(again)} are there more than once: cell {again[0]} {cells[again[0]]} is "
            f"cell {first[number[again[0]]]} again. Drop the copies (np.unique of the sorted cells)"
        )
    # In an oriented mesh every face is passed at most once in each direction.
    faces, parities = [], []
    for corner in range(k):
        face = np.delete(cells, corner, axis=1)
        order = np.argsort(face, axis=1)
        # the sign of the permutation that sorts the face, times that of the corner left out
        swaps = sum((order[:, i] > order[:, j]).astype(int) for i in range(k - 1) for j in range(i + 1, k - 1))
        faces.append(np.take_along_axis(face, order, axis=1))
        parities.append((swaps + corner) % 2)
    keys = np.column_stack([np.concatenate(faces), np.concatenate(parities)])
    where, number = _equal_rows(keys, len(points))
    twice = np.flatnonzero(np.bincount(number) > 1)
    if len(twice):
        same = np.flatnonzero(number == twice[0]) % count
        name = "edge" if k == 3 else "face"
        raise ValueError(
            f"cells must not overlap: cells {same[0]} {cells[same[0]]} and {same[1]} {cells[same[1]]} lie on the same "
            f"side of the {name} between nodes {keys[where[twice[0]], :-1]}; {len(twice)} {name}s are like that. "
            "Merged files and nodes that were moved across a cell are the usual causes"
        )
    _refuse_covered_centres(points, cells)


def _equal_rows(rows, n):
    """First of every kind of rows of numbers below n, and the kind of each row."""
    number = rows[:, 0]
    for column in rows.T[1:]:
        _, first, number = np.unique(number * n + column, return_index=True, return_inverse=True)
    return first, number


def _warn_of_doubled_nodes(points):
    """Warn where two nodes lie at one place."""
    from scipy.spatial import cKDTree

    distance, other = cKDTree(points).query(points, k=2)
    doubled = np.flatnonzero(distance[:, 1] <= COINCIDENT * np.ptp(points, axis=0).max())
    if len(doubled):
        warnings.warn(
            f"points: {len(doubled)} nodes lie where another one lies, for instance {doubled[0]} and "
            f"{np.setdiff1d(other[doubled[0]], doubled[0])[0]}. Cells that do not share a node are not connected: "
            "merge such nodes unless the body has a slit there",
            stacklevel=3,
        )


def _refuse_covered_centres(points, cells):
    """Raise ValueError where the centre of a cell lies in another cell."""
    from scipy.spatial import cKDTree

    corners = points[cells]
    centres = corners.mean(axis=1)
    reach = np.linalg.norm(corners - centres[:, None], axis=2).max(axis=1)
    # A cell that contains a centre has its own centre within its reach of it. Looked for among the nearest ones: of
    # overlapping parts of a mesh with cells of like size some are found.
    near = min(NEAR_CENTRES, len(cells))
    distance, other = cKDTree(centres).query(centres, k=range(1, near + 1))
    inverse = np.linalg.inv((corners[:, 1:] - corners[:, :1]).swapaxes(1, 2))
    for rank in range(near):
        own = np.flatnonzero((other[:, rank] != np.arange(len(cells))) & (distance[:, rank] < reach[other[:, rank]]))
        covering = other[own, rank]
        inside = np.einsum("mij,mj->mi", inverse[covering], centres[own] - corners[covering, 0])
        within = (inside > INSIDE).all(axis=1) & (inside.sum(axis=1) < 1 - INSIDE)
        if within.any():
            one, two = own[within][0], covering[within][0]
            raise ValueError(
                f"cells must not overlap: the centre of cell {one} {cells[one]} lies in cell {two} {cells[two]}. Two "
                "parts of a mesh lie over each other"
            )
