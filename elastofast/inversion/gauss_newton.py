"""Minimisers in z = log x of the data term plus a prior: Gauss-Newton, and L-BFGS for priors with a gradient only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..backend.batch import column, dots, numbers
from ..backend.device import namespace, to_host
from ..backend.elementwise import fused

__all__ = [
    "Iterate", "conjugate_gradients", "curvature_scale", "data_curvature", "first_step", "gauss_newton", "quasi_newton",
]  # fmt: skip

CG_STEPS = 12
CG_TOLERANCE = 0.1
SMALL_STEPS = 2  # end a run: a truncated inner solve gives one now and then with much still to gain
TIGHTEST = 1e-8  # solves are not made more accurate than this when no step lowers the objective
AT_REST = 2e-3  # rms step in log x that ends the frozen fixed point
LONGEST_STEP = 1.0  # in log x: a factor of e


class Iterate(NamedTuple):
    """One accepted point of each member of a batch.

    z = log x (B, N), the data term there, the prior's values (B,) on the host, and its dual variable.
    """

    z: np.ndarray
    data: object
    prior: np.ndarray
    dual: object


def gauss_newton(fidelity, prior, weight, start, *, rtol, tolerance, max_iterations, limits, report, going=True):
    """Minimise J(x) + weight R(x) over z = log x, for each member of a batch by itself.

    Each step solves (H + weight B) d = -(gradient) by a few conjugate gradient iterations: H = D^T Gamma^-1 D with
    a fixed multigrid cycle or two in place of each solve, B the prior's curvature. With the frozen gradient the
    same step minimises the frozen problem, and Gamma is updated after it. Members that have ended stay where they are.
    Where a solve does not converge for one of them, all take shorter steps.

    Parameters
    ----------
    fidelity : Fidelity
    prior : object with ``linearize``, ``start_dual``, ``step_dual``; or None
    weight : float or array, shape (B,)
    start : Iterate
        Only z and dual are used, and data if present.
    rtol : float
        Tolerance of the forward and adjoint solves.
    tolerance : float
        Ends when two steps in turn each lower the objective by less than this fraction of it (exact gradient).
    max_iterations : int
    limits : (float, float) or arrays of shape (B, 1)
        Bounds on z.
    report : callable
        Called with an Iterate, step lengths and gradient norms (B,), and which members took the step; returns which of
        them are to stop.
    going : array of bool, shape (B,), optional
        Which members are to move at all.

    Returns
    -------
    Iterate
    status : array of str, shape (B,)
        "converged", "max_iterations", "stalled" or "stopped".
    """
    exact = fidelity.kind == "exact"
    z, dual, xp = start.z, start.dual, fidelity.device.xp
    members = len(z)
    weight = np.broadcast_to(np.asarray(weight, dtype=float), members)
    of_prior = column(weight, z)
    going = np.broadcast_to(going, members).copy()
    status = np.full(members, "max_iterations", dtype=object)
    now = start.data if start.data is not None else fidelity.evaluate(np.exp(z), rtol)
    spread = None  # mean diagonal of H
    small = np.zeros(members, int)
    last = np.zeros(members) if prior is None else prior.value(z)
    for number in range(max_iterations):
        x = np.exp(z)
        gradient = x * now.gradient
        value = now.value
        of_data = data_curvature(fidelity, x, now)
        model = None if prior is None else prior.linearize(z, dual)
        diagonal = 0.0
        if model is not None:
            gradient = gradient + of_prior * model.gradient
            value = value + weight * model.value
            diagonal = of_prior * model.diagonal
        free = _free(z, gradient, limits)

        def curvature(v, of_data=of_data, model=model, free=free):
            return of_data(v) * free if model is None else _combined(of_data(v), model.curvature(v), of_prior, free)

        if spread is None:
            spread = curvature_scale(of_data, z)
        d = conjugate_gradients(
            curvature,
            -gradient * free,
            diagonal + spread,
            steps=CG_STEPS + 4 * max(0, number - CG_STEPS),  # a run this long has a long valley to go down
        )
        slope = numbers(dots(gradient, d))
        status[going & ~(slope < 0)] = "stalled"
        going &= slope < 0
        if not going.any():
            break
        step = first_step(d)
        for _ in range(8):
            trial = xp.where(column(going, z), np.clip(z + column(step, z) * d, *limits), z)
            try:
                after = fidelity.evaluate(np.exp(trial), rtol)
                data_value = after.value if exact else now.frozen(np.exp(trial))
            except RuntimeError:  # too wild a modulus for the solver: a shorter step
                data_value = np.inf
            prior_value = 0.0 if prior is None else prior.value(trial)
            lowered = value - (data_value + weight * prior_value)
            moved = going & (lowered >= -1e-4 * step * slope)
            if (moved == going).all():
                break
            step = np.where(moved, step, step / 2)
        if (moved != going).any():
            trial = xp.where(column(moved, z), trial, z)
            if rtol <= TIGHTEST:
                status[going & ~moved] = "stalled"
                going &= moved
            rtol = min(rtol, max(1e-2 * rtol, TIGHTEST))  # perhaps the solves, not the map, are what stands in the way
            after = fidelity.evaluate(np.exp(trial), rtol)
        if not moved.any():
            now = after
            if not going.any():
                break
            continue
        change = trial - z
        if prior is not None:
            stepped = prior.step_dual(dual, z, change)
            if stepped is not None and not moved.all():
                stepped = xp.where(column(moved, stepped), stepped, 0.0 if dual is None else dual)
            dual = stepped
            last = np.where(moved, prior_value, last)
        z, now = trial, after
        point = Iterate(z, now, last, dual)
        norm = np.sqrt(numbers(dots(gradient * free, gradient)))
        stop = moved & report(point, step, norm, moved)
        # the frozen problem changes with every step, so there the map has to come to rest
        size = np.sqrt(numbers(dots(change, change)) / z.shape[-1])
        at_rest = lowered <= tolerance * np.abs(value) if exact else size <= AT_REST
        small = np.where(moved, np.where(at_rest, small + 1, 0), small)
        status[going & (small >= SMALL_STEPS)] = "converged"
        status[stop] = "stopped"
        going &= ~stop & (small < SMALL_STEPS)
        if not going.any():
            break
    return Iterate(z, now, last, dual), status


def first_step(d):
    """Step lengths (B,) with which no value of directions d (B, N) moves too far."""
    return np.minimum(1.0, LONGEST_STEP / np.maximum(numbers(np.abs(d).max(axis=-1)), 1e-300))


def _free(z, gradient, limits):
    """1 where z may move, 0 where a bound holds it."""
    low, high = limits
    held = ((z <= low) & (gradient > 0)) | ((z >= high) & (gradient < 0))
    return (~held).astype(float)


def data_curvature(fidelity, x, now):
    """Gauss-Newton Hessian of the data term in log x at an `Evaluation`, v -> x D^T Gamma^-1 D (x v).

    With ones in place of x it is the Hessian in x itself.
    """
    form, xp = fidelity.measurement.form, fidelity.device.xp
    through = now.displacement if fidelity.kind == "exact" else fidelity.measured
    through = xp.ascontiguousarray(xp.broadcast_to(through, (*x.shape[:-1], *through.shape[-2:])))
    product, back = form.products(through)

    def apply(v):
        t = product(x * v)
        t *= fidelity.equations
        g = back(now.weighting(t))
        g *= x
        return g

    return fidelity.watch.wrap(apply)


def curvature_scale(curvature, z):
    """Mean diagonal (..., 1) of a curvature v -> H v of fields like z (..., N), by one random probe (Hutchinson's
    estimate).
    """
    signs = np.random.default_rng(0).choice([-1.0, 1.0], z.shape[-1])
    probe = np.zeros_like(z) + namespace(z).asarray(signs)
    return dots(probe, curvature(probe)) / z.shape[-1]


def conjugate_gradients(apply, b, diagonal, steps=CG_STEPS, tolerance=CG_TOLERANCE):
    """A few diagonally preconditioned steps from zero, each of which is a descent direction for -b (..., N)."""
    d = np.zeros_like(b)
    r = b.copy()
    p = r / diagonal
    rho = dots(r, p)
    goal = tolerance**2 * rho
    going = rho > goal
    s = np.empty_like(b)
    for _ in range(steps):
        if not numbers(going).any():  # the one thing an iteration waits for
            break
        q = apply(p)
        curvature = dots(p, q)
        _advance(d, r, s, p, q, diagonal, rho, curvature, going)
        before, rho = rho, dots(r, s)
        _turn(p, s, rho, before, curvature, going)
        going = _unfinished(rho, goal, curvature, going)
    return d


@fused
def _advance(xp, d, r, s, p, q, diagonal, rho, curvature, going):
    """Move solution d and residual r along p, of members that go on, and put the preconditioned residual in s."""
    moving = going & (curvature > 0)
    alpha = xp.where(moving, rho / xp.where(moving, curvature, 1.0), 0.0)
    d += alpha * p
    r -= alpha * q
    xp.true_divide(r, diagonal, s)


@fused
def _turn(xp, p, s, rho, before, curvature, going):
    """Change p into the next direction."""
    moving = going & (curvature > 0)
    p *= xp.where(moving, rho / xp.where(moving, before, 1.0), 0.0)
    p += s


@fused
def _unfinished(xp, rho, goal, curvature, going):
    return going & (curvature > 0) & (rho > goal)


@fused
def _combined(xp, data, prior, weight, free):
    """The curvature's products of data and prior where the map may move."""
    total = weight * prior
    total += data
    total *= free
    return total


def quasi_newton(fidelity, prior, weight, start, *, rtol, max_iterations, limits, report):
    """Minimise J(x) + weight R(x) over z = log x by L-BFGS-B, for any prior with value and gradient.

    Parameters and results as in `gauss_newton`, for a batch of one.
    """
    from scipy.optimize import minimize

    shape, xp = fidelity.measurement.geometry.node_shape, fidelity.device.xp
    (weight,), ((low,), (high,)) = numbers(weight), map(numbers, limits)
    latest = {}

    def objective(z):
        own = xp.array(z).reshape(start.z.shape)
        x = np.exp(own)
        try:
            data = fidelity.evaluate(x, rtol)
        except RuntimeError:  # too wild a modulus for the solver: a bowl, so that the line search comes back
            if not latest:
                raise
            away, height = z - latest["host"], 1 + abs(latest["value"])
            return latest["value"] + height, 2 * height / (away @ away) * away
        value, slope = (0.0, x * 0.0) if prior is None else prior(x.reshape(shape))
        gradient = x * (data.gradient + weight * slope.reshape(x.shape))
        latest["host"], latest["point"] = z.copy(), Iterate(own, data, numbers(float(value)), None)
        latest["norm"] = np.sqrt(numbers(dots(gradient, gradient)))
        latest["value"] = float(data.value[0]) + weight * float(value)
        return latest["value"], to_host(gradient).ravel()

    class Stop(Exception):
        pass

    def accepted(z):
        point = latest["point"]
        if not np.array_equal(z, latest["host"]):
            objective(z)
            point = latest["point"]
        latest["best"] = point
        if report(point, np.ones(1), latest["norm"], np.ones(1, bool)).any():
            raise Stop

    try:
        found = minimize(
            objective,
            to_host(start.z).ravel(),
            jac=True,
            method="L-BFGS-B",
            callback=accepted,
            bounds=[(low, high)] * start.z.size,
            options={"maxiter": max_iterations, "maxcor": 30, "ftol": 1e-6},
        )
    except Stop:
        return latest["best"], ["stopped"]
    status = {0: "converged", 1: "max_iterations"}.get(found.status, "stalled")
    return latest.get("best") or latest["point"], [status]
