"""Prior weight from the data alone: minimise an unbiased estimate of the prediction error.

For Gaussian noise, E[2 J + 2 p - n] is the squared error of the predicted displacements in noise units (Stein's
unbiased risk estimate; Stein, Ann. Statist. 9, 1981). The effective number of parameters p = tr H (H + weight B)^-1
is estimated with one random noise field (Monte-Carlo SURE; Ramani, Blu and Unser, IEEE Trans. Image Process. 17, 2008).
Compared with asking for chi2 = 1 it does not drown in the chance value of the noise energy: the misfits of two weights
are compared for the same noise. But where noise is faint, the error of the coarse grid itself is larger, and a small
weight would fit that; of the weights after the first two, those with which the data determine implausibly many
parameters are not considered.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..backend.batch import column, dots, numbers
from ..misfit.curvature import truncated_newton_step
from ..misfit.fidelity import Fidelity
from .gauss_newton import gauss_newton
from .problem import Iterate, Problem

__all__ = ["effective_parameters", "predictive_weight", "search"]

# Weights are tried in a geometric sequence FIRST_WEIGHT * RATIO^k.
FIRST_WEIGHT = 1000.0
RATIO = 2.0
MAX_TRIED = 14
SHARPEN = 0.8  # the best maps want a little less weight than the best displacements: measured on phantoms
# Largest effective number of parameters over the number of data of one frame, see above.
MAX_PARAMETERS = 0.08
# Accuracy of the maps that are tried, and of the solve in the estimate of the effective number of parameters.
DECREASE_TOL = 1e-4
MAX_ITERATIONS = 30
CG_STEPS = 30
CG_TOLERANCE = 0.03
PER_MEMBER = (
    "value",
    "gradient",
    "displacement",
    "multiplier",
)  # fields of an `Evaluation` with one entry for each map


def predictive_weight(problem: Problem, trial: Fidelity, at_once: int = 1) -> tuple[np.ndarray, Iterate]:
    """Weights for a prior, and the maps that they give, for each member of a batch by itself.

    Parameters
    ----------
    problem : Problem
        Its prior is a `LinearizablePrior`; its start is where to begin, its report is told of every step.
    trial : Fidelity
        Of the measurements to try weights on: those of all members, ``at_once`` times over.
    at_once : int
        Number of weights to try side by side: on a GPU that takes hardly longer than one.

    Returns
    -------
    weight : array, shape (B,)
    point : Iterate
        With z and dual alone.
    """
    prior, start = problem.prior, problem.start
    count, xp = len(start.z), trial.device.xp
    data = np.broadcast_to(trial.n_data / trial.frames, count * at_once)[:count]
    searches = [search(MAX_PARAMETERS * n) for n in data]
    asked = [next(search) for search in searches]  # exponents to try and to start from, None at the end
    maps: list[dict] = [{None: (start.z[k], None if start.dual is None else start.dual[k])} for k in range(count)]
    found: list[dict] = [{} for _ in range(count)]
    weight, best = np.ones(count), [None] * count
    low, high = problem.limits
    limits = _repeated(low, at_once, xp), _repeated(high, at_once, xp)

    def assembled(chosen):
        """Maps of the members, in order, for the given exponents."""
        z, dual = zip(*(maps[k % count][e] for k, e in enumerate(chosen)), strict=True)
        some = next((d for d in dual if d is not None), None)
        if some is not None:
            dual = xp.stack([np.zeros_like(some) if d is None else d for d in dual])
        return Iterate(xp.stack(z), dual=None if some is None else dual)

    def report(point, weights, step, norm, accepted):
        """Tell the problem's report of the maps that the searches ask for, not of those tried beside them."""
        stop, own = np.zeros(len(accepted), bool), slice(count)
        if accepted[own].any():
            data = point.data._replace(**{name: getattr(point.data, name)[own] for name in PER_MEMBER})
            asked_for = Iterate(point.z[own], data, point.prior[own])
            stop[own] = problem.report(asked_for, weights[own], step[own], norm[own], accepted[own])
        return stop

    while any(asked):
        # the exponent that is asked for, and those that follow if the search goes on in its direction
        waves = [[_following(ask, n) if ask else 0 for ask in asked] for n in range(at_once)]
        exponents = np.array(waves, dtype=float).ravel()
        weights, active = FIRST_WEIGHT * RATIO**exponents, np.tile([ask is not None for ask in asked], at_once)
        origins = [ask[1] if ask else b for ask, b in zip(asked, best, strict=True)]
        wave = replace(
            problem, fidelity=trial, weight=weights, start=assembled(origins * at_once), limits=limits, report=report
        )
        point, _ = gauss_newton(wave, tolerance=DECREASE_TOL, max_iterations=MAX_ITERATIONS, active=active)
        parameters = effective_parameters(trial, prior, weights, point, problem.rtol, problem.movable)
        risk = 2 * point.data.value + 2 * parameters
        for n in map(int, np.flatnonzero(active)):
            k, exponent = n % count, int(exponents[n])
            maps[k][exponent] = point.z[n], None if point.dual is None else point.dual[n]
            found[k][exponent] = risk[n], parameters[n]
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


def search(max_parameters):
    """The search of one member: yields an exponent to try and the one whose map to start from, gets the risk and the
    number of parameters there.
    """
    tried = {0: (yield 0, None)}
    tried[-1] = yield -1, 0
    direction = -1 if tried[-1][0] < tried[0][0] else 1
    edge = -1 if direction < 0 else 0
    while len(tried) < MAX_TRIED:
        edge += direction
        # beyond a flat bottom the estimate, which is noisy itself, may dip once more: ask for two steps of ascent
        tried[edge] = yield edge, edge - direction
        if tried[edge][1] > max_parameters:
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
    mean_exponent = float((share * exponents).sum() / share.sum())
    return SHARPEN * FIRST_WEIGHT * RATIO**mean_exponent, best


def effective_parameters(fidelity, prior, weight, point, rtol, movable=None):
    """Monte-Carlo estimate of tr H (H + weight B)^-1, (B,): b^T (H + weight B)^-1 b, with b random of covariance H.

    Both matrices are those of the nodes that are ``movable``, see `Problem`.

    Of several frames, H is a sum, and so is the trace: there are several random vectors, with the covariances of parts
    of H.
    """
    x = np.exp(point.z)
    own = x if movable is None else x * movable
    probes = [own * b for b in fidelity.noise_gradients(x, point.data, np.random.default_rng(0), rtol)]
    model = prior.linearize(point.z, point.dual)
    data = fidelity.curvature(x, point.data)
    mean_diagonal = sum(dots(b, b) for b in probes) / x.shape[-1]  # of H, the sum of the covariances
    weight = column(weight, x)
    total = np.zeros(len(x))

    def finish(product, v):
        product = product + weight * model.curvature(v)
        return product if movable is None else product * movable

    for b in probes:
        d = truncated_newton_step(
            data,
            b,
            weight * model.diagonal + mean_diagonal,
            steps=CG_STEPS,
            tolerance=CG_TOLERANCE,
            finish=finish,
        )
        total += numbers(dots(b, d))
    return total
