"""The form and its solver on a structured `Grid`: thin shells over the C++ core."""

from __future__ import annotations

import os
from functools import cached_property

import numpy as np

from .. import _core
from ..boundary import rigid_modes
from ..errors import SolveError
from ..laws import MultigridSettings
from .krylov import semi_iteration
from .protocol import Solution
from .sparsity import SparsityPattern, contraction_pattern, stiffness_pattern

__all__ = ["GridBackend", "GridSolver"]

# Accuracy of the mode of a deflated dof where it has to be solved for, and the limit on the iterations. The mode only
# shapes the preconditioner, never the solution. Not studied.
MODE_RTOL, MODE_MAX_ITERATIONS = 1e-3, 50
ROUNDING = 1e-12  # relative size below which the parts of a rigid mode are rounding errors

# A forked process inherits GCC's record of OpenMP's threads, but not the threads, and would wait for them for ever. Its
# work is done by one thread. Results do not depend on the number of threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _core.set_num_threads(1))


class GridBackend:
    """The four contractions of the form on one `Grid` with one law.

    Arrays must be contiguous, of one dtype (float64 or float32) and of the shapes below; `ElasticForm` sees
    to that. Results have the dtype of the arguments.
    """

    def __init__(self, grid, law):
        self.grid = grid
        self.law = law
        (n0, n1), (h0, h1) = grid.shape, grid.spacing
        self.core = _core.GridForm(n0, n1, h0, h1, law.lame_lambda, law.lame_mu, law.mean_dilatation)
        self._last_deflation = None

    def force(self, x, u, out=None):
        """K(x) u for a batch: x (1 or B, N) and u (B, 2, N) give (B, 2, N), and whether all of it is finite."""
        out = np.empty_like(u) if out is None else out
        return out, self.core.force(x, u, out)

    def sensitivity(self, u, v, out=None):
        """D(u)^T v for a batch: u and v (B, 2, N) give (B, N), and whether all of it is finite."""
        out = np.empty((len(u), u.shape[-1]), u.dtype) if out is None else out
        return out, self.core.sensitivity(u, v, out)

    def stiffness(self, x, out=None):
        """K(x) of x (N,) as a 2N x 2N CSR array, dof = component * N + node; pattern shared by all results."""
        out = self.stiffness_pattern.matrix(x.dtype, out)
        self.core.stiffness_values(x, self.stiffness_pattern.starts, out.data)
        return out

    def contraction(self, u, out=None):
        """D(u) of u (2, N) as a 2N x N CSR array, row = component * N + node; pattern as in `stiffness`."""
        out = self.contraction_pattern.matrix(u.dtype, out)
        self.core.contraction_values(u, self.contraction_pattern.starts, out.data)
        return out

    @cached_property
    def _node_graph(self):
        """The up to nine neighbours of every node, itself included, in ascending order, as CSR (indptr, nodes)."""
        n0, n1 = self.grid.shape
        i, j = np.meshgrid(np.arange(n0), np.arange(n1), indexing="ij")
        offsets = np.array([(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)])
        rows, columns = i[..., None] + offsets[:, 0], j[..., None] + offsets[:, 1]
        exists = (rows >= 0) & (rows < n0) & (columns >= 0) & (columns < n1)
        indptr = np.concatenate([[0], np.cumsum(exists.reshape(n0 * n1, 9).sum(axis=1))])
        return indptr, (rows * n1 + columns)[exists]

    @cached_property
    def stiffness_pattern(self) -> SparsityPattern:
        """The pattern of K, shared by all its matrices."""
        indptr, nodes = self._node_graph
        return stiffness_pattern(indptr, nodes, self.grid.dim)

    @cached_property
    def contraction_pattern(self) -> SparsityPattern:
        """The pattern of D, shared by all its matrices."""
        indptr, nodes = self._node_graph
        return contraction_pattern(indptr, nodes, self.grid.dim)

    def deflation(self, fixed):
        """What `_deflation` finds, remembered for the last mask: solvers for many moduli share one support."""
        last = self._last_deflation  # read once, since threads may share the form
        if last is None or not np.array_equal(last[0], fixed):
            self._last_deflation = last = fixed, _deflation(self.grid, fixed)
        return last[1]

    def solver(self, x, active, shift=None):
        """`GridSolver` for K(x) + diag(shift) on the active dofs."""
        return GridSolver(self, x, active, shift)


class GridSolver:
    """Multigrid-preconditioned conjugate gradients for A w = b, A = K(x) + diag(shift), on the active dofs.

    All other dofs are zero going in and coming out. The hierarchy works in single precision inside
    conjugate gradients in double precision.

    Parameters
    ----------
    backend : GridBackend
    x : array of float64, shape (N,)
        Nodal modulus in pascals, positive.
    active : array of bool, shape (2, N)
        Dofs to solve for.
    shift : array of float64, shape (2, N), optional
        Not negative; default zero.
    """

    def __init__(self, backend, x, active, shift=None):
        self.active = np.ascontiguousarray(active, bool).reshape(2, backend.grid.n_nodes)
        if not self.active.any():
            raise ValueError("active marks no dof: there is nothing to solve for")
        x, shift = self._taken(x, shift)
        fixed = ~self.active
        self._dof, self._mode = backend.deflation(fixed)
        self._settings = backend.law.multigrid
        self._core = _core.Multigrid(
            backend.core, x, fixed.view(np.uint8), shift, self._dof, smoother=smoother(self._settings)
        )
        self._deflate(shift)

    def update(self, x, shift=None):
        """Take another modulus and shift, see `Solver`."""
        x, shift = self._taken(x, shift)
        self._core.update(x, shift)
        self._deflate(shift)

    def _taken(self, x, shift):
        """The core's own kind of arrays."""
        x = np.ascontiguousarray(x, np.float64).reshape(self.active.shape[1])
        return x, None if shift is None else np.ascontiguousarray(shift, np.float64).reshape(self.active.shape)

    def _deflate(self, shift):
        if self._dof >= 0:
            mode = self._mode if shift is None else self._deflated_mode(self._dof, np.zeros(self.active.shape))
            self._core.deflate(mode)

    def _deflated_mode(self, dof, load):
        """Mode of the deflated dof where a shift resists the rigid motion: the response to a force at that dof.

        The system is solved with the dof free, which it is until the mode is known; the response is scaled to be one at
        the dof.

        Parameters
        ----------
        dof : int
        load : array of float64, shape (..., 2, N)
            Zeros.
        """
        at = (..., *divmod(dof, load.shape[-1]))
        load[at] = 1
        w = self._solve_for_mode(load)
        return w / w[at][..., None, None]

    def _solve_for_mode(self, load):
        w = np.zeros_like(load)
        self._core.solve(load, w, MODE_RTOL, MODE_MAX_ITERATIONS, energy=True)
        return w

    def solve(self, b, x0=None, rtol=1e-8, maxiter=200) -> Solution:
        """Solve to a true relative residual of ``rtol``.

        Parameters
        ----------
        b : array of float64, shape (2, N) or (1, 2, N)
            Right-hand side; entries on inactive dofs are ignored.
        x0 : array of float64, same shape, optional
            Initial guess.
        rtol : float
            Bound for ||b - A w|| / ||b||.
        maxiter : int
            Limit on the iterations.

        Raises
        ------
        RuntimeError
            If the residual is not reached; the message says what was.
        """
        shape, fields = np.shape(b), self.active.shape
        b = np.ascontiguousarray(b, np.float64).reshape(fields)
        w = np.zeros(fields) if x0 is None else np.array(x0, np.float64, order="C").reshape(fields)
        iterations, residual, converged = self._core.solve(b, w, rtol, maxiter, energy=False)
        if not converged:
            self._refuse(residual, iterations, rtol)
        return Solution(w.reshape(shape), iterations, residual)

    @staticmethod
    def _refuse(residual, iterations, rtol):
        raise SolveError(
            f"the solve stopped at a relative residual of {residual:.1e} after {iterations} iterations, "
            f"{rtol:.1e} was asked for. Try a larger rtol; a Poisson ratio close to 0.5, a modulus that "
            "spans many decades and very flat cells make the system hard"
        )

    def precondition(self, r):
        """About A^-1 r for r (2, N), one fixed symmetric positive definite operator: a V-cycle or two."""
        return self._accelerated(r, [(0.0, 1.0)] * self._settings.curvature_cycles)

    def approximate_inverse(self, r, accuracy):
        """A^-1 r to about the given relative accuracy, as one fixed symmetric positive definite operator.

        V-cycles accelerated by the Chebyshev semi-iteration, as many as the accuracy takes.
        """
        low, high = self._settings.spectrum
        rate = (np.sqrt(high / low) - 1) / (np.sqrt(high / low) + 1)
        count = int(np.ceil(np.log(accuracy / 2) / np.log(rate)))
        return self._accelerated(r, semi_iteration(low, high, count))

    def _accelerated(self, r, steps):
        """Sum of d over the steps (momentum, gain): d = momentum d + gain M r, r -= A d, with M one V-cycle."""
        own = np.ascontiguousarray(r, np.float64).reshape(self.active.shape)
        return self._core.accelerated(own, steps).reshape(np.shape(r))

    def apply(self, w):
        """A w for w (2, N); zero on inactive dofs."""
        return self._core.apply(np.ascontiguousarray(w, np.float64).reshape(self.active.shape)).reshape(np.shape(w))


def smoother(settings: MultigridSettings) -> list[tuple[float, float]]:
    """Coefficients of a law's smoother, as of `semi_iteration`, for a largest eigenvalue of one."""
    return semi_iteration(1 / settings.smoother_ratio, 1.0, settings.smoother_degree)


def _deflation(grid, fixed):
    """The fixed dof to be deflated, if any, and the rigid mode that it alone holds.

    Multigrid reduces the reaction of a single fixed dof slowly, because coarse grids do not represent it. Where one
    such dof alone holds the body against a rigid motion (the lateral pin of `compression`), the hierarchy leaves it
    free and each cycle removes the rigid mode from its result exactly (deflation). Measured iterations in plane
    strain: 11 instead of 14 to 17. With several such dofs deflation costs more than it gains (31 to 42 iterations
    instead of 15 to 21), so they stay in the hierarchy.

    Returns
    -------
    dof : int
        Dof number, component * N + node, or -1.
    mode : array of float64, shape (2, N)
        The rigid motion, one at the dof; zeros without a dof.
    """
    n = grid.n_nodes
    nothing = -1, np.zeros((2, n))
    held = np.flatnonzero(fixed)
    if not 0 < len(held) < 0.5 * fixed.size:
        return nothing
    wide = np.pad(fixed.reshape(2, *grid.shape), ((0, 0), (1, 1), (1, 1)))
    k, j, i = np.unravel_index(held, (2, *grid.shape))
    around = sum(wide[k, j + a, i + b].astype(int) for a in range(3) for b in range(3))
    alone, rest = held[around == 1], held[around > 1]

    def motions(dofs):
        return rigid_modes(grid, dofs % n)[:, dofs // n, np.arange(len(dofs))]

    values, vectors = np.linalg.eigh(motions(rest) @ motions(rest).T / n)
    vectors[np.abs(vectors) < ROUNDING] = 0  # a pure translation is then constant to the last bit, and cheaper
    free = vectors[:, values < ROUNDING]  # motions that only lone dofs hold
    if free.shape[1] != 1 or not len(alone):
        return nothing
    free = free[:, 0]
    at_dofs = free @ motions(alone)
    best = int(np.argmax(np.abs(at_dofs)))
    free = free / at_dofs[best]
    # a translation is made constant to the last bit: solvers then store two numbers instead of a field
    mode = np.tensordot(free, rigid_modes(grid), 1) if free[2] else np.repeat(free[:2, None], n, axis=1)
    return int(alone[best]), mode
