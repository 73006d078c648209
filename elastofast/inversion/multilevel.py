"""One run of the optimisers, from checked arguments over the levels to results."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from .. import priors
from ..backend.batch import column, dots, numbers
from ..backend.device import to_host
from ..backend.stopwatch import Stopwatch
from ..boundary import check_support
from ..geometry import Grid
from ..misfit.fidelity import GRADIENTS, Fidelity
from ..result import Result, message
from .coarsen import SMALLEST, coarsen, refine, sample
from .gauss_newton import Iterate, curvature_scale, data_curvature, gauss_newton, quasi_newton
from .initial import TISSUE, given, homogeneous
from .projected_gradient import projected_descent
from .splitting import FIRST, FURTHER, WORTH, Settings, half_quadratic_splitting, schedule_steps
from .sure import predictive_weight

__all__ = ["ALONE", "Run", "linearizes", "shipped_prior"]

# name: what makes the prior for a geometry, or loads it once for all levels
PRIORS = {
    "none": None,
    "tikhonov": priors.Tikhonov,
    "tv": priors.TotalVariation,
    "critic": priors.Critic,
    "pnp": priors.PlugAndPlay,
    "unet": priors.PostProcessing,
}
LEARNED = ("critic", "pnp", "unet")
LINEARIZED = ("linearize", "value", "start_dual", "step_dual")  # what Gauss-Newton asks of a prior
OPTIMIZERS = ("gauss-newton", "splitting", "l-bfgs", "descent")
ALONE = ("l-bfgs", "descent")  # work on one measurement at a time
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
GROWTH = 0.45  # exponent of the best weight's growth with the number of data: .3 to .5 on phantoms, 65^2 to 512^2
SMALL = 128**2  # nodes up to which a device takes several maps' steps in hardly more time than one's
AT_ONCE = 5  # weights that a device tries side by side; more than most searches take would cost more than they save
TOLERANCE = {False: 2e-4, True: 1e-5}  # relative fall of the objective that ends a coarse level, the finest


class Run:
    """The checked arguments of one batch of reconstructions and what has been reached so far."""

    def __init__(
        self, measurements, starts, weights, *, prior, gradient, optimizer, bounds, max_iterations, step, progress,
        shipped, places=None,
    ):  # fmt: skip
        geometry = measurements[0].geometry
        check_support(geometry, measurements[0].load)
        if isinstance(prior, str) and prior not in ("auto", *PRIORS):
            names = ", ".join(map(repr, ("auto", *PRIORS)))
            raise ValueError(f"prior must be one of {names} or an object, got {prior!r}")
        if isinstance(prior, type):
            raise TypeError(f"prior must be a name or an object, got the class {prior.__name__}: make one of it")
        self.automatic = isinstance(weights[0], str) and weights[0] == "auto"
        self.name = prior if isinstance(prior, str) else type(prior).__name__
        if self.name == "auto":
            critic = _default_critic(geometry, shipped) if self.automatic and optimizer is None else None
            self.name, prior = ("critic", critic) if critic else ("tv", "tv")
        elif self.name in LEARNED and isinstance(prior, str):
            prior = shipped(prior)
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
            "gauss-newton": linearizes(prior),
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
        self.weight = None if self.automatic else np.array([_checked_weight(weight, optimizer) for weight in weights])
        if max_iterations is not None and not (isinstance(max_iterations, int | np.integer) and max_iterations > 0):
            raise ValueError(f"max_iterations must be a positive whole number, got {max_iterations!r}")
        if not (isinstance(step, int | float | np.number) and 0 < step < np.inf):
            raise ValueError(f"step must be positive and finite, got {step!r}")
        if not (progress is None or isinstance(progress, bool) or callable(progress)):
            raise TypeError(f"progress must be True, False or a callable, got {progress!r}")
        self.levels = [measurements]  # from fine to coarse, each with all members
        self.geometry, self.device, self.count = geometry, measurements[0].device, len(measurements)
        self.kind, self.optimizer, self.step = gradient, optimizer, float(step)
        self.prior, self.max_iterations = prior, max_iterations
        if prior == "none":
            self.weight = np.zeros(self.count)
        self.data_watches, self.prior_watch = [], Stopwatch()
        self.rtol = min(map(_solve_tolerance, measurements))
        self.relative = [not m.load.force.any() for m in measurements]
        for m, relative in zip(measurements, self.relative, strict=True):
            if relative and m.force_std[m.load.loaded].any():
                raise ValueError(
                    "force_std is not zero, but no force is known: nothing tells how large the modulus is against that "
                    "noise. Set force_std to zero; the result is then relative"
                )
        self.limits = _limits(bounds, any(self.relative))
        self.starts = None
        if starts[0] is not None:
            self.starts = [given(start, m) for start, m in zip(starts, measurements, strict=True)]
        self.resumed = all(isinstance(start, Result) for start in starts)
        self.history: list[list[dict[str, Any]]] = [[] for _ in measurements]
        self.places = places  # of the members in the caller's list
        self.show, self._bar = progress, None
        self.best = None  # (level, Iterate) of the finest level reached
        self.lowest = None  # (chi2, z) of runs without prior

    def bar(self):
        """A tqdm bar around the run if the caller asked for one."""
        from contextlib import nullcontext

        if self.show is not True:
            return nullcontext()
        from tqdm import tqdm

        self._bar = tqdm(desc=f"reconstruct ({self.name})", unit="step")
        return self._bar

    def results(self):
        """One `Result` for each member."""
        self.began = time.perf_counter()
        with self.bar(), self.device.working():
            return self._results()

    def _results(self):
        try:
            status = self.optimise()
        except KeyboardInterrupt:
            if self.best is None:
                raise
            status = ["interrupted"] * self.count
        number, point = self.best
        fidelity = self._fidelity(0) if number else self.fidelity
        z = point.z
        if number:  # interrupted on a coarse level
            for coarse in range(number, 0, -1):
                z = self._refined(z, coarse)
            point = Iterate(z, fidelity.evaluate(np.exp(z), self.rtol), None, None)
        x = np.exp(z)
        if self.correct is not None:
            x = self._corrected(x)
            point = Iterate(np.log(x), fidelity.evaluate(x, self.rtol), None, None)
        chi2 = np.broadcast_to(2 * point.data.value / fidelity.n_data, self.count)
        scaled = [self._scaled(*each) for each in zip(self.levels[0], x, point.data.displacement, strict=True)]
        seconds = time.perf_counter() - self.began
        timing = {"data": sum(watch.seconds for watch in self.data_watches), "prior": self.prior_watch.seconds}
        timing["rest"] = seconds - sum(timing.values())
        known = self.weight is not None
        return [
            Result(
                modulus=self._given(modulus, m.geometry.node_shape),
                displacement=self._given(point.data.displacement[k], m.displacement.shape),
                status=status[k],
                message=message(status[k], chi2[k], self.name, known),
                chi2=float(chi2[k]),
                weight=float(self.weight[k]) if known else float("nan"),
                history=self.history[k],
                seconds=seconds,
                timing=dict(timing),
                relative=relative,
                prior=self.name,
                gradient=self.kind,
                optimizer=self.optimizer,
                geometry=m.geometry,
            )
            for k, (m, (modulus, relative)) in enumerate(zip(self.levels[0], scaled, strict=True))
        ]

    def optimise(self):
        """Visit the levels from coarse to fine; returns each member's status at the finest."""
        named = self.optimizer == "gauss-newton" and isinstance(self.prior, str)
        ladder = self.optimizer == "splitting" or (named and self.prior != "none")
        if ladder and self.starts is None:  # maximum likelihood is one path of iterates, from the homogeneous map
            smallest = TRAINED if self.optimizer == "splitting" else SMALLEST
            while all(coarse := [coarsen(m, smallest) for m in self.levels[-1]]):
                self.levels.append(coarse)
        z = (
            self._homogeneous(self.levels[-1])
            if self.starts is None
            else np.log(self.device.native.xp.stack(self.starts))
        )
        if self.limits is None:
            middle = z.mean(axis=-1, keepdims=True)
            self.limits = middle - np.log(RANGE), middle + np.log(RANGE)
        z = np.clip(z, *self.limits)
        for number in reversed(range(len(self.levels))):
            fidelity = self.fidelity = self._fidelity(number)
            prior = self._prior(fidelity.measurement.geometry)
            point = Iterate(z, None, None, prior.start_dual() if hasattr(prior, "start_dual") else None)
            self.best = self.best or (number, point._replace(data=fidelity.evaluate(np.exp(z), self.rtol)))
            if self.weight is None and self.optimizer != "splitting":
                if hasattr(prior, "linearize"):
                    self.weight, point = self._choose_weight(number, prior, point)
                else:
                    self.weight = self._balanced_weight(fidelity, prior, self.best[1])
            point, status = self._minimise(number, fidelity, prior, point)
            if self.lowest is not None and bool((self.lowest[1] != point.z).any()):
                z = self.lowest[1]
                point = Iterate(z, fidelity.evaluate(np.exp(z), self.rtol), None, None)
            self.best = (number, point)
            if number:
                z = self._refined(point.z, number)
        return ["converged" if one == "stopped" else one for one in status]

    def _choose_weight(self, number, prior, point):
        """Weights from the coarsest level, tried on single displacements, and maps to start that level from."""
        fine, level = self.levels[0], self.levels[number]
        trial = [sample(m, coarse) for m, coarse in zip(fine, level, strict=True)] if number else fine
        small = level[0].geometry.n_nodes <= SMALL
        at_once = AT_ONCE if self.device.is_gpu and small else 1
        weight, found = predictive_weight(
            self._fidelity(number, trial * at_once), prior, point, rtol=self.rtol, limits=self.limits,
            report=self._report(number, self.fidelity), at_once=at_once,
        )  # fmt: skip
        return weight * (fine[0].geometry.n_nodes / level[0].geometry.n_nodes) ** GROWTH, found

    def _balanced_weight(self, fidelity, prior, point):
        """Norm of the data gradient in log x that noise alone causes, over that of the prior's gradient."""
        x = np.exp(point.z)
        noise = x * fidelity.noise_gradient(x, point.data, np.random.default_rng(0), self.rtol)
        slope = x * np.ravel(prior(x.reshape(self.geometry.node_shape))[1])
        size = numbers(dots(slope, slope))
        if not (size > 0).all():
            raise ValueError("the prior has no slope at the start, so weight 'auto' has no meaning; give a number")
        return np.sqrt(numbers(dots(noise, noise)) / size)

    def _splitting(self, number, fidelity, prior, point, options):
        """Half-quadratic splitting on one level; a level that starts from a coarser one needs the last weights only."""
        z = self._homogeneous(self.levels[number])  # the scale must not depend on the start
        x = np.exp(z)
        scale = numbers(curvature_scale(data_curvature(fidelity, x, fidelity.evaluate(x, self.rtol)), z))
        settings = SPLITTING.get(getattr(getattr(self.prior, "network", None), "kind", None), Settings())
        weight = settings.weight * scale**settings.growth
        if not self.automatic:  # given for the finest level
            weight = self.weight * fidelity.measurement.geometry.n_nodes / self.geometry.n_nodes
        begins = number == len(self.levels) - 1 and not self.resumed
        first = np.minimum(FIRST * scale, weight) if begins else 0.1 * weight
        start, distrust, status = point._replace(data=None), np.ones(self.count), None
        going = np.ones(self.count, bool)
        # Where a plausible map cannot explain the data (a wrong Poisson ratio, noise understated), they bend it until
        # it does. Then they are trusted less, as if their noise were larger. Coarse copies have an error of their own.
        while True:
            steps = np.array([schedule_steps(s) for s in scale / distrust]) if begins else FINER
            limit = self.max_iterations or steps + FURTHER
            if not number:
                self.weight = distrust * weight
            found, ended = half_quadratic_splitting(
                fidelity, prior, distrust * weight, start, anchor=z if begins else None, first=distrust * first,
                slack=settings.slack, loose=distrust * settings.loose * scale, scale=distrust * scale,
                worth=distrust * WORTH, steps=np.minimum(steps, limit), max_iterations=limit, going=going, **options,
            )  # fmt: skip
            status = np.where(going, ended, status)
            going = (2 * found.data.value > MISFIT * fidelity.n_data) & (distrust == 1)
            if number or not self.automatic or not going.any():
                return found, status
            distrust = np.where(going, DISTRUST, distrust)
            start = start._replace(z=self.device.native.xp.where(column(going, z), start.z, found.z))

    def _minimise(self, number, fidelity, prior, point):
        options = dict(rtol=self.rtol, limits=self.limits, report=self._report(number, fidelity))
        if self.optimizer == "descent":
            return projected_descent(
                fidelity, prior, self.weight, point, length=self.step, steps=self.max_iterations or 100, **options
            )
        if self.optimizer == "splitting":
            return self._splitting(number, fidelity, prior, point, options)
        if self.optimizer == "l-bfgs":
            return quasi_newton(
                fidelity, prior, self.weight, point, max_iterations=self.max_iterations or 200, **options
            )
        return gauss_newton(
            fidelity, prior, self.weight, point, tolerance=TOLERANCE[number == 0],
            max_iterations=self.max_iterations or MAX_ITERATIONS[self.kind], **options,
        )  # fmt: skip

    def _report(self, number, fidelity):
        """Callback of the optimisers: keeps the point, the history and the bar up to date."""

        def report(point, step, gradient_norm, moved, weight=None):
            weight = self.weight if weight is None else weight
            chi2 = 2 * point.data.value / fidelity.n_data
            self.best = (number, point)
            for k in np.flatnonzero(moved):
                entry = dict(
                    iteration=len(self.history[k]) + 1,
                    shape=fidelity.measurement.geometry.node_shape,
                    weight=float(weight[k]),
                    objective=float(point.data.value[k] + weight[k] * point.prior[k]),
                    data=float(point.data.value[k]),
                    prior=float(point.prior[k]),
                    chi2=float(chi2[k]),
                    step=float(step[k]),
                    gradient_norm=float(gradient_norm[k]),
                    seconds=time.perf_counter() - self.began,
                )
                if self.places is not None:
                    entry["member"] = self.places[k]
                self.history[k].append(entry)
                if callable(self.show):
                    self.show(entry)
            if self._bar is not None:
                self._bar.update()
                self._bar.set_postfix(chi2=f"{chi2.mean():.3f}", shape="x".join(map(str, entry["shape"])))
            if self.prior != "none":
                return np.zeros(self.count, bool)
            # without a prior later maps fit noise: stop at chi2 <= 1, or where it begins to rise (frozen gradient)
            least, z = self.lowest or (np.full(self.count, np.inf), point.z)
            rising = chi2 >= least
            better = moved & ~rising
            self.lowest = np.where(better, chi2, least), self.device.native.xp.where(column(better, z), point.z, z)
            return rising | (chi2 <= 1)

        return report

    def _fidelity(self, number, measurements=None):
        fidelity = Fidelity.of_batch(measurements or self.levels[number], self.kind, self.rtol)
        self.data_watches.append(fidelity.watch)
        return fidelity

    def _prior(self, geometry):
        made = self.prior
        if isinstance(made, str):
            made = PRIORS[made] and PRIORS[made](geometry)
        return self.prior_watch.prior(made)

    def _given(self, row, shape):
        """A member's field for the caller; of several a copy, so that one result does not keep all."""
        return self.device.export((row.copy() if self.count > 1 else row).reshape(shape))

    def _homogeneous(self, level):
        return self.device.native.xp.stack([homogeneous(m) for m in level])

    def _refined(self, z, number):
        """Maps carried from a level to the next finer one."""
        coarse, fine = (self.levels[k][0].geometry for k in (number, number - 1))
        return refine(z.reshape(-1, *coarse.shape), coarse, fine).reshape(len(z), -1)

    def _corrected(self, x):
        """Moduli after post-processing; the network knows the unit, which relative ones have not."""
        middle = np.median(x, axis=-1, keepdims=True)
        level = self.device.native.xp.where(column(self.relative, x), TISSUE / middle, 1.0)
        x = self.prior_watch.wrap(self.correct.apply)((level * x).reshape(-1, *self.geometry.shape))
        x = x.reshape(len(level), -1) / level
        return np.clip(x, *map(np.exp, self.limits))

    @staticmethod
    def _scaled(m, x, u):
        """A modulus (N,), and whether it is relative; scaled by one measured total force, or to geometric mean one."""
        if m.load.force.any():
            return x, False
        total = m.load.total_force
        if total is None:
            return x * np.exp(-np.log(x).mean()), True
        force = m.form.force(x, u)[total.component]
        predicted = float(to_host(force)[total.nodes.ravel()].sum())
        if not predicted * total.value > 0:
            raise ValueError(
                f"load.total_force is {total.value:g} N, but the reconstructed body answers with {predicted:g} N: "
                "check the sign of the force and of the displacement"
            )
        return x * (total.value / predicted), False


def linearizes(prior):
    """Whether a prior, a name or an object, offers what Gauss-Newton asks for."""
    return isinstance(prior, str) or all(hasattr(prior, name) for name in LINEARIZED)


def shipped_prior(name):
    """A learned prior with the weights that come with the package."""
    return PRIORS[name].load()


def _default_critic(geometry, shipped):
    """The critic, which has the least error on held-out maps (docs/comparison.md), or None where it cannot be used."""
    if not isinstance(geometry, Grid) or min(geometry.shape) < TRAINED:
        return None
    try:
        critic = shipped("critic")
    except ImportError:
        return None
    try:
        critic.check(geometry)
    except ValueError:
        return None
    return critic


def _checked_weight(weight, optimizer):
    if not (isinstance(weight, int | float | np.number) and 0 <= weight < np.inf):
        raise ValueError(f"weight must be 'auto' or a finite number, zero or more, got {weight!r}")
    if optimizer == "splitting" and weight == 0:
        raise ValueError("weight must be positive for optimizer 'splitting', got 0")
    return float(weight)


def _solve_tolerance(m):
    """Well below the noise: a hundredth of its size relative to the displacement."""
    seen = ~m.load.fixed & np.isfinite(m.displacement_std)
    noise = np.linalg.norm(m.displacement_std[seen]) / max(np.linalg.norm(m.displacement[seen]), 1e-300)
    return float(np.clip(0.01 * noise, 1e-9, LOOSEST))


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
