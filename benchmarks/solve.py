"""Forward solves against direct and multigrid solvers: ``OMP_NUM_THREADS=1 python benchmarks/solve.py``.

Every solve is for a new modulus, to a true relative residual of 1e-8. elastofast is timed with everything,
from the checks of its arguments and the set-up to the displacement. Peers get the matrix for nothing, the
direct solvers also the analysis of its pattern. Peers, each optional: pypardiso, scikit-sparse (CHOLMOD),
PyAMG, and PETSc (another interpreter may hold it: --petsc /usr/bin/python3).
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from side_by_side import LAWS, Remote, optional, print_table, problem, race, save

import elastofast as ef
from elastofast.boundary import rigid_modes

RTOL = 1e-8


def main():
    """Run the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[256, 512], help="of the race with peers")
    parser.add_argument("--scaling", type=int, nargs="*", default=[64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--petsc", default="python3", help="interpreter that can import petsc4py")
    options = parser.parse_args()
    tables = {}
    if options.sizes:
        tables["peers"] = [peers(n, *law, options) for n in options.sizes for law in LAWS.items()]
    if options.scaling:
        cases = [(n, *law) for law in LAWS.items() for n in options.scaling]
        tables["scaling"] = [scaling(*case, options.rounds) for case in cases]
        print_table([*tables["scaling"][0]], [[*row.values()] for row in tables["scaling"]])
    save("solve", tables)


def peers(n, name, law, options):
    """All solvers on one problem; modulus and matrix change from call to call."""
    form, x, load = problem(n, law)
    rng = np.random.default_rng(0)
    moduli = [x * rng.uniform(0.9, 1.1, x.shape) for _ in range(3)]
    # for the peers: fixed dofs decoupled, the two displacements of a node next to each other
    order = np.arange(2 * x.size).reshape(2, -1).T.ravel()
    keep = load.loaded.ravel()[order].astype(float)
    matrices = []
    for modulus in moduli:
        k = form.stiffness(modulus)[order][:, order]
        k = sp.diags_array(keep) @ k @ sp.diags_array(keep) + sp.diags_array((1 - keep) * k.diagonal())
        k.eliminate_zeros()
        matrices.append(k)
    b = load.force.ravel()[order]
    modes = (rigid_modes(form.geometry).reshape(3, -1)[:, order] * keep).T.copy()
    residuals = {}

    def contestant(name, solve, problems):
        """Times ``solve`` on one problem after the other and keeps the worst true residual."""
        turn = itertools.cycle(zip(problems, matrices, strict=True))

        def run():
            given, matrix = next(turn)
            start = time.perf_counter()
            u = solve(given)
            seconds = time.perf_counter() - start
            error = np.linalg.norm(b - matrix @ u) / np.linalg.norm(b)
            residuals[name] = max(error, residuals.get(name, 0))
            return seconds

        return run

    def ours(x):
        return ef.solve_forward(form, x, load, rtol=RTOL).ravel()[order]

    contestants = {"elastofast": contestant("elastofast", ours, moduli)}
    for name_, make in (("PARDISO", pardiso), ("CHOLMOD", cholmod), ("PyAMG", pyamg)):
        with optional(name_):
            contestants[name_] = contestant(name_, *make(matrices, b, modes))
    remote = None
    with optional("PETSc GAMG"), tempfile.TemporaryDirectory() as folder:
        for i, matrix in enumerate(matrices):
            sp.save_npz(f"{folder}/{i}.npz", sp.csr_matrix(matrix), compressed=False)
        np.savez(f"{folder}/problem.npz", b=b, modes=modes)
        script = Path(__file__).with_name("petsc_solve.py")
        remote = contestants["PETSc GAMG"] = Remote(options.petsc, script, folder, RTOL)
    times = race(contestants, options.rounds)
    if remote:
        residuals["PETSc GAMG"] = remote.last["residual"]
        remote.close()
    own = times["elastofast"]["median"]
    rows = [[k, t["median"], t["median"] / own, residuals[k]] for k, t in times.items()]
    print_table([f"{n} x {n}, {name}", "seconds", "of elastofast", "residual"], rows)
    return {"grid": f"{n} x {n}", "law": name, "times": times, "residuals": residuals}


def pardiso(matrices, b, modes):
    """MKL's sparse Cholesky factorisation and solve; the analysis is done once."""
    from pypardiso import PyPardisoSolver

    solver = PyPardisoSolver(mtype=2)  # symmetric positive definite: upper triangle
    upper = [sp.triu(matrix, format="csr") for matrix in matrices]
    solver.set_phase(11)
    solver._call_pardiso(upper[0], b)
    solver.set_phase(23)
    return lambda matrix: solver._call_pardiso(matrix, b), upper


def cholmod(matrices, b, modes):
    """SuiteSparse's sparse Cholesky factorisation and solve; the analysis is done once."""
    from sksparse.cholmod import analyze

    matrices = [sp.csc_matrix(matrix) for matrix in matrices]
    factor = analyze(matrices[0], mode="supernodal", ordering_method="metis")

    def solve(matrix):
        factor.cholesky_inplace(matrix)
        return factor(b)

    return solve, matrices


def pyamg(matrices, b, modes):
    """PyAMG's smoothed aggregation, set-up and conjugate gradients."""
    from pyamg import smoothed_aggregation_solver

    def solve(matrix):
        hierarchy = smoothed_aggregation_solver(matrix, modes, max_coarse=300)
        # its stopping rule is the preconditioned residual: ask for more until the true one fits
        u, rtol = None, RTOL
        while u is None or np.linalg.norm(b - matrix @ u) > RTOL * np.linalg.norm(b):
            u = hierarchy.solve(b, x0=u, tol=rtol, accel="cg", maxiter=400)
            rtol /= 10
        return u

    return solve, [sp.bsr_array(matrix, blocksize=(2, 2)) for matrix in matrices]


def scaling(n, name, law, rounds):
    """Iterations and time against size."""
    form, x, load = problem(n, law)
    loaded = load.loaded.reshape(2, -1)
    force = load.force.reshape(2, -1)
    noise = np.random.default_rng(0).normal(size=force.shape) * loaded
    times = race(
        {
            "set-up": lambda: form.solver(x, load.loaded),
            "all": lambda: ef.solve_forward(form, x, load, rtol=RTOL),
        },
        rounds,
    )
    solver = form.solver(x, load.loaded)
    return {
        "law": name,
        "nodes a side": n,
        "iterations, pressure": solver.solve(force, rtol=RTOL).iterations,
        "iterations, random force": solver.solve(noise, rtol=RTOL).iterations,
        "set-up s": times["set-up"]["median"],
        "solve_forward s": times["all"]["median"],
        "us per dof": 1e6 * times["all"]["median"] / loaded.sum(),
    }


if __name__ == "__main__":
    main()
