"""Prior weight from the data alone: minimise an unbiased estimate of the prediction error.

For Gaussian noise, E[2 J + 2 dof - n] is the squared error of the predicted displacements in noise units (Stein's
unbiased risk estimate; Stein, Ann. Statist. 9, 1981). The effective number of parameters dof = tr H (H + weight B)^-1
is estimated with one random noise field (Monte-Carlo SURE; Ramani, Blu and Unser, IEEE Trans. Image Process. 17, 2008).
Compared with asking for chi2 = 1 it does not drown in the chance value of the noise energy: the misfits of two weights
are compared for the same noise. But where noise is faint, the error of the coarse grid itself is larger, and a small
weight would fit that; weights with which the data determine implausibly many parameters are not considered.
"""

from __future__ import annotations

import numpy as np

from .form import inner
from .newton import conjugate_gradients, data_curvature, gauss_newton

__all__ = ["predictive_weight"]

FIRST = 1000.0
RATIO = 2.0
SHARPEN = 0.8  # best maps want a little less weight than best displacements: measured on phantoms
MOST = 14  # weights tried
PARAMETERS = 0.08  # largest effective number of parameters, over the number of data
TOLERANCE = 1e-4


def predictive_weight(fidelity, prior, point, *, rtol, limits, report):
    """Weight for a prior, and the map that it gives.

    Parameters
    ----------
    fidelity : Fidelity
        Of the (coarse) measurement to try weights on.
    prior : object with ``linearize``
    point : Iterate
        Where to start.
    rtol, limits, report
        As in `gauss_newton`.

    Returns
    -------
    weight : float
    point : Iterate
    """
    tried = {}  # exponent -> (risk, point, degrees of freedom)

    def attempt(exponent, start):
        weight = FIRST * RATIO**exponent
        found, _ = gauss_newton(
            fidelity, prior, weight, start, rtol=rtol, tolerance=TOLERANCE, max_iterations=30, limits=limits,
            report=lambda p, step, norm: report(p, step, norm, weight),
        )
        dof = degrees_of_freedom(fidelity, prior, weight, found, rtol)
        tried[exponent] = 2 * found.data.value + 2 * dof, found, dof

    attempt(0, point)
    attempt(-1, tried[0][1])
    direction = -1 if tried[-1][0] < tried[0][0] else 1
    edge = -1 if direction < 0 else 0
    while len(tried) < MOST:
        edge += direction
        # beyond a flat bottom the estimate, which is noisy itself, may dip once more: ask for two steps of ascent
        attempt(edge, tried[edge - direction][1])
        if tried[edge][2] > PARAMETERS * fidelity.n_data:
            del tried[edge]
            break
        best = min(tried, key=lambda e: tried[e][0])
        if abs(edge - best) >= 2:
            break
    best = min(tried, key=lambda e: tried[e][0])
    # The bottom is flat and the estimate noisy: a mean over the weights whose risk is not clearly worse. Chance
    # differences of the risk are about as large as the root of the number of parameters.
    exponents = np.array(sorted(tried))
    excess = np.array([tried[e][0] for e in exponents]) - tried[best][0]
    share = np.exp(-0.5 * excess / np.sqrt(tried[best][2]))
    vertex = float((share * exponents).sum() / share.sum())
    return SHARPEN * FIRST * RATIO**vertex, tried[best][1]


def degrees_of_freedom(fidelity, prior, weight, point, rtol):
    """Monte-Carlo estimate of tr H (H + weight B)^-1 at a map."""
    x = np.exp(point.z)
    noise = fidelity.noise_gradient(x, point.data, np.random.default_rng(0), rtol)
    b = x * noise
    model = prior.linearize(point.z, point.dual)
    data = data_curvature(fidelity, x, point.data)
    spread = inner(b, b) / b.size
    d = conjugate_gradients(
        lambda v: data(v) + weight * model.curvature(v), b, weight * model.diagonal + spread, steps=30, tolerance=0.03
    )
    return inner(b, d)
