"""What other packages need to take part in the benchmarks: their matrices, and one function for each of them.

All solve or build the same: the tests compare their answers with ours before they believe a time. A package that is
not installed skips its benchmark.
"""

import contextlib
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg as sla

import elastofast as ef
from elastofast.boundary import rigid_modes

RTOL = 1e-8
# nodes a side above which a peer needs minutes or tens of gigabytes: its benchmark is skipped
LARGEST = {"SuperLU": 256, "scipy CG": 256, "scikit-fem": 512, "torch-fem": 512, "CHOLMOD": 1024, "PARDISO": 1024}


def needed(name, module, n):
    """The module of a peer; skips the benchmark where it is not installed, or the problem too large for it."""
    if n > LARGEST.get(name, n):
        pytest.skip(f"{name} takes minutes or more memory than most have beyond {LARGEST[name]} nodes a side")
    return pytest.importorskip(module, reason=f"{name} is not installed")


# solves with K(x): each function gets a `System` and returns a function from a modulus to the displacement -----------


class System:
    """The matrices of a forward problem for those who solve with one: fixed dofs decoupled, nodes' dofs together.

    Every call is for another modulus, whose matrix is there beforehand: peers do not pay for its assembly.
    """

    def __init__(self, form, x, load):
        rng = np.random.default_rng(0)
        self.moduli = [x * rng.uniform(0.9, 1.1, x.shape) for _ in range(3)]
        d = form.geometry.dim
        self.order = np.arange(d * x.size).reshape(d, -1).T.ravel()
        keep = load.loaded.ravel()[self.order].astype(float)
        self.matrices = []
        for modulus in self.moduli:
            k = form.stiffness(modulus)[self.order][:, self.order]
            k = sp.diags_array(keep) @ k @ sp.diags_array(keep) + sp.diags_array((1 - keep) * k.diagonal())
            k.eliminate_zeros()
            self.matrices.append(sp.csr_array(k))
        self.b = load.force.ravel()[self.order]
        modes = rigid_modes(form.geometry)
        self.modes = (modes.reshape(len(modes), -1)[:, self.order] * keep).T.copy()
        self.turn = -1

    def next(self, own):
        """The next of the matrices, or of what a peer made of them."""
        self.turn = (self.turn + 1) % len(own)
        return own[self.turn]

    def check(self, u, rtol=10 * RTOL):
        """Refuse an answer that does not solve the system of the last turn."""
        residual = np.linalg.norm(self.b - self.matrices[self.turn] @ u) / np.linalg.norm(self.b)
        assert residual < rtol, f"relative residual {residual:.1e}"


def superlu(s):
    """SciPy's sparse LU factorisation."""
    own = [sp.csc_matrix(matrix) for matrix in s.matrices]
    options = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}
    return lambda: sla.splu(s.next(own), **options).solve(s.b)


def scipy_cg(s):
    """SciPy's conjugate gradients with the diagonal as preconditioner."""

    def solve():
        matrix = s.next(s.matrices)
        u, failed = sla.cg(matrix, s.b, rtol=RTOL, maxiter=100_000, M=sp.diags_array(1 / matrix.diagonal()))
        assert not failed
        return u

    return solve


def pardiso(s):
    """MKL's sparse Cholesky factorisation and solve; the analysis is done once."""
    from pypardiso import PyPardisoSolver

    solver = PyPardisoSolver(mtype=2)  # symmetric positive definite: upper triangle
    own = [sp.csr_matrix(sp.triu(matrix, format="csr")) for matrix in s.matrices]
    solver.set_phase(11)
    solver._call_pardiso(own[0], s.b)
    solver.set_phase(23)
    return lambda: solver._call_pardiso(s.next(own), s.b)


def cholmod(s):
    """SuiteSparse's sparse Cholesky factorisation and solve; the analysis is done once."""
    from sksparse.cholmod import analyze

    own = [sp.csc_matrix(matrix) for matrix in s.matrices]
    factor = analyze(own[0], mode="supernodal", ordering_method="metis")

    def solve():
        factor.cholesky_inplace(s.next(own))
        return factor(s.b)

    return solve


def pyamg(s):
    """PyAMG's smoothed aggregation with rigid modes: set-up and conjugate gradients."""
    from pyamg import smoothed_aggregation_solver

    d = s.modes.shape[1] // 3 + 1  # 2 for the three rigid modes of a plane, 3 for the six of space
    own = [sp.bsr_array(matrix, blocksize=(d, d)) for matrix in s.matrices]

    def solve():
        matrix = s.next(own)
        hierarchy = smoothed_aggregation_solver(matrix, s.modes, max_coarse=300)
        # its stopping rule is the preconditioned residual: ask for more until the true one fits
        u, rtol = None, RTOL
        while u is None or np.linalg.norm(s.b - matrix @ u) > RTOL * np.linalg.norm(s.b):
            u = hierarchy.solve(s.b, x0=u, tol=rtol, accel="cg", maxiter=400)
            rtol /= 10
        return u

    return solve


SOLVERS = {
    "SuperLU": (superlu, "scipy"),
    "scipy CG": (scipy_cg, "scipy"),
    "PARDISO": (pardiso, "pypardiso"),
    "CHOLMOD": (cholmod, "sksparse"),
    "PyAMG": (pyamg, "pyamg"),
}


# assembly of K(x): each function gets form and modulus, and returns a function and what makes a norm of its answer ----


def bincount(form, x):
    """NumPy's scatter into the pattern of K(x), from the table of one cell."""
    n0, n1 = form.node_shape
    corner = (np.arange(n0 - 1)[:, None] * n1 + np.arange(n1 - 1)).ravel()
    nodes = corner[:, None] + np.array([0, 1, n1, n1 + 1])
    cell = ef.ElasticForm(ef.Grid((2, 2), form.geometry.spacing), form.law)
    psi = np.stack([cell.stiffness(e.reshape(2, 2)).toarray() for e in np.eye(4)]).reshape(4, 64)
    k = form.stiffness(x)
    size, dofs = k.shape[0], np.hstack([nodes, nodes + x.size])
    keys = np.repeat(np.arange(size), np.diff(k.indptr)) * size + k.indices
    place = np.searchsorted(keys, np.repeat(dofs, 8, axis=1) * size + np.tile(dofs, (1, 8))).ravel()
    return lambda: np.bincount(place, (x.ravel()[nodes] @ psi).ravel(), minlength=k.nnz), np.linalg.norm


def scikit_fem(form, x):
    """scikit-fem, with mesh and bases made beforehand."""
    import skfem
    from skfem.helpers import ddot, div, sym_grad

    if isinstance(form.geometry, ef.Grid):
        h0, h1 = form.geometry.spacing
        mesh = skfem.MeshQuad.init_tensor(*(h * np.arange(n) for n, h in zip(form.node_shape, (h0, h1), strict=True)))
        node = tuple(np.rint(mesh.p / [[h0], [h1]]).astype(int))  # ours at each of theirs
        scalar, middle = skfem.ElementQuad1(), (np.full((2, 1), 0.5), np.ones(1))
    else:
        mesh, node = skfem.MeshTri(form.geometry.points.T.copy(), form.geometry.cells.T.copy()), slice(None)
        scalar, middle = skfem.ElementTriP1(), None
    vector = skfem.ElementVector(scalar)
    lam, mu = form.law.lame_lambda, form.law.lame_mu

    @skfem.BilinearForm
    def shear(u, v, w):
        return 2 * mu * w["x"] * ddot(sym_grad(u), sym_grad(v))

    @skfem.BilinearForm
    def volume(u, v, w):
        return lam * w["x"] * div(u) * div(v)

    full = skfem.quadrature.get_quadrature(vector, 3)
    parts = [(shear, full), (volume, middle if form.law.mean_dilatation else full)]
    bases = [skfem.Basis(mesh, vector, quadrature=points) for _, points in parts]
    values = [basis.with_element(scalar) for basis in bases]
    modulus = x[node]

    def assemble():
        return sum(
            part.assemble(basis, x=value.interpolate(modulus))
            for (part, _), basis, value in zip(parts, bases, values, strict=True)
        )

    return assemble, sla.norm


def torch_fem(form, x):
    """torch-fem, whose modulus is one number for each cell: it builds the same K for a homogeneous body alone."""
    import torch
    import torchfem

    if form.law.mean_dilatation:
        pytest.skip("torch-fem has no mean dilatation for plane strain")
    n0, n1 = form.node_shape
    corner = (torch.arange(n0 - 1)[:, None] * n1 + torch.arange(n1 - 1)).ravel()
    cells = corner[:, None] + torch.tensor([0, n1, n1 + 1, 1])
    modulus = torch.full((len(cells),), float(x.ravel()[0]), dtype=torch.float64)

    @contextlib.contextmanager
    def double():  # torch-fem makes its tables in the default dtype
        single = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(single)

    with double():
        law = torchfem.materials.IsotropicElasticityPlaneStress(E=modulus, nu=0 * modulus + form.law.poisson)
        body = torchfem.Planar(torch.tensor(form.geometry.points), cells, law)
    none = torch.tensor([], dtype=torch.int64)

    def assemble():
        with double():
            return body.assemble_matrix(body.k0(), none)

    return assemble, lambda k: float(torch.linalg.norm(k.coalesce().values() if k.is_sparse else k.values()))


ASSEMBLIES = {
    "NumPy bincount": (bincount, "numpy"),
    "scikit-fem": (scikit_fem, "skfem"),
    "torch-fem": (torch_fem, "torchfem"),
}


# packages under another interpreter ---------------------------------------------------------------------------------


class Remote:
    """A function of ``other_python.py`` under another interpreter, which runs it once for each line that it gets."""

    def __init__(self, python, *words):
        command = [python, str(Path(__file__).with_name("other_python.py")), *map(str, words)]
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self.ready = self._answer()
        except (OSError, ImportError) as error:
            pytest.skip(f"{words[0]} does not run under {python}: {error}")

    def __call__(self):
        """Let it run once; what it says about it."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise ImportError(f"it ended with status {self.process.wait()}")
        return json.loads(line)

    def close(self):
        """End it."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def dolfinx(python, form, x):
    """Assembly by dolfinx; ``ready["norm"]`` is that of its matrix."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/x.npy", x)
        law = form.law
        numbers = (*form.geometry.spacing, law.lame_lambda, law.lame_mu, int(law.mean_dilatation))
        return Remote(python, "dolfinx", f"{folder}/x.npy", *numbers)


def petsc(python, s):
    """PETSc's algebraic multigrid (GAMG) and conjugate gradients; its answers have the "residual"."""
    with tempfile.TemporaryDirectory() as folder:
        for i, matrix in enumerate(s.matrices):
            sp.save_npz(f"{folder}/{i}.npz", sp.csr_matrix(matrix), compressed=False)
        np.savez(f"{folder}/problem.npz", b=s.b, modes=s.modes)
        return Remote(python, "petsc", folder, RTOL)
