"""The displacements of open dofs as unknowns: the equilibrium that is nearest to the measured field.

The force on an open dof is unknown and its displacement g at most measured with noise. With P the precision of the
measured displacements u_m, zero where nothing was measured, the data term without force noise is

    J(x) = min over g of 1/2 e^T P e,    e = u - u_m,    K(x) u = f on the equations, u = g on the open dofs.

Its minimiser solves S g = b with S = E^T P E, where E continues values on the open dofs into the body in equilibrium: E
p = p on the open dofs and -K_EE^-1 K_EO p on the equations. A product with S is a forward and an adjoint solve with the
square matrix K_EE, which are well conditioned whatever the noise. Nothing that was not measured enters.

S is close to the identity on short waves and grows like the wavelength on long ones. If one component is not measured
or much noisier, some combinations are hardly seen at all. Two things keep the conjugate gradients short:

- the symbol of S on a straight edge of a grid (`EdgeSymbol`);
- the directions of earlier solves. From one modulus to the next S changes little, so these directions, which are
  conjugate, give an inverse of S on all that they span (the block form of the limited-memory quasi-Newton
  preconditioner of Morales and Nocedal, SIAM J. Optim. 10, 2000).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..backend.batch import dots
from ..backend.device import Device, to_host
from ..errors import SolveError
from ..forward.form import ElasticForm
from ..forward.protocol import Solver
from .edge_symbol import EdgeSymbol
from .noise import DisplacementNoise

__all__ = ["Equilibrium", "OpenDofs"]

# The iteration ends when what it can still take off J is below this fraction of J, in two consecutive steps, by the
# estimate r^T S^-1 r / 2 with the preconditioner in place of S^-1. For a tolerance rtol of the solves the fraction is
# at most ENERGY_TOL_PER_RTOL rtol^(3/2). It also ends where the error is far below what the solves leave in u, namely
# SOLVE_ENERGY rtol^2 of the energy u^T P u / 2 of the whole field. Not studied.
ENERGY_TOL = 1e-6
ENERGY_TOL_PER_RTOL = 0.1
SOLVE_ENERGY = 1e-4
# The solves in a product with S are at least this accurate. Not studied.
PRODUCT_RTOL = 1e-5
MAX_ITERATIONS = 200
# A direction in which S is smaller than this fraction of what the preconditioner takes it for, is one that the data do
# not see at all, such as a shift along a component that is not measured: rounding alone leads there. Not studied.
UNSEEN = 1e-6
ENOUGH = 100.0  # times the tolerance is accepted when the iterations are spent; not studied
# Directions that are kept, of all members together: enough for the longest solve seen where one component is not
# measured on open edges.
MAX_DIRECTIONS = 120


class Equilibrium(NamedTuple):
    """The equilibrium nearest to the data.

    Attributes
    ----------
    displacement : array, shape (..., d, N)
        u, metres.
    multiplier : array, shape (..., d, N)
        z = K_EE^-1 (P e) on the equations, zero elsewhere: the Lagrange multiplier of K u = f.
    deviation : array, shape (..., d, N)
        e = u - u_m, zero on fixed dofs.
    weighted : array, shape (..., d, N)
        P e.
    iterations : int
    """

    displacement: Any
    multiplier: Any
    deviation: Any
    weighted: Any
    iterations: int


class OpenDofs:
    """Finds the displacements of the open dofs, for one modulus after another.

    Parameters
    ----------
    form : ElasticForm
    device : Device
        Where the arrays live.
    equations, open_ : array of bool, shape (d, N)
        Loaded and open dofs, on the device.
    noise : DisplacementNoise
        Of the displacements, with their precision P.
    """

    def __init__(self, form: ElasticForm, device: Device, equations: Any, open_: Any, noise: DisplacementNoise) -> None:
        self.form, self.xp, self.equations, self.open = form, device.xp, equations, open_
        self.precision = noise.precision
        self._symbol = EdgeSymbol(form, device, to_host(open_), noise)  # preconditions the first solve
        self._places = self.xp.flatnonzero(open_)
        self.count = len(self._places)
        self._directions: list[tuple[Any, Any]] = []

    def nearest(
        self, x: Any, solver: Solver, u: Any, measured: Any, multiplier: Any, rtol: float, remember: bool = True
    ) -> Equilibrium:
        """The equilibrium nearest to the measured field.

        Parameters
        ----------
        x : array, shape (..., N)
            Moduli.
        solver : Solver
            For K(x) on the equations.
        u : array, shape (..., d, N)
            Any equilibrium of these moduli under the load; its values on the open dofs are the initial guess.
        measured : array, shape (..., d, N) or (d, N)
            u_m. Where P is zero it has no influence.
        multiplier : array, shape (..., d, N), or None
            A guess of z.
        rtol : float
            Relative tolerance of the solves with K.
        remember : bool
            Whether the directions of this solve are to precondition later ones.

        Raises
        ------
        SolveError
            If a solve with K does not converge.
        """
        xp = self.xp
        noisy = self.equations | self.open
        e = xp.where(noisy, u - measured, 0.0)
        weighted = self.precision(e)
        z = solver.solve(xp.where(self.equations, weighted, 0.0), multiplier, rtol).value
        r = -self.values(weighted - self.form.force(x, z))
        misfit = 0.5 * self._energy(e, weighted)
        tolerance = min(ENERGY_TOL, ENERGY_TOL_PER_RTOL * rtol**1.5)
        rtol = min(rtol, PRODUCT_RTOL)
        inside = xp.where(noisy, u, 0.0)
        negligible = 0.5 * SOLVE_ENERGY * rtol**2 * self._energy(inside, self.precision(inside))
        directions: list[tuple[Any, Any, Any]] = []  # p, S p, and v with p = M v, M the preconditioner
        calm, iterations = 0, 0
        while True:
            s = self.precondition(r)
            rho = dots(r, s)
            calm = calm + 1 if bool((0.5 * rho <= xp.maximum(tolerance * misfit, negligible)).all()) else 0
            if calm >= (2 if iterations else 1):
                break
            if iterations == MAX_ITERATIONS:
                left = float((0.5 * rho / xp.maximum(misfit, negligible)).max())
                if left < ENOUGH * tolerance:
                    break
                raise SolveError(
                    f"the displacements of the open dofs were not found in {MAX_ITERATIONS} iterations: {left:.1e} of "
                    f"the misfit is left to gain, {tolerance:.1e} was asked for. Try a larger rtol; open dofs far from "
                    "any measured displacement make the problem hard"
                )
            # conjugate to all earlier directions, not to the last one only: the solves make S a little different every
            # time, and the vectors on the open dofs are short
            p, v = s, r
            for _ in range(2):
                for earlier, product, source in directions:
                    share = dots(product, p)
                    p, v = p - share * earlier, v - share * source
            change = self.field(p, u)
            change = change + solver.solve(xp.where(self.equations, -self.form.force(x, change), 0.0), rtol=rtol).value
            pull = self.precision(change)
            w = solver.solve(xp.where(self.equations, pull, 0.0), rtol=rtol).value
            q = self.values(pull - self.form.force(x, w))
            curvature = dots(p, q)
            useful = curvature > UNSEEN * dots(p, v)
            if not bool(useful.any()):
                break
            step = xp.where(useful, dots(r, p) / xp.where(useful, curvature, 1.0), 0.0)
            u, z = u + step[..., None] * change, z + step[..., None] * w
            misfit = misfit - 0.5 * step * dots(r, p)
            r = r - step * q
            scale = xp.where(useful, 1 / xp.sqrt(xp.where(useful, curvature, 1.0)), 0.0)
            directions.append((scale * p, scale * q, scale * v))
            iterations += 1
        if remember and directions:
            self._remember(directions)
        e = xp.where(noisy, u - measured, 0.0)
        return Equilibrium(u, z, e, self.precision(e), iterations)

    def _energy(self, e, weighted):
        return dots(e, weighted, 2)[..., 0]

    def values(self, field):
        """The values (..., number of open dofs) of a field (..., d, N)."""
        return field.reshape(*field.shape[:-2], -1)[..., self._places]

    def field(self, values, like):
        """The field (..., d, N) with these values on the open dofs and zero elsewhere."""
        out = self.xp.zeros_like(like)
        out.reshape(*like.shape[:-2], -1)[..., self._places] = values
        return out

    def precondition(self, r):
        """About S^-1 r for r (..., open dofs), symmetric and positive definite.

        (I - P^T Q) M (I - Q^T P) r + P^T P r for one block of directions P and Q = P S after the other.
        """
        shares = []
        for p, q in reversed(self._directions):
            share = _products(p, r)
            shares.append(share)
            r = r - _combination(share, q)
        field = self.field(r, self.xp.empty((*r.shape[:-1], *self.open.shape)))
        s = self.values(self._symbol(field))
        for (p, q), share in zip(self._directions, reversed(shares), strict=True):
            s = s + _combination(share - _products(q, s), p)
        return s

    def _remember(self, directions):
        """Add a block of directions; the oldest blocks go when there are too many."""
        p, q, _ = (self.xp.stack(vectors, axis=-2) for vectors in zip(*directions, strict=True))
        self._directions.append((p, q))
        while len(self._directions) > 1 and sum(p.shape[-2] for p, _ in self._directions) > MAX_DIRECTIONS:
            self._directions.pop(0)


def _products(vectors, r):
    """Inner products (..., k) of r (..., n) with vectors (..., k, n)."""
    return np.einsum("...kn,...n->...k", vectors, r) if isinstance(r, np.ndarray) else (vectors @ r[..., None])[..., 0]


def _combination(shares, vectors):
    """Sum of vectors (..., k, n) with shares (..., k)."""
    return (shares[..., None, :] @ vectors)[..., 0, :]
