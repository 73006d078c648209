"""Solves with K(x) on a `Mesh`: a sparse factorisation where that is cheap, algebraic multigrid beyond."""

from __future__ import annotations

import numpy as np
from scipy.sparse import bsr_array, csr_array, diags_array
from scipy.sparse.linalg import splu

from ..boundary import rigid_modes
from .krylov import restarted_conjugate_gradients
from .protocol import Solution, SolveError

__all__ = ["MeshSolver"]

# Active dofs up to which factorising is used, by dimension. Measured, seconds of one core, set-up + one
# solve to 1e-8, Poisson ratio 0.495 in 2-D (plane stress) and 0.45 in 3-D, moduli 1:5:
#
#     dofs      direct (SuperLU)   multigrid (PyAMG)         dofs      direct        multigrid
#     2-D 20k   .27 + .01          .31 + .27 (15 it)         3-D 5k    .58 + .01     .17 + .30 (22 it)
#     2-D 102k  2.8 + .06          1.9 + 2.0 (16 it)         3-D 12k   2.4 + .02     .64 + 1.6 (24 it)
#     2-D 201k  8.4 + .16          5.5 + 5.8 (19 it)         3-D 24k   10 + .06      .95 + 1.2 (28 it)
#     2-D 405k  24 + .38           12 + 16 (19 it)           3-D 35k   31 + .12      2.0 + 1.9 (28 it)
#
# Plane strain at 0.495 costs multigrid 70 iterations and more, and a reconstruction solves several times with
# each matrix, so in 2-D only memory (.9 GB at 200k) speaks against factorising.
DIRECT_LIMIT = {2: 200_000, 3: 10_000}


class MeshSolver:
    """Solver for A w = b, A = K(x) + diag(shift) on the active dofs; all other dofs are zero going in and
    coming out.

    Parameters
    ----------
    backend : MeshBackend
    x : array of float64, shape (N,)
        Nodal modulus in pascals, positive.
    active : array of bool, shape (d, N)
        Dofs to solve for.
    shift : array of float64, shape (d, N), optional
        Not negative; default zero.

    Attributes
    ----------
    method : str
        "direct" or "multigrid". Multigrid needs PyAMG; without it large meshes are factorised as well.

    Raises
    ------
    ValueError
        If no dof is active.
    numpy.linalg.LinAlgError
        If A is singular to working precision.
    """

    def __init__(self, backend, x, active, shift=None):
        mesh = backend.mesh
        self.active = np.asarray(active, dtype=bool).reshape(mesh.dim, mesh.n_nodes)
        if not self.active.any():
            raise ValueError("active marks no dof: there is nothing to solve for")
        matrix = backend.stiffness(np.asarray(x, dtype=np.float64).reshape(mesh.n_nodes))
        if shift is not None:
            matrix = matrix + diags_array(np.asarray(shift, dtype=np.float64).ravel())
        pyamg = _pyamg() if self.active.sum() > DIRECT_LIMIT[mesh.dim] else None
        self.method = "direct" if pyamg is None else "multigrid"
        # _order lists the dofs, as component * N + node, in the order in which _matrix and _inverse want them
        if pyamg is None:
            self._order = np.flatnonzero(self.active)
            self._matrix = matrix[self._order][:, self._order]
            self._inverse = _factorise(self._matrix)
        else:
            self._order = np.arange(self.active.size).reshape(self.active.shape).T.ravel()
            self._matrix, self._inverse = _multigrid(pyamg, matrix, self.active, rigid_modes(mesh), self._order)

    def solve(self, b, x0=None, rtol=1e-8, maxiter=500) -> Solution:
        """Solve to a true relative residual of ``rtol`` by preconditioned conjugate gradients.

        Parameters
        ----------
        b : array of float64, shape (d, N) or (1, d, N)
            Right-hand side; entries on inactive dofs are ignored.
        x0 : array of float64, same shape, optional
            Initial guess.
        rtol : float
            Bound for ||b - A w|| / ||b||.
        maxiter : int
            Limit on the iterations. A factorised system takes one or two.

        Raises
        ------
        ValueError
            If b is not finite.
        RuntimeError
            If the residual is not reached.
        """
        rhs = self._take(b)
        if not np.isfinite(rhs).all():
            raise ValueError("b must be finite on the active dofs")
        guess = None if x0 is None else self._take(x0)
        w, iterations, _, (residual,) = restarted_conjugate_gradients(
            self._matrix.__matmul__, self._inverse, rhs, guess, rtol=rtol, maxiter=maxiter
        )
        if residual <= rtol:
            return Solution(self._put(w).reshape(np.shape(b)), iterations, float(residual))
        raise SolveError(
            f"the solve stopped at a relative residual of {residual:.1e} after {iterations} iterations, "
            f"{rtol:.1e} was asked for. Try a larger rtol or maxiter; a modulus that spans many decades, "
            "a Poisson ratio close to 0.5 and very flat cells make the system hard"
        )

    def precondition(self, r):
        """A^-1 r for r (d, N): exact if factorised, else one V-cycle, symmetric positive definite."""
        return self._put(self._inverse(self._take(r))).reshape(np.shape(r))

    def approximate_inverse(self, r, accuracy):
        """A^-1 r, one fixed operator where factorised, else a solve to a hundredth of the given accuracy."""
        return self.precondition(r) if self.method == "direct" else self.solve(r, rtol=0.01 * accuracy).value

    def apply(self, w):
        """A w for w (d, N); zero on inactive dofs."""
        return self._put(self._matrix @ self._take(w)).reshape(np.shape(w))

    def _take(self, field):
        """Dof field (d, N) to the solver's own vector."""
        return np.where(self.active, field, 0.0).ravel()[self._order]

    def _put(self, vector):
        """The solver's own vector to a dof field (d, N)."""
        field = np.zeros(self.active.size)
        field[self._order] = vector
        return np.where(self.active, field.reshape(self.active.shape), 0.0)


def _pyamg():
    try:
        import pyamg
    except ImportError:
        return None
    return pyamg


def _singular():
    return np.linalg.LinAlgError(
        "the stiffness matrix is singular on the active dofs: the body, or a part of it, can move without "
        "deforming. Check the support, separate pieces, and pieces that hang together by a single node"
    )


def _factorise(matrix):
    """The inverse of a sparse symmetric positive definite matrix as a function."""
    try:
        factor = splu(
            matrix.T.tocsc(),  # symmetric, so the transposed rows are the columns: no copying
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
    except RuntimeError as error:  # a pivot of exactly zero
        raise _singular() from error
    # Rounding hides most zero pivots. A random vector then comes back as a huge multiple of the free motion,
    # whose Rayleigh quotient, relative to the diagonal, is at the level of rounding.
    r = np.random.default_rng(0).standard_normal(matrix.shape[0])
    w = factor.solve(r)
    if not r @ w > 1e-13 * (w @ (matrix.diagonal() * w)):
        raise _singular()
    return factor.solve


def _multigrid(pyamg, matrix, active, modes, order):
    """Matrix over all dofs in node order, identity-like where inactive, and one V-cycle for it.

    Smoothed aggregation keeps the dofs of a node together and reproduces the rigid motions (Vanek, Mandel,
    Brezina, Computing 56, 1996).
    """
    keep = active.ravel().astype(np.float64)
    masked = diags_array(keep) @ matrix @ diags_array(keep) + diags_array((1 - keep) * matrix.diagonal())
    d = len(active)
    blocks = bsr_array(csr_array(masked)[order][:, order], blocksize=(d, d))
    u, s, _ = np.linalg.svd((modes * active).reshape(len(modes), -1)[:, order].T, full_matrices=False)
    near_null = u[:, s > 1e-8 * s[0]]
    energy = near_null.T @ (blocks @ near_null)
    scale = near_null.T @ (blocks.diagonal()[:, None] * near_null)
    if np.linalg.eigvalsh(energy)[0] <= 1e-13 * np.linalg.eigvalsh(scale)[-1]:
        raise _singular()
    state = np.random.get_state()  # noqa: NPY002 (PyAMG draws from the global generator)
    np.random.seed(0)  # noqa: NPY002
    try:
        hierarchy = pyamg.smoothed_aggregation_solver(
            blocks, near_null, smooth=("energy", {"maxiter": 2}), max_coarse=300
        )
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return blocks, hierarchy.aspreconditioner(cycle="V").matvec
