"""The linear maps as SciPy's operators: against matrices and differences, and in SciPy's methods."""

import copy
import pickle

import numpy as np
import pytest
from dense import dense_psi
from scipy.optimize import least_squares, minimize
from scipy.sparse.linalg import LinearOperator, aslinearoperator, cg, eigsh, lsqr
from test_fidelity import GEOMETRIES, LAWS, SIGMA, measure

import elastofast as ef

RNG = np.random.default_rng(0)


def dense(operator):
    return operator @ np.eye(operator.shape[1])


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("geometry", ["grid", "mesh"])
def test_operators_of_the_form_are_its_matrices(geometry, law):
    form = ef.ElasticForm(GEOMETRIES[geometry], LAWS[law])
    psi = dense_psi(form.geometry, form.law)
    x, u = RNG.uniform(1, 2, form.node_shape), RNG.normal(size=form.dof_shape)
    k, d = form.stiffness_operator(x), form.contraction_operator(u)
    assert isinstance(k, LinearOperator) and isinstance(d, LinearOperator)
    np.testing.assert_allclose(dense(k), np.einsum("n,nij->ij", x.ravel(), psi), atol=1e-12)
    np.testing.assert_allclose(dense(d), np.einsum("nij,j->in", psi, u.ravel()), atol=1e-12)
    np.testing.assert_allclose(dense(d.T), dense(d).T, atol=1e-12)
    np.testing.assert_allclose(d @ x.ravel(), form.force(x, u).ravel())
    both = u.ravel() + 2j * u.ravel()[::-1]
    np.testing.assert_allclose(k @ both, dense(k) @ both, rtol=1e-10, atol=1e-12)
    loaded = ef.compression(form.geometry, pressure=1.0).loaded
    kept = np.flatnonzero(loaded)
    np.testing.assert_allclose(dense(form.stiffness_operator(x, loaded)), dense(k)[np.ix_(kept, kept)], atol=1e-12)


def test_operators_keep_the_dtype():
    form = ef.ElasticForm(GEOMETRIES["grid"], LAWS["plane stress"])
    x, u = np.ones(form.node_shape, np.float32), RNG.normal(size=form.dof_shape).astype(np.float32)
    assert form.stiffness_operator(x).dtype == (form.stiffness_operator(x) @ u.ravel()).dtype == np.float32
    assert form.contraction_operator(u).dtype == (form.contraction_operator(u) @ x.ravel()).dtype == np.float32


def test_stiffness_operator_in_conjugate_gradients_and_eigenvalues():
    grid = GEOMETRIES["9 x 10"]
    form, load = ef.ElasticForm(grid, LAWS["plane stress"]), ef.compression(grid, pressure=100.0)
    x = RNG.uniform(1e4, 2e4, grid.shape)
    u, info = cg(form.stiffness_operator(x, load.loaded), load.force[load.loaded], rtol=1e-11)
    assert info == 0
    np.testing.assert_allclose(u, ef.solve_forward(form, x, load)[load.loaded], rtol=1e-6, atol=1e-12)
    matrix = form.stiffness(x).toarray()[np.ix_(load.loaded.ravel(), load.loaded.ravel())]
    found = eigsh(form.stiffness_operator(x, load.loaded), k=3, which="LA", return_eigenvectors=False)
    np.testing.assert_allclose(found, np.linalg.eigvalsh(matrix)[-3:], rtol=1e-8)


def test_contraction_operator_in_least_squares():
    """Without noise D(u) x = f determines x."""
    grid = GEOMETRIES["9 x 10"]
    form, load = ef.ElasticForm(grid, LAWS["plane stress"]), ef.compression(grid, pressure=100.0)
    x = RNG.uniform(1e4, 2e4, grid.shape)
    u = ef.solve_forward(form, x, load, rtol=1e-12)
    rows = aslinearoperator(np.eye(u.size)[load.loaded.ravel()])
    operator = rows @ form.contraction_operator(u / 1e-4)  # scaled, so that the unknowns are of order one
    found = lsqr(operator, load.force[load.loaded] / 1e-4, atol=1e-14, btol=1e-14, iter_lim=5000)[0]
    np.testing.assert_allclose(found, x.ravel(), rtol=1e-4)


@pytest.mark.parametrize("force_std", [0.0, 0.05])
def test_covariance_and_its_inverse(force_std):
    m, x = measure("grid", "plane stress", "pressure")
    gamma = ef.NoiseCovariance(m.form, x, m.load, m.displacement_std, force_std)
    kept = m.load.loaded.ravel()
    k = m.form.stiffness(x).toarray()[np.ix_(kept, kept)]
    expected = np.diag(np.full(kept.sum(), force_std**2)) + k @ (SIGMA**2 * k.T)
    full = dense(gamma.as_operator())
    np.testing.assert_allclose(full[np.ix_(kept, kept)], expected, rtol=1e-9, atol=1e-12 * expected.max())
    assert not full[~kept].any() and not full[:, ~kept].any()
    inverse = dense(gamma.inverse(1e-12))
    np.testing.assert_allclose((full @ inverse)[np.ix_(kept, kept)], np.eye(kept.sum()), atol=1e-5)
    np.testing.assert_allclose(inverse, inverse.T, atol=1e-6 * np.abs(inverse).max())


@pytest.mark.parametrize(
    ("kind", "std", "force_std"),
    [
        ("pressure", "constant", 0.0),
        ("strain", "holes", 0.0),
        ("open side", "constant", 0.0),
        ("all open", "holes", 0.0),
        ("pressure", "uneven", 0.05),
        ("open side", "constant", 0.05),
    ],
)
@pytest.mark.parametrize("geometry", ["grid", "mesh"])
def test_exact_hessian_is_the_derivative_of_the_gradient(geometry, kind, std, force_std):
    m, truth = measure(geometry, "plane stress", kind, std, force_std)
    x = truth * np.exp(0.2 * np.random.default_rng(3).normal(size=truth.shape))
    fidelity = ef.Fidelity(m, rtol=1e-12)
    hessian = fidelity.hessian_operator(x, exact=True)
    v, h = np.random.default_rng(4).normal(size=x.shape) * x, 1e-4
    expected = sum(c * fidelity(x + k * h * v)[1] for k, c in ((1, 8), (-1, -8), (2, -1), (-2, 1))) / (12 * h)
    found = (hessian @ v.ravel()).reshape(x.shape)
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["pressure", "open side"])
def test_gauss_newton_hessian(kind):
    """D^T Gamma^-1 D with the dense Gamma, or on the Schur complement for open dofs."""
    m, x = measure("grid", "plane stress", kind)
    fidelity = ef.Fidelity(m, rtol=1e-12)
    found = dense(fidelity.hessian_operator(x))
    d = m.form.contraction(fidelity.evaluate(x.ravel()).displacement).toarray()[m.load.loaded.ravel()]
    k = m.form.stiffness(x).toarray()[m.load.loaded.ravel()][:, ~m.load.fixed.ravel()]
    expected = d.T @ np.linalg.solve(SIGMA**2 * k @ k.T, d)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


def test_hessian_in_newton_cg():
    m, truth = measure("9 x 10", "plane stress", "pressure")
    fidelity, n = ef.Fidelity(m), truth.size

    def objective(z):
        x = np.exp(z)
        value, gradient = fidelity(x)
        return value + 5 * z.var() * n, x * gradient + 10 * (z - z.mean())

    def product(z, v):
        x = np.exp(z)
        return x * (fidelity.hessian_operator(x) @ (x * v)) + 10 * (v - v.mean())

    start = np.full(n, np.log(2e4))
    found = minimize(objective, start, jac=True, hessp=product, method="Newton-CG", options={"xtol": 1e-6})
    assert found.success and np.linalg.norm(objective(found.x)[1]) < 1e-3 * np.linalg.norm(objective(start)[1])


def test_contraction_as_the_jacobian_of_least_squares():
    """The whitened residual K(x) u - f of a clean u is linear in x; SciPy finds the modulus with our Jacobian."""
    grid = GEOMETRIES["9 x 10"]
    form, load = ef.ElasticForm(grid, LAWS["plane stress"]), ef.compression(grid, pressure=100.0)
    truth = RNG.uniform(1, 2, grid.n_nodes)
    u = ef.solve_forward(form, truth, load, rtol=1e-12)
    loaded = load.loaded.ravel()
    rows = aslinearoperator(np.eye(u.size)[loaded])
    jacobian = rows @ form.contraction_operator(u.reshape(form.dof_shape))

    def residual(x):
        return form.force(x, u.reshape(2, -1)).ravel()[loaded] - load.force.ravel()[loaded]

    found = least_squares(residual, np.ones_like(truth), lambda x: jacobian, xtol=None, ftol=1e-15, gtol=1e-15)
    np.testing.assert_allclose(found.x, truth, rtol=1e-4)


def test_wrong_masks_are_refused():
    form = ef.ElasticForm(GEOMETRIES["grid"], LAWS["plane stress"])
    with pytest.raises(ValueError, match="active must be a mask"):
        form.stiffness_operator(np.ones(form.node_shape), np.ones(form.dof_shape))


def test_exact_hessian_of_the_general_case_is_refused():
    m, x = measure("grid", "plane stress", "pressure", "holes", 0.05)
    hessian = ef.Fidelity(m).hessian_operator(x, exact=True)
    with pytest.raises(ValueError, match="not implemented for force noise"):
        hessian @ x.ravel()


@pytest.mark.parametrize("geometry", ["grid", "mesh"])
def test_operators_pickle_and_deep_copy(geometry):
    m, x = measure(geometry, "plane stress", "pressure")
    gamma, fidelity = ef.NoiseCovariance(m.form, x, m.load, SIGMA), ef.Fidelity(m, rtol=1e-10)
    operators = {
        "stiffness": m.form.stiffness_operator(x),
        "its part": m.form.stiffness_operator(x, m.load.loaded),
        "contraction": m.form.contraction_operator(m.displacement),
        "covariance": gamma.as_operator(),
        "precision": gamma.inverse(),
        "Hessian": fidelity.hessian_operator(x),
        "adjoint": m.form.contraction_operator(m.displacement).T,
        "sum": m.form.stiffness_operator(x) + 2 * gamma.as_operator(),
    }
    for name, operator in operators.items():
        v = RNG.normal(size=operator.shape[1])
        for own in (pickle.loads(pickle.dumps(operator)), copy.deepcopy(operator)):
            assert own.shape == operator.shape and own.dtype == operator.dtype
            expected = operator @ v
            np.testing.assert_allclose(own @ v, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max(), err_msg=name)
