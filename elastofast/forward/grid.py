"""The form and its solver on a structured `Grid`: thin shells over the C++ core."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg import qr

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
# Condition number of the values of rigid motions at the dofs that alone hold them, above which they hardly hold them
# and are not deflated. Not studied.
WORST_CONDITION = 1e6

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
        lame, mu = law.lame_lambda, law.lame_mu
        self.core: Any  # of either dimension; their contractions have the same signatures
        if grid.dim == 2:
            (n0, n1), (h0, h1) = grid.shape, grid.spacing
            self.core = _core.GridForm(n0, n1, h0, h1, lame, mu, law.mean_dilatation)
        else:
            self.core = _core.VolumeForm(grid.shape, grid.spacing, lame, mu)
        self._last_deflation = None
        self._last_plan = None

    def force(self, x, u, out=None):
        """K(x) u for a batch: x (1 or B, N) and u (B, d, N) give (B, d, N), and whether all of it is finite."""
        out = np.empty_like(u) if out is None else out
        return out, self.core.force(x, u, out)

    def sensitivity(self, u, v, out=None):
        """D(u)^T v for a batch: u and v (B, d, N) give (B, N), and whether all of it is finite."""
        out = np.empty((len(u), u.shape[-1]), u.dtype) if out is None else out
        return out, self.core.sensitivity(u, v, out)

    def stiffness(self, x, out=None):
        """K(x) of x (N,) as a dN x dN CSR array, dof = component * N + node; pattern shared by all results."""
        out = self.stiffness_pattern.matrix(x.dtype, out)
        self.core.stiffness_values(x, self.stiffness_pattern.starts, out.data)
        return out

    def contraction(self, u, out=None):
        """D(u) of u (d, N) as a dN x N CSR array, row = component * N + node; pattern as in `stiffness`."""
        out = self.contraction_pattern.matrix(u.dtype, out)
        self.core.contraction_values(u, self.contraction_pattern.starts, out.data)
        return out

    @cached_property
    def _node_graph(self):
        """The up to 3^d neighbours of every node, itself included, in ascending order, as CSR (indptr, nodes)."""
        shape = self.grid.shape
        own = np.indices(shape).reshape(len(shape), -1, 1)
        offsets = np.indices((3,) * len(shape)).reshape(len(shape), 1, -1) - 1
        there = own + offsets
        exists = ((there >= 0) & (there < np.reshape(shape, (-1, 1, 1)))).all(axis=0)
        indptr = np.concatenate([[0], np.cumsum(exists.sum(axis=1))])
        return indptr, np.ravel_multi_index(tuple(there), shape, mode="clip")[exists]

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

    def multigrid(self, x, fixed, shift, dofs):
        """The solver of the core; the arguments are those of `GridSolver` and the deflated dofs."""
        steps, mask = smoother(self.law.multigrid), fixed.view(np.uint8)
        if self.grid.dim == 2:
            return _core.Multigrid(self.core, x, mask, shift, int(dofs[0]) if len(dofs) else -1, smoother=steps)
        last = self._last_plan
        if last is None or not np.array_equal(last[0], fixed):
            self._last_plan = last = fixed, _core.VolumePlan(self.core, mask, dofs.tolist())
        return _core.VolumeMultigrid(last[1], x, shift, smoother=steps)

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
    active : array of bool, shape (d, N)
        Dofs to solve for.
    shift : array of float64, shape (d, N), optional
        Not negative; default zero.
    """

    def __init__(self, backend, x, active, shift=None):
        self.active = np.ascontiguousarray(active, bool).reshape(backend.grid.dim, backend.grid.n_nodes)
        if not self.active.any():
            raise ValueError("active marks no dof: there is nothing to solve for")
        x, shift = self._taken(x, shift)
        fixed = ~self.active
        self._dofs, self._modes = backend.deflation(fixed)
        self._settings = backend.law.multigrid
        self._core = backend.multigrid(x, fixed, shift, self._dofs)
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
        if len(self._dofs):
            modes = self._modes if shift is None else self._deflated_modes(self._dofs, np.zeros(self.active.shape))
            self._core.deflate(modes[0] if len(self.active) == 2 else modes)

    def _deflated_modes(self, dofs, load):
        """Modes of the deflated dofs where a shift resists the rigid motions: the responses to forces at these dofs.

        The system is solved with the dofs free, which they are until the modes are known. The responses are combined so
        that each mode is one at its own dof and zero at the others.

        Parameters
        ----------
        dofs : array of int, shape (M,)
        load : array of float64, shape (..., d, N)
            Zeros.

        Returns
        -------
        array of float64, shape (M, ..., d, N)
        """
        places = [(..., *divmod(int(dof), load.shape[-1])) for dof in dofs]
        responses = []
        for at in places:
            load[at] = 1
            responses.append(self._solve_for_mode(load))
            load[at] = 0
        if len(dofs) == 1:
            w = responses[0]
            return (w / w[places[0]][..., None, None])[None]
        flexibility = np.array([[w[at] for at in places] for w in responses])
        return np.tensordot(np.linalg.inv(flexibility), np.stack(responses), 1)

    def _solve_for_mode(self, load):
        w = np.zeros_like(load)
        self._core.solve(load, w, MODE_RTOL, MODE_MAX_ITERATIONS, energy=True)
        return w

    def solve(self, b, x0=None, rtol=1e-8, maxiter=200) -> Solution:
        """Solve to a true relative residual of ``rtol``.

        Parameters
        ----------
        b : array of float64, shape (d, N) or (1, d, N)
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
        """About A^-1 r for r (d, N), one fixed symmetric positive definite operator: a V-cycle or two."""
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
        """A w for w (d, N); zero on inactive dofs."""
        return self._core.apply(np.ascontiguousarray(w, np.float64).reshape(self.active.shape)).reshape(np.shape(w))


def smoother(settings: MultigridSettings) -> list[tuple[float, float]]:
    """Coefficients of a law's smoother, as of `semi_iteration`, for a largest eigenvalue of one."""
    return semi_iteration(1 / settings.smoother_ratio, 1.0, settings.smoother_degree)


def _deflation(grid, fixed):
    """The fixed dofs to be deflated, if any, and the rigid modes that they alone hold.

    Multigrid reduces the reaction of a single fixed dof slowly, because coarse grids do not represent it. Where such
    dofs alone hold the body against rigid motions (the lateral pin of `compression`), the hierarchy leaves them free
    and each cycle removes the rigid modes from its result exactly (deflation). Measured iterations in plane strain: 11
    instead of 14 to 17. In two dimensions with several such motions deflation costs more than it gains (31 to 42
    iterations instead of 15 to 21), so the dofs stay in the hierarchy. In three dimensions, where `compression` leaves
    two translations and a rotation to three lone dofs, all are deflated (11 iterations instead of 18 at a Poisson ratio
    of .495).

    Returns
    -------
    dofs : numpy.ndarray of int, shape (M,)
        Dof numbers, component * N + node; M is zero if there is nothing to deflate.
    modes : array of float64, shape (M, d, N)
        Rigid motions, each one at its own dof and zero at the others.
    """
    n, d = grid.n_nodes, grid.dim
    nothing = np.zeros(0, int), np.zeros((0, d, n))
    held = np.flatnonzero(fixed)
    if not 0 < len(held) < 0.5 * fixed.size:
        return nothing
    wide = np.pad(fixed.reshape(d, *grid.shape), ((0, 0), *[(1, 1)] * d))
    component, *place = np.unravel_index(held, (d, *grid.shape))
    around = sum(
        wide[component, *(p + o for p, o in zip(place, offset, strict=True))].astype(int)
        for offset in np.ndindex((3,) * d)
    )
    alone, rest = held[around == 1], held[around > 1]

    def motions(dofs):
        return rigid_modes(grid, dofs % n)[:, dofs // n, np.arange(len(dofs))]

    values, vectors = np.linalg.eigh(motions(rest) @ motions(rest).T / n)
    vectors[np.abs(vectors) < ROUNDING] = 0  # a pure translation is then constant to the last bit, and cheaper
    free = vectors[:, values < ROUNDING].T  # motions that only lone dofs hold
    if not 1 <= len(free) <= min(len(alone), 1 if d == 2 else len(vectors)):
        return nothing
    if len(free) == 1:
        at_dofs = (free @ motions(alone))[0]
        best = np.array([np.argmax(np.abs(at_dofs))])
        free = free / at_dofs[best]
    else:
        at_dofs = free @ motions(alone)
        best = np.sort(qr(at_dofs, mode="economic", pivoting=True)[2][: len(free)])
        if np.linalg.cond(at_dofs[:, best]) > WORST_CONDITION:
            return nothing
        free = np.linalg.solve(at_dofs[:, best], free)
        free[np.abs(free) < ROUNDING] = 0
    # a translation is made constant to the last bit: solvers then store d numbers instead of a field
    modes = [np.tensordot(f, rigid_modes(grid), 1) if f[d:].any() else np.repeat(f[:d, None], n, axis=1) for f in free]
    return alone[best], np.stack(modes)
