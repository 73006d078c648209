"""Assembly by dolfinx and solves by PETSc's GAMG, for peers.py: runs under any interpreter that has them.

It prints a line of JSON when it is ready, and one for each run; a run begins with each line that it reads.
"""

import itertools
import json
import sys

import numpy as np
from petsc4py import PETSc


def dolfinx(values, h0, h1, lam, mu, reduced):
    """Refills of K(x)."""
    import dolfinx
    import dolfinx.fem.petsc
    import ufl
    from mpi4py import MPI

    values, h0, h1, lam, mu = np.load(values), *map(float, (h0, h1, lam, mu))
    corners = [[0, 0], [(values.shape[0] - 1) * h0, (values.shape[1] - 1) * h1]]
    cells = [values.shape[0] - 1, values.shape[1] - 1]
    mesh = dolfinx.mesh.create_rectangle(MPI.COMM_SELF, corners, cells, dolfinx.mesh.CellType.quadrilateral)
    space = dolfinx.fem.VectorFunctionSpace(mesh, ("CG", 1))
    x = dolfinx.fem.Function(dolfinx.fem.FunctionSpace(mesh, ("CG", 1)))
    x.interpolate(lambda p: values[np.rint(p[0] / h0).astype(int), np.rint(p[1] / h1).astype(int)])
    u, v = ufl.TrialFunction(space), ufl.TestFunction(space)

    def dx(degree):
        return ufl.dx(metadata={"quadrature_degree": degree})

    shear = 2 * mu * x * ufl.inner(ufl.sym(ufl.grad(u)), ufl.sym(ufl.grad(v)))
    volume = lam * x * ufl.div(u) * ufl.div(v)
    flags = {"cffi_extra_compile_args": ["-O3", "-march=native"]}
    # two forms, because FFCx 0.5 mixes up the tables of two quadrature rules in one
    parts = [shear * dx(3), volume * dx(1)] if int(reduced) else [(shear + volume) * dx(3)]
    forms = [dolfinx.fem.form(part, jit_params=flags) for part in parts]
    matrix = dolfinx.fem.petsc.create_matrix(forms[0])

    def assemble():
        matrix.zeroEntries()
        for form in forms:
            dolfinx.fem.petsc.assemble_matrix(matrix, form)
        matrix.assemble()
        return {}

    assemble()
    return {"norm": matrix.norm(PETSc.NormType.FROBENIUS), "version": dolfinx.__version__}, assemble


def petsc(folder, rtol):
    """Set-up and conjugate gradients, for one matrix after the other; stops at the true residual."""
    import scipy.sparse as sp

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
    turn = itertools.cycle(matrices)

    def solve():
        matrix = next(turn)
        u.set(0)
        solver = PETSc.KSP().create(PETSc.COMM_SELF)
        solver.setOperators(matrix)
        solver.setType("cg")
        solver.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
        solver.setTolerances(rtol=float(rtol), max_it=1000)
        solver.getPC().setType("gamg")
        solver.setFromOptions()
        solver.solve(b, u)
        r = b.duplicate()
        matrix.mult(u, r)
        r.axpy(-1, b)
        return {"residual": r.norm() / b.norm(), "iterations": solver.getIterationNumber()}

    return {"version": PETSc.Sys.getVersion()}, solve


ready, run = {"dolfinx": dolfinx, "petsc": petsc}[sys.argv[1]](*sys.argv[2:])
print(json.dumps(ready), flush=True)
for _ in sys.stdin:
    print(json.dumps(run()), flush=True)
