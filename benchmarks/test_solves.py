"""Forward solves, solves with Gamma, the data term, whole reconstructions: ``pytest benchmarks --benchmark-only``."""

import itertools

import numpy as np
import peers
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg as sla
from side_by_side import LAWS, mesh_problem, phantom, problem, volume_problem
from test_operators import laws, powers

import elastofast as ef

pytestmark = pytest.mark.benchmark(max_time=0.5, min_rounds=3, warmup=True, warmup_iterations=1)
long = pytest.mark.benchmark(max_time=1.0, min_rounds=2, warmup=False)
STD = 2e-7  # metres, of the displacement


@laws
def test_set_up(measure, n, law):
    """The multigrid hierarchy for another modulus."""
    form, x, load = problem(n, LAWS[law])
    measure(f"set-up: {law}, {n} x {n}", form.solver, x, load.loaded, dofs=2 * x.size)


@pytest.mark.parametrize("method", ["elastofast", *peers.SOLVERS, "PETSc GAMG"])
@pytest.mark.parametrize("body", [*LAWS, "mesh"])
def test_forward_solve(measure, request, n, body, method):
    """From a new modulus to the displacement; the peers get the matrix, the direct ones also its analysis."""
    if body == "mesh":
        pytest.importorskip("numba", reason="meshes need numba")
    form, x, load = mesh_problem(n) if body == "mesh" else problem(n, LAWS[body])
    group, size = f"forward solve: {body}, {n} x {n}", {"dofs": 2 * x.size}
    if method == "elastofast":
        measure(group, ef.solve_forward, form, x, load, rtol=peers.RTOL, **size)
        return
    if method == "PETSc GAMG":
        remote = peers.petsc(request.getfixturevalue("other_python"), peers.System(form, x, load))
        assert measure(group, remote, **size)["residual"] < 10 * peers.RTOL
        remote.close()
        return
    make, module = peers.SOLVERS[method]
    peers.needed(method, module, n)
    system = peers.System(form, x, load)
    system.check(measure(group, make(system), **size))


@pytest.mark.parametrize("method", ["elastofast", *peers.SOLVERS])
@pytest.mark.parametrize("poisson", [0.3, 0.495])
def test_forward_solve_of_a_volume(measure, n, poisson, method):
    """The same on hexahedra, about as many nodes as in the plane."""
    side = round(n ** (2 / 3))
    form, x, load = volume_problem(side, poisson)
    group, size = f"forward solve: volume, Poisson ratio {poisson}, {side}^3", {"dofs": 3 * x.size}
    if method == "elastofast":
        measure(group, ef.solve_forward, form, x, load, rtol=peers.RTOL, **size)
        return
    make, module = peers.SOLVERS[method]
    peers.needed(method, module, 2 * n)  # the factors of a volume have many more entries
    system = peers.System(form, x, load)
    system.check(measure(group, make(system), **size))


@pytest.mark.parametrize("method", ["elastofast", "PARDISO", "SuperLU"])
@pytest.mark.parametrize("noise", ["displacement", "displacement and force"])
@laws
def test_gamma_solve(measure, n, law, noise, method):
    """Set-up and solve with Gamma = S_w + K S_n K^T; the peers get the matrix, PARDISO also its analysis."""
    form, x, load = problem(n, LAWS[law])
    force_std = 0.0
    if noise != "displacement":
        force_std = 1e-3 * STD * sla.norm(form.stiffness(x), np.inf)  # where Gamma is neither of its two parts
    rng = np.random.default_rng(1)
    r = form.force(x, STD * rng.normal(size=form.dof_shape) * ~load.fixed)
    r = (r + force_std * rng.normal(size=r.shape)) * load.loaded
    group, size = f"Gamma solve: {noise} noise, {law}, {n} x {n}", {"dofs": 2 * x.size}

    def ours():
        return ef.NoiseCovariance(form, x, load, displacement_std=STD, force_std=force_std).solve(r, rtol=1e-8).value

    if method == "elastofast":
        measure(group, ours, **size)
        return
    peers.needed(method, {"PARDISO": "pypardiso", "SuperLU": "scipy"}[method], n if method == "SuperLU" else 2 * n)
    order = np.arange(2 * x.size).reshape(2, -1).T.ravel()
    order = order[load.loaded.ravel()[order]]
    k = form.stiffness(x)[order]
    if method == "SuperLU" and not force_std:  # K^-T S_n^-1 K^-1: K is square and far better conditioned than Gamma
        square, b = sp.csc_matrix(k[:, order]), r.ravel()[order]

        def solve():
            factor = sla.splu(square, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
            return factor.solve(factor.solve(b) / STD**2, trans="T")
    else:
        noisy = sp.diags_array(STD**2 * ~load.fixed.ravel())
        gamma, b = k @ noisy @ k.T + force_std**2 * sp.eye_array(len(order)), r.ravel()[order]
        if method == "SuperLU":
            gamma = sp.csc_matrix(gamma)

            def solve():
                return sla.splu(gamma, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve(b)
        else:
            from pypardiso import PyPardisoSolver

            solver = PyPardisoSolver(mtype=2)
            upper = sp.csr_matrix(sp.triu(gamma, format="csr"))
            solver.set_phase(11)
            solver._call_pardiso(upper, b)
            solver.set_phase(23)

            def solve():
                return solver._call_pardiso(upper, b)

    answer, own = measure(group, solve, **size), ours().ravel()[order]
    # rounding: the condition of Gamma is the square of that of K
    assert np.linalg.norm(k.T @ (answer - own)) < 1e-2 * np.linalg.norm(k.T @ own)


@pytest.mark.parametrize("method", ["exact", "frozen", "SuperLU", "CHOLMOD"])
@laws
def test_misfit_gradient(measure, n, law, method):
    """The data term and its gradient; the peers factorise K(x) once and do the rest with the exact formulas."""
    form, x, load = problem(n, LAWS[law])
    m = ef.simulate(form.geometry, form.law, load, x, snr=35.0, seed=0)
    x = x * np.random.default_rng(0).uniform(0.9, 1.1, x.shape)
    group, size = f"gradient of the misfit: {law}, {n} x {n}", {"dofs": 2 * x.size}
    if method in ("exact", "frozen"):
        fidelity, maps = ef.Fidelity(m, gradient=method), itertools.cycle([x, 1.1 * x, 0.9 * x])
        measure(group, lambda: fidelity(next(maps)), **size)  # at a map where it was before it goes on from there
        return
    module = {"SuperLU": "scipy", "CHOLMOD": "sksparse.cholmod"}[method]
    peers.needed(method, module, n)
    free = np.flatnonzero(load.loaded.ravel())
    precision = 1 / m.displacement_std.ravel()[free] ** 2

    def misfit():
        k = form.stiffness(x)[free][:, free].tocsc()
        if method == "CHOLMOD":
            from sksparse.cholmod import cholesky

            solve = cholesky(sp.csc_matrix(k), ordering_method="metis")
        else:
            solve = sla.splu(k, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve
        u, z = np.zeros(2 * x.size), np.zeros(2 * x.size)
        u[free] = solve(load.force.ravel()[free])
        difference = m.displacement.ravel()[free] - u[free]
        z[free] = -solve(precision * difference)
        return precision @ difference**2 / 2, -form.sensitivity(u.reshape(form.dof_shape), z.reshape(form.dof_shape))

    value, gradient = measure(group, misfit, **size)
    ours = ef.Fidelity(m)(x)
    assert abs(value - ours[0]) < 1e-5 * ours[0]
    assert np.linalg.norm(gradient - ours[1]) < 1e-4 * np.linalg.norm(ours[1])


@pytest.mark.parametrize("method", ["in one call", "one after the other"])
@pytest.mark.parametrize("task", ["forward solve", "gradient of the misfit"])
@long
def test_batch(measure, task, method):
    """Sixteen moduli on 128 x 128 nodes, on all threads."""
    form, x, load = problem(128, LAWS["plane stress"])
    moduli = x * np.random.default_rng(0).uniform(0.8, 1.25, (16, *x.shape))
    fidelity = ef.Fidelity(ef.simulate(form.geometry, form.law, load, x, snr=35.0, seed=0))
    call = fidelity if task != "forward solve" else lambda x: ef.solve_forward(form, x, load)
    if method == "in one call":
        measure(f"{task}: batch of 16", call, moduli, dofs=2 * moduli.size)
    else:
        measure(f"{task}: batch of 16", lambda moduli: [call(x) for x in moduli], moduli, dofs=2 * moduli.size)


@powers
def test_forward_solve_on_threads(measure, threads):
    """512 x 512 nodes."""
    form, x, load = problem(512, LAWS["plane stress"])
    measure("forward solve: threads", ef.solve_forward, form, x, load, dofs=2 * x.size)


@pytest.mark.parametrize("prior", ["tv", "critic"])
@laws
@long
def test_reconstruction(measure, n, law, prior):
    """A whole map of a lesion at 35 dB, with the automatic weight."""
    if prior == "critic":
        pytest.importorskip("torch", reason="learned priors need torch")
    m, _ = phantom(n, LAWS[law])
    how = {"prior": prior, "weight": "auto"}
    result = measure(f"reconstruction: {prior}, {law}, {n} x {n}", ef.reconstruct, m, dofs=2 * m.reference.size, **how)
    assert result.status == "converged"
