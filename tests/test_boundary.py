"""Loads and supports."""

import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from scipy.spatial import Delaunay

from elastofast.boundary import Boundary, check_support, compression, rigid_modes
from elastofast.geometry import Grid, Mesh

GRID = Grid((5, 6), (1e-3, 2e-3))
SHAPE = (2, 5, 6)
_P = np.stack(np.meshgrid(*[np.arange(4.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


def brick():
    """Tetrahedra on an uneven 3 x 2 x 1 cm brick; 2-D: triangles on an uneven 3 x 2 cm plate."""
    points = (_P / 3) ** 1.3
    cells = Delaunay(_P + 1e-3 * np.sin(7 * _P)).simplices
    volumes = np.abs(np.linalg.det(points[cells[:, 1:]] - points[cells[:, :1]]))
    return Mesh(points * [0.03, 0.02, 0.01], cells[volumes > 1e-3])


def plate():
    flat = _P[_P[:, 2] == 0, :2]
    return Mesh((flat / 3) ** 1.3 * [0.03, 0.02], Delaunay(flat).simplices)


def nothing(shape=SHAPE, dtype=bool):
    return np.zeros(shape, dtype)


def with_one(index, value=True, shape=SHAPE):
    a = np.zeros(shape, type(value))
    a[index] = value
    return a


# ---------------------------------------------------------------- Boundary


def test_dofs_are_loaded_unless_fixed_or_open():
    fixed, open_ = with_one((0, -1)), with_one((1, 0))
    load = Boundary(fixed=fixed, open=open_)
    assert load.force.shape == load.displacement.shape == SHAPE
    assert not load.force.any() and not load.displacement.any() and load.total_force is None
    assert np.array_equal(load.loaded, ~fixed & ~open_)
    assert load.n_equations == 60 - 12
    assert repr(load) == "Boundary(48 loaded, 6 fixed, 6 open of shape (2, 5, 6))"
    load.check(GRID)


def test_is_immutable_and_owns_its_arrays():
    fixed = with_one((0, -1))
    load = Boundary(fixed=fixed)
    fixed[:] = True
    assert load.n_equations == 54
    with pytest.raises(FrozenInstanceError):
        load.fixed = fixed
    for name in ("fixed", "displacement", "force", "open", "loaded"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(load, name)[:] = 0
    assert pickle.loads(pickle.dumps(load)).n_equations == 54  # workers receive loads


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "needs at least one of fixed, displacement, force, open"),
        (
            {"fixed": np.zeros(5, bool)},
            ValueError,
            r"fixed must have shape \(d, \*node_shape\) .* got \(5,\)",
        ),
        ({"fixed": np.zeros((5, 6), bool)}, ValueError, r"d = 2 or 3, got \(5, 6\)"),
        (
            {"fixed": nothing(), "force": np.zeros((2, 6, 5))},
            ValueError,
            r"force must have the shape of fixed, \(2, 5, 6\), got \(2, 6, 5\)",
        ),
        ({"fixed": np.zeros(SHAPE)}, TypeError, "fixed must be an array of bool, got dtype float64"),
        ({"open": np.zeros(SHAPE, int)}, TypeError, "open must be an array of bool, got dtype int64"),
        (
            {"force": np.zeros(SHAPE, complex)},
            TypeError,
            "force must hold real numbers, got dtype complex128",
        ),
        (
            {"force": with_one((0, 1, 2), np.nan)},
            ValueError,
            r"force must be finite, .* 1 dofs, the first \(0, 1, 2\)",
        ),
        (
            {"fixed": ~nothing(), "displacement": with_one((1, 1, 2), np.inf)},
            ValueError,
            r"displacement must be finite, .* the first \(1, 1, 2\)",
        ),
        (
            {"fixed": with_one((0, -1)), "open": with_one((0, -1, 2))},
            ValueError,
            r"fixed and open overlap at 1 dofs, the first \(0, 4, 2\)",
        ),
        (
            {"displacement": with_one((0, 0), 1e-3)},
            ValueError,
            "displacement must be zero where nothing is fixed",
        ),
        (
            {"fixed": with_one((0, 0)), "force": with_one((0, 0, 3), 1.0)},
            ValueError,
            r"force must be zero on fixed dofs .* the first \(0, 0, 3\)",
        ),
        (
            {"open": with_one((0, 0)), "force": with_one((0, 0, 3), 1.0)},
            ValueError,
            "force must be zero on open dofs",
        ),
    ],
)
def test_boundary_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        Boundary(**arguments)


@pytest.mark.parametrize(
    ("total_force", "error", "message"),
    [
        (3.0, ValueError, r"must be \(component, value, nodes\), got 3.0"),
        (
            (2, 1.0, with_one(0, shape=(5, 6))),
            ValueError,
            "component must be a whole number from 0 to 1, got 2",
        ),
        ((0, np.nan, with_one(0, shape=(5, 6))), ValueError, "value must be finite and not zero"),
        ((0, 0.0, with_one(0, shape=(5, 6))), ValueError, "value must be finite and not zero"),
        ((0, 1.0, np.ones((5, 6))), TypeError, "nodes must be an array of bool"),
        ((0, 1.0, np.ones(30, bool)), ValueError, r"mask of shape \(5, 6\) .* got shape \(30,\)"),
        ((0, 1.0, np.zeros((5, 6), bool)), ValueError, "with at least one node, got shape .* with 0"),
        ((0, 1.0, with_one(1, shape=(5, 6))), ValueError, "sum over fixed or open dofs, but some are loaded"),
        ((1, 1.0, with_one(0, shape=(5, 6))), ValueError, "sum over fixed or open dofs, but some are loaded"),
    ],
)
def test_total_force_refuses(total_force, error, message):
    with pytest.raises(error, match=message):
        Boundary(fixed=with_one((0, 0)), total_force=total_force)


def test_total_force_is_kept_on_fixed_or_open_dofs():
    nodes = with_one(0, shape=(5, 6))
    for held in ({"fixed": with_one((0, 0))}, {"open": with_one((0, 0))}):
        total = Boundary(**held, total_force=(0, 2, nodes)).total_force
        assert (total.component, total.value) == (0, 2.0) and np.array_equal(total.nodes, nodes)


def test_check_names_both_shapes():
    with pytest.raises(ValueError, match=r"load has shape \(2, 5, 6\), but the geometry needs \(2, 6, 5\)"):
        Boundary(fixed=nothing()).check(Grid((6, 5), (1e-3, 1e-3)))


# ---------------------------------------------------------------- compression


def test_pressure_on_a_grid_is_spread_over_the_top_and_the_bottom_is_held():
    load = compression(GRID, pressure=100.0)
    # 100 Pa on 10 mm, downwards (depth grows with the index), half at the corners
    np.testing.assert_allclose(load.force[0, 0], 100 * 2e-3 * np.array([0.5, 1, 1, 1, 1, 0.5]))
    np.testing.assert_allclose(load.force.sum(), 100 * 10e-3)
    assert not load.force[0, 1:].any() and not load.force[1].any()
    assert load.fixed[0, -1].all() and not load.fixed[0, :-1].any()
    assert np.argwhere(load.fixed[1]).tolist() == [[4, 3]]
    assert not load.displacement.any() and not load.open.any() and load.total_force is None
    np.testing.assert_array_equal(compression(GRID, pressure=-100.0).force, -load.force)


def test_strain_on_a_grid_moves_the_top_and_fixes_both_ends():
    load = compression(GRID, strain=0.02)
    np.testing.assert_allclose(load.displacement[0, 0], 0.02 * 4e-3)
    assert not load.displacement[0, 1:].any() and not load.displacement[1].any() and not load.force.any()
    assert load.fixed[0, [0, -1]].all() and load.fixed[0].sum() == 12 and load.fixed[1].sum() == 1
    load = compression(GRID, strain=0.02, total_force=3.0)
    assert load.total_force[:2] == (0, 3.0)
    assert np.array_equal(np.argwhere(load.total_force.nodes)[:, 0], np.zeros(6))


def test_compression_along_the_other_axis_of_a_grid():
    load = compression(GRID, pressure=100.0, axis=1)
    np.testing.assert_allclose(load.force[1].sum(), 100 * 4e-3)
    assert load.fixed[1, :, -1].all() and load.force[1, :, 0].all() and load.fixed[0].sum() == 1


@pytest.mark.parametrize(("make", "area"), [(plate, 0.03), (brick, 0.03 * 0.02)])
def test_pressure_on_a_mesh_has_the_exact_resultant_through_the_middle(make, area):
    mesh = make()
    load = compression(mesh, pressure=100.0)
    top = mesh.points[:, -1] == mesh.points[:, -1].max()
    # downwards, and a resultant that acts in the middle of the face: consistent nodal forces
    np.testing.assert_allclose(load.force.sum(axis=1), [0] * (mesh.dim - 1) + [-100 * area], atol=1e-15)
    middle = load.force[-1] @ mesh.points / load.force[-1].sum()
    np.testing.assert_allclose(middle, mesh.points[top].max(axis=0) / ([2] * (mesh.dim - 1) + [1]))
    assert (load.force[-1, top] < 0).all() and not load.force[-1, ~top].any()
    assert np.array_equal(load.fixed[-1], mesh.points[:, -1] == 0)
    assert load.fixed[:-1].sum() == (1 if mesh.dim == 2 else 3)  # what holds a body sideways, no more
    check_support(mesh, load)


@pytest.mark.parametrize("make", [plate, brick])
def test_strain_on_a_mesh_moves_the_top_by_that_part_of_the_height(make):
    mesh = make()
    load = compression(mesh, strain=0.01, total_force=2.0)
    top = mesh.points[:, -1] == mesh.points[:, -1].max()
    np.testing.assert_allclose(load.displacement[-1, top], -0.01 * np.ptp(mesh.points[:, -1]))
    assert load.total_force[:2] == (mesh.dim - 1, -2.0) and np.array_equal(load.total_force.nodes, top)
    check_support(mesh, load)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of pressure .* and strain .*, got neither"),
        ({"pressure": 100.0, "strain": 0.01}, "got both"),
        ({"pressure": np.nan}, "pressure must be finite and not zero, got nan"),
        ({"pressure": 0.0}, "pressure must be finite and not zero"),
        ({"pressure": "100"}, "pressure must be finite and not zero, got '100'"),
        ({"strain": np.inf}, "strain must be finite and not zero"),
        ({"strain": 2}, r"strain must lie between -1 and 1 \(0.01 is one per cent\), got 2"),
        ({"pressure": 100.0, "total_force": 1.0}, "total_force goes with strain"),
        ({"strain": 0.01, "total_force": 0.0}, "total_force must be finite and not zero"),
        ({"strain": 0.01, "total_force": -1.0}, "total_force must have the sign of strain"),
        ({"strain": 0.01, "contact": "measured"}, "with measured plates leave strain out"),
        ({"pressure": 100.0, "contact": "glued"}, "contact must be one of 'frictionless', .*, got 'glued'"),
        ({"pressure": 100.0, "axis": 2}, "axis must be a whole number from 0 to 1, got 2"),
        ({"pressure": 100.0, "axis": -1}, "axis must be a whole number from 0 to 1, got -1"),
    ],
)
def test_compression_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        compression(GRID, **arguments)


@pytest.mark.parametrize("geometry", [GRID, brick(), plate()], ids=["grid", "brick", "plate"])
def test_plates_that_hold_the_tissue_or_are_measured(geometry):
    d, axis = geometry.dim, geometry.axial
    along = geometry.points[:, axis]
    ends = (along == along.min()) | (along == along.max())
    free = compression(geometry, strain=0.01)
    bonded = compression(geometry, strain=0.01, contact="bonded")
    assert (bonded.fixed.reshape(d, -1) == ends).all() and not bonded.open.any()
    np.testing.assert_array_equal(bonded.displacement, free.displacement)
    measured = compression(geometry, contact="measured", total_force=2.0)
    assert (measured.open.reshape(d, -1) == ends).all() and not measured.fixed.any()
    assert measured.total_force.value == compression(geometry, strain=0.01, total_force=2.0).total_force.value
    known = compression(geometry, pressure=100.0)
    np.testing.assert_array_equal(compression(geometry, pressure=100.0, contact="bonded").force, known.force)
    loaded = compression(geometry, pressure=100.0, contact="measured")
    np.testing.assert_array_equal(loaded.force, known.force)
    assert (loaded.open.reshape(d, -1) == known.fixed.reshape(d, -1)[axis]).all()
    for load in (bonded, measured, loaded):
        check_support(geometry, load)


def test_compression_needs_flat_ends():
    with pytest.raises(ValueError, match="no flat top across axis 1"):
        compression(Mesh([[0, 0], [1, 0], [0.5, 1]], [[0, 1, 2]]), pressure=1.0)
    with pytest.raises(ValueError, match="no flat bottom across axis 1"):
        compression(Mesh([[0, 1], [1, 1], [0.5, 0]], [[0, 1, 2]]), pressure=1.0)


# ---------------------------------------------------------------- rigid motions


@pytest.mark.parametrize("geometry", [GRID, plate(), brick()], ids=["grid", "plate", "brick"])
def test_rigid_modes_keep_distances(geometry):
    d, p = geometry.dim, geometry.points
    modes = rigid_modes(geometry)
    assert modes.shape == ({2: 3, 3: 6}[d], d, len(p))
    np.testing.assert_allclose(np.abs(modes).max(axis=(1, 2)), 1, atol=0.5)
    apart = p[:, None] - p[None]
    for u in modes:
        stretch = np.einsum("mni,imn->mn", apart, u[:, :, None] - u[:, None, :])
        assert np.abs(stretch).max() < 1e-12
    assert np.linalg.matrix_rank(modes.reshape(len(modes), -1)) == len(modes)


def free(geometry, *fixed):
    """The message for a body whose (component, node...) dofs are fixed."""
    mask = np.zeros((geometry.dim, *geometry.node_shape), bool)
    for index in fixed:
        mask[index] = True
    with pytest.raises(ValueError) as error:
        check_support(geometry, Boundary(fixed=mask))
    message = str(error.value)
    assert "Fix more displacement components" in message
    return message.split("deforming: ")[1].split(". ")[0].split(", ")


def test_check_support_names_the_free_motions_of_a_grid():
    axial, lateral = "translation along axis 0 (axial)", "translation along axis 1 (lateral)"
    assert free(GRID) == [axial, lateral, "rotation"]
    assert free(GRID, (0, -1)) == [lateral]
    assert free(GRID, (1, slice(None), 0)) == [axial]
    assert free(GRID, (slice(None), 2, 2)) == ["rotation"]
    assert free(GRID, (0, 2, 2)) == [lateral, "rotation"]
    # two pins whose lines of action meet in one point leave the rotation about it
    assert free(GRID, (slice(None), 2, 2), (1, 2, 4)) == ["rotation"]
    assert free(GRID, (0, 0, 2), (1, 3, 0)) == ["rotation"]


def test_check_support_names_the_free_motions_of_a_brick():
    mesh = brick()
    x, y, z = (f"coordinate {i} ({name})" for i, name in enumerate("xyz"))
    everything = [f"translation along {a}" for a in (x, y, z)] + [f"rotation about {a}" for a in (x, y, z)]
    assert free(mesh) == everything
    bottom = np.flatnonzero(mesh.points[:, 2] == 0)
    assert free(mesh, (2, bottom)) == [everything[0], everything[1], everything[5]]
    assert free(mesh, (slice(None), 0)) == everything[3:]
    along_x = np.flatnonzero((mesh.points[:, 1:] == 0).all(axis=1))
    assert free(mesh, (slice(None), along_x)) == [f"rotation about {x}"]
    corners = [int(np.argmin(mesh.points.sum(axis=1))), int(np.argmax(mesh.points.sum(axis=1)))]
    assert free(mesh, (slice(None), corners)) == ["rotation about an oblique line"]


def test_check_support_passes_where_every_rigid_motion_is_held():
    check_support(GRID, compression(GRID, pressure=100.0))
    check_support(GRID, compression(GRID, strain=0.01))
    check_support(GRID, Boundary(fixed=with_one((slice(None), 2, 2)) | with_one((1, 3, 2))))
    big = Grid((400, 500), (1e-4, 1e-4))  # neighbouring pins hold, if only just
    fixed = np.zeros((2, 400, 500), bool)
    fixed[:, 200, 200] = fixed[0, 200, 201] = True
    check_support(big, Boundary(fixed=fixed))


def test_open_dofs_hold_the_body():
    edge = nothing()
    edge[:, [0, -1]] = edge[:, :, [0, -1]] = True
    check_support(GRID, Boundary(open=edge))
    with pytest.raises(ValueError, match=r"translation along axis 1 \(lateral\)\. Fix"):
        check_support(GRID, Boundary(open=with_one((0, 0))))


def test_every_piece_of_a_mesh_needs_support():
    one = plate()
    n = one.n_nodes
    two = Mesh(np.vstack([one.points, one.points + 1]), np.vstack([one.cells, one.cells + n]))
    fixed = np.zeros((2, 2 * n), bool)
    fixed[:, :n] = True
    with pytest.raises(ValueError, match=rf"the piece of the mesh with node {n}\).*, rotation"):
        check_support(two, Boundary(fixed=fixed))


def test_check_support_refuses_a_load_of_another_shape():
    with pytest.raises(ValueError, match="load has shape"):
        check_support(plate(), Boundary(fixed=nothing()))


def test_compression_refuses_what_is_no_geometry_or_axis():
    with pytest.raises(TypeError, match=r"geometry must be a Grid or a Mesh, got \(9, 9\)"):
        compression((9, 9), pressure=1.0)
    with pytest.raises(ValueError, match=r"axis must be a whole number from 0 to 1, got 1\.0"):
        compression(Grid((9, 9), (1e-3, 1e-3)), pressure=1.0, axis=1.0)
