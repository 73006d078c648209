"""Draws of the error that a reconstruction has: what a critic has to tell from the truth."""

from __future__ import annotations

import numpy as np

from ..inversion.gauss_newton import conjugate_gradients
from ..measurement import Measurement
from ..misfit.curvature import curvature_scale, data_curvature
from ..misfit.fidelity import Fidelity

__all__ = ["posterior_errors"]

PENALTY = (0.3, 150.0)  # range of rho over the mean curvature of the data term, drawn log-uniformly
NOISE = (-7.0, 7.0)  # decibels that the noise level departs from the measurement's, drawn uniformly
STEPS = (8, 24)  # conjugate gradient iterations, from as few as a reconstruction makes to below the second number


def posterior_errors(measurement, count, rng):
    """Errors of log x as a reconstruction with a quadratic penalty leaves them about the true map.

    With H the Gauss-Newton curvature of the data term at the truth and a penalty rho / 2 |z - target|^2 whose target
    has an error of variance 1 / rho, the error of the reconstructed z = log x is N(0, (H + rho)^-1). It is drawn by
    perturbing and solving (Papandreou and Yuille, NeurIPS 2010): (H + rho) d = D^T-image of a noise field
    + sqrt(rho) white noise. The error is strong and smooth where the data say little, above all along the
    trade-off between the size of a lesion and its contrast, which white noise never shows.

    Parameters
    ----------
    measurement : Measurement
        With the true modulus as its ``reference``.
    count : int
        How many draws; each has its own rho.
    rng : numpy.random.Generator

    Returns
    -------
    numpy.ndarray, shape (count, *node_shape), float32
        Errors of log x.
    """
    m = measurement
    level = 10 ** (rng.uniform(*NOISE) / 20)
    m = Measurement(m.geometry, m.law, m.load, m.displacement, m.displacement_std * level, reference=m.reference)
    fidelity = Fidelity(m, rtol=1e-4)
    x = np.asarray(m.reference, dtype=np.float64).ravel()
    now = fidelity.evaluate(x)
    curvature = data_curvature(fidelity, x, now)
    scale = float(curvature_scale(curvature, x)[0])
    errors = np.empty((count, *m.geometry.node_shape), dtype=np.float32)
    for error in errors:
        rho = scale * float(np.exp(rng.uniform(*np.log(PENALTY))))
        b = x * fidelity.noise_gradient(x, now, rng, 1e-4) + np.sqrt(rho) * rng.standard_normal(x.size)
        d = conjugate_gradients(
            lambda v, rho=rho: curvature(v) + rho * v,
            b,
            np.full(x.size, rho + scale),
            steps=int(rng.integers(*STEPS)),
            tolerance=0.02,
        )
        error[...] = d.reshape(m.geometry.node_shape)
    return errors
