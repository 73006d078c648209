"""Grids of three axes: the form against references, and the multigrid solver against sparse elimination."""

import numpy as np
import pytest
from dense import centre, dense_psi, gauss, scikit_fem_stiffness
from scipy.sparse import diags_array
from scipy.sparse.linalg import LinearOperator, eigsh, splu

import elastofast as ef
from elastofast import _core
from elastofast.boundary import rigid_modes

LAWS = [ef.Solid(0.3), ef.Solid(0.495)]
SPACING = (1e-3, 7e-4, 1.3e-3)


def fields(grid, dtype=np.float64, batch=(), seed=1):
    rng = np.random.default_rng(seed)
    x = rng.uniform(5e3, 5e4, (*batch, *grid.shape)).astype(dtype)
    return x, *(1e-4 * rng.standard_normal((2, *batch, 3, *grid.shape))).astype(dtype)


def relative(a, b):
    return np.linalg.norm(np.asarray(a, float).ravel() - np.ravel(b)) / np.linalg.norm(b)


@pytest.fixture(params=_core.build_info()["instruction_sets"])
def instruction_set(request):
    before = _core.build_info()["instruction_set"]
    _core.select_instruction_set(request.param)
    yield request.param
    _core.select_instruction_set(before)


# ---------------------------------------------------------------- the form


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 3, 4), (3, 2, 19)], ids=str)
def test_contractions_are_the_dense_ones(shape, law, dtype, tolerance, instruction_set):
    grid = ef.Grid(shape, SPACING)
    form, psi = ef.ElasticForm(grid, law), dense_psi(grid, law)
    x, u, v = fields(grid, dtype)
    xx, uu, vv = (a.ravel().astype(float) for a in (x, u, v))
    stiffness = np.tensordot(xx, psi, 1)
    assert relative(form.force(x, u), stiffness @ uu) < tolerance
    assert relative(form.sensitivity(u, v), psi @ uu @ vv) < tolerance
    assert relative(form.stiffness(x).toarray(), stiffness) < tolerance
    assert relative(form.contraction(u).toarray(), (psi @ uu).T) < tolerance
    assert form.stiffness(x).has_canonical_format and form.contraction(u).has_canonical_format


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("shape", [(6, 5, 40), (17, 20, 23)], ids=str)
def test_stiffness_is_that_of_scikit_fem(law, shape):
    """Trilinear modulus, 2 x 2 x 2 Gauss points, the lambda term by the cell's centre."""
    pytest.importorskip("skfem")
    grid = ef.Grid(shape, SPACING)
    x, u, v = fields(grid)
    expected = scikit_fem_stiffness(grid, law, x, full=gauss(3), volumetric=centre(3))
    form = ef.ElasticForm(grid, law)
    assert abs(form.stiffness(x) - expected).max() <= 1e-12 * abs(expected).max()
    assert relative(form.force(x, u), expected @ u.ravel()) < 1e-12
    assert relative(np.vdot(form.sensitivity(u, v), x), v.ravel() @ (expected @ u.ravel())) < 1e-10


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_patch_test_and_rigid_motions(law):
    """Linear displacement at constant modulus: exact stress, no force inside. Rigid motions need no force at all."""
    grid, modulus = ef.Grid((4, 6, 5), SPACING), 2e4
    form = ef.ElasticForm(grid, law)
    gradient = np.random.default_rng(0).standard_normal((3, 3))
    u = 1e-2 * (grid.points @ gradient.T).T.reshape(form.dof_shape)
    force = form.force(np.full(grid.shape, modulus), u)
    strain = 1e-2 * (gradient + gradient.T) / 2
    stress = modulus * (law.lame_lambda * np.trace(strain) * np.eye(3) + 2 * law.lame_mu * strain)
    expected = np.zeros(form.dof_shape)
    for axis in range(3):  # the area of the face that belongs to each node, times stress . normal
        area = np.ones(1)
        for other in range(3):
            if other != axis:
                length = np.full(grid.shape[other], SPACING[other])
                length[[0, -1]] /= 2
                area = np.multiply.outer(area, length)
        faces = np.moveaxis(expected, axis + 1, -1)
        traction = stress[:, axis].reshape(3, 1, 1) * area[0]
        faces[..., 0] -= traction
        faces[..., -1] += traction
    assert np.abs(force - expected).max() < 1e-12 * np.abs(stress).max() * max(SPACING) ** 2
    x, w, _ = fields(grid)
    scale = np.abs(form.force(x, w)).max() / np.abs(w).max()
    for mode in rigid_modes(grid):
        assert np.abs(form.force(x, mode.reshape(form.dof_shape))).max() < 1e-13 * scale


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_results_do_not_depend_on_threads_and_batches(dtype):
    form = ef.ElasticForm(ef.Grid((33, 20, 27), SPACING), LAWS[1])
    x, u, v = fields(form.geometry, dtype, (2,))
    before = _core.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            _core.set_num_threads(count)
            results.append((form.force(x[1], u[1]), form.sensitivity(u[1], v[1]), form.stiffness(x[1]).data,
                            form.contraction(u[1]).data, form.force(x, u)[1], form.sensitivity(u, v)[1]))  # fmt: skip
    finally:
        _core.set_num_threads(before)
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert np.array_equal(results[0][0], results[0][4]) and np.array_equal(results[0][1], results[0][5])
    bad = u.copy()
    bad[0, 1, 3, 4, 5] = np.nan
    with pytest.raises(ValueError, match="u must be finite"):
        form.force(x, bad)


# ---------------------------------------------------------------- the solver


def fixed_dofs(grid, kind):
    fixed = np.zeros((3, *grid.shape), bool)
    if kind == "compression":
        fixed[:] = ef.compression(grid, pressure=1.0).fixed
    elif kind == "bonded":
        fixed[:, -1] = fixed[1:, 0] = True
    elif kind == "edges":  # as open ones count for the solver
        for axis in range(3):
            faces = np.moveaxis(fixed, axis + 1, 1)
            faces[:, [0, -1]] = True
    elif kind == "random":
        fixed[:] = np.random.default_rng(0).random(fixed.shape) < 0.1
        fixed[:, 0, 0, 0] = fixed[1:, 0, 0, -1] = fixed[2, 0, -1, 0] = True
    return fixed


def inclusions(grid):
    """A stiff and a soft ellipsoid."""
    i, j, k = np.meshgrid(*[np.linspace(-1, 1, n) for n in grid.shape], indexing="ij")
    x = np.full(grid.shape, 1e4)
    x[(i / 0.5) ** 2 + (j / 0.4) ** 2 + ((k - 0.2) / 0.3) ** 2 < 1] *= 5
    x[(i - 0.6) ** 2 + (j + 0.5) ** 2 + (k + 0.5) ** 2 < 0.06] *= 0.3
    return x


def check(grid, law, kind, shift=None, x=None):
    """Iterations of a solve that agrees with elimination."""
    form = ef.ElasticForm(grid, law)
    x = inclusions(grid) if x is None else x
    active = ~fixed_dofs(grid, kind)
    b = np.random.default_rng(0).standard_normal((3, grid.n_nodes))
    diagonal = None if shift is None else shift * x.mean() * 10 ** np.random.default_rng(1).uniform(-3, 1, b.shape)
    rows = np.flatnonzero(active)
    a = form.stiffness(x)[rows][:, rows]
    if diagonal is not None:
        a = a + diags_array(diagonal.ravel()[rows])
    solution = form.solver(x.ravel(), active, diagonal).solve(b)
    w, exact = solution.value.ravel()[rows], splu(a.tocsc()).solve(b.ravel()[rows])
    assert not solution.value.ravel()[~active.ravel()].any()
    residual = np.linalg.norm(b.ravel()[rows] - a @ w) / np.linalg.norm(b.ravel()[rows])
    assert residual <= 1.01e-8 and abs(solution.residual - residual) < 1e-9
    error = w - exact
    assert error @ (a @ error) < (1e-4) ** 2 * (exact @ (a @ exact))
    return solution.iterations


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 9, 4), (8, 8, 8), (6, 13, 7)], ids=str)
def test_solutions_are_those_of_elimination(shape, law):
    grid = ef.Grid(shape, (1e-3,) * 3)
    for kind in ("compression", "bonded", "edges", "random"):
        if fixed_dofs(grid, kind).all():
            continue
        for shift in (None, 1e-2):
            assert check(grid, law, kind, shift) <= 20, (kind, shift)


@pytest.mark.parametrize("spacing", [(1e-3, 3e-3, 3e-3), (2e-3, 1e-3, 2e-3), (3e-3, 3e-3, 1e-3)], ids=str)
def test_flat_cells_are_coarsened_along_their_short_sides_first(spacing):
    assert check(ef.Grid((9, 8, 10), spacing), LAWS[1], "bonded") <= 25


@pytest.mark.parametrize("kind", ["compression", "bonded", "edges"])
@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_iterations_are_few_and_do_not_grow_with_the_grid(law, kind):
    counts = []
    for n in (12, 17, 32):
        grid = ef.Grid((n, n, n), (0.03 / (n - 1),) * 3)
        solver = ef.ElasticForm(grid, law).solver(inclusions(grid).ravel(), ~fixed_dofs(grid, kind))
        counts.append(solver.solve(np.random.default_rng(0).standard_normal((3, n**3))).iterations)
    assert max(counts) <= 15 and counts[-1] <= min(counts) + 4, counts


def test_a_rough_modulus_takes_few_iterations():
    grid = ef.Grid((17, 17, 17), (1e-3,) * 3)
    x = 1e4 * np.exp(np.random.default_rng(3).standard_normal(grid.shape))
    solver = ef.ElasticForm(grid, LAWS[1]).solver(x.ravel(), ~fixed_dofs(grid, "bonded"))
    assert solver.solve(np.random.default_rng(0).standard_normal((3, grid.n_nodes))).iterations <= 18


@pytest.mark.parametrize("kind", ["compression", "random"])
@pytest.mark.parametrize("shift", [None, 1e-2])
def test_preconditioner_is_symmetric_and_positive(kind, shift):
    grid = ef.Grid((11, 12, 14), (1e-3,) * 3)
    x = inclusions(grid)
    solver = ef.ElasticForm(grid, LAWS[1]).solver(
        x.ravel(), ~fixed_dofs(grid, kind), None if shift is None else np.full((3, grid.n_nodes), shift * x.mean())
    )
    rng = np.random.default_rng(3)
    for _ in range(3):
        v, w = rng.standard_normal((2, 3, grid.n_nodes))
        mv, mw = solver.precondition(v), solver.precondition(w)
        scale = np.sqrt(np.vdot(v, mv) * np.vdot(w, mw))
        assert abs(np.vdot(w, mv) - np.vdot(v, mw)) < 1e-5 * scale
        assert np.vdot(v, mv) > 0 and not mv[~solver.active].any()


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_eigenvalues_of_the_preconditioned_matrix_lie_in_the_stated_spectrum(law):
    grid = ef.Grid((8, 8, 8), (1e-3,) * 3)
    form, active = ef.ElasticForm(grid, law), ~fixed_dofs(grid, "bonded")
    x = inclusions(grid)
    solver, rows = form.solver(x.ravel(), active), np.flatnonzero(active)
    factor = np.linalg.cholesky(form.stiffness(x)[rows][:, rows].toarray())
    field = np.zeros(active.size)

    def matvec(v):
        field[rows] = factor @ v
        return factor.T @ solver._accelerated(field.reshape(3, -1), [(0.0, 1.0)]).ravel()[rows]

    symmetric = LinearOperator((len(rows),) * 2, matvec=matvec, dtype=float)
    values = eigsh(symmetric, k=2, which="BE", tol=1e-3, return_eigenvectors=False, v0=np.ones(len(rows)))
    low, high = law.multigrid.spectrum
    assert values.min() > low and values.max() < high


def test_solutions_do_not_depend_on_the_number_of_threads():
    grid = ef.Grid((33, 20, 27), (1e-3,) * 3)
    form, before, values = ef.ElasticForm(grid, LAWS[0]), _core.get_num_threads(), []
    try:
        for count in (1, 2):
            _core.set_num_threads(count)
            solver = form.solver(inclusions(grid).ravel(), ~fixed_dofs(grid, "compression"))
            values.append(solver.solve(np.random.default_rng(0).standard_normal((3, grid.n_nodes))).value)
    finally:
        _core.set_num_threads(before)
    assert np.array_equal(*values)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_uniform_compression_is_exact(law):
    """Between frictionless plates a homogeneous body is compressed uniformly and widens by the Poisson ratio."""
    grid, modulus = ef.Grid((12, 9, 10), SPACING), 2e4
    load = ef.compression(grid, pressure=100.0)
    u = ef.solve_forward(ef.ElasticForm(grid, law), np.full(grid.shape, modulus), load, rtol=1e-12)
    depth = SPACING[0] * np.arange(12)
    np.testing.assert_allclose(u[0], np.broadcast_to((100 / modulus * (depth[-1] - depth))[:, None, None], grid.shape),
                               atol=1e-9 * u[0].max())  # fmt: skip
    for axis in (1, 2):
        strain = np.diff(u[axis], axis=axis) / SPACING[axis]
        np.testing.assert_allclose(strain, law.poisson * 100 / modulus, rtol=1e-6)


# ---------------------------------------------------------------- analytic fields


class StiffSphere:
    """A sphere of another modulus in an infinite body under a pure shear strain e at infinity (Eshelby, Proc. R. Soc. A
    241, 1957; Goodier 1933): inside the strain is uniform, outside decay two solutions of the Navier equations. Their
    amounts follow here from the continuity of displacement and traction.
    """

    def __init__(self, law, radius, contrast):
        self.law, self.radius, self.contrast = law, radius, contrast
        self.strain = np.array([[0.0, 0.4, 0.0], [0.4, 0.5, 0.3], [0.0, 0.3, -0.5]])
        rng = np.random.default_rng(0)
        points = rng.standard_normal((20, 3))
        points *= radius / np.linalg.norm(points, axis=1, keepdims=True)
        columns = []
        for field, modulus in [(self._far, 1.0), (self._inside, contrast), (self._first, 1.0), (self._second, 1.0)]:
            traction = self._traction(field, points, modulus)
            columns.append(np.concatenate([field(points).ravel() / radius, traction.ravel()]))
        far, inside, first, second = columns
        self.amounts, rest, *_ = np.linalg.lstsq(np.stack([inside, -first, -second], axis=1), far, rcond=None)
        assert rest < 1e-12  # the three amounts satisfy all conditions at all points

    def __call__(self, points):
        inside, first, second = self.amounts
        r = np.linalg.norm(points, axis=1, keepdims=True)
        safe = np.where(r > 0, points, self.radius)
        outside = self._far(safe) + first * self._first(safe) + second * self._second(safe)
        return np.where(r <= self.radius, inside * self._inside(points), outside)

    def _far(self, x):
        return x @ self.strain

    _inside = _far

    def _first(self, x):  # gradient of the harmonic function x.e.x / r^5
        r2 = (x**2).sum(axis=1, keepdims=True)
        ex = x @ self.strain
        return self.radius**5 * (2 * ex / r2**2.5 - 5 * x * (x * ex).sum(axis=1, keepdims=True) / r2**3.5)

    def _second(self, x):  # Papkovich and Neuber: 4 (1 - nu) B - grad(x.B) with the harmonic field B = e.x / r^3
        r2 = (x**2).sum(axis=1, keepdims=True)
        ex = x @ self.strain
        gradient = 2 * ex / r2**1.5 - 3 * x * (x * ex).sum(axis=1, keepdims=True) / r2**2.5
        return self.radius**3 * (4 * (1 - self.law.poisson) * ex / r2**1.5 - gradient)

    def _traction(self, field, points, modulus):
        step = 1e-6 * self.radius
        gradient = np.stack(
            [(field(points + d) - field(points - d)) / (2 * step) for d in step * np.eye(3)], axis=2
        )  # [point, component, axis]
        strain = (gradient + gradient.transpose(0, 2, 1)) / 2
        trace = np.trace(strain, axis1=1, axis2=2)[:, None, None]
        stress = modulus * (self.law.lame_lambda * trace * np.eye(3) + 2 * self.law.lame_mu * strain)
        return np.einsum("pij,pj->pi", stress, points / self.radius)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_a_stiff_sphere_moves_as_eshelby_says(law):
    """The error falls with the cell size, as it must where the modulus jumps inside cells."""
    sphere, errors = StiffSphere(law, 0.011, 4.0), []
    for n in (17, 33):
        grid = ef.Grid((n, n, n), (0.04 / (n - 1),) * 3)
        centred = grid.points - 0.02
        exact = sphere(centred).T.reshape(3, *grid.shape)
        # the share of a node's surroundings that lies in the sphere, by its distance
        inside = np.clip(0.5 + (sphere.radius - np.linalg.norm(centred, axis=1)) / grid.spacing[0], 0, 1)
        x = 1e4 * (1 + 3 * inside.reshape(grid.shape))
        fixed = fixed_dofs(grid, "edges")
        load = ef.Boundary(fixed=fixed, displacement=np.where(fixed, exact, 0.0))
        u = ef.solve_forward(ef.ElasticForm(grid, law), x, load)
        errors.append(relative(u, exact))
        middle = (slice(None), *(slice(n // 2 - n // 8, n // 2 + n // 8 + 1),) * 3)
        strain = np.gradient(u[middle], *grid.spacing, axis=(1, 2, 3))
        found = sum(float((s * e[:, None, None, None]).sum()) for s, e in zip(strain, sphere.strain, strict=True))
        found /= strain[0][0].size * (sphere.strain**2).sum()
        assert abs(found - sphere.amounts[0]) < 0.1 * sphere.amounts[0] * 16 / (n - 1)
    assert errors[1] < 0.65 * errors[0] < 0.02, errors


def test_smooth_fields_converge_with_the_second_power_of_the_cell_size():
    """A smooth displacement under its own body force, by the energy of the error of a finer solution."""
    errors, law = [], ef.Solid(0.45)
    fields = {}
    for n in (9, 17, 33):
        grid = ef.Grid((n, n, n), (1 / (n - 1),) * 3)
        s, t, r = np.moveaxis(grid.points.reshape(*grid.shape, 3), -1, 0)
        x = 1 + 0.5 * np.sin(3 * s) * np.cos(2 * t + r)
        force = np.stack([np.sin(2 * s + t), np.cos(3 * t * r), s * t]) * grid.node_weights.reshape(grid.shape)
        fixed = fixed_dofs(grid, "edges")
        load = ef.Boundary(fixed=fixed, force=np.where(fixed, 0.0, force))
        fields[n] = ef.solve_forward(ef.ElasticForm(grid, law), x, load)
    for n in (9, 17):
        step = 32 // (n - 1)
        errors.append(relative(fields[n], fields[33][:, ::step, ::step, ::step]))
    # of the error of the coarsest grid these are 1 - 1/16 and 1/4 - 1/16: a ratio of 1/5
    assert errors[1] < 0.25 * errors[0]
