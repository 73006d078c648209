"""Solves by PETSc GAMG, for solve.py: runs under any interpreter that has petsc4py."""

import itertools
import json
import sys
import time

import numpy as np
import scipy.sparse as sp
from petsc4py import PETSc

folder, rtol = sys.argv[1], float(sys.argv[2])
given = np.load(f"{folder}/problem.npz")
matrices = []
for i in range(3):
    a = sp.load_npz(f"{folder}/{i}.npz")
    matrix = PETSc.Mat().createAIJ(a.shape, bsize=2, csr=(a.indptr, a.indices, a.data), comm=PETSc.COMM_SELF)
    modes = [matrix.createVecLeft() for _ in given["modes"].T]
    for mode, values in zip(modes, np.linalg.qr(given["modes"])[0].T, strict=True):
        mode.array = values
    matrix.setNearNullSpace(PETSc.NullSpace().create(vectors=modes, comm=PETSc.COMM_SELF))
    matrices.append(matrix)
b, u = matrices[0].createVecs()
b.array = given["b"]


def solve(matrix):
    """Set-up and conjugate gradients; stops at the true residual."""
    u.set(0)
    solver = PETSc.KSP().create(PETSc.COMM_SELF)
    solver.setOperators(matrix)
    solver.setType("cg")
    solver.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
    solver.setTolerances(rtol=rtol, max_it=1000)
    solver.getPC().setType("gamg")
    solver.setFromOptions()
    solver.solve(b, u)
    return solver.getIterationNumber()


print(json.dumps({"version": PETSc.Sys.getVersion()}), flush=True)
turn = itertools.cycle(matrices)
for _ in sys.stdin:
    matrix = next(turn)
    start = time.perf_counter()
    iterations = solve(matrix)
    seconds = time.perf_counter() - start
    r = b.duplicate()
    matrix.mult(u, r)
    r.axpy(-1, b)
    answer = {"seconds": seconds, "residual": r.norm() / b.norm(), "iterations": iterations}
    print(json.dumps(answer), flush=True)
