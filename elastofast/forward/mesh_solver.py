"""Solves with K(x) on a `Mesh`: a sparse factorisation where that is cheap, multigrid beyond."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.sparse import diags_array
from scipy.sparse.linalg import splu

from ..errors import SingularError, SolveError
from .krylov import restarted_conjugate_gradients
from .protocol import Solution

__all__ = ["MeshSolver"]

# A system is factorised if it has no more active dofs than this times the number of V-cycles that `precondition` would
# take, by dimension. Measured, ms of one core for what a Gauss-Newton step takes (set-up, 2 solves to 1e-4, 24 of
# `precondition`):
#
#     nodes     plane stress, 3 cycles   plane strain .45, 4      plane strain .495, 7-9
#               direct  multigrid        direct  multigrid        direct  multigrid
#     33 x 33   11      13               21      19               22      41
#     49 x 49   26      19               64      42               64      89
#     65 x 65   50      34               177     74               185     169
#     97 x 97   168     69               546     169              533     431
#
# With a factorisation there are also fewer steps.
DIRECT_DOFS_PER_CYCLE = {2: 1_300, 3: 300}
# Accuracy of the fixed operator that stands for K^-1 in products with the Gauss-Newton Hessian, which it enters
# squared. With .3 total variation took 44 and 14 steps on triangles of 65 and 129 nodes a side, with .15 34 and 8, with
# .08 33 and 8.
CURVATURE_ACCURACY = 0.15


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
        "direct" or "multigrid".

    Raises
    ------
    ValueError
        If no dof is active.
    SingularError
        If A is singular to working precision.
    """

    def __init__(self, backend, x, active, shift=None):
        self._backend, mesh = backend, backend.mesh
        self.active = np.asarray(active, dtype=bool).reshape(mesh.dim, mesh.n_nodes)
        if not self.active.any():
            raise ValueError("active marks no dof: there is nothing to solve for")
        self._rows, self._nodes = np.flatnonzero(self.active), np.ascontiguousarray(self.active.T)
        self._least, self._free = 1.0, False  # eigenvalue of V-cycle times matrix; whether a motion needs no force
        self.method, limit = "direct", DIRECT_DOFS_PER_CYCLE[mesh.dim]
        if self.active.sum() > 2 * limit:  # where one or two cycles would do it is not worth the set-up of multigrid
            from .mesh_multigrid import cycles

            ones = np.ones(mesh.n_nodes)
            self._least, self._free = backend.hierarchy.least(self._nodes, lambda: backend.stiffness(ones))
            if self.active.sum() > limit * cycles(self._least, CURVATURE_ACCURACY):
                self.method = "multigrid"
        self.update(x, shift)

    def update(self, x, shift=None):
        """Take another modulus and shift, see `Solver`."""
        backend = self._backend
        if self._free and shift is None:
            raise _singular()
        matrix = backend.stiffness(np.asarray(x, dtype=np.float64).reshape(backend.mesh.n_nodes))
        if shift is not None:
            shift = np.asarray(shift, dtype=np.float64).reshape(self.active.shape)
        self._cycles: Callable
        if self.method == "direct":
            if shift is not None:
                matrix = matrix + diags_array(shift.ravel())
            matrix = matrix[self._rows][:, self._rows]
            inverse = _factorise(matrix)
            self._product, self._cycle = matrix.__matmul__, inverse
            self._cycles = lambda r, accuracy: inverse(r)
        else:
            from .mesh_multigrid import MeshMultigrid

            shift = None if shift is None else shift.T
            multigrid = MeshMultigrid(backend.hierarchy, matrix, self._nodes, shift, self._least)
            self._product, self._cycle, self._cycles = multigrid.product, multigrid.cycle, multigrid.accelerated

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
            self._product, self._cycle, rhs, guess, rtol=rtol, maxiter=maxiter
        )
        if residual <= rtol:
            return Solution(self._put(w).reshape(np.shape(b)), iterations, float(residual))
        raise SolveError(
            f"the solve stopped at a relative residual of {residual:.1e} after {iterations} iterations, "
            f"{rtol:.1e} was asked for. Try a larger rtol or maxiter; a modulus that spans many decades, "
            "a Poisson ratio close to 0.5 and very flat cells make the system hard"
        )

    def precondition(self, r):
        """A^-1 r for r (d, N): exact if factorised, else by a few V-cycles; one fixed symmetric positive definite
        operator.
        """
        return self.approximate_inverse(r, CURVATURE_ACCURACY)

    def approximate_inverse(self, r, accuracy):
        """A^-1 r to about the given relative accuracy, as one fixed symmetric positive definite operator."""
        return self._put(self._cycles(self._take(r), accuracy)).reshape(np.shape(r))

    def apply(self, w):
        """A w for w (d, N); zero on inactive dofs."""
        return self._put(self._product(self._take(w))).reshape(np.shape(w))

    def _take(self, field):
        """Dof field (d, N) to the solver's own vector: of the active dofs, or of all dofs node by node."""
        field = np.reshape(field, self.active.shape)
        return field.ravel()[self._rows] if self.method == "direct" else np.where(self._nodes, field.T, 0.0).ravel()

    def _put(self, vector):
        """The solver's own vector to a dof field (d, N)."""
        if self.method == "multigrid":
            return np.ascontiguousarray((vector.reshape(self._nodes.shape) * self._nodes).T)
        field = np.zeros(self.active.size)
        field[self._rows] = vector
        return field.reshape(self.active.shape)


def _singular():
    return SingularError(
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
