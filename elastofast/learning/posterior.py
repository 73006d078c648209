"""Random draws of the error that a reconstruction makes, on which critics are trained."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..misfit.curvature import curvature_scale, truncated_newton_step
from ..misfit.fidelity import Fidelity

__all__ = ["posterior_errors"]

# No study repeats the choice of these numbers, which cover the splitting weights, noise levels and iterations that
# reconstructions have.
PENALTY = (0.3, 150.0)  # range of rho over the mean curvature of the data term; log rho is uniform
NOISE = (-7.0, 7.0)  # range of the noise level relative to that of the measurement in decibels, uniform
STEPS = (8, 24)  # range of the number of conjugate gradient iterations, without the second number
CG_TOLERANCE = 0.02  # relative residual at which the conjugate gradient iteration stops earlier
FORWARD_TOLERANCE = 1e-4  # relative residual of the forward solutions


def posterior_errors(measurement, count, rng) -> np.ndarray:
    """Draws of the error in log x of a reconstruction with a quadratic penalty.

    Let H be the Gauss-Newton curvature of the data term at the true map, and rho / 2 |z - target|^2 a penalty on
    z = log x whose target has an error of variance 1 / rho. The error of the reconstructed z is then distributed as
    N(0, (H + rho)^-1). A draw d is obtained by perturbation and solution (Papandreou and Yuille, NeurIPS 2010): it
    solves (H + rho) d = b, where b is the sum of the gradient of the data term for a random draw of the noise, which
    has the covariance H, and of sqrt(rho) times white noise. The error is large and smooth in those directions in which
    the data say little, above all where the size of a lesion can be traded for its contrast. White noise has no such
    errors.

    Parameters
    ----------
    measurement : Measurement
        With the true modulus as its ``reference``.
    count : int
        Number of draws, each of which has its own rho.
    rng : numpy.random.Generator

    Returns
    -------
    numpy.ndarray, shape (count, *node_shape), float32
        Errors of log x, with a mean of zero where no force is known: the map is determined up to a factor then.
    """
    m = measurement
    level = 10 ** (rng.uniform(*NOISE) / 20)
    fidelity = Fidelity(m.derived(displacement_std=m.displacement_std * level), rtol=FORWARD_TOLERANCE)
    x = np.asarray(m.reference, dtype=np.float64).ravel()
    now = fidelity.evaluate(x)
    curvature = fidelity.curvature(x, now)
    scale = float(curvature_scale(curvature, x)[0])
    errors = np.empty((count, *m.geometry.node_shape), dtype=np.float32)
    for error in errors:
        rho = scale * float(np.exp(rng.uniform(*np.log(PENALTY))))
        b = x * fidelity.noise_gradient(x, now, rng, FORWARD_TOLERANCE) + np.sqrt(rho) * rng.standard_normal(x.size)
        d = truncated_newton_step(
            curvature,
            b,
            np.full(x.size, rho + scale),
            steps=int(rng.integers(*STEPS)),
            tolerance=CG_TOLERANCE,
            finish=partial(_penalised, rho),
        )
        error[...] = d.reshape(m.geometry.node_shape) - (0.0 if m.load.force.any() else d.mean())
    return errors


def _penalised(rho, product, v):
    """(H + rho) v from H v."""
    return product + rho * v
