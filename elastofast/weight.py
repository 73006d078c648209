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

from .form import column, dots, numbers
from .newton import Iterate, conjugate_gradients, data_curvature, gauss_newton

__all__ = ["predictive_weight"]

FIRST = 1000.0
RATIO = 2.0
SHARPEN = 0.8  # best maps want a little less weight than best displacements: measured on phantoms
MOST = 14  # weights tried
PARAMETERS = 0.08  # largest effective number of parameters, over the number of data
TOLERANCE = 1e-4


def predictive_weight(fidelity, prior, start, *, rtol, limits, report):
    """Weights for a prior, and the maps that they give, for each member of a batch by itself.

    Parameters
    ----------
    fidelity : Fidelity
        Of the (coarse) measurements to try weights on.
    prior : object with ``linearize``
    start : Iterate
        Where to start.
    rtol, limits, report
        As in `gauss_newton`; ``report`` also gets the weights (B,).

    Returns
    -------
    weight : array, shape (B,)
    point : Iterate
        With z and dual alone.
    """
    members = range(len(start.z))
    searches = [_search(PARAMETERS * n) for n in np.broadcast_to(fidelity.n_data, len(members))]
    asked = [next(search) for search in searches]  # exponents to try and to start from, None at the end
    maps = [{None: (start.z[k], None if start.dual is None else start.dual[k])} for k in members]
    weight, best = np.ones(len(members)), [None] * len(members)

    def assembled():
        """The maps to start from: of the last exponents, or in the end of the best ones."""
        chosen = [maps[k][asked[k][1] if asked[k] else best[k]] for k in members]
        z, dual = zip(*chosen, strict=True)
        xp, some = fidelity.home.xp, next((d for d in dual if d is not None), None)
        if some is not None:
            dual = xp.stack([np.zeros_like(some) if d is None else d for d in dual])
        return Iterate(xp.stack(z), None, None, None if some is None else dual)

    while any(asked):
        going = np.array([ask is not None for ask in asked])
        trial = np.array([FIRST * RATIO ** ask[0] if ask else found for ask, found in zip(asked, weight, strict=True)])
        point, _ = gauss_newton(
            fidelity, prior, trial, assembled(), rtol=rtol, tolerance=TOLERANCE, max_iterations=30, limits=limits,
            report=lambda point, step, norm, moved, trial=trial: report(point, step, norm, moved, trial), going=going,
        )  # fmt: skip
        dof = degrees_of_freedom(fidelity, prior, trial, point, rtol)
        risk = 2 * point.data.value + 2 * dof
        for k in np.flatnonzero(going):
            maps[k][asked[k][0]] = point.z[k], None if point.dual is None else point.dual[k]
            try:
                asked[k] = searches[k].send((risk[k], dof[k]))
            except StopIteration as end:
                asked[k], (weight[k], best[k]) = None, end.value
    return weight, assembled()


def _search(parameters):
    """The search of one member: yields an exponent to try and the one whose map to start from, gets risk and dof."""
    tried = {0: (yield 0, None)}
    tried[-1] = yield -1, 0
    direction = -1 if tried[-1][0] < tried[0][0] else 1
    edge = -1 if direction < 0 else 0
    while len(tried) < MOST:
        edge += direction
        # beyond a flat bottom the estimate, which is noisy itself, may dip once more: ask for two steps of ascent
        tried[edge] = yield edge, edge - direction
        if tried[edge][1] > parameters:
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
    share = np.exp(-0.5 * excess / np.sqrt(tried[best][1]))
    vertex = float((share * exponents).sum() / share.sum())
    return SHARPEN * FIRST * RATIO**vertex, best


def degrees_of_freedom(fidelity, prior, weight, point, rtol):
    """Monte-Carlo estimates of tr H (H + weight B)^-1 at maps, (B,)."""
    x = np.exp(point.z)
    b = x * fidelity.noise_gradient(x, point.data, np.random.default_rng(0), rtol)
    model = prior.linearize(point.z, point.dual)
    data = data_curvature(fidelity, x, point.data)
    spread, weight = dots(b, b) / b.shape[-1], column(weight, b)
    d = conjugate_gradients(
        lambda v: data(v) + weight * model.curvature(v), b, weight * model.diagonal + spread, steps=30, tolerance=0.03
    )
    return numbers(dots(b, d))
