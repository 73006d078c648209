"""Derivatives by JAX's check_grads, that is, against central differences; values against the NumPy functions."""

from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
from test_fidelity import measure, truth
from test_manners import wild

import elastofast as ef

jax = pytest.importorskip("jax")
ej = pytest.importorskip("elastofast.interop.jax")

import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def fields(form, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(1, 2, (2, *form.node_shape)), rng.normal(size=form.dof_shape), rng.normal(size=form.dof_shape)


@pytest.mark.parametrize(("geometry", "law"), [("grid", "plane stress"), ("mesh", "plane strain")])
def test_force_sensitivity_and_solve_twice(float64, geometry, law):
    form, load, *_ = truth(geometry, law, "strain")
    x, u, v = fields(form)
    np.testing.assert_allclose(ej.force(form, x, u), form.force(x, u))
    np.testing.assert_allclose(ej.sensitivity(form, u, v), form.sensitivity(u, v))
    expected = ef.solve_forward(form, x, load)
    np.testing.assert_allclose(ej.solve_forward(form, x, load), expected, atol=1e-7 * np.abs(expected).max())
    check_grads(lambda x, u: ej.force(form, x, u), (x[0], u), order=2, modes=["rev"])
    check_grads(lambda u, v: ej.sensitivity(form, u, v), (u, v), order=2, modes=["rev"])

    def solve(x, f):
        return 1e3 * ej.solve_forward(form, x, load, force=1e-3 * f, rtol=1e-12)

    check_grads(solve, (x[0], u), order=2, modes=["rev"])


def test_misfit_under_grad_jit_and_vmap(float64):
    m, x = measure("9 x 10", "plane stress", "pressure", "holes")
    fidelity = ef.Fidelity(m, rtol=1e-11, on_failure="inf")
    value, gradient = fidelity(x)

    def objective(z):
        return ej.misfit(fidelity, jnp.exp(z))

    found = jax.jit(jax.value_and_grad(objective))(np.log(x))
    assert float(found[0]) == pytest.approx(value)
    np.testing.assert_allclose(found[1], x * gradient, atol=1e-6 * np.abs(x * gradient).max())
    check_grads(lambda z: objective(np.log(x) + z) / value, (np.zeros_like(x),), order=1, modes=["rev"], rtol=1e-5)
    batch = np.stack([x, 1.5 * x, wild(x.shape)])
    values, gradients = jax.vmap(jax.value_and_grad(objective))(np.log(batch))
    np.testing.assert_allclose(values, [value, fidelity(1.5 * x)[0], np.inf])
    np.testing.assert_allclose(gradients[1], 1.5 * x * fidelity(1.5 * x)[1], rtol=1e-5, atol=1e-6 * abs(value))
    assert not gradients[2].any()
    with pytest.raises(ValueError, match="x must have shape"):
        ej.misfit(fidelity, x[1:])
    with pytest.raises(TypeError, match="fidelity must be a Fidelity"):
        ej.misfit(m, x)
    with pytest.raises(ValueError, match="frozen"):
        ej.misfit(ef.Fidelity(m, gradient="frozen"), x)


def test_moduli_that_cannot_be_solved(float64):
    form, load, x, *_ = truth("9 x 10", "plane stress", "strain")
    batch = np.stack([wild(x.shape), x, -x])

    def energy(x):
        u = ej.solve_forward(form, x, load, on_failure="inf")
        return (u**2).sum() / 2

    values, slopes = jax.vmap(jax.value_and_grad(energy))(batch)
    assert np.isinf(values[::2]).all() and not slopes[::2].any()
    value, slope = jax.value_and_grad(energy)(x)
    np.testing.assert_allclose(values[1], value)
    np.testing.assert_allclose(slopes[1], slope, atol=1e-6 * np.abs(slope).max())
    with pytest.raises(Exception, match="x must be positive"):
        jax.jit(lambda x: ej.solve_forward(form, x, load))(-x).block_until_ready()


def test_float32_has_its_own_accuracy():
    m, x = measure("9 x 10", "plane stress", "pressure")
    form, load, x64, u64, _ = truth("9 x 10", "plane stress", "pressure")
    value, gradient = ef.Fidelity(m)(x.astype(np.float32).astype(np.float64))
    found, slope = jax.value_and_grad(lambda x: ej.misfit(ef.Fidelity(m), x))(jnp.asarray(x, jnp.float32))
    assert found.dtype == slope.dtype == jnp.float32
    assert float(found) == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(slope, gradient, atol=1e-5 * np.abs(gradient).max())
    u = ej.solve_forward(form, x64, load)
    assert u.dtype == jnp.float32
    np.testing.assert_allclose(u, u64, atol=1e-5 * np.abs(u64).max())
    assert ej.force(form, x64.astype(int), u64).dtype == jnp.float32


def test_example():
    errors = run_path(str(Path(__file__).parent.parent / "examples" / "with_jax.py"))["main"](nodes=16, steps=40)
    assert errors[-1] < 0.75 * errors[0]
