"""The form where the Poisson ratio differs from node to node, put together from two forms that know none.

K is linear in the two Lame numbers per unit modulus. With a value of them at each node, interpolated together with the
modulus,

    K(x) = K_lambda(x lame_lambda) + K_mu(x lame_mu),

where K_lambda has the Lame numbers (1, 0) and K_mu has (0, 1). All contractions are sums of those of the two forms.

Multigrid on a grid knows one ratio of the two Lame numbers. Conjugate gradients with K are preconditioned by cycles for
a form with a constant ratio and another modulus y. With the bulk modulus in d dimensions, b = lame_lambda + 2 lame_mu /
d, the two terms of the energy that cannot be negative have the factors x b and x lame_mu. For

    y = x sqrt(b lame_mu / (b_0 lame_mu_0)),   b_0 / lame_mu_0 = sqrt(smallest times largest b / lame_mu),

both factors of K(x) are between 1 / s and s times those of the constant form, with s^4 the largest b / lame_mu over the
smallest, and so are the eigenvalues of one operator relative to the other: for Poisson ratios from .45 to .495 in plane
strain s^2 = 3.2, from .3 to .499 it is 14. (With mean dilatations of cells this holds up to the variation of the moduli
within a cell.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend.device import HOST, Device
from ..errors import SolveError
from ..geometry import Mesh
from ..laws import LameNumbers, Law
from .krylov import restarted_conjugate_gradients, semi_iteration
from .protocol import FormBackend, Solution
from .sparsity import SparsityPattern

__all__ = ["MappedBackend"]

# Accuracy of the fixed operator that stands for K^-1 in products with the Gauss-Newton Hessian, which it enters
# squared: the most that does not make Gauss-Newton steps overshoot (`MultigridSettings.curvature_cycles`).
CURVATURE_ACCURACY = 1 - np.sqrt(0.5)


class MappedBackend:
    """The four contractions of the form for a law with a map of the Poisson ratio.

    Parameters
    ----------
    geometry : Grid or Mesh
    law : Law
        With one Lame number of each kind at every node.
    make : callable
        From a law with constant Lame numbers to its backend.
    device : Device, optional
        Where the arrays live.
    """

    def __init__(self, geometry: Any, law: Law, make: Callable[[Law], Any], device: Device = HOST) -> None:
        self.geometry, self.law, self.device = geometry, law, device
        numbers = law.lame_lambda.ravel(), law.lame_mu.ravel()
        self._parts: tuple[FormBackend, FormBackend] = (
            make(LameNumbers(law, 1.0, 0.0)),
            make(LameNumbers(law, 0.0, 1.0)),
        )
        bulk = numbers[0] / numbers[1] + 2 / law.dim  # over the shear modulus
        typical = float(np.sqrt(bulk.min() * bulk.max()))
        self.constant = make(LameNumbers(law, typical - 2 / law.dim, 1.0))
        self.spread = float((bulk.max() / bulk.min()) ** 0.25)
        self._numbers = [device.upload(own) for own in numbers]
        self._scaling = device.upload(numbers[1] * np.sqrt(bulk / typical))

    def _moduli(self, x):
        """The moduli of the two parts."""
        return [x * own.astype(x.dtype, copy=False) for own in self._numbers]

    def force(self, x, u, out=None):
        """K(x) u for a batch: x (1 or B, N) and u (B, d, N) give (B, d, N), and False if known not to be finite."""
        first, second = self._moduli(x)
        out, finite = self._parts[0].force(first, u, out)
        more, also = self._parts[1].force(second, u)
        out += more
        return out, finite and also

    def sensitivity(self, u, v, out=None):
        """D(u)^T v for a batch: u and v (B, d, N) give (B, N), and False if known not to be finite."""
        out, finite = self._parts[0].sensitivity(u, v, out)
        more, also = self._parts[1].sensitivity(u, v)
        for part, own in zip((out, more), self._numbers, strict=True):
            part *= own.astype(part.dtype, copy=False)
        out += more
        return out, finite and also

    def stiffness(self, x, out=None):
        """K(x) of x (N,) as a sparse matrix; pattern shared by all results."""
        first, second = self._moduli(x)
        out = self._parts[0].stiffness(first, out)
        out.data += self._parts[1].stiffness(second).data
        return out

    def contraction(self, u, out=None):
        """D(u) of u (d, N) as a sparse matrix; pattern shared by all results."""
        out = self._parts[0].contraction(u, out)
        more = self._parts[1].contraction(u).data
        for values, own in zip((out.data, more), self._numbers, strict=True):
            values *= own.astype(values.dtype, copy=False)[out.indices]
        out.data += more
        return out

    @property
    def stiffness_pattern(self) -> SparsityPattern:
        """The pattern of K, shared by all its matrices."""
        return self._parts[0].stiffness_pattern

    @property
    def contraction_pattern(self) -> SparsityPattern:
        """The pattern of D, shared by all its matrices."""
        return self._parts[0].contraction_pattern

    def solver(self, x, active, shift=None):
        """A solver for K(x) + diag(shift) on the active dofs; on a device also for a batch of moduli."""
        if isinstance(self.geometry, Mesh):  # whose solver works on the matrix itself
            from .mesh_solver import MeshSolver

            return MeshSolver(self, x, active, shift)
        return _MappedSolver(self, x, active, shift)

    @property
    def mesh(self):
        """The mesh, for its solver."""
        return self.geometry

    @property
    def hierarchy(self):
        """What multigrid on a mesh needs of the body, whatever its moduli."""
        return self.constant.hierarchy

    def constant_modulus(self, x):
        """The modulus at which the form with constant Lame numbers is nearest to K(x)."""
        return x * self._scaling


class _MappedSolver:
    """Conjugate gradients for A w = b, A = K(x) + diag(shift), preconditioned by multigrid for constant Lame numbers.

    Parameters and methods are those of `GridSolver`.
    """

    def __init__(self, backend, x, active, shift=None):
        self._backend = backend
        d, n = backend.geometry.dim, backend.geometry.n_nodes
        self._mask = backend.device.upload(np.asarray(active, bool).reshape(d, n))
        self._constant = backend.constant.solver(backend.constant_modulus(x), active, shift)
        self._take(x, shift)
        settings = backend.law.multigrid
        low = 1 - (1 - settings.spectrum[0]) ** settings.curvature_cycles  # of the cycles in one `precondition`
        self._spectrum = low / backend.spread, settings.spectrum[1] * backend.spread

    def update(self, x, shift=None):
        """Take another modulus and shift, see `Solver`."""
        self._constant.update(self._backend.constant_modulus(x), shift)
        self._take(x, shift)

    def _take(self, x, shift):
        xp, (d, n) = self._backend.device.xp, self._mask.shape
        self._x = xp.ascontiguousarray(x, xp.float64).reshape(-1, n)
        self._fields = (len(self._x), d, n)
        self.shape = (d, n) if x.ndim == 1 else self._fields
        self._shift = None if shift is None else xp.asarray(shift, xp.float64).reshape(-1, d, n)

    def solve(self, b, x0=None, rtol=1e-8, maxiter=200) -> Solution:
        """Solve to a true relative residual of ``rtol``; see `GridSolver.solve`."""
        rhs = self._masked(b)
        guess = None if x0 is None else self._masked(x0)
        w, iterations, _, residual = restarted_conjugate_gradients(
            self._product, self._cycle, rhs, guess, rtol=rtol, maxiter=maxiter, axes=2
        )
        largest = float(residual.max())
        if not largest <= rtol:
            raise SolveError(
                f"the solve stopped at a relative residual of {largest:.1e} after {iterations} iterations, {rtol:.1e} "
                "was asked for. Try a larger rtol; Poisson ratios close to 0.5 beside much lower ones, a modulus that "
                "spans many decades and very flat cells make the system hard"
            )
        return Solution(w.reshape(np.shape(b)), iterations, largest)

    def precondition(self, r):
        """About A^-1 r by one fixed symmetric positive definite operator, good enough for Gauss-Newton steps."""
        return self.approximate_inverse(r, CURVATURE_ACCURACY)

    def approximate_inverse(self, r, accuracy):
        """A^-1 r to about the given relative accuracy, as one fixed symmetric positive definite operator."""
        low, high = self._spectrum
        rate = (np.sqrt(high / low) - 1) / (np.sqrt(high / low) + 1)
        count = max(int(np.ceil(np.log(accuracy / 2) / np.log(rate))), 1)
        own = self._masked(r)
        step: Any = None
        w: Any = None
        for momentum, gain in semi_iteration(low, high, count):
            cycle = gain * self._cycle(own if w is None else own - self._product(w))
            step = cycle if step is None else momentum * step + cycle
            w = step.copy() if w is None else w + step
        return w.reshape(np.shape(r))

    def apply(self, w):
        """A w; zero on inactive dofs."""
        return self._product(self._masked(w)).reshape(np.shape(w))

    def _masked(self, field):
        xp = self._backend.device.xp
        return xp.where(self._mask, xp.asarray(field, xp.float64).reshape(self._fields), 0.0)

    def _product(self, w):
        f, _ = self._backend.force(self._x, w)
        if self._shift is not None:
            f += self._shift * w
        return self._backend.device.xp.where(self._mask, f, 0.0)

    def _cycle(self, r):
        return self._constant.precondition(r.reshape(self.shape)).reshape(self._fields)
