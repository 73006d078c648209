"""What Grid and Mesh accept, refuse and compute."""

import numpy as np
import pytest
from quadratic import lattice, simplices

from elastofast.geometry import Grid, Mesh

SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
TWO = np.array([[0, 1, 2], [0, 2, 3]])


def test_grid_has_component_i_along_axis_i_and_weights_that_sum_to_its_area():
    grid = Grid((3, 4), (1e-3, 2e-3))
    assert (grid.dim, grid.n_nodes, grid.node_shape) == (2, 12, (3, 4))
    # component i along array axis i
    np.testing.assert_allclose(grid.points[:, 0].reshape(3, 4)[:, 1], [0, 1e-3, 2e-3])
    np.testing.assert_allclose(grid.points[:, 1].reshape(3, 4)[1], [0, 2e-3, 4e-3, 6e-3])
    weights = grid.node_weights.reshape(3, 4)
    np.testing.assert_allclose(weights.sum(), 2e-3 * 6e-3)
    np.testing.assert_allclose([weights[0, 0], weights[0, 1], weights[1, 1]], [0.5e-6, 1e-6, 2e-6])
    assert grid == Grid([3, 4], [1e-3, 2e-3]) and hash(grid) == hash(Grid((3, 4), (1e-3, 2e-3)))


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [
        ((8, 1), (1e-3, 1e-3), r"at least 2 nodes along every axis, got \(8, 1\)"),
        ((0, 8), (1e-3, 1e-3), "at least 2 nodes along every axis"),
        ((8, -8), (1e-3, 1e-3), "at least 2 nodes along every axis"),
        ((8, 8.5), (1e-3, 1e-3), "shape must hold whole numbers"),
        (64, (1e-3, 1e-3), "shape must hold whole numbers of nodes, one an axis, got 64"),
        (("a", 3), (1e-3, 1e-3), r"shape must hold whole numbers of nodes, one an axis, got \('a', 3\)"),
        ((np.nan, 8), (1e-3, 1e-3), "shape must hold whole numbers"),
        ((8, 8), None, "spacing must hold numbers"),
        ((8, 8), ("a", 1.0), "spacing must hold numbers"),
        ((8, 8), (1e-3, 0.0), "spacing must be positive and finite"),
        ((8, 8), (-1e-3, 1e-3), "spacing must be positive and finite"),
        ((8, 8), (np.nan, 1e-3), "spacing must be positive and finite"),
        ((8, 8), (1e-3, np.inf), "spacing must be positive and finite"),
        ((8, 8), (1e-3,), "spacing must have one entry per axis of shape"),
        ((8, 8), 1e-3, "spacing must have one entry per axis of shape"),
        ((8, 8, 8, 8), (1e-3,) * 4, "shape must have 2 axes"),
        ((8,), (1e-3,), "shape must have 2 axes"),
    ],
)
def test_grid_refuses(shape, spacing, message):
    with pytest.raises(ValueError, match=message):
        Grid(shape, spacing)


def test_mesh_shares_each_cell_among_its_nodes():
    mesh = Mesh(SQUARE, TWO)
    assert (mesh.dim, mesh.n_nodes, mesh.node_shape) == (2, 4, (4,))
    assert repr(mesh) == "Mesh(4 nodes, 2 triangles)"
    np.testing.assert_allclose(mesh.cell_volumes, [0.5, 0.5])
    np.testing.assert_allclose(mesh.node_weights, [1 / 3, 1 / 6, 1 / 3, 1 / 6])


def test_mesh_turns_all_cells_the_same_way():
    mesh = Mesh(SQUARE, TWO[:, [[0, 2, 1], [0, 1, 2]][0]])
    edges = mesh.points[mesh.cells[:, 1:]] - mesh.points[mesh.cells[:, :1]]
    assert (np.linalg.det(edges) > 0).all()


def test_tetrahedron_has_a_sixth_of_the_cube():
    mesh = Mesh(np.vstack([np.zeros(3), np.eye(3)]), [[1, 0, 2, 3]])
    assert repr(mesh) == "Mesh(4 nodes, 1 tetrahedra)"
    np.testing.assert_allclose([mesh.cell_volumes[0], mesh.node_weights.sum()], 1 / 6)


def test_mesh_keeps_its_own_read_only_arrays():
    points, cells = SQUARE.copy(), TWO.copy()
    mesh = Mesh(points, cells)
    points[0] = 5
    cells[0] = 0
    assert np.array_equal(mesh.points, SQUARE) and np.array_equal(mesh.cells, TWO)
    with pytest.raises(ValueError, match="read-only"):
        mesh.points[0] = 1


@pytest.mark.parametrize(
    ("points", "cells", "message"),
    [
        (SQUARE[0], TWO, r"points must have shape \(N, 2\) or \(N, 3\), got \(2,\)"),
        (SQUARE[:, :1], TWO, r"points must have shape .* got \(4, 1\)"),
        (np.where(SQUARE == 1, np.nan, SQUARE), TWO, r"points must be finite, node 1 is \[nan"),
        (np.where(SQUARE == 1, np.inf, SQUARE), TWO, "points must be finite"),
        (SQUARE, TWO[:, :2], r"cells must have shape \(M, 3\) for 2-D points, got \(2, 2\)"),
        (SQUARE, TWO[:0], r"cells must have shape \(M, 3\) .* got \(0, 3\)"),
        (SQUARE, TWO.astype(float), "cells must hold integers, got dtype float64"),
        (SQUARE, TWO + 1, "node numbers from 0 to 3, got 1 to 4"),
        (SQUARE, TWO - 1, "node numbers from 0 to 3, got -1 to 2"),
        (SQUARE, [[0, 1, 1], [0, 2, 3]], r"positive area; cell 0 \[0 1 1\] has none"),
        (
            [[0, 0], [1, 1], [2, 2], [0, 1]],
            [[0, 1, 3], [0, 1, 2]],
            r"positive area; cell 1 \[0 1 2\] has none",
        ),
        (SQUARE, TWO[:1], "every node must belong to a cell; 1 do not, the first is node 3"),
    ],
)
def test_mesh_refuses(points, cells, message):
    with pytest.raises(ValueError, match=message):
        Mesh(points, cells)


def test_axial_direction_is_the_first_of_a_grid_and_the_last_of_a_mesh():
    assert Grid((3, 4), (1.0, 1.0)).axial == 0
    assert Mesh([[0, 0], [1, 0], [0, 1]], [[0, 1, 2]]).axial == 1
    assert Mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 1, 2, 3]]).axial == 2


def squares(n=5, d=2):
    return lattice(d, n, 1.0), simplices((n,) * d, "diagonal" if d == 2 else "five")


@pytest.mark.parametrize("d", [2, 3])
def test_cells_that_are_there_twice_are_named(d):
    points, cells = squares(d=d)
    turned = np.roll(cells[7:9], 1, axis=1)
    with pytest.raises(ValueError, match=rf"2 are there more than once: cell {len(cells)} .* is cell 7 again"):
        Mesh(points, np.vstack([cells, turned]))


def test_both_diagonals_of_squares_are_refused():
    points, cells = squares()
    with pytest.raises(
        ValueError, match=r"cells \d+ \[.*\] and \d+ \[.*\] lie on the same side of the edge between nodes"
    ):
        Mesh(points, np.vstack([cells, np.arange(25).reshape(5, 5)[:, ::-1].ravel()[cells]]))


@pytest.mark.parametrize("d", [2, 3])
def test_a_node_that_was_moved_across_a_cell_is_found(d):
    points, cells = squares(d=d)
    middle = len(points) // 2
    moved = points.copy()
    moved[middle, :2] += 0.3
    with pytest.raises(ValueError, match="lie on the same side of the " + ("edge" if d == 2 else "face")):
        Mesh(moved, cells)
    Mesh(points, cells)


def test_parts_that_lie_over_each_other_are_refused_and_parts_beside_each_other_are_not():
    points, cells = squares()
    both = np.vstack([cells, cells + len(points)])
    with pytest.raises(ValueError, match=r"the centre of cell \d+ .* lies in cell \d+"):
        Mesh(np.vstack([points, points + np.array([0.3, 0.35])]), both)
    Mesh(np.vstack([points, points + np.array([1.5, 0.35])]), both)


def test_doubled_nodes_are_told():
    points, cells = squares()
    with pytest.warns(UserWarning, match=r"10 nodes lie where another one lies, .* merge such nodes unless"):
        Mesh(np.vstack([points, points + np.array([1.0, 0.0])]), np.vstack([cells, cells + len(points)]))


def bricks(n, d, seed=0):
    """Lattice with inner nodes moved, numbered at random, and its quadrilaterals or hexahedra."""
    rng = np.random.default_rng(seed)
    points = lattice(d, n, 1.0)
    inner = ((points > 0) & (points < 1)).all(axis=1)
    points = points + 0.15 / n * inner[:, None] * rng.uniform(-1, 1, points.shape)
    number = rng.permutation(len(points)).reshape((n,) * d)
    moved = np.empty_like(points)
    moved[number.ravel()] = points
    low, high = slice(None, -1), slice(1, None)
    around = [(low, low), (high, low), (high, high), (low, high)]
    if d == 2:
        corners = [number[at] for at in around]
    else:
        corners = [number[(*at, k)] for k in (low, high) for at in around]
    return moved, np.stack([c.ravel() for c in corners], axis=1)


@pytest.mark.parametrize("d", [2, 3])
def test_quadrilaterals_and_hexahedra_are_split_so_that_neighbours_fit(d):
    points, cells = bricks(5, d)
    mesh = Mesh(points, cells)
    assert len(mesh.cells) == {2: 2, 3: 6}[d] * len(cells)
    assert mesh.cell_volumes.sum() == pytest.approx(1.0)
    faces = np.sort(np.concatenate([np.delete(mesh.cells, k, axis=1) for k in range(d + 1)]), axis=1)
    faces, counts = np.unique(faces, axis=0, return_counts=True)
    outside = points[faces[counts == 1]]
    flat = (np.ptp(outside, axis=1) == 0) & np.isin(outside[:, 0], [0.0, 1.0])
    assert flat.any(axis=1).all()  # the only faces with one cell are on the surface


def test_a_concave_quadrilateral_is_cut_inside():
    mesh = Mesh([[0, 0], [2, 0], [0.5, 0.5], [0, 2]], [[0, 1, 2, 3]])
    assert mesh.cell_volumes.sum() == pytest.approx(1.0)
    assert {frozenset(c) for c in mesh.cells.tolist()} == {frozenset((0, 1, 2)), frozenset((0, 2, 3))}
    with pytest.raises(ValueError, match="must not overlap"):
        Mesh([[0, 0], [1, 1], [1, 0], [0, 1]], [[0, 1, 2, 3]])  # numbered crosswise


def test_quadrilaterals_beside_triangles_and_hexahedra_are_read(tmp_path):
    meshio = pytest.importorskip("meshio")
    points, cells = bricks(4, 2)
    a, b, c, d = cells[0]
    parts = [("quad", cells[1:]), ("triangle", [[a, b, c], [a, c, d]])]
    meshio.write(tmp_path / "plane.vtu", meshio.Mesh(np.pad(points, ((0, 0), (0, 1))), parts))
    mesh = Mesh.read(tmp_path / "plane.vtu")
    assert mesh.dim == 2 and len(mesh.cells) == 18 and mesh.cell_volumes.sum() == pytest.approx(1.0)
    points, cells = bricks(3, 3)
    meshio.write(tmp_path / "solid.vtu", meshio.Mesh(points, [("hexahedron", cells)]))
    mesh = Mesh.read(tmp_path / "solid.vtu")
    assert mesh.dim == 3 and len(mesh.cells) == 48 and mesh.cell_volumes.sum() == pytest.approx(1.0)
