"""The noise of the displacements, estimated where nobody states it.

A body in equilibrium cannot move like noise, whatever its modulus, so that what a reconstruction leaves of the data is
the noise. The first reconstruction starts from the noise that there would be if the body were homogeneous, which is too
much, and is therefore too smooth; its residual gives the noise for the second one, and that of the second one is the
answer. More rounds do not improve it: noise that is correlated over many nodes looks like the displacement around small
lesions, so that each round would take a little more of those for noise.

Standard deviation and correlation come from the variogram of the residual (half the mean squared difference of two
nodes; Matheron, Econ. Geol. 58, 1963) up to the correlation length. Smooth parts of the residual hardly enter it: noise
that the map has explained away, and displacement that it has not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from ..backend.device import to_host
from ..errors import DataError
from ..geometry import Grid
from ..measurement import Measurement, correlation_tables
from ..misfit.fidelity import Fidelity
from .initial import RTOL, homogeneous
from .multilevel import Multilevel
from .options import Options
from .outliers import jumps

__all__ = ["NoiseEstimate", "estimate_noise"]

ROUNDS = 2
LONGEST = 3  # the longest distance that is looked at is the extent of the grid along an axis over this
# Correlation between neighbours below which noise counts as independent. By chance it is one over the root of the
# number of nodes, .03 on 33 x 33; noise that is correlated less does no harm.
SMALLEST_CORRELATION = 0.1
FEWEST = (
    256  # displacements: with fewer, a map can explain the noise itself. Grids of 5 and 7 nodes a side came out wrong
)
SHORTEST = 0.1  # length in nodes at which the correlation of neighbours is far below anything that can be seen
MAX_FITS, FIT_TOL = 30, 0.01  # of the length and the distances that it is fitted to
SCREENING = 1e-3  # of the provisional noise level: jumps are then told by their neighbours' own scatter alone


@dataclass(frozen=True)
class NoiseEstimate:
    """The noise of a measured displacement, as its own equilibrium shows it.

    Attributes
    ----------
    std : numpy.ndarray, shape (d,)
        Standard deviation of each component in metres; infinite for components that were not measured.
    correlation_length : tuple of d floats
        Distance along each axis, in metres, at which the correlation has fallen to 1 / e; zero if it is independent
        from node to node, and on meshes, where it is not estimated.
    autocorrelation : tuple of d arrays
        One less the variogram of the residual over the variance, which is the correlation of the noise, along each axis
        by the distance in nodes; empty on meshes.
    """

    std: np.ndarray
    correlation_length: tuple[float, ...]
    autocorrelation: tuple[np.ndarray, ...]

    def applied(self, measurement: Measurement) -> Measurement:
        """The measurement with this noise stated, and without its reference.

        Parameters
        ----------
        measurement : Measurement
            Displacements that were not measured stay so.
        """
        m = measurement
        std = self.std.reshape(-1, *[1] * len(m.geometry.node_shape))
        lengths = self.correlation_length if any(self.correlation_length) else None
        return m.derived(
            displacement_std=np.where(np.isfinite(m.displacement_std), std, np.inf),
            displacement_correlation=correlation_tables(lengths, m.geometry),
        )

    def __str__(self) -> str:
        levels = ", ".join("not measured" if np.isinf(s) else f"{s:.3g} m" for s in self.std)
        text = f"displacement_std {levels}"
        if any(self.correlation_length):
            text += f", displacement_correlation {', '.join(f'{c:.3g} m' for c in self.correlation_length)}"
        return text


def estimate_noise(measurement: Measurement, progress: Any = None) -> NoiseEstimate:
    """Standard deviation and correlation length of the displacement noise, from what equilibrium cannot explain.

    The noise is taken for stationary: one standard deviation a component, and one correlation length an axis. A fault
    of the model (Poisson ratio, load, support) counts as noise.

    Parameters
    ----------
    measurement : Measurement
        Its ``displacement_std`` only says where something was measured.
    progress : bool or callable, optional
        As for `reconstruct`; two total variation maps are made.

    Returns
    -------
    NoiseEstimate

    Raises
    ------
    ValueError
        If there are too few displacements, or the measurement cannot determine a modulus.

    Examples
    --------
    >>> m = ef.Measurement(grid, law, load, u)  # doctest: +SKIP
    >>> noise = ef.estimate_noise(m)  # doctest: +SKIP
    >>> result = ef.reconstruct(noise.applied(m))  # doctest: +SKIP
    """
    if not isinstance(measurement, Measurement):
        raise TypeError(f"measurement must be a Measurement, got {type(measurement).__name__}")
    m = measurement.derived(displacement_correlation=None)
    options = Options.total_variation(m, progress=progress)
    wild = jumps(m.derived(displacement_std=np.where(np.isinf(m.displacement_std), np.inf, SCREENING * m.level)))
    seen = m.observed & ~m.load.open & ~wild
    if not seen.any():
        seen = m.observed & ~wild
    if seen.sum() < FEWEST:
        raise DataError(
            f"displacement_std was not given, and {int(seen.sum())} measured displacements are too few to estimate it "
            f"({FEWEST} are needed): state it"
        )
    if wild.any():
        m = m.derived(displacement_std=np.where(wild, np.inf, m.displacement_std))
    start = Fidelity.of_batch([m], "exact", RTOL)
    found = start.evaluate(m.device.native.xp.exp(homogeneous(m)))
    residual = m.displacement - to_host(found.displacement).reshape(m.displacement.shape)
    largest = _levels(residual, seen)
    estimate = NoiseEstimate(largest, (0.0,) * m.geometry.dim, ())
    for _ in range(ROUNDS):
        result = Multilevel([estimate.applied(m)], [None], ["auto"], options).results()[0]
        if result.status == "interrupted":
            raise KeyboardInterrupt
        if result.status == "failed":
            break
        estimate = _of_residual(m.displacement - to_host(result.displacement), seen, m.geometry, largest)
    return estimate


def _levels(residual, seen) -> np.ndarray:
    """Root mean square of each component where it was measured; infinite where it was nowhere."""
    counts = seen.reshape(len(seen), -1).sum(axis=1)
    squares = np.where(seen, residual, 0.0).reshape(len(seen), -1) ** 2
    return np.where(counts > 0, np.sqrt(squares.sum(axis=1) / np.maximum(counts, 1)), np.inf)


def _of_residual(residual, seen, geometry, largest) -> NoiseEstimate:
    """The noise that a residual shows; its standard deviations are at most the ``largest``."""
    levels = _levels(residual, seen)
    if not isinstance(geometry, Grid) or geometry.dim == 3:  # whose noise counts as independent
        return NoiseEstimate(np.minimum(levels, largest), (0.0,) * geometry.dim, ())
    measured = np.flatnonzero(np.isfinite(levels))
    tables = [np.stack([_variogram(residual[i], seen[i], axis) for i in measured]) for axis in range(geometry.dim)]
    # all components of a tracker have one length, so that it is fitted to all of them, each over its variance
    lengths = [_length((table.T / levels[measured] ** 2).mean(axis=1)) for table in tables]
    variances = np.mean(
        [[_variance(own, c) for own in table] for table, c in zip(tables, lengths, strict=True)], axis=0
    )
    std = levels.copy()
    std[measured] = np.sqrt(variances)
    metres = tuple(
        h * c if 1 - _rise(1, c) > SMALLEST_CORRELATION else 0.0 for h, c in zip(geometry.spacing, lengths, strict=True)
    )
    correlations = tuple(1 - (table.T / variances).mean(axis=1) for table in tables)
    return NoiseEstimate(np.minimum(std, largest), metres, correlations)


def _variogram(values, seen, axis) -> np.ndarray:
    """Half the mean squared difference of a field along an axis, by the distance in nodes."""
    values, seen = np.moveaxis(values, axis, 0), np.moveaxis(seen, axis, 0)
    n = len(values)
    found = [0.0]
    for k in range(1, max(n // LONGEST, 2)):
        both = seen[: n - k] & seen[k:]
        found.append(0.5 * float(np.mean((values[: n - k] - values[k:])[both] ** 2)) if both.any() else found[-1])
    return np.array(found)


def _rise(distance, c):
    """The variogram of noise of variance one and correlation length c, both in nodes."""
    return 1 - np.exp(-((distance / c) ** 2))


def _variance(table, c) -> float:
    """The variance with which a variogram of length c is nearest to a table up to that distance."""
    k = _fitted(table, c)
    return _amplitude(table[k], _rise(k, c))


def _amplitude(values, shape) -> float:
    """The factor with which a shape is nearest to some values."""
    return float(shape @ values / (shape @ shape))


def _fitted(table, c):
    """Distances of a table up to a length: beyond, what the map has explained away of the noise tells."""
    return np.arange(1, min(max(int(np.ceil(c)), 2), len(table) - 1) + 1)


def _length(table) -> float:
    """The correlation length, in nodes, of a variogram."""

    def distance(c, k):
        rise = _rise(k, c)
        return float(((table[k] - _amplitude(table[k], rise) * rise) ** 2).sum())

    length = len(table) / 2
    for _ in range(MAX_FITS):
        k, before = _fitted(table, length), length
        length = float(minimize_scalar(distance, bounds=(SHORTEST, len(table)), args=(k,), method="bounded").x)
        if abs(length - before) < FIT_TOL * before:
            break
    return length
