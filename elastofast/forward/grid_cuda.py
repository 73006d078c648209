"""The form and its solver on a structured `Grid` on a device: the shells of `grid_kernels` over device arrays."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from ..backend.batch import dots
from ..backend.device import to_host
from .grid import MODE_MAX_ITERATIONS, MODE_RTOL, GridSolver, smoother
from .krylov import restarted_conjugate_gradients
from .protocol import Solution
from .sparsity import SparsityPattern

__all__ = ["DeviceBackend", "DeviceSolver"]

RUNS = 4  # of conjugate gradients, each from the true residual of the last; not studied
LARGEST_BATCH = 65535  # what one launch can hold
MOST_ROWS = 11 * LARGEST_BATCH  # as many tiles of 11 rows (csrc/gpu/launch.h)


class DeviceBackend:
    """What `GridBackend` gives, for arrays on one device.

    Parameters
    ----------
    host : GridBackend
        The same on the processor; gives the law's numbers, sparsity patterns and the deflated dof.
    device : CudaDevice
    """

    def __init__(self, host, device):
        self.host, self.grid, self.law, self.device = host, host.grid, host.law, device
        law = self.law
        if self.grid.shape[0] > MOST_ROWS:
            raise ValueError(f"a grid may have up to {MOST_ROWS} rows of nodes on a device, got {self.grid.shape[0]}")
        self.core = device.kernels.GridForm(
            *self.grid.shape, *self.grid.spacing, law.lame_lambda, law.lame_mu, law.mean_dilatation
        )
        self._plans = []

    def _launch(self, name, dtype, *arguments):
        getattr(self.core, f"{name}_{np.dtype(dtype).name}")(self.device.queue(), *arguments)

    def force(self, x, u, out=None):
        """K(x) u for a batch: x (1 or B, N) and u (B, 2, N) give (B, 2, N); values are not looked at."""
        out, at = self.device.xp.empty_like(u) if out is None else out, self.device.address
        stride = 0 if len(x) == 1 else self.grid.n_nodes
        self._launch("force", u.dtype, _batch(len(u)), at(x), stride, at(u), at(out))
        return out, True

    def sensitivity(self, u, v, out=None):
        """D(u)^T v for a batch: u and v (B, 2, N) give (B, N); values are not looked at."""
        out = self.device.xp.empty((len(u), u.shape[-1]), u.dtype) if out is None else out
        at = self.device.address
        self._launch("sensitivity", u.dtype, _batch(len(u)), at(u), at(v), at(out))
        return out, True

    def stiffness(self, x, out=None):
        """K(x) of x (N,) as a 2N x 2N CSR matrix of the device's library, pattern shared by all results."""
        return self._matrix("stiffness_values", x, self.stiffness_pattern, out)

    def contraction(self, u, out=None):
        """D(u) of u (2, N) as a 2N x N CSR matrix, row = component * N + node."""
        return self._matrix("contraction_values", u, self.contraction_pattern, out)

    def _matrix(self, kernel, field, pattern, out):
        at = self.device.address
        out = pattern.matrix(field.dtype, out)
        self._launch(kernel, field.dtype, at(field), at(pattern.starts), at(out.data))
        return out

    @cached_property
    def stiffness_pattern(self) -> SparsityPattern:
        """The pattern of K, shared by all its matrices."""
        return self.host.stiffness_pattern.to(self.device)

    @cached_property
    def contraction_pattern(self) -> SparsityPattern:
        """The pattern of D, shared by all its matrices."""
        return self.host.contraction_pattern.to(self.device)

    def solver(self, x, active, shift=None):
        """`DeviceSolver` for K(x) + diag(shift) on the active dofs, for one modulus or a batch."""
        return DeviceSolver(self, x, active, shift)

    def plan(self, active, shifted, batch):
        """The `_Plan` for a mask; the last few are kept, because solvers for many moduli share them."""
        for plan in self._plans:
            if plan.fits(active, shifted, batch):
                return plan
        self._plans = [_Plan(self, active.copy(), shifted, batch), *self._plans[:3]]
        return self._plans[0]


class _Plan:
    """What solvers for different moduli share: the hierarchy's layout and constants, and the deflated rigid mode."""

    def __init__(self, backend, active, shifted, batch):
        device = backend.device
        self.active, self.shifted, self.batch = active, shifted, batch
        fixed = ~active
        dofs, modes = backend.host.deflation(fixed)
        self.dof, mode = (int(dofs[0]), modes[0]) if len(dofs) else (-1, np.zeros(fixed.shape))
        self.core = device.kernels.Multigrid(
            backend.core,
            fixed.view(np.uint8),
            shifted,
            self.dof,
            _batch(batch),
            smoother=smoother(backend.law.multigrid),
        )
        self.constants = device.upload(self.core.constants())
        self.mask = device.upload(active)
        constant = bool((mode == mode[:, :1]).all())
        self.translation = (float(mode[0, 0]), float(mode[1, 0])) if constant else (0.0, 0.0)
        self.mode = None if constant else device.upload(mode)

    def fits(self, active, shifted, batch):
        same = self.active is active or np.array_equal(self.active, active)
        return same and (self.shifted, self.batch) == (shifted, batch)


class DeviceSolver(GridSolver):
    """`GridSolver` on a device, for one modulus (N,) or for a batch (B, N), whose fields are then (B, 2, N).

    The systems of a batch are solved side by side, each with its own step lengths and scaled to a right-hand side of
    norm one, which suits the single precision of the cycles. One number is copied to the host in each iteration.
    """

    def __init__(self, backend, x, active, shift=None):
        device, n = backend.device, backend.grid.n_nodes
        self.device, xp = device, device.xp
        self.active = np.asarray(active, bool).reshape(2, n)
        if not self.active.any():
            raise ValueError("active marks no dof: there is nothing to solve for")
        own = xp.asarray(x).reshape(-1, n)
        self._fields = (len(own), 2, n)
        self.shape = (2, n) if x.ndim == 1 else self._fields
        self._plan = backend.plan(self.active, shift is not None, len(own))
        self._settings = backend.law.multigrid
        self._workspace = xp.empty(self._plan.core.workspace_bytes, xp.uint8)
        self._recording = device.kernels.Recording()  # of a cycle; what it reads stays where it is
        self.update(x, shift)

    def update(self, x, shift=None):
        """Take other moduli and another shift, see `Solver`: as many as before, and a shift if there was one."""
        device, plan, (count, _, n) = self.device, self._plan, self._fields
        xp, at = device.xp, device.address
        x = xp.ascontiguousarray(x, xp.float64).reshape(-1, n)
        if len(x) != count or (shift is not None) != plan.shifted:
            raise ValueError(
                f"this solver is for {count} moduli {'with' if plan.shifted else 'without'} a shift, got {len(x)} "
                f"{'without' if shift is None else 'with'} one: make another solver"
            )
        self._x, self._shift = x, None
        if shift is not None:
            own = xp.asarray(shift, xp.float64).reshape(-1, 2, n)
            self._shift = xp.ascontiguousarray(xp.broadcast_to(own, self._fields))
        scratch = xp.empty(plan.core.scratch_bytes, xp.uint8)
        plan.core.set_up(
            device.queue(), at(plan.constants), at(self._workspace), at(scratch), at(self._x), n, at(self._shift), 2 * n
        )
        self._mode, self._stride = plan.mode, 0
        self._deflates = False  # the deflated dof is free until its mode is known
        if plan.dof >= 0 and shift is not None:
            self._mode, self._stride = self._deflated_modes([plan.dof], xp.zeros(self._fields))[0], 2 * n
        self._deflates = plan.dof >= 0

    def _solve_for_mode(self, load):
        return self._conjugate_gradients(load, None, MODE_RTOL, MODE_MAX_ITERATIONS)[0]

    def solve(self, b, x0=None, rtol=1e-8, maxiter=200) -> Solution:
        """As `GridSolver.solve`, for every member of the batch."""
        xp = self.device.xp
        b = self._masked(b)
        norm = xp.sqrt(dots(b, b, 2))
        norm = xp.where(norm > 0, norm, 1.0)
        guess = None if x0 is None else self._masked(x0) / norm
        w, iterations, residual = self._conjugate_gradients(b / norm, guess, rtol, maxiter)
        if not residual <= rtol:
            self._refuse(residual, iterations, rtol)
        return Solution((w * norm).reshape(self.shape), iterations, residual)

    def _conjugate_gradients(self, b, w, rtol, maxiter):
        """Solutions, iterations, and the largest true relative residual."""
        w, iterations, _, residual = restarted_conjugate_gradients(
            self._product, self._cycle, b, w, rtol=rtol, maxiter=maxiter, axes=2, runs=RUNS
        )
        return w, iterations, float(residual.max())

    def _masked(self, field):
        xp = self.device.xp
        field = xp.asarray(field, xp.float64).reshape(self._fields)
        return xp.where(self._plan.mask, field, 0.0)

    def _cycle(self, r):
        z, at, plan = self.device.xp.empty(self._fields), self.device.address, self._plan
        r = self.device.xp.ascontiguousarray(r)
        plan.core.precondition(
            self.device.queue(), self._recording, at(plan.constants), at(self._workspace),
            self._deflates, at(self._mode), self._stride, *plan.translation, at(r), at(z),
        )  # fmt: skip
        return z

    def _product(self, p):
        q, at, plan = self.device.xp.empty(self._fields), self.device.address, self._plan
        p = self.device.xp.ascontiguousarray(p)
        plan.core.apply(
            self.device.queue(),
            at(plan.constants),
            self._deflates,
            at(self._x),
            self._x.shape[1],
            at(self._shift),
            at(p),
            at(q),
        )
        return q

    def _accelerated(self, r, steps):
        r = self.device.xp.asarray(r, self.device.xp.float64).reshape(self._fields)
        d: Any = None
        w: Any = None
        for number, (momentum, gain) in enumerate(steps):
            z = self._cycle(r)
            if gain != 1:
                z *= gain
            if d is None:
                d, w = z, z.copy() if len(steps) > 1 else z
            else:
                d *= momentum
                d += z
                w += d
            if number + 1 < len(steps):
                r = r - self._product(d)
        return w.reshape(self.shape)

    def apply(self, w):
        """A w; zero on inactive dofs."""
        return self._product(self._masked(w)).reshape(self.shape)

    def eigenvalue_bounds(self):
        """Largest eigenvalue that each level's smoother is made for, (levels, B), on the host."""
        at, levels = self._plan.core.bounds
        count = levels * self._fields[0]
        return to_host(self._workspace[at : at + 8 * count]).view(np.float64).reshape(levels, self._fields[0])


def _batch(count):
    if count > LARGEST_BATCH:
        raise ValueError(f"a batch may have up to {LARGEST_BATCH} members on a device, got {count}: split it")
    return count
