"""Priors on the gradient of log x, which need no learning: first-order Tikhonov and total variation."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array, diags_array, eye_array, kron, vstack

from ..arrays import HOST, home_of, namespace, to_host
from ..geometry import Grid

__all__ = ["Linearization", "Tikhonov", "TotalVariation"]


class Linearization(NamedTuple):
    """A prior about z = log x, shape (..., N): value, gradient, and a positive semidefinite curvature."""

    value: np.ndarray  # on the host, one number for each map
    gradient: np.ndarray
    curvature: object  # callable (..., N) -> (..., N)
    diagonal: np.ndarray  # of the curvature, without the coupling of axes: for preconditioning


class _Tables(NamedTuple):
    """Sparse difference operator, its transpose and the transpose's squares, and the cells' weights."""

    operator: Any
    transpose: Any
    squares: Any
    weights: Any


class _LogGradient:
    """What the priors on the gradient of log x share: its values, one d-vector a cell, and volume weights.

    Lengths are measured in cells and volumes in units of the body's, so that values hardly depend on the mesh:
    ``_operator @ z`` is the change of log x over one cell, ``_weights`` are volumes times (body size / cell size).
    """

    power = 1

    def __init__(self, geometry):
        self.geometry = geometry
        gradient, volumes = _gradient(geometry)
        d = geometry.dim
        size = volumes ** (1 / d)  # of a cell
        body = geometry.node_weights.sum() ** (1 / d)
        operator = csr_array(diags_array(np.tile(size, d)) @ gradient)
        transpose = csr_array(operator.T)
        weights = volumes / body**d * (body / size) ** self.power
        self._tables = {HOST: _Tables(operator, transpose, csr_array(transpose.power(2)), weights)}

    def check(self, geometry):
        """Raise ValueError unless a geometry is the one that the prior was made for."""
        own = self.geometry
        if geometry.node_shape != own.node_shape or not np.allclose(geometry.points, own.points, atol=0):
            raise ValueError(f"the prior was made for {own!r}, the measurement is on {geometry!r}")

    def _table(self, z):
        """The tables where z lives; copied there once."""
        home = home_of(z=z).own
        if home not in self._tables:
            *matrices, weights = self._tables[HOST]
            self._tables[home] = _Tables(*map(home.matrix, matrices), home.upload(weights))
        return self._tables[home]

    def _changes(self, z):
        """Change of log x over each cell along each axis, (..., d, cells)."""
        return _product(self._table(z).operator, z).reshape(*z.shape[:-1], self.geometry.dim, -1)

    def _back(self, g):
        """The transpose of `_changes`, of shape (..., N)."""
        return _product(self._table(g).transpose, g.reshape(*g.shape[:-2], -1))

    def __call__(self, x):
        """Value and gradient per pascal.

        Parameters
        ----------
        x : array_like, shape (..., *node_shape) or (..., N)
            Modulus in pascals, positive.

        Returns
        -------
        value : float, or array of shape (...)
        gradient : array, shape of x
        """
        home = home_of(x=x)
        with home.working():
            xp = home.xp
            x = xp.asarray(home.take(x), dtype=np.float64)
            n, tail = self.geometry.n_nodes, self.geometry.node_shape
            if x.shape[-len(tail) :] != tail:
                tail = (n,)
            if x.shape[-len(tail) :] != tail:
                raise ValueError(f"x must have shape (..., {self.geometry.node_shape}), got {x.shape}")
            if not (xp.isfinite(x).all() and (x > 0).all()):
                raise ValueError("x must be positive and finite (pascals)")
            batch = x.shape[: x.ndim - len(tail)]
            value, gradient = self._value_gradient(xp.log(x.reshape(*batch, n)))
            return (home.give(value) if batch else float(value)), home.give(gradient.reshape(x.shape) / x)


class Tikhonov(_LogGradient):
    """Half the integral of |grad log x|^2 (first-order Tikhonov, H1): smooth maps.

    Parameters
    ----------
    geometry : Grid or Mesh

    Notes
    -----
    In 2-D the value is dimensionless and independent of the body's size; in 3-D it is divided by that size.
    """

    power = 2

    def _value_gradient(self, z):
        g, weights = self._changes(z), self._table(z).weights
        return 0.5 * (weights * g**2).sum(axis=(-2, -1)), self._back(weights * g)

    def linearize(self, z, dual=None) -> Linearization:
        """Value, gradient and curvature at z = log x (..., N); the curvature does not depend on z."""
        value, gradient = self._value_gradient(z)
        table = self._table(z)

        def curvature(v):
            return self._back(table.weights * self._changes(v))

        weights = np.tile(table.weights, self.geometry.dim)
        return Linearization(to_host(value), gradient, curvature, table.squares @ weights)

    def value(self, z):
        """R at z = log x (..., N), on the host."""
        return to_host(0.5 * (self._table(z).weights * self._changes(z) ** 2).sum(axis=(-2, -1)))

    def start_dual(self):
        """Nothing: a quadratic needs no dual variable."""
        return None

    def step_dual(self, dual, z, dz):
        """Nothing to update."""
        return None


class TotalVariation(_LogGradient):
    """Integral of sqrt(|grad log x|^2 + s^2), over the body's size: piecewise smooth maps with sharp edges.

    Parameters
    ----------
    geometry : Grid or Mesh
    smoothing : float
        Change of log x over one cell below which the prior is quadratic, so that it has derivatives.

    Notes
    -----
    Curvature is the primal-dual one of Chan, Golub and Mulet (SIAM J. Sci. Comput. 20, 1999), symmetrised: a
    dual variable of length at most one stands for the normalised gradient, which keeps Newton's method quick
    at small ``smoothing``.
    """

    def __init__(self, geometry, smoothing=1e-2):
        if not (np.isfinite(smoothing) and smoothing > 0):
            raise ValueError(f"smoothing must be positive and finite, got {smoothing!r}")
        super().__init__(geometry)
        self.smoothing = float(smoothing)

    def _length(self, g):
        return np.sqrt((g**2).sum(axis=-2, keepdims=True) + self.smoothing**2)

    def _value(self, z, q):
        return (self._table(z).weights * (q - self.smoothing)).sum(axis=(-2, -1))

    def _value_gradient(self, z):
        g = self._changes(z)
        q = self._length(g)
        return self._value(z, q), self._back(self._table(z).weights / q * g)

    def value(self, z):
        """R at z = log x (..., N), on the host."""
        return to_host(self._value(z, self._length(self._changes(z))))

    def start_dual(self):
        """The dual variable of a constant map: none stands for zeros (..., d, cells)."""
        return None

    def linearize(self, z, dual) -> Linearization:
        """Value, gradient and primal-dual curvature at z = log x (..., N)."""
        g, table = self._changes(z), self._table(z)
        q = self._length(g)
        a, w = table.weights / q, g / q
        dual = np.zeros_like(g) if dual is None else dual

        def curvature(v):
            e = self._changes(v)
            # a (I - (dual w^T + w dual^T) / 2) e
            e -= 0.5 * (dual * _along(w, e) + w * _along(dual, e))
            e *= a
            return self._back(e)

        diagonal = _product(table.squares, (a * (1 - dual * w)).reshape(*g.shape[:-2], -1))
        return Linearization(to_host(self._value(z, q)), self._back(a * g), curvature, diagonal)

    def step_dual(self, dual, z, dz):
        """Dual variable after a step dz from z: its own Newton step, shortened to keep every length below one."""
        g, e = self._changes(z), self._changes(dz)
        q = self._length(g)
        w = g / q
        dual = np.zeros_like(g) if dual is None else dual
        step = w - dual + (e - dual * _along(w, e)) / q
        square, inner = _along(step, step) + 1e-300, _along(dual, step)
        room = 1 - _along(dual, dual)
        reach = (np.sqrt(np.maximum(inner**2 + square * room, 0)) - inner) / square
        return dual + np.minimum(1.0, 0.95 * reach.min(axis=-1, keepdims=True)) * step


def _along(a, b):
    """Products of the vectors of each cell, (..., 1, cells)."""
    return (a * b).sum(axis=-2, keepdims=True)


def _product(matrix, fields):
    """Sparse matrix times each of some fields (..., n)."""
    lead = fields.shape[:-1]
    if prod(lead) == 1:
        return (matrix @ fields.reshape(-1)).reshape(*lead, -1)
    return namespace(fields).ascontiguousarray((matrix @ fields.reshape(-1, fields.shape[-1]).T).T).reshape(*lead, -1)


def _gradient(geometry):
    """Sparse gradient operator (d * cells, N), per metre, and cell volumes.

    On a grid the "cells" are nodes with forward differences (zero on the last line): unlike differences at cell
    centres they see a checkerboard.
    """
    if isinstance(geometry, Grid):
        parts = []
        for axis, (n, h) in enumerate(zip(geometry.shape, geometry.spacing, strict=True)):
            difference = diags_array([-np.ones(n), np.ones(n - 1)], offsets=[0, 1], shape=(n, n)).tolil()
            difference[n - 1, n - 1] = 0
            factors = [eye_array(m) for m in geometry.shape]
            factors[axis] = csr_array(difference) / h
            parts.append(kron(*factors))
        gradient = csr_array(vstack(parts))
        gradient.eliminate_zeros()
        return gradient, np.full(geometry.n_nodes, np.prod(geometry.spacing))
    edges = geometry.points[geometry.cells[:, 1:]] - geometry.points[geometry.cells[:, :1]]
    slopes = np.linalg.inv(edges).transpose(0, 2, 1)  # (M, node 1..d, axis)
    slopes = np.concatenate([-slopes.sum(axis=1, keepdims=True), slopes], axis=1)
    m, k = geometry.cells.shape
    rows = np.repeat(np.arange(m), k)
    parts = [
        csr_array((slopes[:, :, i].ravel(), (rows, geometry.cells.ravel())), shape=(m, geometry.n_nodes))
        for i in range(geometry.dim)
    ]
    return csr_array(vstack(parts)), geometry.cell_volumes
