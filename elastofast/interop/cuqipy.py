"""The likelihood of a measurement for CUQIpy's samplers."""

from __future__ import annotations

from math import prod
from typing import Any

from cuqi.geometry import Geometry, Image2D
from cuqi.likelihood import UserDefinedLikelihood

from ..measurement import Measurement
from .logarithmic import LogMisfit

__all__ = ["likelihood"]


def likelihood(measurement: Measurement, geometry: Geometry | None = None, rtol: float = 1e-8) -> UserDefinedLikelihood:
    """The log-likelihood -J(exp z) of a measurement as a function of z = log x, x in pascals, with its gradient.

    Parameters
    ----------
    measurement : Measurement
        In host memory.
    geometry : cuqi.geometry.Geometry, optional
        That of the prior; by default an image for a plane grid, otherwise none.
    rtol : float
        Relative tolerance of the linear solves.

    Returns
    -------
    cuqi.likelihood.UserDefinedLikelihood
        Of the parameter ``z``. Up to a constant, since the noise is known. It is minus infinity, with a gradient of
        zeros, for a modulus that cannot be solved, so that samplers reject it and go on.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Examples
    --------
    >>> z = cuqi.distribution.GMRF(mean, 10.0, geometry=cuqi.geometry.Image2D((24, 24)))  # doctest: +SKIP
    >>> posterior = cuqi.distribution.Posterior(likelihood(m), z)  # doctest: +SKIP
    >>> samples = cuqi.sampler.NUTS(posterior, x0=mean).sample(100, 50)  # doctest: +SKIP
    """
    misfit, shape = LogMisfit(measurement, rtol), measurement.geometry.node_shape

    def logd(z: Any) -> float:
        return -misfit.value(z)

    def gradient(z: Any) -> Any:
        return -misfit.gradient(z)

    if geometry is None and len(shape) == 2:
        geometry = Image2D(shape)
    return UserDefinedLikelihood(prod(shape), logd, gradient, geometry, name="data")
