"""The noise of the measured displacements: its precision and covariance, and random draws of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import eigh, toeplitz

from ..backend.device import HOST, Device, to_host
from ..forward.krylov import conjugate_gradients

__all__ = ["CorrelatedNoise", "DisplacementNoise", "noise_of", "noise_on_host"]

# The share of the variance that is taken as independent from node to node. The noise of a smooth correlation would
# otherwise have next to no rough part, and rough parts of the field would count as known exactly, which they are not on
# any grid. Chosen among .1, .03, .01 and .003 by maps of a disc, 65 and 129 nodes, noise blurred over 1.5 to 5 nodes.
WHITE_SHARE = 0.003
# Numbers that the columns of the precision at missing displacements may take in memory; beyond, conjugate gradients.
MAX_COLUMN_VALUES = 2**24
CLEAR = (
    10.0  # times the white share: noise of modes above that is what was stated, whatever its faint rest is. Not studied
)
MISSING_RTOL = 1e-8  # of these conjugate gradients, in the preconditioner's norm
MISSING_MAX_ITERATIONS = 200


class DisplacementNoise:
    """Independent Gaussian noise of the displacements of one measurement, or of a batch.

    Parameters
    ----------
    device : Device
        Where the arrays live.
    std : array, shape (..., d, N)
        Standard deviations in metres.
    observed : array of bool, shape (..., d, N)
        Which displacements were measured.

    Attributes
    ----------
    observed : array of bool, shape (..., d, N)
    weights : array, shape (..., d, N)
        1 / std^2 where measured, zero elsewhere.
    correlations : sequence of two arrays, or None
        Correlation along each axis, see `CorrelatedNoise`.
    """

    correlations: Any = None

    def __init__(self, device: Device, std: Any, observed: Any) -> None:
        xp = self._xp = device.xp
        self.observed = observed
        self._std = xp.where(observed, std, 0.0)
        self.weights = xp.where(observed, 1 / xp.where(observed, std, 1.0) ** 2, 0.0)

    def precision(self, e: Any) -> Any:
        """P e for fields (..., d, N), with P the precision (inverse covariance) of the measured displacements."""
        return self.weights * e

    def covariance(self, v: Any) -> Any:
        """S_n v for fields (..., d, N); zero where not measured."""
        return self._std**2 * v

    def draw(self, normal: Any) -> Any:
        """Noise of the measured displacements from standard normal numbers (d, N); zero elsewhere."""
        return self._std * normal

    def draw_weighted(self, normal: Any) -> Any:
        """P times such noise, whose covariance is P."""
        return self._xp.sqrt(self.weights) * normal

    @property
    def lost(self) -> float:
        """How many data fewer there are than measured displacements, because their noise is correlated."""
        return 0.0


class CorrelatedNoise(DisplacementNoise):
    """Gaussian noise of one measurement on a grid whose correlation is the product of one along each axis.

    The covariance of a component is S = D ((1 - w) C_0 x C_1 + w) D, with the standard deviations D, a Toeplitz matrix
    of correlations for each axis, and w = `WHITE_SHARE`. The eigenvectors of the two matrices give products with S and
    its inverse by four small matrix products, on any processor. Displacements that are missing within the rectangle of
    the measured ones are integrated out exactly.

    Parameters
    ----------
    device, std, observed
        As for `DisplacementNoise`, of shape (2, N).
    shape : (int, int)
        Of the grid.
    correlations : sequence of two arrays, shape (shape[k],)
        Correlation of the noise of two nodes along each axis by their distance in nodes; the first value is 1.
    """

    def __init__(self, device: Device, std: Any, observed: Any, shape: tuple[int, int], correlations: Any) -> None:
        super().__init__(device, std, observed)
        self._shape, self.correlations = shape, correlations
        seen = np.asarray(to_host(observed)).reshape(2, *shape)
        self._components = [_Component(device, own, correlations) if own.any() else None for own in seen]

    @property
    def lost(self) -> float:
        """How many data fewer there are than measured displacements: those of the smooth part's faint directions."""
        return sum(each.lost for each in self._components if each is not None)

    def precision(self, e: Any) -> Any:
        """P e, see `DisplacementNoise`."""
        return self._over_std(self._each("precision", self._over_std(e)))

    def covariance(self, v: Any) -> Any:
        """S_n v, see `DisplacementNoise`."""
        return self._std * self._each("covariance", self._std * v)

    def draw(self, normal: Any) -> Any:
        """Noise of the measured displacements, see `DisplacementNoise`."""
        return self._std * self._each("root", normal)

    def draw_weighted(self, normal: Any) -> Any:
        """P times such noise, see `DisplacementNoise`."""
        return self.precision(self.draw(normal))

    def modes(self, e: Any) -> list[tuple[Any, Any]]:
        """Independent coefficients of fields e (2, N), for each measured component.

        Where e is such noise and nothing is missing they have a variance of one. Only modes in which the smooth part of
        the noise is larger than the independent one are returned, since the independent part is an assumption.

        Returns
        -------
        list of (coefficients, frequencies), each of shape (M,)
            Frequencies over the largest one of the modes, between 0 and 1.
        """
        fields = self._over_std(e).reshape(2, *self._shape)
        return [one.modes(fields[k]) for k, one in enumerate(self._components) if one is not None]

    def _over_std(self, e):
        xp = self._xp
        return xp.where(self.observed, e / xp.where(self.observed, self._std, 1.0), 0.0)

    def _each(self, name, field):
        out = self._xp.zeros_like(field)
        fields, results = (a.reshape(*a.shape[:-2], 2, *self._shape) for a in (field, out))
        for k, component in enumerate(self._components):
            if component is not None:
                results[..., k, :, :] = getattr(component, name)(fields[..., k, :, :])
        return out


class _Component:
    """The correlation of one component's noise, for fields (..., *shape) in standard deviations."""

    def __init__(self, device, seen, correlations):
        self._xp = device.xp
        self._box = tuple(
            slice(int(np.flatnonzero(line)[0]), int(np.flatnonzero(line)[-1]) + 1)
            for line in (seen.any(axis=1), seen.any(axis=0))
        )
        inside = seen[self._box]
        (values_0, vectors_0), (values_1, vectors_1) = (
            eigh(toeplitz(c[:n])) for c, n in zip(correlations, inside.shape, strict=True)
        )
        smooth = (1 - WHITE_SHARE) * np.maximum(np.outer(values_0, values_1), 0.0)
        self._vectors = device.upload(vectors_0), device.upload(vectors_1)
        self._values = device.upload(smooth + WHITE_SHARE)
        self._seen = device.upload(inside)
        self.lost = float(inside.size - (smooth / (smooth + WHITE_SHARE)).sum())
        self._missing = device.xp.flatnonzero(~self._seen)
        self._columns = None
        count = int((~inside).sum())
        if 0 < count * inside.size <= MAX_COLUMN_VALUES:
            units = device.xp.zeros((count, *inside.shape))
            units.reshape(count, -1)[np.arange(count), self._missing] = 1.0
            columns = self._filtered(units, 1 / self._values)
            schur = columns.reshape(count, -1)[:, self._missing]
            self._columns = columns, device.upload(np.linalg.inv(to_host(schur)))

    def precision(self, e):
        """The inverse of the correlation of the measured displacements."""
        own = self._in_box(e)
        if not len(self._missing):
            return self._outside(e, self._filtered(own, 1 / self._values))
        if self._columns is not None:
            columns, inverse = self._columns
            out = self._filtered(own, 1 / self._values)
            amounts = out.reshape(*out.shape[:-2], -1)[..., self._missing] @ inverse
            return self._outside(e, self._xp.where(self._seen, out - self._xp.tensordot(amounts, columns, 1), 0.0))
        found = conjugate_gradients(
            lambda v: self._xp.where(self._seen, self._filtered(v, self._values), 0.0),
            lambda r: self._xp.where(self._seen, self._filtered(r, 1 / self._values), 0.0),
            own,
            maxiter=MISSING_MAX_ITERATIONS,
            preconditioned_rtol=MISSING_RTOL,
            axes=2,
        )
        return self._outside(e, found.value)

    def covariance(self, v):
        """The correlation itself."""
        out = self._filtered(self._in_box(v), self._values)
        return self._outside(v, self._xp.where(self._seen, out, 0.0))

    def root(self, normal):
        """Correlated numbers from independent ones."""
        rotated = self._xp.sqrt(self._values) * normal[(..., *self._box)]
        vectors_0, vectors_1 = self._vectors
        return self._outside(normal, self._xp.where(self._seen, vectors_0 @ rotated @ vectors_1.T, 0.0))

    def modes(self, e):
        """Coefficients and frequencies of the modes that are not faint, see `CorrelatedNoise.modes`."""
        vectors_0, vectors_1 = self._vectors
        coefficients = (vectors_0.T @ self._in_box(e) @ vectors_1) / self._xp.sqrt(self._values)
        # eigenvalues are in ascending order, and smooth modes have the largest
        places = (self._xp.arange(n)[::-1] / n for n in self._values.shape)
        frequencies = self._xp.sqrt(sum(p**2 for p in self._xp.meshgrid(*places, indexing="ij")))
        kept = self._values > CLEAR * WHITE_SHARE
        return coefficients[kept], frequencies[kept] / frequencies[kept].max()

    def _filtered(self, field, values):
        vectors_0, vectors_1 = self._vectors
        return vectors_0 @ (values * (vectors_0.T @ field @ vectors_1)) @ vectors_1.T

    def _in_box(self, field):
        return self._xp.where(self._seen, field[(..., *self._box)], 0.0)

    def _outside(self, like, inner):
        out = self._xp.zeros_like(like)
        out[(..., *self._box)] = inner
        return out


def noise_of(device: Device, std: Any, observed: Any, geometry: Any, correlations: Any) -> DisplacementNoise:
    """The noise model: independent where ``correlations`` is None, else of one measurement on a grid."""
    if correlations is None:
        return DisplacementNoise(device, std, observed)
    return CorrelatedNoise(device, std, observed, geometry.shape, correlations)


def noise_on_host(measurement: Any, noisy: Any = None) -> DisplacementNoise:
    """The noise of a measurement in host memory, for fields (d, N); on all displacements that count as measured, or on
    those of a mask of shape (d, *node_shape).
    """
    m = measurement
    std, noisy = (a.reshape(len(a), -1) for a in (m.displacement_std, m.observed if noisy is None else noisy))
    return noise_of(HOST, std, noisy, m.geometry, m.displacement_correlation)
