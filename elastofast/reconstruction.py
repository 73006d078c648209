"""From a measurement to a map of the modulus."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import priors
from .arrays import home_of, namespace, on, to_host
from .boundary import check_support
from .descent import projected_descent
from .fidelity import GRADIENTS, Fidelity
from .form import inner
from .geometry import Grid
from .measurement import Measurement
from .newton import Iterate, curvature_scale, data_curvature, gauss_newton, quasi_newton
from .pyramid import SMALLEST, coarsen, refine, sample
from .solve import state
from .splitting import FIRST, FURTHER, WORTH, Settings, half_quadratic_splitting, schedule_steps
from .stopwatch import Stopwatch
from .weight import predictive_weight

__all__ = ["Result", "reconstruct"]

# name: what makes the prior for a geometry; learned ones are read once for all levels
PRIORS = {
    "none": None,
    "tikhonov": priors.Tikhonov,
    "tv": priors.TotalVariation,
    "critic": priors.Critic.load,
    "pnp": priors.PlugAndPlay.load,
    "unet": priors.PostProcessing.load,
}
LEARNED = ("critic", "pnp", "unet")
LINEARIZED = ("linearize", "value", "start_dual", "step_dual")  # what Gauss-Newton asks of a prior
OPTIMIZERS = ("gauss-newton", "splitting", "l-bfgs", "descent")
# best on validation maps at 25 to 45 dB; other priors with a target take the defaults
SPLITTING = {
    "critic": Settings(weight=350.0, growth=0.5, loose=10.0, slack=0.03),
    "dncnn": Settings(weight=100.0, growth=1.0, loose=3.0),
}
MISFIT = 1.2  # chi2 of the map of a prior with a target, above which the data are trusted less
DISTRUST = 16.0  # variance of their noise over what is stated; best on validation maps with a wrong Poisson ratio
TRAINED = 96  # nodes along each axis from which learned priors are asked; their coarsest grid has at least as many
FINER = 6  # steps of splitting on a level that starts from a coarser one, with weights from a tenth of the last
LOOSEST = 1e-4  # relative tolerance of the solves inside the optimisation; values are corrected to second order
MAX_ITERATIONS = {"exact": 60, "frozen": 20}  # the fixed point either settles soon or wanders
RANGE = 100.0  # default bounds about the start, against runaway where the data say nothing
TISSUE = 12.5e3  # Pa, where nothing fixes the scale: what learned priors take for the background
GROWTH = 0.45  # exponent of the best weight's growth with the number of data: .3 to .5 on phantoms, 65^2 to 512^2
TOLERANCE = {False: 2e-4, True: 1e-5}  # relative fall of the objective that ends a coarse level, the finest


@dataclass
class Result:
    """A reconstructed map and how it came about.

    Attributes
    ----------
    modulus : array, shape node_shape
        Pascals; if ``relative``, up to a factor and with geometric mean one.
    displacement : array, shape (d, *node_shape)
        The denoised displacement in metres that belongs to the modulus.
    status : {"converged", "max_iterations", "stalled", "interrupted"}
    message : str
        What the status and chi2 mean and what to do about it.
    chi2 : float
        2 J over the number of independent data; close to and a little below one for a good map.
    weight : float
        Prior weight that was used; NaN if the run was interrupted before it was chosen.
    history : list of dict
        One entry an accepted step: iteration, shape, weight, objective, data, prior, chi2, step, gradient_norm,
        seconds.
    seconds : float
        Wall time.
    timing : dict
        Seconds spent in the data term ("data"), the prior ("prior") and anything else ("rest").
    relative : bool
        True if nothing fixes the scale of the modulus.
    prior, gradient, optimizer : str
        What was used.
    geometry : Grid or Mesh
        Where the nodes are.
    """

    modulus: np.ndarray
    displacement: np.ndarray
    status: str
    message: str
    chi2: float
    weight: float
    history: list[dict[str, Any]] = field(repr=False)
    seconds: float
    relative: bool
    prior: str
    gradient: str
    optimizer: str
    geometry: Any = field(repr=False)
    timing: dict[str, float] = field(repr=False, default_factory=dict)

    def save(self, path):
        """Write the modulus to .npz, .h5, .mat or .vtu, see `save_modulus`."""
        from .io import save_modulus

        save_modulus(path, self, self.geometry)


def reconstruct(
    measurement,
    prior="auto",
    weight="auto",
    *,
    gradient="exact",
    optimizer=None,
    start=None,
    bounds=None,
    max_iterations=None,
    step=0.7,
    progress=None,
):
    """Modulus map that explains a measurement and is plausible under a prior.

    Minimises J(x) + weight R(x), with the Gamma-weighted data term J of `Fidelity` and a prior R.

    Parameters
    ----------
    measurement : Measurement
        What was measured. Its reference modulus is never looked at.
    prior : {"auto", "tv", "tikhonov", "none", "critic", "pnp", "unet"} or object
        "auto" is the best one on held-out maps that can be used: "critic" on plane grids of 96 nodes or more along each
        axis with nearly square pixels, where torch is installed and neither weight nor optimizer is given, else "tv".
        The result's ``prior`` names it; name one yourself where installations differ, or tissue is textured ("tv").
        Total variation or first-order Tikhonov of log x; "none" is the maximum-likelihood iteration stopped at the
        first map with chi2 <= 1 (discrepancy principle). Learned ones, with the weights shipped with the package: an
        adversarial critic, plug-and-play with a DnCNN, and a UNet that corrects the unregularised map. Or an object,
        see `elastofast.priors`.
    weight : "auto" or float
        Prior weight. "auto" needs displacement_std to be right, but no ground truth. For Gauss-Newton it minimises
        an unbiased estimate of the prediction error on a coarse copy of the data (see `elastofast.weight`). For
        priors with a target it is a fixed power of the data term's mean curvature, for those that only give a
        gradient the norm of the data gradient that noise alone causes over the norm of the prior's.
    gradient : {"exact", "frozen"}
        Exact gradient of J, or the paper's fixed point, which treats Gamma as constant in each step.
    optimizer : {"gauss-newton", "splitting", "l-bfgs", "descent"}, optional
        Default Gauss-Newton on log x, coarse to fine; half-quadratic splitting for priors with a target (critic,
        plug-and-play); L-BFGS for those that only give a gradient.
        "descent" is the paper's projected gradient descent on x: Gamma frozen for 100 steps, then updated.
    start : array_like, shape node_shape, or Result, optional
        Initial modulus in pascals; default the best homogeneous one. No coarse levels are visited then, so an
        interrupted run is resumed by ``start=result, weight=result.weight``. Splitting takes only a Result for more
        than a first guess: its map does not depend on an array given here.
    bounds : (float, float), optional
        Smallest and largest modulus in pascals; default a hundredth and a hundred times the start's mean.
    max_iterations : int, optional
        Limit on outer steps of a level; default 60 (Gauss-Newton; 20 with the frozen gradient), 31 to 45 (splitting,
        after up to 30 to settle on its first map), 200 (L-BFGS), 100 (descent, between updates of Gamma).
    step : float
        Step length of "descent" in units of one over the largest curvature; above 2 it diverges.
    progress : bool or callable, optional
        True shows a bar; a callable gets each history entry. Ctrl-C ends the run with the best map so far.

    Returns
    -------
    Result

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or the measurement cannot determine a modulus.

    Examples
    --------
    >>> result = ef.reconstruct(m, prior="tv")  # doctest: +SKIP
    >>> print(result.status, result.chi2)  # doctest: +SKIP
    """
    run = _Run(measurement, prior, weight, gradient, optimizer, start, bounds, max_iterations, step, progress)
    with run.bar(), measurement.home.working():
        return run.result()


class _Run:
    """The checked arguments of one reconstruction and what has been reached so far."""

    def __init__(self, measurement, prior, weight, gradient, optimizer, start, bounds, max_iterations, step, progress):
        if not isinstance(measurement, Measurement):
            raise TypeError(f"measurement must be a Measurement, got {type(measurement).__name__}")
        geometry = measurement.geometry
        check_support(geometry, measurement.load)
        if isinstance(prior, str) and prior not in ("auto", *PRIORS):
            names = ", ".join(map(repr, ("auto", *PRIORS)))
            raise ValueError(f"prior must be one of {names} or an object, got {prior!r}")
        if isinstance(prior, type):
            raise TypeError(f"prior must be a name or an object, got the class {prior.__name__}: make one of it")
        automatic = isinstance(weight, str) and weight == "auto"
        self.name = prior if isinstance(prior, str) else type(prior).__name__
        if self.name == "auto":
            critic = _default_critic(geometry) if automatic and optimizer is None else None
            self.name, prior = ("critic", critic) if critic else ("tv", "tv")
        elif self.name in LEARNED and isinstance(prior, str):
            prior = PRIORS[prior]()
        if hasattr(prior, "check"):
            prior.check(geometry)
        if hasattr(prior, "target") and not isinstance(geometry, Grid):
            raise ValueError(f"a prior with a target needs a measurement on a Grid, got {geometry!r}")
        if not isinstance(gradient, str) or gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {', '.join(map(repr, GRADIENTS))}, got {gradient!r}")
        self.correct = prior if isinstance(prior, priors.PostProcessing) else None
        if self.correct is not None:
            prior = "none"
        if not isinstance(prior, str) and not callable(prior) and not hasattr(prior, "target"):
            raise TypeError(
                "prior must be a name, a callable giving value and gradient, or an object with a target, "
                f"got {self.name}"
            )
        able = {
            "gauss-newton": isinstance(prior, str) or all(hasattr(prior, name) for name in LINEARIZED),
            "splitting": hasattr(prior, "target"),
            "l-bfgs": isinstance(prior, str) or callable(prior),
            "descent": isinstance(prior, str) or callable(prior),
        }
        if optimizer is None:
            optimizer = next(name for name in OPTIMIZERS if able[name])
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(map(repr, OPTIMIZERS))}, got {optimizer!r}")
        if not able[optimizer]:
            raise ValueError(
                f"optimizer {optimizer!r} does not work with prior {self.name!r}; these do: "
                f"{', '.join(repr(name) for name in OPTIMIZERS if able[name])}"
            )
        if optimizer == "l-bfgs" and gradient == "frozen":
            raise ValueError("gradient 'frozen' is not the derivative of anything, which 'l-bfgs' needs; use 'exact'")
        if not automatic and not (isinstance(weight, int | float | np.number) and 0 <= weight < np.inf):
            raise ValueError(f"weight must be 'auto' or a finite number, zero or more, got {weight!r}")
        if optimizer == "splitting" and weight == 0:
            raise ValueError("weight must be positive for optimizer 'splitting', got 0")
        if max_iterations is not None and not (isinstance(max_iterations, int | np.integer) and max_iterations > 0):
            raise ValueError(f"max_iterations must be a positive whole number, got {max_iterations!r}")
        if not (isinstance(step, int | float | np.number) and 0 < step < np.inf):
            raise ValueError(f"step must be positive and finite, got {step!r}")
        if not (progress is None or isinstance(progress, bool) or callable(progress)):
            raise TypeError(f"progress must be True, False or a callable, got {progress!r}")
        self.began = time.perf_counter()
        self.measurement, self.kind, self.optimizer, self.step = measurement, gradient, optimizer, float(step)
        self.prior, self.max_iterations = prior, max_iterations
        self.weight = 0.0 if prior == "none" else weight
        self.data_watches, self.prior_watch = [], Stopwatch()
        m = measurement
        self.rtol = _solve_tolerance(m)
        self.relative = not m.load.force.any()
        if self.relative and m.force_std[m.load.loaded].any():
            raise ValueError(
                "force_std is not zero, but no force is known: nothing tells how large the modulus is against that "
                "noise. Set force_std to zero; the result is then relative"
            )
        self.limits = _limits(bounds, self.relative)
        self.start, self.resumed = _start_map(start, m), isinstance(start, Result)
        self.history: list[dict[str, Any]] = []
        self.show, self._bar = progress, None
        self.best = None  # (measurement, Iterate) of the finest level reached
        self.lowest = None  # (chi2, Iterate) of a run without prior

    def bar(self):
        """A tqdm bar around the run if the caller asked for one."""
        from contextlib import nullcontext

        if self.show is not True:
            return nullcontext()
        from tqdm import tqdm

        self._bar = tqdm(desc=f"reconstruct ({self.name})", unit="step")
        return self._bar

    def result(self):
        try:
            status = self.optimise()
        except KeyboardInterrupt:
            if self.best is None:
                raise
            status = "interrupted"
        m, point = self.measurement, self.best[1]
        z = point.z
        for coarse, fine in self.ladder_above(self.best[0]):
            z = refine(z.reshape(coarse.geometry.shape), coarse.geometry, fine.geometry).ravel()
        if self.best[0] is not m:  # interrupted on a coarse level
            point = Iterate(z, self._fidelity(m).evaluate(np.exp(z), self.rtol), 0.0, None)
        x = np.exp(z)
        if self.correct is not None:
            level = TISSUE / float(namespace(x).median(x)) if self.relative else 1.0  # the network knows the unit
            x = self.prior_watch.wrap(self.correct.apply)((level * x).reshape(m.geometry.shape)).ravel() / level
            if self.limits is not None:
                x = np.clip(x, *np.exp(self.limits))
            z = np.log(x)
            point = Iterate(z, self._fidelity(m).evaluate(x, self.rtol), 0.0, None)
        relative = self.relative
        if relative:
            factor = self._scale(x, point.data.displacement)
            relative = factor is None
            x = x * (np.exp(-z.mean()) if relative else factor)
        chi2 = 2 * point.data.value / Fidelity(m, self.kind).n_data
        seconds = time.perf_counter() - self.began
        timing = {"data": sum(watch.seconds for watch in self.data_watches), "prior": self.prior_watch.seconds}
        timing["rest"] = seconds - sum(timing.values())
        weight = float(self.weight) if self.weight != "auto" else float("nan")
        return Result(
            modulus=m.home.give(x.reshape(m.geometry.node_shape)),
            displacement=m.home.give(point.data.displacement.reshape(m.displacement.shape)),
            status=status,
            message=_message(status, chi2, self.name, known=self.weight != "auto"),
            chi2=float(chi2),
            weight=weight,
            history=self.history,
            seconds=seconds,
            timing=timing,
            relative=relative,
            prior=self.name,
            gradient=self.kind,
            optimizer=self.optimizer,
            geometry=m.geometry,
        )

    def optimise(self):
        """Visit the levels from coarse to fine; returns the status at the finest."""
        m = self.measurement
        self.levels = [m]
        named = self.optimizer == "gauss-newton" and isinstance(self.prior, str)
        ladder = self.optimizer == "splitting" or (named and self.prior != "none")
        if ladder and self.start is None:  # maximum likelihood is one path of iterates, from the homogeneous map
            smallest = TRAINED if self.optimizer == "splitting" else SMALLEST
            while (coarse := coarsen(self.levels[-1], smallest)) is not None:
                self.levels.append(coarse)
        z = homogeneous(self.levels[-1]) if self.start is None else np.log(self.start)
        if self.limits is None:
            self.limits = float(z.mean()) - np.log(RANGE), float(z.mean()) + np.log(RANGE)
        z = np.clip(z, *self.limits)
        for number in reversed(range(len(self.levels))):
            level = self.levels[number]
            fidelity = self._fidelity(level)
            prior = self._prior(level.geometry)
            finest = number == 0
            point = Iterate(z, None, 0.0, prior.start_dual() if hasattr(prior, "start_dual") else None)
            self.best = self.best or (level, point._replace(data=fidelity.evaluate(np.exp(z), self.rtol)))
            if self.weight == "auto" and self.optimizer != "splitting":
                if hasattr(prior, "linearize"):
                    self.weight, point = self._choose_weight(level, prior, point)
                else:
                    self.weight = self._balanced_weight(fidelity, prior, self.best[1])
            point, status = self._minimise(fidelity, prior, point, finest)
            if self.lowest is not None:
                point = self.lowest[1]
            self.best = (level, point)
            if not finest:
                z = refine(
                    point.z.reshape(level.geometry.shape), level.geometry, self.levels[number - 1].geometry
                ).ravel()
        return "converged" if status == "stopped" else status

    def _choose_weight(self, level, prior, point):
        """Weight from the coarsest level, tried on single displacements, and a map to start that level from."""
        m = self.measurement
        trial = Fidelity(level if level is m else sample(m, level), self.kind, self.rtol)
        weight, found = predictive_weight(
            trial, prior, point._replace(data=None), rtol=self.rtol, limits=self.limits,
            report=self._report(level, trial),
        )  # fmt: skip
        weight *= (m.geometry.n_nodes / level.geometry.n_nodes) ** GROWTH
        return weight, (found if level is m else found._replace(data=None))

    def _balanced_weight(self, fidelity, prior, point):
        """Norm of the data gradient in log x that noise alone causes, over that of the prior's gradient."""
        x = np.exp(point.z)
        noise = x * fidelity.noise_gradient(x, point.data, np.random.default_rng(0), self.rtol)
        slope = x * np.ravel(prior(x.reshape(self.measurement.geometry.node_shape))[1])
        size = inner(slope, slope)
        if not size > 0:
            raise ValueError("the prior has no slope at the start, so weight 'auto' has no meaning; give a number")
        return float(np.sqrt(inner(noise, noise) / size))

    def _splitting(self, fidelity, prior, point, options):
        """Half-quadratic splitting on one level; a level that starts from a coarser one needs the last weights only."""
        level = fidelity.measurement
        z = homogeneous(level)  # the scale must not depend on the start
        x = np.exp(z)
        scale = curvature_scale(data_curvature(fidelity, x, fidelity.evaluate(x, self.rtol)), z.size, namespace(z))
        settings = SPLITTING.get(getattr(getattr(self.prior, "network", None), "kind", None), Settings())
        weight, automatic = settings.weight * scale**settings.growth, self.weight == "auto"
        finest = level is self.measurement
        if not automatic:  # given for the finest level
            weight = self.weight * level.geometry.n_nodes / self.measurement.geometry.n_nodes
        begins = level is self.levels[-1] and not self.resumed
        first = min(FIRST * scale, weight) if begins else 0.1 * weight
        point = point._replace(data=None)
        # Where a plausible map cannot explain the data (a wrong Poisson ratio, noise understated), they bend it until
        # it does. Then they are trusted less, as if their noise were larger. Coarse copies have an error of their own.
        for distrust in (1.0, DISTRUST):
            steps = schedule_steps(scale / distrust) if begins else FINER
            limit = self.max_iterations or steps + FURTHER
            if finest:
                self.weight = distrust * weight
            found, status = half_quadratic_splitting(
                fidelity, prior, distrust * weight, point, anchor=z if begins else None, first=distrust * first,
                slack=settings.slack, loose=distrust * settings.loose * scale, scale=distrust * scale,
                worth=distrust * WORTH, steps=min(steps, limit), max_iterations=limit, **options,
            )  # fmt: skip
            if 2 * found.data.value <= MISFIT * fidelity.n_data or not automatic or not finest:
                break
        return found, status

    def _minimise(self, fidelity, prior, point, finest):
        options = dict(rtol=self.rtol, limits=self.limits, report=self._report(fidelity.measurement, fidelity))
        if self.optimizer == "descent":
            return projected_descent(
                fidelity, prior, self.weight, point, length=self.step, steps=self.max_iterations or 100, **options
            )
        if self.optimizer == "splitting":
            return self._splitting(fidelity, prior, point, options)
        if self.optimizer == "l-bfgs":
            return quasi_newton(
                fidelity, prior, self.weight, point, max_iterations=self.max_iterations or 200, **options
            )
        return gauss_newton(
            fidelity, prior, self.weight, point,
            tolerance=TOLERANCE[finest], max_iterations=self.max_iterations or MAX_ITERATIONS[self.kind], **options,
        )

    def _report(self, level, fidelity):
        """Callback of the optimisers: keeps the point, the history and the bar up to date."""

        def report(point, step, gradient_norm, weight=None):
            weight = self.weight if weight is None else weight
            chi2 = 2 * point.data.value / fidelity.n_data
            self.best = (level, point)
            entry = dict(
                iteration=len(self.history) + 1,
                shape=level.geometry.node_shape,
                weight=float(weight),
                objective=float(point.data.value + weight * point.prior),
                data=float(point.data.value),
                prior=float(point.prior),
                chi2=float(chi2),
                step=float(step),
                gradient_norm=float(gradient_norm),
                seconds=time.perf_counter() - self.began,
            )
            self.history.append(entry)
            if callable(self.show):
                self.show(entry)
            elif self._bar is not None:
                self._bar.update()
                self._bar.set_postfix(chi2=f"{chi2:.3f}", shape="x".join(map(str, entry["shape"])))
            if self.prior != "none":
                return False
            # without a prior later maps fit noise: stop at chi2 <= 1, or where it begins to rise (frozen gradient)
            rising = self.lowest is not None and chi2 >= self.lowest[0]
            if not rising:
                self.lowest = chi2, point
            return rising or chi2 <= 1

        return report

    def _fidelity(self, level):
        fidelity = Fidelity(level, self.kind, self.rtol)
        self.data_watches.append(fidelity.watch)
        return fidelity

    def _prior(self, geometry):
        made = self.prior
        if isinstance(made, str):
            made = PRIORS[made] and PRIORS[made](geometry)
        return self.prior_watch.prior(made)

    def ladder_above(self, level):
        """(coarse, fine) pairs from a level up to the finest."""
        while level is not self.measurement:
            fine = self.levels[next(i for i, m in enumerate(self.levels) if m is level) - 1]
            yield level, fine
            level = fine

    def _scale(self, x, u):
        """Factor that makes the resultant what was measured, or None."""
        total = self.measurement.load.total_force
        if total is None:
            return None
        force = self.measurement.form.force(x, u)[total.component]
        predicted = float(to_host(force)[total.nodes.ravel()].sum())
        if not predicted * total.value > 0:
            raise ValueError(
                f"load.total_force is {total.value:g} N, but the reconstructed body answers with {predicted:g} N: "
                "check the sign of the force and of the displacement"
            )
        return total.value / predicted


def _default_critic(geometry):
    """The critic, which has the least error on held-out maps (docs/comparison.md), or None where it cannot be used."""
    if not isinstance(geometry, Grid) or min(geometry.shape) < TRAINED:
        return None
    try:
        critic = priors.Critic.load()
    except ImportError:
        return None
    try:
        critic.check(geometry)
    except ValueError:
        return None
    return critic


def homogeneous(measurement):
    """Logarithm of the constant modulus that fits best, (N,); that of soft tissue where nothing fixes the scale.

    The displacement of a homogeneous body is a + b / x with a from the prescribed displacements and b from the forces,
    so the weighted least-squares 1 / x has a closed form.
    """
    m, home, xp = measurement, measurement.home.own, measurement.home.xp
    d, n = m.geometry.dim, m.geometry.n_nodes
    if not m.load.force.any():
        return xp.full(n, np.log(TISSUE))
    if m.load.open.any():
        return xp.full(n, np.log(_open_start(m)))
    ones = xp.ones(n)
    solver = m.form.solver(ones, m.load.loaded.reshape(d, n))
    both = state(m.form, ones, m.load, solver, rtol=1e-6)
    a = xp.zeros((d, n))
    if m.load.displacement.any():
        fixed = on(home, m.load, "displacement").reshape(d, n)
        a = fixed + solver.solve(-m.form.force(ones, fixed), rtol=1e-6).value
    b = both - a
    std = on(home, m, "displacement_std").reshape(d, n)
    seen = on(home, m.load, "loaded").reshape(d, n) & xp.isfinite(std)
    precision = xp.where(seen, 1 / xp.where(std > 0, std, 1) ** 2, 0.0)
    along = float((precision * b * (on(home, m, "displacement").reshape(d, n) - a)).sum())
    if not along > 0:
        raise ValueError(
            "the measured displacement goes against the load: no positive modulus explains it. Check the sign and "
            "units (metres) of displacement and the sign of the force"
        )
    return xp.full(n, np.log(float((precision * b * b).sum()) / along))


def _solve_tolerance(m):
    """Well below the noise: a hundredth of its size relative to the displacement."""
    seen = ~m.load.fixed & np.isfinite(m.displacement_std)
    noise = np.linalg.norm(m.displacement_std[seen]) / max(np.linalg.norm(m.displacement[seen]), 1e-300)
    return float(np.clip(0.01 * noise, 1e-9, LOOSEST))


def _open_start(m):
    """Constant modulus from the force balance along the measured displacement."""
    equations = m.load.loaded
    work = float((m.load.force * m.displacement)[equations].sum())
    energy = float((m.form.force(np.ones(m.geometry.node_shape), m.displacement) * m.displacement)[equations].sum())
    return work / energy if work > 0 and energy > 0 else 1e4


def _limits(bounds, relative):
    if bounds is None:
        return None
    try:
        low, high = (float(b) for b in bounds)
    except (TypeError, ValueError):
        raise ValueError(f"bounds must be two numbers (pascals), got {bounds!r}") from None
    if not 0 < low < high:
        raise ValueError(f"bounds must satisfy 0 < low < high (pascals), got {bounds!r}")
    if relative:
        raise ValueError("bounds are in pascals, but no force is known, so the modulus is relative: leave them out")
    return np.log(low), np.log(high)


def _start_map(start, m):
    if start is None:
        return None
    from .form import check_modulus

    x = start.modulus if isinstance(start, Result) else start
    home = home_of(start=x)
    if home.own != m.home.own:
        raise TypeError(f"start is on {home}, but the measurement on {m.home}: they must live in one place")
    x, batch = check_modulus(home.take(x), m.form, "start")
    m.form._single(batch, "start", m.geometry.node_shape)
    return x.reshape(-1)


def _message(status, chi2, prior, known):
    resume = "start=result, weight=result.weight." if known else "start=result; no weight was chosen yet."
    text = {
        "converged": "The objective no longer falls noticeably.",
        "max_iterations": f"The largest number of iterations was reached: raise max_iterations or resume with {resume}",
        "stalled": "No step lowered the objective any more; the map is as good as the solves allow.",
        "interrupted": f"Interrupted; this is the best map so far. Resume with {resume}",
    }[status]
    if prior == "none" and status == "converged":
        text = "Stopped at the first map that explains the data within their noise, or the last that improved."
    if chi2 > 1.3:
        text += (
            f" chi2 is {chi2:.2f}: the data are not explained. displacement_std may be too small, the load or the "
            "Poisson ratio wrong, or the weight too large."
        )
    elif chi2 < 0.7:
        text += (
            f" chi2 is {chi2:.2f}: noise is being fitted. displacement_std may be too large or the weight too small."
        )
    return text
