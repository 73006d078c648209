"""PyLops operators by its own dot test, and against finite differences; pyproximal against SciPy's minimiser."""

from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
from scipy.optimize import minimize
from test_fidelity import measure, truth
from test_manners import wild

import elastofast as ef

pylops = pytest.importorskip("pylops")
pyproximal = pytest.importorskip("pyproximal")
el = pytest.importorskip("elastofast.interop.pylops")
ep = pytest.importorskip("elastofast.interop.pyproximal")

from pyproximal.optimization.primal import ProximalGradient  # noqa: E402

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("geometry", ["9 x 10", "mesh"])
def test_operators_pass_the_dot_test_and_know_the_shapes_of_fields(geometry):
    form, load, x, u, _ = truth(geometry, "plane stress", "pressure")
    m, _ = measure(geometry, "plane stress", "pressure", force_std=0.05)
    gamma = ef.NoiseCovariance(form, x, load, m.displacement_std, m.force_std)
    field = np.random.default_rng(0).normal(size=form.dof_shape)
    for operator, expected in (
        (el.stiffness(form, x), form.force(x, field)),
        (el.contraction(form, u), None),
        (el.compliance(form, x, load), None),
        (el.covariance(gamma), gamma.apply(np.where(load.loaded, field, 0.0))),
        (el.precision(gamma, 1e-12), None),
        (el.hessian(ef.Fidelity(m, rtol=1e-12), x), None),
    ):
        # the entries of operators in SI units are far from one
        scaled = operator * (1 / np.abs(operator @ np.random.default_rng(1).normal(size=operator.shape[1])).max())
        assert pylops.utils.dottest(scaled, rtol=1e-7, atol=1e-9)
        assert (operator @ np.ones(operator.dims)).shape == operator.dimsd
        if expected is not None:
            np.testing.assert_allclose((operator @ field)[load.loaded], expected[load.loaded], rtol=1e-10)


def test_compliance_and_contraction_make_the_derivative_of_the_forward_problem():
    form, load, x, _, _ = truth("9 x 10", "plane stress", "pressure")
    u = ef.solve_forward(form, x, load, rtol=1e-12)
    dx = np.random.default_rng(0).normal(size=x.shape)
    jacobian = -el.compliance(form, x, load) @ el.contraction(form, u)
    ahead, behind = (ef.solve_forward(form, x + s * dx, load, rtol=1e-12) for s in (1.0, -1.0))
    expected = (ahead - behind) / 2
    np.testing.assert_allclose(jacobian @ dx, expected, atol=1e-6 * np.abs(expected).max())


def test_misfit_has_the_value_gradient_and_proximal_map_of_the_data_term():
    m, x = measure("9 x 10", "plane stress", "pressure")
    f, reference, v = ep.Misfit(m, tolerance=1e-6), ef.Fidelity(m), np.log(x).ravel()
    value, gradient = reference(x)
    assert f(v) == pytest.approx(value)
    np.testing.assert_allclose(f.grad(v), (x * gradient).ravel(), atol=1e-6 * np.abs(x * gradient).max())

    def objective(z):
        value, gradient = reference(np.exp(z))
        return value + 5.0 * ((z - v) ** 2).sum(), np.exp(z) * gradient + 10.0 * (z - v)

    found = minimize(objective, v, jac=True, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-7, "maxiter": 5000})
    np.testing.assert_allclose(f.prox(v, 0.1), found.x, atol=1e-5)
    with pytest.raises(ValueError, match="tau must be positive"):
        f.prox(v, 0.0)
    with pytest.raises(ValueError, match="z must have 90 values"):
        f(v[1:])


def test_backtracking_goes_on_after_a_modulus_that_cannot_be_solved():
    m, x = measure("9 x 10", "plane stress", "pressure")
    f, start = ep.Misfit(m), np.full(x.size, np.log(2e4))
    for bad in (np.log(wild(x.shape)).ravel(), np.full(x.size, 1e3), np.full(x.size, np.nan)):
        assert f(bad) == np.inf and not f.grad(bad).any()
    seen = []
    ProximalGradient(f, pyproximal.L2(sigma=1e-6), start, tau=1e3, backtracking=True, beta=0.1, niterback=20, niter=3,
                     callback=lambda z: seen.append(f(z)))  # fmt: skip
    assert np.isfinite(seen).all() and seen[-1] < f(start)


def test_example():
    errors = run_path(str(EXAMPLES / "with_pylops.py"))["main"](nodes=24)
    assert (
        errors["ADMM with total variation"] < errors["direct inversion"] and errors["ADMM with total variation"] < 0.2
    )
