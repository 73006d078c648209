"""Solves with the noise covariance: ``OMP_NUM_THREADS=1 python benchmarks/covariance.py``.

Iterations, residuals and time against the force noise, and one race with PARDISO (optional: pypardiso) on the
explicit matrix Gamma = S_w + K S_n K^T, which it gets for nothing together with the analysis of its pattern.
"""

import argparse
import resource

import numpy as np
import scipy.sparse as sp
from side_by_side import LAWS, optional, print_table, problem, race, save

import elastofast as ef

STD = 2e-7  # metres
RATIOS = (
    0.0,
    1e-6,
    1e-4,
    1e-3,
    1e-2,
    1e-1,
    1.0,
)  # force noise over displacement noise, in units of max eig(K)


def main():
    """Run both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()
    laws = LAWS.items()
    noise = [force_noise(options.size, *law, ratio) for law in laws for ratio in RATIOS]
    print_table([*noise[0]], [[*row.values()] for row in noise])
    tables = {"force noise": noise}
    if not options.no_peers:
        tables["peers"] = [peers(options.size, *law, ratio, options.rounds) for law in laws for ratio in (0, 1e-3)]
        print_table([*tables["peers"][0]], [[*row.values()] for row in tables["peers"]])
    save("covariance", tables)


def setting(n, law, ratio):
    """Form, modulus, load, force noise, and a residual as measurements give it."""
    form, x, load = problem(n, law)
    u = np.random.default_rng(0).normal(size=form.dof_shape) * load.loaded
    for _ in range(30):
        u /= np.linalg.norm(u)
        u = form.force(x, u) * load.loaded
    force_std = ratio * np.linalg.norm(u) * STD
    rng = np.random.default_rng(1)
    noise = STD * rng.normal(size=form.dof_shape) * ~load.fixed
    r = (form.force(x, noise) + force_std * rng.normal(size=form.dof_shape)) * load.loaded
    return form, x, load, force_std, r


def force_noise(n, name, law, ratio):
    """One solve, set-up included."""
    form, x, load, force_std, r = setting(n, law, ratio)
    solutions = []

    def solve():
        gamma = ef.NoiseCovariance(form, x, load, displacement_std=STD, force_std=force_std)
        solutions.append(gamma.solve(r, rtol=1e-8))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    solve()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    times = race({"solve": solve}, rounds=2)
    sol = solutions[-1]
    return {
        "law": name,
        "force noise": ratio,
        "iterations": sol.iterations,
        "stage residual": sol.stage_residual,
        "residual": sol.residual,
        "seconds": times["solve"]["median"],
        "peak MB more": peak,
    }


def peers(n, name, law, ratio, rounds):
    """The same by PARDISO, factorisation and solve."""
    form, x, load, force_std, r = setting(n, law, ratio)
    loaded, noisy = load.loaded.ravel(), ~load.fixed.ravel()
    # the two components of a node next to each other
    order = np.arange(2 * x.size).reshape(2, -1).T.ravel()
    order = order[loaded[order]]
    k = form.stiffness(x)[order]
    matrix = k @ sp.diags_array(STD**2 * noisy) @ k.T + force_std**2 * sp.eye_array(len(order))
    b = r.ravel()[order]
    z = {}

    def ours():
        gamma = ef.NoiseCovariance(form, x, load, displacement_std=STD, force_std=force_std)
        z["elastofast"] = gamma.solve(r, rtol=1e-8).value.ravel()[order]

    contestants = {"elastofast": ours}
    with optional("PARDISO"):
        from pypardiso import PyPardisoSolver

        solver = PyPardisoSolver(mtype=2)
        upper = sp.triu(matrix, format="csr")
        solver.set_phase(11)
        solver._call_pardiso(upper, b)
        solver.set_phase(23)

        def pardiso():
            z["PARDISO"] = solver._call_pardiso(upper, b)

        contestants["PARDISO"] = pardiso
    times = race(contestants, rounds)
    row = {"law": name, "force noise": ratio, "nonzeros of Gamma": matrix.nnz}
    for key in contestants:
        # what the noise explains: K z, free of the rounding that Gamma's own residual suffers from
        row[f"{key} s"] = times[key]["median"]
        row[f"{key} residual"] = np.linalg.norm(b - matrix @ z[key]) / np.linalg.norm(b)
    if "PARDISO" in z:
        row["PARDISO / elastofast"] = row["PARDISO s"] / row["elastofast s"]
        solver.free_memory(everything=True)
    return row


if __name__ == "__main__":
    main()
