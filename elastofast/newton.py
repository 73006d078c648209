"""Minimisers in z = log x of the data term plus a prior: Gauss-Newton, and L-BFGS for priors with a gradient only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .arrays import namespace, to_host
from .form import inner

__all__ = ["Iterate", "conjugate_gradients", "curvature_scale", "data_curvature", "gauss_newton", "quasi_newton"]

CG_STEPS = 12
CG_TOLERANCE = 0.1
SMALL_STEPS = 2  # end a run: a truncated inner solve gives one now and then with much still to gain
TIGHTEST = 1e-8  # solves are not made more accurate than this when no step lowers the objective
AT_REST = 2e-3  # rms step in log x that ends the frozen fixed point
LONGEST_STEP = 1.0  # in log x: a factor of e


class Iterate(NamedTuple):
    """One accepted point: z = log x (N,), the data term there, the prior's value, and its dual variable."""

    z: np.ndarray
    data: object
    prior: float
    dual: object


def gauss_newton(fidelity, prior, weight, start, *, rtol, tolerance, max_iterations, limits, report):
    """Minimise J(x) + weight R(x) over z = log x.

    Each step solves (H + weight B) d = -(gradient) by a few conjugate gradient iterations: H = D^T Gamma^-1 D with
    a fixed multigrid cycle or two in place of each solve, B the prior's curvature. With the frozen gradient the
    same step minimises the frozen problem, and Gamma is updated after it.

    Parameters
    ----------
    fidelity : Fidelity
    prior : object with ``linearize``, ``start_dual``, ``step_dual``; or None
    weight : float
    start : Iterate
        Only z and dual are used, and data if present.
    rtol : float
        Tolerance of the forward and adjoint solves.
    tolerance : float
        Ends when two steps in turn each lower the objective by less than this fraction of it (exact gradient).
    max_iterations : int
    limits : tuple of float or None
        Bounds on z.
    report : callable
        Called with each accepted Iterate, step length and gradient norm; returns True to stop.

    Returns
    -------
    Iterate
    status : {"converged", "max_iterations", "stalled", "stopped"}
    """
    exact = fidelity.kind == "exact"
    z, dual = start.z, start.dual
    now = start.data if start.data is not None else fidelity.evaluate(np.exp(z), rtol)
    spread = None  # mean diagonal of H
    small = 0
    for number in range(max_iterations):
        x = np.exp(z)
        gradient = x * now.gradient
        value = now.value
        of_data = data_curvature(fidelity, x, now)
        if prior is None:
            model, curvature, diagonal = None, of_data, np.zeros_like(z)
        else:
            model = prior.linearize(z, dual)
            gradient = gradient + weight * model.gradient
            value += weight * model.value
            diagonal = weight * model.diagonal

            def curvature(v, of_data=of_data, model=model):
                return of_data(v) + weight * model.curvature(v)

        free = _free(z, gradient, limits)
        if spread is None:
            spread = curvature_scale(of_data, z.size, namespace(z))
        d = conjugate_gradients(
            lambda v, free=free, curvature=curvature: curvature(v) * free,
            -gradient * free,
            diagonal + spread,
            steps=CG_STEPS + 4 * max(0, number - CG_STEPS),  # a run this long has a long valley to go down
        )
        slope = inner(gradient, d)
        if not slope < 0:
            return Iterate(z, now, model.value if model else 0.0, dual), "stalled"
        step = min(1.0, LONGEST_STEP / float(np.abs(d).max()))
        for _ in range(8):
            trial = _clip(z + step * d, limits)
            try:
                after = fidelity.evaluate(np.exp(trial), rtol)
                data_value = after.value if exact else now.frozen(np.exp(trial))
            except RuntimeError:  # too wild a modulus for the solver: a shorter step
                data_value = np.inf
            prior_value = 0.0 if prior is None else prior.value(trial)
            lowered = value - (data_value + weight * prior_value)
            if lowered >= -1e-4 * step * slope:
                break
            step /= 2
        else:
            if rtol <= TIGHTEST:
                return Iterate(z, now, model.value if model else 0.0, dual), "stalled"
            rtol = max(1e-2 * rtol, TIGHTEST)  # perhaps the solves, not the map, are what stands in the way
            now = fidelity.evaluate(x, rtol)
            continue
        moved = trial - z
        if prior is not None:
            dual = prior.step_dual(dual, z, moved)
        z, now = trial, after
        point = Iterate(z, now, prior_value, dual)
        if report(point, step, np.sqrt(inner(gradient * free, gradient * free))):
            return point, "stopped"
        # the frozen problem changes with every step, so there the map has to come to rest
        at_rest = lowered <= tolerance * abs(value) if exact else np.sqrt(np.mean(moved**2)) <= AT_REST
        small = small + 1 if at_rest else 0
        if small == SMALL_STEPS:
            return point, "converged"
    return Iterate(z, now, 0.0 if prior is None else prior.value(z), dual), "max_iterations"


def _free(z, gradient, limits):
    """1 where z may move, 0 where a bound holds it."""
    if limits is None:
        return np.ones_like(z)
    low, high = limits
    held = ((z <= low) & (gradient > 0)) | ((z >= high) & (gradient < 0))
    return (~held).astype(float)


def _clip(z, limits):
    return z if limits is None else np.clip(z, *limits)


def data_curvature(fidelity, x, now):
    """Gauss-Newton Hessian of the data term in log x at an `Evaluation`, v -> x D^T Gamma^-1 D (x v).

    With ones in place of x it is the Hessian in x itself.
    """
    form = fidelity.measurement.form
    through = now.displacement if fidelity.kind == "exact" else fidelity.measured

    def apply(v):
        t = np.where(fidelity.equations, form.force(x * v, through), 0.0)
        return x * form.sensitivity(through, now.weighting(t))

    return fidelity.watch.wrap(apply)


def curvature_scale(curvature, n, xp=np):
    """Mean diagonal of a curvature v -> H v of vectors (n,), by one random probe (Hutchinson's estimate)."""
    probe = xp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], n))
    return inner(probe, curvature(probe)) / n


def conjugate_gradients(apply, b, diagonal, steps=CG_STEPS, tolerance=CG_TOLERANCE):
    """A few diagonally preconditioned steps from zero, each of which is a descent direction for -b."""
    d = np.zeros_like(b)
    r = b.copy()
    s = r / diagonal
    p, rho = s.copy(), inner(r, s)
    first = rho
    for _ in range(steps):
        if not rho > tolerance**2 * first:
            break
        q = apply(p)
        curvature = inner(p, q)
        if not curvature > 0:
            break
        alpha = rho / curvature
        d += alpha * p
        r -= alpha * q
        s = r / diagonal
        rho, before = inner(r, s), rho
        p *= rho / before
        p += s
    return d


def quasi_newton(fidelity, prior, weight, start, *, rtol, max_iterations, limits, report):
    """Minimise J(x) + weight R(x) over z = log x by L-BFGS-B, for any prior with value and gradient.

    Parameters and results as in `gauss_newton`.
    """
    from scipy.optimize import minimize

    shape, xp = fidelity.measurement.geometry.node_shape, fidelity.home.xp
    latest = {}

    def objective(z):
        own = xp.array(z)
        x = np.exp(own)
        data = fidelity.evaluate(x, rtol)
        value, slope = (0.0, x * 0.0) if prior is None else prior(x.reshape(shape))
        gradient = x * (data.gradient + weight * slope.ravel())
        latest["host"], latest["point"] = z.copy(), Iterate(own, data, float(value), None)
        latest["norm"] = float(np.linalg.norm(gradient))
        return data.value + weight * float(value), to_host(gradient)

    class Stop(Exception):
        pass

    def accepted(z):
        point = latest["point"]
        if not np.array_equal(z, latest["host"]):
            objective(z)
            point = latest["point"]
        latest["best"] = point
        if report(point, 1.0, latest["norm"]):
            raise Stop

    try:
        found = minimize(
            objective, to_host(start.z), jac=True, method="L-BFGS-B", callback=accepted,
            bounds=None if limits is None else [limits] * start.z.size,
            options={"maxiter": max_iterations, "maxcor": 30, "ftol": 1e-6},
        )
    except Stop:
        return latest["best"], "stopped"
    status = {0: "converged", 1: "max_iterations"}.get(found.status, "stalled")
    return latest.get("best") or latest["point"], status
