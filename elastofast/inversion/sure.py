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

from ..backend.batch import column, dots, numbers
from .gauss_newton import Iterate, conjugate_gradients, data_curvature, gauss_newton

__all__ = ["predictive_weight"]

FIRST = 1000.0
RATIO = 2.0
SHARPEN = 0.8  # best maps want a little less weight than best displacements: measured on phantoms
MOST = 14  # weights tried
PARAMETERS = 0.08  # largest effective number of parameters, over the number of data
TOLERANCE = 1e-4
SHARED = ("value", "gradient", "displacement", "dual")  # of an `Evaluation`, with one entry for each map


def predictive_weight(fidelity, prior, start, *, rtol, limits, report, at_once=1):
    """Weights for a prior, and the maps that they give, for each member of a batch by itself.

    Parameters
    ----------
    fidelity : Fidelity
        Of the (coarse) measurements to try weights on, all of them ``at_once`` times over.
    prior : object with ``linearize``
    start : Iterate
        Where to start.
    rtol, limits, report
        As in `gauss_newton`; ``report`` also gets the weights (B,).
    at_once : int
        Number of weights to try side by side: on a GPU that takes hardly longer than one.

    Returns
    -------
    weight : array, shape (B,)
    point : Iterate
        With z and dual alone.
    """
    count, xp = len(start.z), fidelity.device.xp
    searches = [_search(PARAMETERS * n) for n in np.broadcast_to(fidelity.n_data, count * at_once)[:count]]
    asked = [next(search) for search in searches]  # exponents to try and to start from, None at the end
    maps = [{None: (start.z[k], None if start.dual is None else start.dual[k])} for k in range(count)]
    found: list[dict] = [{} for _ in range(count)]
    weight, best = np.ones(count), [None] * count
    limits = tuple(_repeated(limit, at_once, xp) for limit in limits)

    def assembled(chosen):
        """Maps of the members, in order, for the given exponents."""
        z, dual = zip(*(maps[k % count][e] for k, e in enumerate(chosen)), strict=True)
        some = next((d for d in dual if d is not None), None)
        if some is not None:
            dual = xp.stack([np.zeros_like(some) if d is None else d for d in dual])
        return Iterate(xp.stack(z), None, None, None if some is None else dual)

    def report_asked(point, step, norm, moved, trial):
        """Tells `report` of the maps that the searches ask for, not of those tried beside them."""
        stop, own = np.zeros(len(moved), bool), slice(count)
        if moved[own].any():
            data = point.data._replace(**{name: getattr(point.data, name)[own] for name in SHARED})
            asked_for = Iterate(point.z[own], data, point.prior[own], None)
            stop[own] = report(asked_for, step[own], norm[own], moved[own], trial[own])
        return stop

    while any(asked):
        # the one that is asked for, and those that follow if the search goes on in its direction
        waves = [[_following(ask, n) if ask else 0 for ask in asked] for n in range(at_once)]
        exponents = np.array(waves, dtype=float).ravel()
        trial, going = FIRST * RATIO**exponents, np.tile([ask is not None for ask in asked], at_once)
        origins = [ask[1] if ask else b for ask, b in zip(asked, best, strict=True)]
        point, _ = gauss_newton(
            fidelity, prior, trial, assembled(origins * at_once), rtol=rtol, tolerance=TOLERANCE, max_iterations=30,
            limits=limits, going=going, report=lambda *now, trial=trial: report_asked(*now, trial),
        )  # fmt: skip
        dof = degrees_of_freedom(fidelity, prior, trial, point, rtol)
        risk = 2 * point.data.value + 2 * dof
        for n in np.flatnonzero(going):
            k, exponent = n % count, int(exponents[n])
            maps[k][exponent] = point.z[n], None if point.dual is None else point.dual[n]
            found[k][exponent] = risk[n], dof[n]
        for k in range(count):
            while asked[k] and asked[k][0] in found[k]:
                try:
                    asked[k] = searches[k].send(found[k][asked[k][0]])
                except StopIteration as end:
                    asked[k], (weight[k], best[k]) = None, end.value
    return weight, assembled(best)


def _repeated(limit, times, xp):
    """A bound for all members (B, 1), or a number, for every member several times over."""
    return xp.concatenate([limit] * times) if np.ndim(limit) else limit


def _following(ask, steps):
    """The exponent that a search asks for after some more steps if nothing makes it turn or end."""
    exponent, origin = ask
    return exponent - steps if origin is None or exponent < origin else exponent + steps


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
