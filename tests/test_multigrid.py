"""The multigrid solver on a `Grid` against sparse elimination, and the properties it is fast by."""

import numpy as np
import pytest
from scipy.sparse import diags_array
from scipy.sparse.linalg import LinearOperator, eigsh, splu

from elastofast import _core
from elastofast.boundary import compression
from elastofast.forward.form import ElasticForm
from elastofast.geometry import Grid
from elastofast.laws import PlaneStrain, PlaneStress

LAWS = [PlaneStress(0.495), PlaneStrain(0.495)]
SHAPES = [(2, 2), (2, 9), (9, 2), (3, 3), (5, 4), (8, 8), (9, 40), (33, 33), (12, 300), (64, 64), (100, 37), (65, 130)]
SPACINGS = [(1e-3, 1e-3), (1e-3, 4e-3), (4e-3, 1e-3)]
MASKS = ["compression", "edges", "clamped", "corner pins", "inner pins", "block", "random"]
PINNED = ("corner pins", "inner pins")


def fixed_dofs(grid, kind, seed=0):
    fixed = np.zeros((2, *grid.shape), bool)
    n0, n1 = grid.shape
    if kind == "compression":  # one plate and a single lateral pin
        fixed[:] = compression(grid, pressure=1.0).fixed
    elif kind == "edges":
        fixed[:, [0, -1]] = fixed[:, :, [0, -1]] = True
    elif kind == "clamped":
        fixed[:, -1] = True
    elif kind == "corner pins":  # statically determinate
        fixed[:, 0, 0] = fixed[0, 0, -1] = True
    elif kind == "inner pins":
        fixed[:, n0 // 2, n1 // 3] = fixed[0, n0 // 2, n1 - 1] = True
    elif kind == "block":
        fixed[:, n0 // 3 : n0 // 3 + max(2, n0 // 4), n1 // 3 : n1 // 3 + max(2, n1 // 4)] = True
    elif kind == "random":
        fixed[:] = np.random.default_rng(seed).random(fixed.shape) < 0.1
        fixed[:, 0, 0] = fixed[0, 0, -1] = True
    return fixed


def shifts(kind, x, n, seed=0):
    """Diagonals to add, in the units of the stiffness matrix (the modulus)."""
    rng, scale = np.random.default_rng(seed), x.mean()
    return {
        None: None,
        "constant": np.full((2, n), 1e-3 * scale),
        "by component": np.broadcast_to(scale * np.array([[1e-2], [1e-4]]), (2, n)).copy(),
        "over decades": scale * 10 ** rng.uniform(-7, 1, (2, n)),
    }[kind]


def problem(shape, spacing, law, mask="compression", shift=None, seed=0, roughness=0.4):
    form = ElasticForm(Grid(shape, spacing), law)
    rng = np.random.default_rng(seed)
    n = form.geometry.n_nodes
    x = 1e4 * np.exp(roughness * rng.standard_normal(shape))
    active = ~fixed_dofs(form.geometry, mask)
    return form, x, active, shifts(shift, x, n), rng.standard_normal((2, n))


def matrix(form, x, active, shift):
    """Stiffness and its rows of active dofs; `test_form.py` has checked the stiffness."""
    rows = np.flatnonzero(active)
    a = form.stiffness(x)[rows][:, rows]
    return rows, a if shift is None else a + diags_array(shift.ravel()[rows])


def inclusion(shape, contrast=5.0):
    i, j = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return 1e4 * np.where((i - 0.1) ** 2 + (j + 0.2) ** 2 < 0.3**2, contrast, 1.0)


# ---------------------------------------------------------------- the right answer


def check(shape, spacing, law, mask, shift):
    form, x, active, diagonal, b = problem(shape, spacing, law, mask, shift)
    rows, a = matrix(form, x, active, diagonal)
    solution = form.solver(x.ravel(), active, diagonal).solve(b)
    w, exact = solution.value.ravel()[rows], splu(a.tocsc()).solve(b.ravel()[rows])
    assert not solution.value.ravel()[~active.ravel()].any()
    norm = np.linalg.norm(b.ravel()[rows])
    residual = np.linalg.norm(b.ravel()[rows] - a @ w) / norm
    assert residual <= 1.01e-8
    assert abs(solution.residual - residual) < 1e-9
    error = w - exact
    assert error @ (a @ error) < (1e-4) ** 2 * (exact @ (a @ exact))  # energy norm
    return solution


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_solutions_are_those_of_elimination_on_every_grid_and_support(shape, law):
    """Every support, with and without shift, on one grid; the limit is far above what any of them needs."""
    for k, mask in enumerate(MASKS):
        if fixed_dofs(Grid(shape, SPACINGS[0]), mask).all():
            continue
        for m, shift in enumerate((None, "constant", "by component", "over decades")):
            if shape[0] * shape[1] > 2000 and (k + m) % 4:  # a quarter of the pairs will do
                continue
            iterations = check(shape, SPACINGS[0], law, mask, shift).iterations
            assert iterations <= (55 if mask in PINNED and shift is None else 22), (mask, shift)


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("spacing", SPACINGS[1:], ids=str)
@pytest.mark.parametrize("shape", [(2, 9), (8, 8), (33, 33), (40, 23)], ids=str)
def test_solutions_on_flat_cells_are_those_of_elimination(shape, spacing, law):
    for mask in MASKS:
        if not fixed_dofs(Grid(shape, spacing), mask).all():
            for shift in (None, "over decades"):
                iterations = check(shape, spacing, law, mask, shift).iterations
                assert iterations <= (55 if mask in PINNED and shift is None else 22), (mask, shift)


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("spacing", SPACINGS[1:], ids=str)
def test_solutions_on_slender_grids_of_flat_cells_are_those_of_elimination(spacing, law):
    check((12, 300), spacing, law, "compression", None)
    check((12, 300), spacing, law, "edges", "constant")


@pytest.mark.parametrize("name", _core.build_info()["instruction_sets"])
def test_every_instruction_set_solves_in_few_iterations(name):
    before = _core.build_info()["instruction_set"]
    _core.select_instruction_set(name)
    try:
        for law in LAWS:
            for shift in (None, "over decades"):
                assert check((37, 70), (1e-3, 2e-3), law, "compression", shift).iterations <= 20
    finally:
        _core.select_instruction_set(before)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_apply_is_the_sparse_matrix(law):
    form, x, active, shift, v = problem((17, 30), (1e-3, 2e-3), law, "random", "over decades")
    rows, a = matrix(form, x, active, shift)
    w = form.solver(x.ravel(), active, shift).apply(v)
    expected = a @ v.ravel()[rows]
    np.testing.assert_allclose(w.ravel()[rows], expected, atol=1e-12 * np.abs(expected).max())
    assert not w.ravel()[~active.ravel()].any()


# ---------------------------------------------------------------- how fast it gets there


@pytest.mark.parametrize(("law", "limit"), [(LAWS[0], 10), (LAWS[1], 15)], ids=["plane stress", "plane strain"])
@pytest.mark.parametrize("n", [64, 128])
def test_compression_takes_few_iterations(law, limit, n):
    form = ElasticForm(Grid((n, n), (1e-3, 1e-3)), law)
    load = compression(form.geometry, pressure=100.0)
    solver = form.solver(inclusion((n, n)).ravel(), load.loaded)
    for b in (load.force, np.random.default_rng(0).standard_normal((2, n, n))):
        assert solver.solve(b).iterations <= limit


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("mask", ["compression", "clamped", "edges"])
def test_iterations_do_not_grow_with_the_mesh(law, mask):
    counts = []
    for n in (32, 128):
        form = ElasticForm(Grid((n, n), (0.03 / (n - 1),) * 2), law)
        solver = form.solver(inclusion((n, n)).ravel(), ~fixed_dofs(form.geometry, mask))
        counts.append(solver.solve(np.random.default_rng(0).standard_normal((2, n, n))).iterations)
    assert counts[1] <= counts[0] + 2, counts


@pytest.mark.parametrize(("law", "limit"), [(LAWS[0], 20), (LAWS[1], 30)], ids=["plane stress", "plane strain"])
@pytest.mark.parametrize("contrast", [0.02, 50.0])
def test_high_contrast_takes_few_iterations(law, limit, contrast):
    form = ElasticForm(Grid((65, 65), (1e-3, 1e-3)), law)
    load = compression(form.geometry, pressure=100.0)
    assert form.solver(inclusion((65, 65), contrast).ravel(), load.loaded).solve(load.force).iterations <= limit


def test_an_almost_incompressible_body_is_solved():
    form = ElasticForm(Grid((64, 64), (1e-3, 1e-3)), PlaneStrain(0.4999))
    load = compression(form.geometry, pressure=100.0)
    assert form.solver(inclusion((64, 64)).ravel(), load.loaded).solve(load.force).iterations <= 75


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("seed", [25, 294, 310])  # draws with an isolated largest eigenvalue of the smoother
def test_a_rough_modulus_takes_few_iterations(law, seed):
    form, x, active, _, _ = problem((33, 33), (1.0, 1.0), law, "clamped", None, seed, roughness=0.5)
    b = np.random.default_rng(seed).standard_normal(active.shape)
    assert form.solver(x.ravel(), active).solve(b).iterations <= 15


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("mask", MASKS[:5])
def test_units_do_not_matter(law, mask):
    """Tiny and huge moduli go through the single-precision cycle alike."""
    form, x, active, _, b = problem((33, 40), (1e-3, 1e-3), law, mask)
    expected = form.solver(x.ravel(), active).solve(b)
    for factor in (1e-20, 1e20):
        solution = form.solver(factor * x.ravel(), active).solve(1e-15 * b)
        assert abs(solution.iterations - expected.iterations) <= 1 + expected.iterations // 8
        scaled = factor * 1e15 * solution.value
        assert np.linalg.norm(scaled - expected.value) < 1e-4 * np.linalg.norm(expected.value)


def test_results_do_not_depend_on_the_number_of_threads():
    form, x, active, shift, b = problem((131, 140), (1e-3, 1e-3), LAWS[1], "compression", "over decades")
    before = _core.get_num_threads()
    try:
        values = []
        for count in (1, 2):
            _core.set_num_threads(count)
            values.append(form.solver(x.ravel(), active, shift).solve(b).value)
    finally:
        _core.set_num_threads(before)
    assert np.array_equal(*values)


# ---------------------------------------------------------------- the preconditioner


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shift", [None, "over decades"])
def test_preconditioner_is_symmetric_and_positive(law, mask, shift):
    form, x, active, diagonal, _ = problem((33, 40), (1e-3, 2e-3), law, mask, shift)
    solver = form.solver(x.ravel(), active, diagonal)
    rng = np.random.default_rng(3)
    for _ in range(5):
        v, w = rng.standard_normal((2, 2, form.geometry.n_nodes))
        mv, mw = solver.precondition(v), solver.precondition(w)
        assert not mv[~solver.active].any()
        scale = np.sqrt(np.vdot(v, mv) * np.vdot(w, mw))
        assert abs(np.vdot(w, mv) - np.vdot(v, mw)) < 1e-5 * scale
        assert np.vdot(v, mv) > 0
        smooth = solver.apply(solver.precondition(v))  # rich in what the cycle treats worst
        assert np.vdot(smooth, solver.precondition(smooth)) > 0


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("seed", [0, 25])
def test_eigenvalues_of_the_preconditioned_matrix_lie_between_0_3_and_1(law, seed):
    """All eigenvalues of cycle x matrix are positive and none is far above one."""
    form, x, active, _, _ = problem((33, 33), (1.0, 1.0), law, "clamped", None, seed, roughness=0.5)
    solver = form.solver(x.ravel(), active)
    rows, a = matrix(form, x, active, None)
    factor = np.linalg.cholesky(a.toarray())
    field = np.zeros(active.size)

    def matvec(v):
        field[rows] = factor @ v
        return factor.T @ solver.precondition(field.reshape(2, -1)).ravel()[rows]

    symmetric = LinearOperator((len(rows),) * 2, matvec=matvec, dtype=float)
    values = eigsh(symmetric, k=2, which="BE", tol=1e-3, return_eigenvectors=False, v0=np.ones(len(rows)))
    assert values.min() > 0.3 and values.max() < 1.01


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_approximate_inverse_has_the_stated_accuracy(law):
    form, x, active, _, b = problem((33, 40), (1e-3, 1e-3), law, roughness=0.2)
    solver = form.solver(x.ravel(), active)
    rows, a = matrix(form, x, active, None)
    exact = splu(a.tocsc()).solve(b.ravel()[rows])
    for accuracy in (0.1, 1e-3):
        error = solver.approximate_inverse(b, accuracy).ravel()[rows] - exact
        assert np.sqrt(error @ (a @ error)) < accuracy * np.sqrt(exact @ (a @ exact))


# ---------------------------------------------------------------- the call


@pytest.fixture
def solver():
    form, x, active, _, _ = problem((33, 40), (1e-3, 1e-3), LAWS[1])
    return form.solver(x.ravel(), active)


def test_solve_from_a_guess_is_shorter_and_leaves_the_guess_alone(solver):
    b = np.random.default_rng(1).standard_normal(solver.active.shape)
    cold = solver.solve(b)
    again = solver.solve(b, x0=cold.value)
    assert again.iterations == 0 and np.array_equal(again.value, cold.value)
    near = solver.solve(b, x0=cold.value * (1 + 1e-4 * np.sin(np.arange(b.size)).reshape(b.shape)))
    assert near.iterations < cold.iterations and near.residual <= 1e-8
    far = solver.solve(b, x0=np.random.default_rng(2).standard_normal(b.shape))  # also where nothing is active
    assert far.residual <= 1e-8 and not far.value[~solver.active].any()
    start = cold.value.copy()
    solver.solve(2 * b, x0=start)
    assert np.array_equal(start, cold.value)  # the guess is the caller's


def test_inactive_entries_are_ignored(solver):
    b = np.random.default_rng(1).standard_normal(solver.active.shape)
    other = np.where(solver.active, b, 1e9)
    assert np.array_equal(solver.solve(b).value, solver.solve(other).value)
    assert np.array_equal(solver.precondition(b), solver.precondition(other))


def test_a_failed_solve_leaves_nothing_behind(solver):
    b = np.random.default_rng(1).standard_normal(solver.active.shape)
    expected = solver.solve(b).value
    with pytest.raises(RuntimeError, match="residual of nan"):
        solver.solve(np.where(b == b[0, 5], np.nan, b))
    assert np.array_equal(solver.solve(b).value, expected)


def test_solve_of_zero_is_zero_without_iterations(solver):
    solution = solver.solve(np.zeros(solver.active.shape))
    assert solution.iterations == 0 and solution.residual == 0 and not solution.value.any()


def test_looser_tolerances_take_fewer_iterations(solver):
    b = np.random.default_rng(1).standard_normal(solver.active.shape)
    counts = [solver.solve(b, rtol=rtol) for rtol in (1e-2, 1e-5, 1e-8, 1e-11)]
    assert sorted({s.iterations for s in counts}) == [s.iterations for s in counts]
    assert all(s.residual <= rtol for s, rtol in zip(counts, (1e-2, 1e-5, 1e-8, 1e-11), strict=True))


def test_energy_tolerance_bounds_the_error_in_the_energy_norm(solver):
    """With the core's `energy` the error in the energy norm falls by the tolerance."""
    b = np.random.default_rng(1).standard_normal(solver.active.shape)
    exact = solver.solve(b, rtol=1e-12).value
    for rtol in (1e-2, 1e-4):
        found = np.zeros_like(b)
        assert solver._core.solve(b, found, rtol, 200, energy=True)[2]
        error = found - exact
        assert np.vdot(error, solver.apply(error)) < (2 * rtol) ** 2 * np.vdot(exact, solver.apply(exact))


def test_solver_names_what_does_not_fit_or_converge(solver):
    b = np.ones(solver.active.shape)
    with pytest.raises(
        RuntimeError, match=r"stopped at a relative residual of \d\.\de-\d+ after 3 iterations, 1.0e-08 was asked for"
    ):
        solver.solve(b, maxiter=3)
    form = ElasticForm(Grid((4, 5), (1e-3, 1e-3)), LAWS[0])
    with pytest.raises(ValueError, match="active marks no dof: there is nothing to solve for"):
        form.solver(np.ones(20), np.zeros((2, 4, 5), bool))
    with pytest.raises(ValueError, match="cannot reshape"):
        form.solver(np.ones(20), np.ones((2, 5, 5), bool))
    with pytest.raises(RuntimeError, match="relative residual of nan"):
        solver.solve(np.full(solver.active.shape, np.nan))
