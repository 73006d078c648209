"""How sure a map is: the error of the whole reconstruction, seen where the truth is known.

Data are simulated from the map with fresh noise and reconstructed in the same way. What comes out, less the map, is a
draw of the error: the noise, and what the prior makes of it (parametric bootstrap; Efron and Tibshirani, *An
Introduction to the Bootstrap*, 1993). The same is done with what comes out, which shows how the bias changes from the
truth to the map. No constant here was chosen on maps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend.device import to_host
from ..boundary import Boundary
from ..intervals import Uncertainty
from ..measurement import Measurement
from ..misfit.noise import noise_on_host
from ..priors.learned import PostProcessing
from ..priors.protocol import Prior
from ..priors.registry import NAMED
from ..result import CHI2_RANGE, Result
from .evidence import residual
from .reconstruct import reconstruct

__all__ = ["uncertainty"]

# Half of the cost in reconstructions, which is less where the search for a weight is saved. Of n draws the standard
# deviation is known to 1 / sqrt(2 n), which Student's quantile makes up for.
REPETITIONS = 5
FEWEST = 3  # draws from which a bias and a standard deviation are told apart


def uncertainty(
    result: Result,
    measurement: Measurement,
    repetitions: int = REPETITIONS,
    *,
    prior: Prior | PostProcessing | None = None,
    bounds: tuple[Any, Any] | None = None,
    known: Any = None,
    seed: int | np.random.Generator = 0,
    progress: bool | Callable[[dict[str, Any]], object] | None = None,
) -> Uncertainty:
    """How far the true modulus may be from a reconstruction.

    The displacement of the map is measured several times over, with fresh noise of the stated level, and each such
    measurement is reconstructed as the map was, with its prior and its weight. The scatter of these maps is that of the
    noise, and their mean distance from the map is the bias that the prior brings, such as the loss of contrast by total
    variation. Then the displacement of each of these maps is measured with the same noise and reconstructed too, which
    shows how the bias changes with the map. Missing values, open edges, correlated noise and noise of the forces are
    what they were in the measurement. Runs start afresh: started at the map, they would stay too near to it.

    What is not covered: details that the map does not show at all, such as a texture of the tissue below what the prior
    lets through, and a wrong law, load or Poisson ratio.

    Parameters
    ----------
    result : Result
        A finished reconstruction.
    measurement : Measurement
        What it was reconstructed from.
    repetitions : int
        Number of maps, three or more; there are twice as many reconstructions. Of a measurement on a GPU, those of a
        generation take their steps together.
    prior : object, optional
        The prior of the result, where it was not one with a name.
    bounds, known : optional
        What was given to `reconstruct`, where the result does not have it (``result.bounds``, ``result.known``), as one
        that was put together from a file.
    seed : int or numpy.random.Generator
        Of the noise.
    progress : bool or callable, optional
        As for `reconstruct`. Ctrl-C ends the work without a result.

    Returns
    -------
    Uncertainty
        Assigned to ``result.uncertainty`` it is drawn by `plot_result` and written by ``result.save``.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or the reconstruction did not come to an end.
    RuntimeError
        If the reconstructions of fewer than three maps could be solved.

    Warns
    -----
    UserWarning
        If the map does not explain the data, so that more is wrong than is covered, or some repetitions failed.

    Examples
    --------
    >>> sure = ef.uncertainty(result, m)  # doctest: +SKIP
    >>> low, estimate, high = sure.contrast(lesion, background, level=0.9)  # doctest: +SKIP
    """
    m = _checked(result, measurement, repetitions)
    bounds = result.bounds if bounds is None else bounds
    known = result.known if known is None else known
    if known is None and not (result.relative or m.load.force.any() or m.load.total_force):
        raise ValueError(
            "known must be given: no force is known, but the result is in pascals, so that reconstruct was given "
            "known moduli, which this result does not have"
        )
    prior_used: Any = prior
    if result.prior in NAMED:
        prior_used = result.prior
    elif prior is None:
        raise ValueError(f"prior must be given: the result was made with an object, {result.prior!r}, not with a name")
    if result.undetermined:
        warnings.warn(
            f"the data do not determine {result.undetermined}, or hardly: there the map shows what the prior prefers, "
            "and so do the maps by which its uncertainty is found, which is larger than they say",
            stacklevel=2,
        )
    if result.chi2 > CHI2_RANGE[1]:
        warnings.warn(
            f"chi2 is {result.chi2:.2f}: the data are not explained, so that noise, model or prior are not what they "
            "are taken for. The uncertainty covers only the stated noise and the bias of the prior",
            stacklevel=2,
        )
    rng = np.random.default_rng(seed)
    # where the stated level was found to be too low, the noise is as large as the residual shows
    simulate = _Simulation(m, residual(m, result.displacement).level if result.fallback == "noise" else 1.0)
    noises = [simulate.noise(rng) for _ in range(int(repetitions))]
    generations, origins = [], [result] * len(noises)
    for _ in range(2):
        found = reconstruct(
            [simulate(*pair) for pair in zip(origins, noises, strict=True)], prior_used, result.weight,
            gradient=result.gradient, optimizer=result.optimizer, bounds=bounds, known=known, noise="gaussian",
            progress=progress,
        )  # fmt: skip
        if any(one is None or one.status == "interrupted" for one in found):
            raise KeyboardInterrupt
        origins = [one for one in found if one is not None]
        generations.append(origins)
    solved = [pair for pair in zip(*generations, strict=True) if all(one.status != "failed" for one in pair)]
    failed = f"{len(noises) - len(solved)} of {len(noises)} reconstructions of simulated data failed"
    if len(solved) < FEWEST:
        raise RuntimeError(f"{failed}: the data hardly determine the map")
    if len(solved) < len(noises):
        warnings.warn(f"{failed} and were left out: the uncertainty is larger than stated", stacklevel=2)
    modulus = np.array(to_host(result.modulus), dtype=np.float64)
    once, twice = (np.log(np.stack([to_host(one.modulus) for one in maps])) for maps in zip(*solved, strict=True))
    return Uncertainty(modulus, once - np.log(modulus), twice - once, m.geometry, result.relative)


def _checked(result, measurement, repetitions) -> Measurement:
    """The measurement as the result took it: with the noise that was estimated, and without outliers."""
    if not isinstance(result, Result):
        raise TypeError(f"result must be a Result of reconstruct, got {type(result).__name__}")
    if not isinstance(measurement, Measurement):
        raise TypeError(f"measurement must be a Measurement, got {type(measurement).__name__}")
    if result.displacement.shape != measurement.displacement.shape:
        raise ValueError(
            f"result does not belong to the measurement: its displacement has shape {tuple(result.displacement.shape)},"
            f" the measured one {measurement.displacement.shape}"
        )
    if result.status in ("interrupted", "failed"):
        raise ValueError(f"result must be of a finished reconstruction, its status is {result.status!r}")
    if not (isinstance(repetitions, int | np.integer) and repetitions >= FEWEST):
        raise ValueError(f"repetitions must be a whole number, {FEWEST} or more, got {repetitions!r}")
    return result.taken(measurement)


class _Simulation:
    """Makes measurements of a body whose modulus is a map, like a given measurement but for the noise.

    Parameters
    ----------
    measurement : Measurement
    level : float
        Variance of the displacement noise over the stated one.
    """

    def __init__(self, measurement, level=1.0):
        m = self._measurement = measurement
        shape = (m.geometry.dim, m.geometry.n_nodes)
        self._model = noise_on_host(m, np.isfinite(m.displacement_std) & ~m.load.fixed)
        self._scale, self._shape = np.sqrt(level), shape
        self._force_std = np.where(m.load.loaded, m.force_std, 0.0)

    def noise(self, rng):
        """Noise of the displacements and of the forces, shape (d, *node_shape)."""
        shape = self._force_std.shape
        displacement = self._scale * self._model.draw(rng.standard_normal(self._shape)).reshape(shape)
        return displacement, self._force_std * rng.standard_normal(shape) if self._force_std.any() else None

    def __call__(self, result, noise) -> Measurement:
        """The measurement of the body of a result."""
        m, load, (displacement, force) = self._measurement, self._measurement.load, noise
        u = np.asarray(to_host(result.displacement), dtype=np.float64)
        if force is None:
            return m.derived(displacement=u + displacement)
        balance = np.where(load.loaded, m.form.force(to_host(result.modulus), u), 0.0)
        load = Boundary(load.fixed, load.displacement, balance + force, load.open, load.total_force)
        return m.derived(displacement=u + displacement, load=load)
