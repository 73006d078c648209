"""Our own speed, to compare two versions: ``pytest benchmarks --benchmark-only``."""

import numpy as np
import pytest
from side_by_side import LAWS, problem

import elastofast as ef

pytestmark = pytest.mark.benchmark(max_time=0.5, min_rounds=3, warmup=True, warmup_iterations=1)
laws = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
sizes = pytest.mark.parametrize("n", [256, 512])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@laws
@sizes
def test_force(benchmark, n, law, dtype):
    form, x, _ = problem(n, law)
    u = np.random.default_rng(0).normal(size=form.dof_shape).astype(dtype)
    benchmark(form.force, x.astype(dtype), u)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@laws
@sizes
def test_sensitivity(benchmark, n, law, dtype):
    form, _, _ = problem(n, law)
    u, v = np.random.default_rng(0).normal(size=(2, *form.dof_shape)).astype(dtype)
    benchmark(form.sensitivity, u, v)


@laws
@sizes
def test_stiffness(benchmark, n, law):
    form, x, _ = problem(n, law)
    benchmark(form.stiffness, x, out=form.stiffness(x))


@laws
@sizes
def test_contraction(benchmark, n, law):
    form, _, _ = problem(n, law)
    u = np.random.default_rng(0).normal(size=form.dof_shape)
    benchmark(form.contraction, u, out=form.contraction(u))


@laws
@sizes
def test_set_up(benchmark, n, law):
    form, x, load = problem(n, law)
    benchmark(form.solver, x, load.loaded)


@laws
@sizes
def test_solve_forward(benchmark, n, law):
    form, x, load = problem(n, law)
    benchmark(ef.solve_forward, form, x, load)


@pytest.mark.parametrize("force_std", [0.0, 1e-5])
@laws
def test_covariance(benchmark, law, force_std):
    form, x, load = problem(256, law)
    gamma = ef.NoiseCovariance(form, x, load, displacement_std=2e-7, force_std=force_std)
    r = gamma.apply(1e6 * np.random.default_rng(0).normal(size=form.dof_shape))
    benchmark(gamma.solve, r)


@pytest.mark.parametrize("gradient", ["exact", "frozen"])
@laws
def test_fidelity(benchmark, law, gradient):
    form, x, load = problem(256, law)
    m = ef.simulate(form.geometry, law, load, x)
    benchmark(ef.Fidelity(m, gradient=gradient), x)
