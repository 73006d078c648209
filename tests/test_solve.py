"""The forward problem against exact solutions and direct sparse solves."""

import numpy as np
import pytest
from scipy.sparse.linalg import spsolve
from scipy.spatial import Delaunay

from elastofast.boundary import Boundary, compression
from elastofast.forward.form import ElasticForm
from elastofast.forward.solve import solve_forward
from elastofast.geometry import Grid, Mesh
from elastofast.laws import PlaneStrain, PlaneStress

LAWS = [PlaneStress(0.3), PlaneStress(0.495), PlaneStrain(0.3), PlaneStrain(0.495)]
GRID = Grid((17, 24), (1e-3, 2e-3))


def effective(law):
    """Modulus and Poisson ratio of uniaxial stress in the plane, per unit Young's modulus."""
    nu = law.poisson
    return (1.0, nu) if law.name == "plane_stress" else (1 / (1 - nu**2), nu / (1 - nu))


def triangles(grid, seed=0):
    """The grid's rectangle in triangles of irregular shape."""
    points, h = grid.points.copy(), np.array(grid.spacing)
    inner = (points > 0) & (points < points.max(axis=0) - 1e-9)
    points += np.where(inner, np.random.default_rng(seed).uniform(-0.25, 0.25, points.shape) * h, 0)
    return Mesh(points, Delaunay(grid.points).simplices)


def direct(form, x, load):
    """Sparse elimination of the loaded dofs."""
    k, u = form.stiffness(x), load.displacement.ravel().copy()
    loaded = np.flatnonzero(load.loaded)
    rhs = load.force.ravel() - k @ u
    u[loaded] = spsolve(k[loaded][:, loaded].tocsc(), rhs[loaded])
    return u.reshape(form.dof_shape)


def modulus(shape, seed=0):
    return np.random.default_rng(seed).uniform(5e3, 5e4, shape)


# ---------------------------------------------------------------- exact solutions


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("shape", [(17, 24), (24, 17), (8, 8), (3, 50), (2, 2)])
def test_uniaxial_pressure_has_the_exact_linear_displacement(law, shape):
    """Axial strain is pressure / modulus, lateral strain Poisson ratio times that."""
    grid, young, pressure = Grid(shape, (1e-3, 2e-3)), 2e4, 150.0
    u = solve_forward(ElasticForm(grid, law), np.full(shape, young), compression(grid, pressure=pressure), 1e-12)
    stiffening, contraction = effective(law)
    strain = pressure / (young * stiffening)
    z, y = grid.points.T.reshape(2, *shape)
    expected = np.stack([strain * (z[-1, 0] - z), contraction * strain * (y - y[-1, shape[1] // 2])])
    np.testing.assert_allclose(u, expected, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_uniaxial_strain_has_the_exact_displacement_and_reaction(law):
    """The top moved by 2 % of the height: the plates are pushed apart by effective modulus x strain x width."""
    strain, young = 0.02, 3e4
    form, load = ElasticForm(GRID, law), compression(GRID, strain=strain)
    x = np.full(GRID.shape, young)
    u = solve_forward(form, x, load, 1e-12)
    stiffening, contraction = effective(law)
    z, y = GRID.points.T.reshape(2, *GRID.shape)
    expected = np.stack([strain * (z[-1, 0] - z), contraction * strain * (y - y[-1, GRID.shape[1] // 2])])
    np.testing.assert_allclose(u, expected, atol=1e-9 * np.abs(expected).max())
    assert np.array_equal(u[load.fixed], load.displacement[load.fixed])
    reaction = form.force(x, u)[0]
    width = (GRID.shape[1] - 1) * GRID.spacing[1]
    np.testing.assert_allclose(reaction[0].sum(), young * stiffening * strain * width, rtol=1e-9)
    np.testing.assert_allclose(reaction[-1].sum(), -reaction[0].sum(), rtol=1e-9)


@pytest.mark.parametrize("law", LAWS[:1] + LAWS[3:], ids=repr)
@pytest.mark.parametrize("kind", ["grid", "mesh"])
def test_linear_displacement_of_the_edges_is_continued_inside(law, kind):
    """Every edge moved by a linear field (shear included): the inside follows, at a constant modulus."""
    geometry = GRID if kind == "grid" else triangles(GRID)
    gradient = np.array([[1e-2, 4e-3], [-7e-3, 2e-3]])
    exact = (geometry.points @ gradient.T).T.reshape(2, *geometry.node_shape)
    edge = ((geometry.points == 0) | (geometry.points >= geometry.points.max(axis=0) - 1e-9)).any(axis=1)
    fixed = np.broadcast_to(edge.reshape(geometry.node_shape), exact.shape).copy()
    load = Boundary(fixed=fixed, displacement=np.where(fixed, exact, 0))
    u = solve_forward(ElasticForm(geometry, law), np.full(geometry.node_shape, 1e4), load, rtol=1e-12)
    np.testing.assert_allclose(u, exact, atol=1e-9 * np.abs(exact).max())


# ---------------------------------------------------------------- heterogeneous bodies


@pytest.mark.parametrize("law", LAWS[1::2], ids=repr)
@pytest.mark.parametrize("how", [{"pressure": 100.0}, {"strain": 0.01}])
@pytest.mark.parametrize("kind", ["grid", "mesh"])
def test_solutions_are_those_of_elimination(law, how, kind):
    geometry = GRID if kind == "grid" else triangles(GRID)
    form = ElasticForm(geometry, law)
    load = compression(geometry, **how)
    x = modulus(geometry.node_shape)
    u, expected = solve_forward(form, x, load, rtol=1e-10), direct(form, x, load)
    assert np.linalg.norm(u - expected) < 1e-7 * np.linalg.norm(expected)
    residual = (load.force - form.force(x, u))[load.loaded]
    scale = np.linalg.norm((load.force - form.force(x, load.displacement))[load.loaded])
    assert np.linalg.norm(residual) <= 1.01e-10 * scale


@pytest.mark.parametrize("rtol", [1e-3, 1e-6, 1e-10])
def test_residual_is_what_was_asked_for(rtol):
    form, load = ElasticForm(Grid((40, 33), (1e-3, 1e-3)), PlaneStrain(0.495)), None
    load = compression(form.geometry, pressure=100.0)
    x = modulus(form.node_shape)
    residual = load.force - form.force(x, solve_forward(form, x, load, rtol))
    assert np.linalg.norm(residual[load.loaded]) <= 1.001 * rtol * np.linalg.norm(load.force)


@pytest.mark.parametrize("kind", ["grid", "mesh"])
def test_members_of_a_batch_are_solved_in_their_layout(kind):
    geometry = Grid((9, 8), (1e-3, 1e-3)) if kind == "grid" else triangles(Grid((9, 8), (1e-3, 1e-3)))
    form, load = ElasticForm(geometry, PlaneStress(0.495)), compression(geometry, pressure=100.0)
    x = modulus((2, 3, *geometry.node_shape))
    u = solve_forward(form, x, load)
    assert u.shape == (2, 3, *form.dof_shape)
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose(u[i], direct(form, x[i], load), atol=1e-6 * np.abs(u[i]).max())
    flat = solve_forward(form, x.reshape(2, 3, -1), load)
    assert flat.shape == (2, 3, 2, geometry.n_nodes)
    np.testing.assert_array_equal(flat.reshape(u.shape), u)
    assert solve_forward(form, x[0, 0].ravel(), load).shape == (2, geometry.n_nodes)


def test_single_precision_stays_single_and_whole_numbers_become_double():
    form, load = ElasticForm(GRID, PlaneStress(0.495)), compression(GRID, pressure=100.0)
    x = modulus(GRID.shape).astype(np.float32)
    u, expected = solve_forward(form, x, load), solve_forward(form, x.astype(float), load)
    assert u.dtype == np.float32 and expected.dtype == np.float64
    np.testing.assert_allclose(u, expected, atol=1e-7 * np.abs(expected).max())
    assert solve_forward(form, np.full(GRID.shape, 10_000), load).dtype == np.float64


def test_displacement_is_inverse_in_the_modulus():
    form, load = ElasticForm(GRID, PlaneStrain(0.495)), compression(GRID, pressure=100.0)
    x = modulus(GRID.shape)
    u = solve_forward(form, x, load, rtol=1e-11)
    for factor in (1e-12, 1e9):  # units must not matter, in the single-precision cycle least of all
        scaled = solve_forward(form, factor * x, load, rtol=1e-11)
        assert np.linalg.norm(factor * scaled - u) < 1e-8 * np.linalg.norm(u)


def test_no_load_causes_no_displacement():
    load = compression(GRID, pressure=100.0)
    u = solve_forward(ElasticForm(GRID, PlaneStress(0.3)), modulus(GRID.shape), Boundary(fixed=load.fixed))
    assert not u.any()


# ---------------------------------------------------------------- messages


@pytest.fixture
def problem():
    return ElasticForm(GRID, PlaneStress(0.3)), modulus(GRID.shape), compression(GRID, pressure=100.0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (-1.0, "x must be positive .* smallest value is -1"),
        (0.0, "x must be positive .* smallest value is 0"),
        (np.nan, "x must be finite, 1 of its 408 values"),
        (np.inf, "x must be finite, 1 of its 408 values"),
    ],
)
def test_a_modulus_that_is_not_positive_and_finite_is_refused(problem, bad, message):
    form, x, load = problem
    x[3, 4] = bad
    with pytest.raises(ValueError, match=message):
        solve_forward(form, x, load)


def test_wrong_arguments_are_named(problem):
    form, x, load = problem
    with pytest.raises(ValueError, match=r"x must have shape .* got \(24, 17\)"):
        solve_forward(form, x.T, load)
    with pytest.raises(ValueError, match=r"x must hold at least one modulus, its shape is \(0, "):
        solve_forward(form, x[None][:0], load)
    with pytest.raises(TypeError, match=r"x must hold real numbers .* complex128"):
        solve_forward(form, x + 0j, load)
    with pytest.raises(TypeError, match="form must be an ElasticForm, got Grid"):
        solve_forward(GRID, x, load)
    with pytest.raises(TypeError, match="load must be a Boundary, got dict"):
        solve_forward(form, x, {"pressure": 100.0})
    with pytest.raises(ValueError, match=r"load has shape \(2, 5, 5\), but the geometry needs \(2, 17, 24\)"):
        solve_forward(form, x, compression(Grid((5, 5), (1e-3, 1e-3)), pressure=1.0))
    for rtol in (0, 1, -1e-8, np.nan, "1e-8", None):
        with pytest.raises(ValueError, match=f"rtol must be a number between 0 and 1, got {rtol!r}"):
            solve_forward(form, x, load, rtol=rtol)


def test_open_dofs_are_refused_in_a_forward_solve(problem):
    form, x, load = problem
    edge = np.zeros(form.dof_shape, bool)
    edge[:, :, 0] = True
    with pytest.raises(ValueError, match="load has 33 open dofs, whose force is unknown"):
        solve_forward(form, x, Boundary(fixed=load.fixed, open=edge & ~load.fixed))


@pytest.mark.parametrize(
    ("held", "motions"),
    [
        (lambda f: f[0, -1].fill(True), r"translation along axis 1 \(lateral\)\."),
        (lambda f: f[1, :, 0].fill(True), r"translation along axis 0 \(axial\)\."),
        (lambda f: f[1, -1].fill(True), r"translation along axis 0 \(axial\), rotation\."),
        (lambda f: f[:, 0, 0].fill(True), r"deforming: rotation\."),
        (lambda f: None, r"translation along axis 0 \(axial\), translation along axis 1 \(lateral\), rotation\."),
    ],
)
def test_the_free_motions_of_a_body_are_named(problem, held, motions):
    form, x, _ = problem
    fixed = np.zeros(form.dof_shape, bool)
    held(fixed)
    with pytest.raises(ValueError, match=motions):
        solve_forward(form, x, Boundary(fixed=fixed))


def test_incompressible_plane_strain_is_refused():
    with pytest.raises(ValueError, match=r"poisson must lie in \(-1, 0.5\) for PlaneStrain, got 0.5"):
        PlaneStrain(0.5)


def test_a_tolerance_out_of_reach_ends_in_an_error(problem):
    form, x, load = problem
    with pytest.raises(RuntimeError, match=r"the solve stopped at a relative residual of .* 1.0e-18 was asked for"):
        solve_forward(form, x, load, rtol=1e-18)
