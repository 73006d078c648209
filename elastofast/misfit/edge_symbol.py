"""The symbol of the misfit of displacements on a straight edge of a grid: a preconditioner for open edges.

On an edge that is long against the wavelengths of interest, with a constant modulus, the operator S of `elimination`
acts on a wave exp(i k y) as a matrix of d x d for each wavenumber k. It is the energy, in the noise's own units, of the
wave's continuation into the body in equilibrium,

    S(k) = P_0 + sum over depths m of U_m^* P_m U_m,    U_m = G_m U_{m-1},

with the mean precision P_m of the displacements at each depth; correlated noise couples the depths, and its precision
depends on the wavenumber. The nodes at one depth only see their neighbours, so
that G_m = -(A_0 + A_+ G_{m+1})^-1 A_-, with the symbols A of the three rows of the stencil of K.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import toeplitz

from ..backend.device import Device, to_host
from ..forward.form import ElasticForm
from ..geometry import Grid
from .noise import WHITE_SHARE, DisplacementNoise

__all__ = ["EdgeSymbol"]

# Eigenvalues of S(k) below this fraction of the largest one of the same wavenumber are raised to it. The waves that
# they belong to are all but invisible in the data, and edges are not as straight and uniform as the symbol assumes.
# Chosen among .1, .01 and .001 by iterations on open squares; no script repeats it.
FLOOR = 1e-3
# An edge is treated by its symbol if at least this share of its dofs is open; not studied.
MIN_OPEN = 0.5


class EdgeSymbol:
    """Approximate inverse of S: the inverse symbol on open edges of a grid of two axes, else a diagonal.

    Parameters
    ----------
    form : ElasticForm
    device : Device
    open_ : numpy.ndarray of bool, shape (d, N)
        Open dofs, on the host.
    noise : DisplacementNoise
        Of the displacements; of a batch, the first member stands for all.
    """

    def __init__(self, form: ElasticForm, device: Device, open_: np.ndarray, noise: DisplacementNoise) -> None:
        self._xp = device.xp
        d, correlations = form.geometry.dim, noise.correlations
        precision = to_host(noise.weights).reshape(-1, *open_.shape)[0]
        typical = precision[precision > 0].mean() if (precision > 0).any() else 1.0
        rest = open_.copy()
        self._edges: list[tuple[Any, Any, int]] = []
        if isinstance(form.geometry, Grid) and d == 2:  # not the faces of a volume
            shape = form.geometry.shape
            mask, weights = open_.reshape(d, *shape), precision.reshape(d, *shape)
            stencil = _stencil(form)
            left = rest.reshape(d, *shape)
            for axis in (0, 1):  # across the edge
                for last in (False, True):
                    edge = (slice(None), *((-1 if last else 0) if k == axis else slice(None) for k in (0, 1)))
                    if mask[edge].mean() < MIN_OPEN:
                        continue
                    rows = np.moveaxis(weights, 1 + axis, 1).mean(axis=2).T  # (depth, d)
                    blocks = np.moveaxis(stencil, axis, 0)
                    if last:
                        rows, blocks = rows[::-1], blocks[::-1]
                    tables = None if correlations is None else (correlations[axis], correlations[1 - axis])
                    inverse = _inverse_symbol(blocks, shape[1 - axis], rows[:-1], tables)
                    self._edges.append((edge, device.upload(inverse), shape[1 - axis]))
                    left[edge] = False
            self._shape = (d, *shape)
        # not on a straight edge: the own precision and that of the neighbours, which follow an open dof
        diagonal = np.where(rest, 1 / (precision + precision.mean() + FLOOR * typical), 0.0)
        self._diagonal, self._mask = device.upload(diagonal), device.upload(open_)

    def __call__(self, r: Any) -> Any:
        """About S^-1 r for fields (..., d, N) that are zero off the open dofs."""
        xp = self._xp
        out = self._diagonal * r
        if self._edges:
            fields, result = (a.reshape(*a.shape[:-2], *self._shape) for a in (r, out))
            for edge, inverse, n in self._edges:
                wave = xp.fft.rfft(fields[(..., *edge)], axis=-1)
                wave = (inverse @ xp.moveaxis(wave, -2, -1)[..., None])[..., 0]
                result[(..., *edge)] += xp.fft.irfft(xp.moveaxis(wave, -1, -2), n, axis=-1)
        return xp.where(self._mask, out, 0.0)


def _stencil(form):
    """K of a constant modulus of one as a stencil, [i, j, row, column]: the force at offset (i - 1, j - 1) from a unit
    displacement.
    """
    grid = Grid((5, 5), form.geometry.spacing)
    small = ElasticForm(grid, form.law.typical())
    out = np.empty((3, 3, 2, 2))
    for column in range(2):
        u = np.zeros((2, *grid.shape))
        u[column, 2, 2] = 1
        out[..., column] = np.moveaxis(small.force(np.ones(grid.shape), u)[:, 1:4, 1:4], 0, -1)
    return out


def _inverse_symbol(blocks, n, rows, correlations):
    """Inverse of S(k) for all wavenumbers of an edge of n nodes, shape (n // 2 + 1, d, d).

    Parameters
    ----------
    blocks : array, shape (3, 3, d, d)
        The stencil; first axis into the body, second along the edge.
    rows : array, shape (depth, d)
        Mean precision at each depth; the first row is the edge itself. Beyond the last one the body is held.
    correlations : two arrays, or None
        Correlation of the noise by the distance in depth, and by that along the edge.
    """
    k = 2 * np.pi * np.fft.rfftfreq(n)
    phase = np.exp(-1j * np.outer(k, (-1, 0, 1)))
    outward, own, inward = (np.einsum("km,mij->kij", phase, block) for block in blocks)
    # The force at a depth from the displacement one row nearer to the edge has the offset +1 into the body.
    gains = []
    gain = np.zeros_like(own)
    for _ in rows[1:]:
        gain = -np.linalg.solve(own + outward @ gain, inward)
        gains.append(gain)
    waves = np.empty((len(k), len(rows), *own.shape[1:]), complex)  # wavenumber, depth, component, amplitude
    waves[:, 0] = np.eye(own.shape[-1])
    for depth, gain in enumerate(reversed(gains), start=1):
        waves[:, depth] = gain @ waves[:, depth - 1]
    waves *= np.sqrt(rows)[:, :, None]  # in standard deviations
    if correlations is None:
        symbol = np.einsum("kmia,kmib->kab", waves.conj(), waves)
    else:
        in_depth, along = correlations
        spectrum = along[0] + 2 * np.cos(np.outer(k, np.arange(1, n))) @ along[1:n]
        values, vectors = np.linalg.eigh(toeplitz(in_depth[: len(rows)]))
        waves = np.einsum("mj,kmia->kjia", vectors, waves, optimize=True)
        smooth = (1 - WHITE_SHARE) * np.maximum(np.outer(spectrum, values), 0.0)
        symbol = np.einsum("kj,kjia,kjib->kab", 1 / (smooth + WHITE_SHARE), waves.conj(), waves, optimize=True)
    values, vectors = np.linalg.eigh(symbol)
    values = np.maximum(values, np.maximum(FLOOR * values[:, -1:], FLOOR**2 * values.max()))
    return np.einsum("kij,kj,klj->kil", vectors, 1 / values, vectors.conj())
