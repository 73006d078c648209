"""Assembly of K(x) by dolfinx, for kernels.py: runs under any interpreter that has dolfinx."""

import json
import sys
import time

import dolfinx
import numpy as np
import ufl
from mpi4py import MPI
from petsc4py import PETSc

values = np.load(sys.argv[1])
h0, h1, lam, mu = map(float, sys.argv[2:6])
reduced = sys.argv[6] == "plane strain"

n = len(values)
corners = [[0, 0], [(n - 1) * h0, (n - 1) * h1]]
mesh = dolfinx.mesh.create_rectangle(MPI.COMM_SELF, corners, [n - 1, n - 1], dolfinx.mesh.CellType.quadrilateral)
space = dolfinx.fem.VectorFunctionSpace(mesh, ("CG", 1))
x = dolfinx.fem.Function(dolfinx.fem.FunctionSpace(mesh, ("CG", 1)))
x.interpolate(lambda p: values[np.rint(p[0] / h0).astype(int), np.rint(p[1] / h1).astype(int)])
u, v = ufl.TrialFunction(space), ufl.TestFunction(space)


def dx(degree):
    """Gauss rule of this degree."""
    return ufl.dx(metadata={"quadrature_degree": degree})


shear = 2 * mu * x * ufl.inner(ufl.sym(ufl.grad(u)), ufl.sym(ufl.grad(v)))
volume = lam * x * ufl.div(u) * ufl.div(v)
flags = {"cffi_extra_compile_args": ["-O3", "-march=native"]}
# two forms, because FFCx 0.5 mixes up the tables of two quadrature rules in one
parts = [shear * dx(3), volume * dx(1)] if reduced else [(shear + volume) * dx(3)]
forms = [dolfinx.fem.form(part, jit_params=flags) for part in parts]
matrix = dolfinx.fem.petsc.create_matrix(forms[0])


def assemble():
    """One refill of the matrix."""
    matrix.zeroEntries()
    for form in forms:
        dolfinx.fem.petsc.assemble_matrix(matrix, form)
    matrix.assemble()


assemble()
norm = matrix.norm(PETSc.NormType.FROBENIUS)
print(json.dumps({"norm": norm, "version": dolfinx.__version__}), flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    assemble()
    print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
