"""Priors on the gradient of log x, which need no learning: first-order Tikhonov and total variation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import combinations

import numpy as np

from ..backend.device import HOST, device_of, namespace, to_host
from ..backend.elementwise import fused
from .differences import difference_operator, dot
from .protocol import Linearization

__all__ = ["Tikhonov", "TotalVariation"]


class _LogGradient(ABC):
    """What the priors on the gradient of log x share: its values, one d-vector a cell, and volume weights.

    Lengths are measured in cells and volumes in units of the body's, so that values hardly depend on the mesh: scaled
    differences are the change of log x over one cell, weights are volumes times (body size / cell size).
    """

    power = 1

    def __init__(self, geometry):
        self.geometry = geometry
        operator = difference_operator(geometry)
        body = float(geometry.node_weights.sum()) ** (1 / geometry.dim)
        weights = operator.volumes / body**geometry.dim * (body / operator.size) ** self.power
        self._places = {HOST: (operator, weights)}

    @abstractmethod
    def _model(self, z):
        """Value and gradient at z = log x (..., N), and what the curvature needs."""

    def check(self, geometry):
        """Raise ValueError unless a geometry is the one that the prior was made for."""
        own = self.geometry
        if geometry.node_shape != own.node_shape or not np.allclose(geometry.points, own.points, atol=0):
            raise ValueError(f"the prior was made for {own!r}, the measurement is on {geometry!r}")

    def _at(self, z):
        """Difference operator and weights where z lives; copied there once."""
        device = device_of(z=z).native
        if device not in self._places:
            operator, weights = self._places[HOST]
            self._places[device] = operator.on(device), weights if np.isscalar(weights) else device.upload(weights)
        return self._places[device]

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
        device = device_of(x=x)
        with device.activated():
            xp = device.xp
            x = xp.asarray(device.asarray(x), dtype=np.float64)
            n, tail = self.geometry.n_nodes, self.geometry.node_shape
            if x.shape[-len(tail) :] != tail:
                tail = (n,)
            if x.shape[-len(tail) :] != tail:
                raise ValueError(f"x must have shape (..., {self.geometry.node_shape}), got {x.shape}")
            if not (xp.isfinite(x).all() and (x > 0).all()):
                raise ValueError("x must be positive and finite (pascals)")
            batch = x.shape[: x.ndim - len(tail)]
            value, gradient, *_ = self._model(xp.log(x.reshape(*batch, n)))
            return (device.export(value) if batch else float(value)), device.export(gradient.reshape(x.shape) / x)


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

    def _model(self, z):
        """Value and gradient at z, and a field."""
        operator, weights = self._at(z)
        field = operator.gradient(z)
        energy = _energy(field.parts, weights)
        _weigh(field.parts, (1.0,) * len(operator.scales), weights)
        return energy.sum(axis=-1), operator.gradient_back(field), field

    def linearize(self, z, dual=None) -> Linearization:
        """Value, gradient and curvature at z = log x (..., N); the curvature does not depend on z."""
        operator, weights = self._at(z)
        value, gradient, field = self._model(z)

        def curvature(v):
            flux = operator.changes(v, out=field)  # the same memory for every product
            _weigh(flux.parts, operator.squares, weights)
            return operator.back(flux)

        ones = namespace(z).ones(operator.cells)
        diagonal = operator.diagonal(tuple(ones * (square * weights) for square in operator.squares))
        return Linearization(to_host(value), gradient, curvature, diagonal)

    def value(self, z):
        """R at z = log x (..., N), on the host."""
        operator, weights = self._at(z)
        return to_host(_energy(operator.gradient(z).parts, weights).sum(axis=-1))

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

    def value(self, z):
        """R at z = log x (..., N), on the host."""
        operator, weights = self._at(z)
        return to_host(_density(operator.gradient(z).parts, weights, self.smoothing, self.smoothing**2).sum(axis=-1))

    def start_dual(self):
        """The dual variable of a constant map: none stands for a field of zeros."""
        return None

    def _model(self, z, dual=None):
        """Value and gradient at z, the curvature's tensor in each cell (its diagonal, its couplings), and a field."""
        operator, weights = self._at(z)
        d, field = len(operator.scales), operator.gradient(z)
        dual = operator.parts(np.zeros_like(field.array) if dual is None else dual)
        density, *tensor = _tensor(
            field.parts, operator.squares, operator.products, dual, weights, self.smoothing, self.smoothing**2
        )
        return density.sum(axis=-1), operator.gradient_back(field), tuple(tensor[:d]), tuple(tensor[d:]), field

    def linearize(self, z, dual) -> Linearization:
        """Value, gradient and primal-dual curvature at z = log x (..., N)."""
        operator, _ = self._at(z)
        value, gradient, own, coupling, field = self._model(z, dual)

        def curvature(v):
            flux = operator.changes(v, out=field)  # the same memory for every product
            _apply(flux.parts, own, coupling)
            return operator.back(flux)

        return Linearization(to_host(value), gradient, curvature, operator.diagonal(own))

    def step_dual(self, dual, z, dz):
        """Dual variable after a step dz from z: its own Newton step, shortened to keep every length below one."""
        operator, _ = self._at(z)
        g, field = operator.gradient(z), operator.gradient(dz)
        dual = operator.parts(np.zeros_like(g.array) if dual is None else dual)
        reach = _newton(field.parts, g.parts, dual, self.smoothing**2)
        _shorten(field.parts, dual, reach.min(axis=-1, keepdims=True))
        return field.array


# Pointwise functions of the components of fields, in place where that saves memory traffic.


def _length(xp, g, smoothing_square):
    q = dot(g, g)
    q += smoothing_square
    return xp.sqrt(q)


@fused
def _energy(xp, g, weights):
    energy = dot(g, g)
    energy *= weights
    energy *= 0.5
    return energy


@fused
def _weigh(xp, g, squares, weights):
    """Change differences into Tikhonov's flux."""
    for each, square in zip(g, squares, strict=True):
        each *= square
        each *= weights


@fused
def _density(xp, g, weights, smoothing, smoothing_square):
    density = _length(xp, g, smoothing_square)
    density -= smoothing
    density *= weights
    return density


@fused
def _tensor(xp, g, squares, products, dual, weights, smoothing, smoothing_square):
    """The value's density and a (I - (dual w^T + w dual^T) / 2), w = g / q and a = weights / q, times scales.

    Of the symmetric tensor first the diagonal, then what lies above it. Changes g into the gradient's flux. ``squares``
    and ``products`` are those of the scales of each axis and of two axes.
    """
    q = _length(xp, g, smoothing_square)
    a = weights / q
    for each in g:
        each /= q  # this is w
    q -= smoothing
    q *= weights
    own, coupling = [], []
    for square, p, w in zip(squares, dual, g, strict=True):
        t = 1.0 - p * w
        t *= square
        t *= a
        own.append(t)
    for (i, k), product in zip(combinations(range(len(g)), 2), products, strict=True):
        t = dot((dual[i], dual[k]), (g[k], g[i]))
        t *= -0.5
        t *= product
        t *= a
        coupling.append(t)
    for each in g:
        each *= weights
    return (q, *own, *coupling)


@fused
def _apply(xp, g, own, coupling):
    """Change differences into the tensor's product with them."""
    axes = range(len(own))
    # in two and three dimensions the coupling of axes i and k is number i + k - 1
    across = [dot([coupling[i + k - 1] for k in axes if k != i], [g[k] for k in axes if k != i]) for i in axes]
    for each, t, other in zip(g, own, across, strict=True):
        each *= t
        each += other


@fused
def _newton(xp, step, g, dual, smoothing_square):
    """Change a step's gradient into the Newton step of the dual, and g into w; how far it stays inside length one."""
    q = _length(xp, g, smoothing_square)
    for each in g:
        each /= q
    along = dot(g, step)
    for each, p, w in zip(step, dual, g, strict=True):
        each -= p * along
        each /= q
        each += w
        each -= p
    square, inner, room = dot(step, step), dot(dual, step), dot(dual, dual)
    square += 1e-300
    # the positive root t of |dual + t step|^2 = 1
    reach = 1.0 - room
    reach *= square
    reach += inner * inner
    return (xp.sqrt(xp.maximum(reach, 0.0)) - inner) / square


@fused
def _shorten(xp, step, dual, reach):
    """Change a step of the dual into the dual after it."""
    share = xp.minimum(1.0, 0.95 * reach)
    for each, p in zip(step, dual, strict=True):
        each *= share
        each += p
