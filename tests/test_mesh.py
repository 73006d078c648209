"""The form and the solver on simplex meshes."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from dense import centre, dense_psi, scikit_fem_stiffness
from quadratic import compressed, lattice, plates, simplices
from scipy.sparse import csc_array, diags_array
from scipy.sparse.linalg import eigsh
from scipy.spatial import Delaunay

from elastofast.boundary import Boundary, compression, rigid_modes
from elastofast.forward import mesh_multigrid, mesh_solver
from elastofast.forward.form import ElasticForm
from elastofast.forward.mesh import MeshBackend
from elastofast.forward.mesh_coarsening import coarser
from elastofast.forward.mesh_solver import MeshSolver
from elastofast.forward.solve import solve_forward
from elastofast.geometry import Grid, Mesh
from elastofast.laws import PlaneStrain, PlaneStress, Solid

LAWS = [PlaneStress(0.3), PlaneStress(-0.2), PlaneStrain(0.495), Solid(0.45)]


def irregular_mesh(d, n, seed=0, mean_dilatation=True):
    """A square or cube of edge 30 mm: nodes moved at random, faces flat, all in random order."""
    rng = np.random.default_rng(seed)
    p = np.stack(np.meshgrid(*[np.arange(n)] * d, indexing="ij"), axis=-1).reshape(-1, d).astype(float)
    inner = (p > 0) & (p < n - 1)
    p[inner] += rng.uniform(-0.25, 0.25, inner.sum())
    p = rng.permutation(p)
    cells = Delaunay(p).simplices
    volumes = np.abs(np.linalg.det(p[cells[:, 1:]] - p[cells[:, :1]]))
    return Mesh(p * 0.03 / (n - 1), cells[volumes > 1e-6], mean_dilatation)


def fields(mesh, batch, dtype=np.float64, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.uniform(5e3, 5e4, (batch, mesh.n_nodes)).astype(dtype)
    u, v = (1e-4 * rng.standard_normal((2, batch, mesh.dim, mesh.n_nodes))).astype(dtype)
    return x, u, v


def relative(a, b):
    return np.linalg.norm(np.asarray(a, float) - b) / np.linalg.norm(b)


# ---------------------------------------------------------------- the reference itself


def test_reference_grid_and_mesh_agree_on_linear_fields():
    """A linear field has one energy whatever the elements: the two references check each other."""
    grid = Grid((4, 3), (2e-3, 1e-3))
    mesh = Mesh(grid.points, Delaunay(grid.points).simplices)
    u = (grid.points @ np.array([[1e-3, 4e-3], [-2e-3, 3e-3]])).T.ravel()
    for law in (PlaneStress(0.3), PlaneStrain(0.4)):
        energies = [u @ np.einsum("nij,j->i", dense_psi(g, law), u) for g in (grid, mesh)]
        strain = np.array([[1e-3, 1e-3], [1e-3, 3e-3]])
        exact = law.lame_lambda * np.trace(strain) ** 2 + 2 * law.lame_mu * (strain**2).sum()
        np.testing.assert_allclose(energies, exact * 6e-3 * 2e-3, rtol=1e-12)


@pytest.mark.parametrize("law", [PlaneStress(0.3), PlaneStrain(0.495)])
def test_reference_grid_is_symmetric_with_three_rigid_motions(law):
    grid = Grid((3, 4), (1e-3, 2e-3))
    k = dense_psi(grid, law).sum(axis=0)
    values = np.linalg.eigvalsh(k)
    np.testing.assert_allclose(k, k.T, atol=1e-14 * np.abs(k).max())
    assert (values > -1e-12 * values[-1]).all() and (values < 1e-10 * values[-1]).sum() == 3
    assert np.abs(k @ rigid_modes(grid).reshape(3, -1).T).max() < 1e-12 * np.abs(k).max()


@pytest.mark.parametrize("law", [PlaneStress(0.3), PlaneStrain(0.495)], ids=repr)
def test_reference_grid_is_that_of_scikit_fem(law):
    """Bilinear modulus, full integration; in plane strain the lambda term by one point a cell."""
    pytest.importorskip("skfem")
    grid = Grid((4, 5), (2e-3, 1e-3))
    x, full = np.random.default_rng(4).uniform(1e4, 5e4, grid.n_nodes), {"intorder": 3}
    volumetric = centre(2) if law.name == "plane_strain" else full
    expected = scikit_fem_stiffness(grid, law, x, full, volumetric).toarray()
    k = np.einsum("n,nij->ij", x, dense_psi(grid, law))
    assert relative(k, expected) < 1e-14


# ---------------------------------------------------------------- kernels


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mean_dilatation", [True, False])
def test_contractions_are_the_dense_ones(law, dtype, tolerance, batch, mean_dilatation):
    mesh = irregular_mesh(law.dim, 5 if law.dim == 2 else 3, mean_dilatation=mean_dilatation)
    psi = dense_psi(mesh, law)
    backend = MeshBackend(mesh, law)
    x, u, v = fields(mesh, batch, dtype)
    uu, vv = (a.reshape(batch, -1).astype(np.float64) for a in (u, v))

    force, finite = backend.force(x, u)
    assert finite
    sensitivity, _ = backend.sensitivity(u, v)
    stiffness, contraction = backend.stiffness(x[0]), backend.contraction(u[0])
    assert {a.dtype for a in (force, sensitivity, stiffness, contraction)} == {np.dtype(dtype)}
    assert force.shape == u.shape and sensitivity.shape == x.shape
    expected = np.einsum("bn,nij,bj->bi", x, psi, uu, optimize=True)
    assert relative(force.reshape(batch, -1), expected) < tolerance
    assert relative(sensitivity, np.einsum("bi,nij,bj->bn", vv, psi, uu, optimize=True)) < tolerance
    assert relative(stiffness.toarray(), np.einsum("n,nij->ij", x[0], psi)) < tolerance
    assert relative(contraction.toarray(), np.einsum("nij,j->in", psi, uu[0])) < tolerance


@pytest.mark.parametrize("law", [PlaneStress(0.3), PlaneStrain(0.495)], ids=repr)
def test_stiffness_of_ordinary_triangles_is_that_of_scikit_fem(law):
    skfem = pytest.importorskip("skfem")
    from skfem.helpers import ddot, sym_grad, trace

    mesh = irregular_mesh(2, 24, mean_dilatation=False)
    x = fields(mesh, 1)[0][0]
    basis = skfem.Basis(
        skfem.MeshTri(mesh.points.T.copy(), mesh.cells.T.copy()), skfem.ElementVector(skfem.ElementTriP1())
    )

    @skfem.BilinearForm
    def elasticity(u, v, w):
        eps, eta = sym_grad(u), sym_grad(v)
        return w.e * (law.lame_lambda * trace(eps) * trace(eta) + 2 * law.lame_mu * ddot(eps, eta))

    modulus = x[mesh.cells].mean(axis=1)[:, None] * np.ones_like(basis.dx)
    expected = elasticity.assemble(basis, e=modulus)
    order = basis.nodal_dofs.ravel()  # ours: component * N + node
    difference = (MeshBackend(mesh, law).stiffness(x) - expected[order][:, order]).toarray()
    assert np.linalg.norm(difference) <= 1e-12 * np.linalg.norm(expected.toarray())


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_rigid_motions_need_no_force(law):
    mesh = irregular_mesh(law.dim, 4)
    backend = MeshBackend(mesh, law)
    x, u, _ = fields(mesh, 1)
    modes = rigid_modes(mesh)
    forces, _ = backend.force(np.repeat(x, len(modes), axis=0), modes)
    assert np.abs(forces).max() < 1e-13 * np.abs(backend.force(x, u / np.abs(u).max())[0]).max()


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_sparse_and_matrix_free_agree_and_patterns_are_shared(law):
    mesh = irregular_mesh(law.dim, 6)
    backend = MeshBackend(mesh, law)
    x, u, _ = fields(mesh, 2)
    k1, k2 = backend.stiffness(x[0]), backend.stiffness(x[1])
    d1, d2 = backend.contraction(u[0]), backend.contraction(u[1])
    for a, b in ((k1, k2), (d1, d2)):
        assert np.shares_memory(a.indices, b.indices) and np.shares_memory(a.indptr, b.indptr)
        assert not np.shares_memory(a.data, b.data)
        assert a.indices.dtype == np.int32
        for start, stop in zip(a.indptr, a.indptr[1:], strict=False):
            assert (np.diff(a.indices[start:stop]) > 0).all()
    for k, d, xi, ui in ((k1, d1, x[0], u[0]), (k2, d2, x[1], u[1])):
        force = backend.force(xi[None], ui[None])[0].ravel()
        assert relative(k @ ui.ravel(), force) < 1e-13
        assert relative(d @ xi, force) < 1e-13
    assert np.array_equal(backend.stiffness(x[0]).data, k1.data)  # to the last bit
    with pytest.raises(ValueError, match="read-only"):
        k1.indices[0] = 1  # would damage every other matrix
    private = k1.copy()
    private.indices[0] = private.indices[0]


def test_a_law_of_another_dimension_is_refused():
    with pytest.raises(ValueError, match=r"law Solid is 3-D, but the geometry is 2-D"):
        ElasticForm(irregular_mesh(2, 3), Solid(0.3))


# ---------------------------------------------------------------- nearly incompressible bodies

EDGE = 0.03


def smooth(*x):
    """A modulus (Pa) with a stiff region about (.4, .55, .5) of the edge."""
    centre = [c * EDGE for c in (0.4, 0.55, 0.5)]
    return 1e4 * (1 + 3 * np.exp(-sum((a - c) ** 2 for a, c in zip(x, centre, strict=False)) / (2 * 5e-3**2)))


def moved(points, share, spacing, seed=0):
    """Inner nodes moved by up to a share of the spacing."""
    rng = np.random.default_rng(seed)
    inner = ((points > 1e-9) & (points < EDGE - 1e-9)).all(axis=1)
    return points + share * spacing * inner[:, None] * rng.uniform(-1, 1, points.shape)


def displacement(law, points, cells, mean_dilatation=True):
    mesh = Mesh(points, cells, mean_dilatation)
    fixed, values = plates(points, EDGE)
    return solve_forward(ElasticForm(mesh, law), smooth(*points.T), Boundary(fixed=fixed, displacement=values))


@pytest.mark.parametrize("pattern", ["diagonal", "union jack"])
@pytest.mark.parametrize("poisson", [0.3, 0.499])
def test_triangles_converge_with_the_second_order_at_any_poisson_ratio(pattern, poisson):
    pytest.importorskip("skfem")
    law, errors = PlaneStrain(poisson), []
    expected = compressed(law, smooth, EDGE, 33)
    for n in (9, 17, 33):
        points, step = lattice(2, n, EDGE), 32 // (n - 1)
        u = displacement(law, points, simplices((n, n), pattern))
        errors.append(relative(u, expected[:, ::step, ::step].reshape(2, -1)))
    assert errors[-1] < 1.1e-3  # ordinary triangles of one diagonal at .499: .041
    assert np.log2(errors[0] / errors[1]) > 1.8 and np.log2(errors[1] / errors[2]) > 1.8


def test_tetrahedra_do_not_lock():
    pytest.importorskip("skfem")
    points, cells = lattice(3, 5, EDGE), simplices((5, 5, 5), "five")
    errors = [
        relative(displacement(law, points, cells, mean), compressed(law, smooth, EDGE, 5).reshape(3, -1))
        for law, mean in ((Solid(0.3), True), (Solid(0.499), True), (Solid(0.499), False))
    ]
    assert errors[1] < 1.3 * errors[0]
    assert errors[2] > 1.9 * errors[0]  # what the mean dilatation cures


@pytest.mark.parametrize("pattern", ["diagonal", "union jack", "irregular"])
def test_mean_dilatation_brings_no_soft_modes(pattern):
    """The lowest vibrations of a free square of constant density are those of finer bilinear cells."""
    law, n = PlaneStrain(0.499), 17
    points = lattice(2, n, EDGE)
    cells = simplices((n, n), "diagonal" if pattern == "irregular" else pattern)
    if pattern == "irregular":
        points = moved(points, 0.3, EDGE / (n - 1))
    lowest = []
    for geometry in (Mesh(points, cells), Grid((2 * n - 1,) * 2, (EDGE / (2 * n - 2),) * 2)):
        k = ElasticForm(geometry, law).stiffness(np.ones(geometry.node_shape))
        mass = diags_array(np.tile(geometry.node_weights, 2))
        values = eigsh(csc_array(k), 12, csc_array(mass), sigma=-1e3, return_eigenvectors=False)
        lowest.append(np.sort(values)[3:])
    np.testing.assert_allclose(*lowest, rtol=0.04)


# ---------------------------------------------------------------- solver


def use_multigrid(monkeypatch):
    """Multigrid of several levels on the smallest meshes."""
    monkeypatch.setattr(mesh_solver, "DIRECT_DOFS_PER_CYCLE", {2: 0, 3: 0})
    monkeypatch.setattr(mesh_multigrid, "COARSEST_DOFS", 20)


@pytest.mark.parametrize("method", ["direct", "multigrid"])
def test_solver_applies_the_matrix_that_it_solves_with(method, monkeypatch):
    if method == "multigrid":
        use_multigrid(monkeypatch)
    mesh = irregular_mesh(2, 5)
    backend, load = MeshBackend(mesh, PlaneStress(0.3)), compression(mesh, pressure=1.0)
    x, w, _ = fields(mesh, 1)
    shift = np.random.default_rng(0).uniform(0, 1e4, w[0].shape)
    solver = MeshSolver(backend, x[0], load.loaded, shift)
    assert solver.method == method
    inside = np.where(load.loaded, w[0], 0.0)
    expected = np.where(load.loaded, backend.force(x, inside[None])[0][0] + shift * inside, 0.0)
    np.testing.assert_allclose(solver.apply(w[0]), expected, rtol=1e-10, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("method", ["direct", "multigrid"])
def test_uniform_pressure_on_any_mesh_has_the_exact_linear_displacement(law, method, monkeypatch):
    """Uniform pressure on a homogeneous block: linear displacements, exactly, on any mesh."""
    if method == "multigrid":
        use_multigrid(monkeypatch)
    mesh = irregular_mesh(law.dim, 9 if law.dim == 2 else 5)
    load = compression(mesh, pressure=100.0)
    solver = MeshSolver(MeshBackend(mesh, law), np.full(mesh.n_nodes, 1e4), load.loaded)
    assert solver.method == method
    solution = solver.solve(load.force, rtol=1e-11)
    assert solution.residual <= 1e-11
    if law.name == "plane_strain":
        axial, across = -(1 - law.poisson**2) / 100, law.poisson * (1 + law.poisson) / 100
    else:
        axial, across = -1 / 100, law.poisson / 100
    gradient = np.linalg.lstsq(np.column_stack([mesh.points, np.ones(mesh.n_nodes)]), solution.value.T, rcond=None)[0][
        :-1
    ]
    strain = (gradient + gradient.T) / 2
    expected = np.diag([across] * (law.dim - 1) + [axial])
    np.testing.assert_allclose(strain, expected, atol=1e-9)
    moved = mesh.points @ gradient
    moved -= moved[~load.loaded[-1]].mean(axis=0)
    residue = solution.value.T - moved
    assert np.ptp(residue, axis=0).max() < 1e-9 * np.abs(solution.value).max()


@pytest.mark.parametrize("method", ["direct", "multigrid"])
@pytest.mark.parametrize("law", [PlaneStrain(0.495), Solid(0.45)], ids=repr)
def test_solver_with_a_shift_solves_the_dense_system(law, method, monkeypatch):
    if method == "multigrid":
        use_multigrid(monkeypatch)
    mesh = irregular_mesh(law.dim, 8 if law.dim == 2 else 4)
    backend = MeshBackend(mesh, law)
    rng = np.random.default_rng(3)
    x = rng.uniform(1e4, 5e4, mesh.n_nodes)
    shape = (mesh.dim, mesh.n_nodes)
    active, shift = rng.random(shape) < 0.7, rng.uniform(0, 1e4, shape)
    b, c, start = rng.standard_normal((3, *shape))
    a = backend.stiffness(x).toarray() + np.diag(shift.ravel())
    rows = np.flatnonzero(active)
    expected = np.zeros(active.size)
    expected[rows] = np.linalg.solve(a[np.ix_(rows, rows)], b.ravel()[rows])

    solver = MeshSolver(backend, x, active, shift)
    assert solver.method == method
    for x0 in (None, start):
        solution = solver.solve(b, x0=x0, rtol=1e-10)
        assert relative(solution.value.ravel(), expected) < 1e-8
        assert solution.residual <= 1e-10 and solution.iterations >= 1
        assert (solution.value[~active] == 0).all()
    assert solver.solve(b, x0=solution.value, rtol=1e-9).iterations == 0
    assert solver.solve(np.zeros(shape)).iterations == 0
    pb, pc = solver.precondition(b), solver.precondition(c)
    assert (pb[~active] == 0).all()
    rounding = {"direct": 1e-12, "multigrid": 1e-5}[method]  # cycles are in single precision
    assert abs((c * pb).sum() - (b * pc).sum()) < rounding * np.sqrt((b * pb).sum() * (c * pc).sum())
    assert (b * pb).sum() > 0
    if method == "direct":
        assert relative(pb.ravel(), expected) < 1e-9


@pytest.mark.parametrize("method", ["direct", "multigrid"])
@pytest.mark.parametrize("law", [PlaneStress(0.3), Solid(0.45)], ids=repr)
def test_solver_refuses_a_body_that_is_free(law, method, monkeypatch):
    if method == "multigrid":
        use_multigrid(monkeypatch)
    mesh = irregular_mesh(law.dim, 6)
    backend, x = MeshBackend(mesh, law), np.full(mesh.n_nodes, 1e4)
    fixed = compression(mesh, pressure=1.0).fixed
    for held in (np.zeros_like(fixed), fixed & (np.arange(law.dim) == law.dim - 1)[:, None]):
        with pytest.raises(np.linalg.LinAlgError, match="can move without deforming"):
            MeshSolver(backend, x, ~held)


def test_solver_refuses_a_hinge():
    """Two squares that share one corner: enough support for one body, not for this."""
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    mesh = Mesh(np.vstack([square, square[1:] + 1]) * 1e-2, [[0, 1, 2], [0, 2, 3], [2, 4, 5], [2, 5, 6]])
    active = np.ones((2, 7), bool)
    active[:, [0, 1]] = False
    with pytest.raises(np.linalg.LinAlgError, match="single node"):
        MeshSolver(MeshBackend(mesh, PlaneStress(0.3)), np.ones(7), active)


def test_solver_names_what_does_not_fit_or_converge():
    mesh = irregular_mesh(2, 6)
    backend, x = MeshBackend(mesh, PlaneStrain(0.495)), np.full(mesh.n_nodes, 1e4)
    with pytest.raises(ValueError, match="active marks no dof"):
        MeshSolver(backend, x, np.zeros((2, mesh.n_nodes), bool))
    load = compression(mesh, pressure=100.0)
    solver = MeshSolver(backend, x, load.loaded)
    with pytest.raises(ValueError, match="b must be finite"):
        solver.solve(np.full((2, mesh.n_nodes), np.nan))
    with pytest.raises(RuntimeError, match=r"stopped at a relative residual of .* Try a larger rtol or maxiter"):
        solver.solve(load.force, rtol=1e-20)


@pytest.mark.parametrize(("law", "most"), [(PlaneStress(0.495), 24), (PlaneStrain(0.45), 28), (Solid(0.45), 26)])
def test_multigrid_takes_few_iterations_on_any_mesh(law, most):
    """A body held by single nodes against some motions, with a stiff inclusion."""
    mesh = irregular_mesh(law.dim, 50 if law.dim == 2 else 11)
    load, stiff = compression(mesh, pressure=100.0), np.linalg.norm(mesh.points - 0.015, axis=1) < 6e-3
    solver = MeshSolver(MeshBackend(mesh, law), np.where(stiff, 5e4, 1e4), load.loaded)
    assert solver.method == "multigrid"
    b = np.where(load.loaded, np.random.default_rng(0).standard_normal(load.loaded.shape), 0.0)
    for rhs in (load.force, b):
        solution = solver.solve(rhs, rtol=1e-8)
        assert solution.residual <= 1e-8 and solution.iterations <= most
    exact = solver.solve(b, rtol=1e-11).value
    energy = (b * exact).sum()
    for accuracy in (0.15, 0.01):
        error = solver.approximate_inverse(b, accuracy) - exact
        assert (error * solver.apply(error)).sum() <= (2 * accuracy) ** 2 * energy


@pytest.mark.parametrize("d", [2, 3])
def test_a_coarse_mesh_is_the_same_body(d):
    mesh = irregular_mesh(d, 25 if d == 2 else 9)
    while True:
        coarse = coarser(mesh)
        if coarse is None or coarse.mesh.n_nodes < 20:
            break
        assert coarse.mesh.n_nodes < mesh.n_nodes / 1.5
        assert coarse.mesh.cell_volumes.sum() == pytest.approx(mesh.cell_volumes.sum(), rel=1e-12)
        assert np.array_equal(coarse.mesh.points, mesh.points[coarse.kept])
        assert np.array_equal(coarse.place[coarse.kept], np.arange(coarse.mesh.n_nodes))
        p = coarse.interpolation
        assert (p.data > 0).all() and np.allclose(p.sum(axis=1), 1)
        assert np.array_equal(p[coarse.kept].toarray(), np.eye(coarse.mesh.n_nodes))
        np.testing.assert_allclose(p @ coarse.mesh.points, mesh.points, atol=1e-3 * 0.03)
        mesh = coarse.mesh
    assert mesh.n_nodes < 150


def test_a_coarse_mesh_keeps_a_notch_and_a_curved_edge():
    """A polar sector without its middle: no cell may bridge the gap."""
    r, a = np.meshgrid(np.linspace(0.04, 0.08, 17), np.linspace(-0.5, 0.5, 25), indexing="ij")
    cells = simplices(r.shape, "diagonal")
    points = np.stack([r * np.sin(a), -r * np.cos(a)], axis=-1).reshape(-1, 2)
    notch = (np.abs(a.ravel()[cells].mean(axis=1)) < 0.1) & (r.ravel()[cells].mean(axis=1) < 0.06)
    numbers = np.unique(cells[~notch], return_inverse=True)
    mesh = Mesh(points[numbers[0]], numbers[1].reshape(-1, 3))
    coarse = coarser(mesh).mesh
    assert coarse.n_nodes < mesh.n_nodes / 2.5
    assert coarse.cell_volumes.sum() == pytest.approx(mesh.cell_volumes.sum(), rel=5e-3)
    middle = coarse.points[coarse.cells].mean(axis=1)
    assert not (
        (np.abs(np.arctan2(middle[:, 0], -middle[:, 1])) < 0.07) & (np.linalg.norm(middle, axis=1) < 0.057)
    ).any()


# ---------------------------------------------------------------- the kernel cache


def test_kernels_are_cached_between_processes(tmp_path):
    """Numba compiles for seconds: a second process has to find the result on disk."""
    code = (
        "import numpy as np\n"
        "from elastofast.geometry import Mesh\nfrom elastofast.laws import PlaneStress\n"
        "from elastofast.forward.mesh import MeshBackend\n"
        "b = MeshBackend(Mesh([[0, 0], [1, 0], [0, 1]], [[0, 1, 2]]), PlaneStress(0.3))\n"
        "b.force(np.ones((1, 3)), np.ones((1, 2, 3)))\n"
        "print(sum(b._run.force.stats.cache_hits.values()), sum(b._run.force.stats.cache_misses.values()))\n"
    )
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        ).stdout.split()
        for _ in range(2)
    ]
    assert runs == [["0", "1"], ["1", "0"]]


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".vtk", ".msh", ".vtu", ".xdmf"])
@pytest.mark.parametrize("d", [2, 3])
def test_read_drops_nodes_without_cells(tmp_path, suffix, d):
    meshio = pytest.importorskip("meshio")
    mesh = irregular_mesh(d, 3)
    n = mesh.n_nodes
    points = np.vstack([np.full((1, d), 7.0), mesh.points, np.full((1, d), 9.0)])  # first and last are loose
    points = np.pad(points, ((0, 0), (0, 3 - d)))
    kind = "triangle" if d == 2 else "tetra"
    path = tmp_path / f"mesh{suffix}"
    blocks = [("line", [[0, n + 1]]), (kind, mesh.cells + 1)]
    meshio.write(path, meshio.Mesh(points, blocks), file_format="gmsh22" if suffix == ".msh" else None)
    read = Mesh.read(path)
    np.testing.assert_allclose(read.points, mesh.points, rtol=1e-12, atol=1e-16)
    assert {tuple(sorted(c)) for c in read.cells} == {tuple(sorted(c)) for c in mesh.cells}
    assert read.dim == d


def test_read_refuses_foreign_and_broken_files(tmp_path):
    meshio = pytest.importorskip("meshio")
    foreign = tmp_path / "notes.txt"
    foreign.write_text("not a mesh")
    fake = tmp_path / "fake.vtk"
    fake.write_text("not a mesh either")
    empty = tmp_path / "empty.msh"
    empty.touch()
    for path in (foreign, fake, empty, tmp_path / "missing.vtk"):
        with pytest.raises(ValueError, match="cannot read a mesh from"):
            Mesh.read(path)

    whole = tmp_path / "whole.vtk"
    mesh = irregular_mesh(2, 5)
    meshio.write(whole, meshio.Mesh(np.pad(mesh.points, ((0, 0), (0, 1))), [("triangle", mesh.cells)]))
    content = whole.read_bytes()
    for share in (0.2, 0.5, 0.8):
        cut = tmp_path / "cut.vtk"
        cut.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match=r"path|cells"):
            Mesh.read(cut)

    lines = tmp_path / "lines.vtk"
    meshio.write(lines, meshio.Mesh(np.eye(3), [("line", [[0, 1]])]))
    with pytest.raises(ValueError, match=r"holds neither triangles nor tetrahedra, only \['line'\]"):
        Mesh.read(lines)
    tilted = tmp_path / "tilted.vtk"
    meshio.write(tilted, meshio.Mesh(np.eye(3), [("triangle", [[0, 1, 2]])]))
    with pytest.raises(ValueError, match="do not lie in a plane z = constant"):
        Mesh.read(tilted)


# ---------------------------------------------------------------- the paper authors' file


@pytest.fixture(scope="module")
def authors():
    """Data3.mat: 742 nodes, E, interleaved x, y fields, dense GK with identity rows at supports."""
    loadmat = pytest.importorskip("scipy.io").loadmat
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("ELASTOFAST_DATA", root.parent / "shared" / "data"))
    path = folder / "comp-elast-Data3.zip"
    if not path.exists():
        pytest.skip(f"the authors' file {path.name} is not here; set ELASTOFAST_DATA to its folder")
    with zipfile.ZipFile(path) as archive:
        return loadmat(io.BytesIO(archive.read("Data3.mat")))


def test_stiffness_is_that_of_the_authors(authors):
    mesh = Mesh(authors["vertices"], authors["triangles"], mean_dilatation=False)
    ours = np.arange(2 * mesh.n_nodes).reshape(-1, 2).T.ravel()  # component * N + node out of interleaved
    expected = authors["GK"][np.ix_(ours, ours)]
    loaded = compression(mesh, pressure=10.0).loaded.ravel()
    assert np.array_equal(expected[~loaded], np.eye(len(ours))[~loaded])  # their supports are ours
    k = MeshBackend(mesh, PlaneStrain(0.495)).stiffness(authors["E"].ravel()).toarray()
    assert relative(k[loaded], expected[loaded]) < 1e-13


def test_displacement_is_that_of_the_authors(authors):
    """Their load is `compression` with 10 Pa, our solution their field, rounded to 1e-10 m."""
    mesh = Mesh(authors["vertices"], authors["triangles"], mean_dilatation=False)
    load = compression(mesh, pressure=10.0)
    np.testing.assert_allclose(load.force, authors["fxy"].reshape(-1, 2).T, atol=1e-15)
    solver = MeshSolver(MeshBackend(mesh, PlaneStrain(0.495)), authors["E"].ravel(), load.loaded)
    solution = solver.solve(load.force, rtol=1e-10)
    assert np.abs(solution.value - authors["uxy"].reshape(-1, 2).T).max() < 0.5001e-10
