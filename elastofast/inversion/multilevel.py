"""One run of an optimiser over the levels, from a coarse copy of the measurements to the measurements themselves."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from ..backend.batch import column, numbers
from ..backend.stopwatch import Stopwatch
from ..boundary import check_support
from ..errors import SolveError
from ..misfit.fidelity import Evaluation, Fidelity
from ..misfit.joint import JointEvaluation, JointFidelity, data_term
from ..priors.protocol import LinearizablePrior
from ..priors.standard import TISSUE
from ..priors.timed import timed
from ..result import Result
from .coarsen import coarsen, refine
from .history import History
from .initial import given, homogeneous
from .options import Options, check_weight
from .packing import correct, flagged, pack
from .prior_weight import choose_weight
from .problem import Iterate, Problem
from .scale import HeldScale, force_factor, has_total_force
from .stopping import Discrepancy
from .undetermined import Undetermined, undetermined

__all__ = ["Multilevel"]

# The solves inside the optimisation are made to this fraction of the noise relative to the displacement, within limits;
# values are corrected to second order, see `Fidelity.evaluate`.
SOLVE_SHARE = 0.01
TIGHTEST_RTOL, LOOSEST_RTOL = 1e-9, 1e-4
# A scale that a total force fixes counts as found once a further step would change it by less than this factor; a step
# multiplies its error by about the share of the nodes that bounds hold. Neither number is studied.
SCALE_TOL = 1e-3
MAX_SCALE_STEPS = 8


class Multilevel:
    """A batch of reconstructions that take their steps together, and what has been reached so far.

    Parameters
    ----------
    measurements : list of Measurement, or of one JointMeasurement
        On one geometry, with one law, and with the same dofs fixed, loaded and open.
    starts : list of (array or Result), or list of None
        A first map for each member; None for the best homogeneous ones.
    weights : list of float, or list of "auto"
        The prior's weight for each member.
    options : Options
    places : list of int, optional
        Numbers of the members in the caller's list.

    Raises
    ------
    TypeError, ValueError
        If a start or weight does not fit, or a measurement cannot determine a modulus.
    """

    def __init__(self, measurements, starts, weights, options: Options, places=None):
        for m in measurements[0].frames:
            check_support(m.geometry, m.load)
        self.options, self.count = options, len(measurements)
        self.device = measurements[0].device
        self.automatic = isinstance(weights[0], str) and weights[0] == "auto"
        self.weight: np.ndarray | None = None  # (B,), on the finest level
        if not self.automatic:
            self.weight = np.array([check_weight(weight, options.optimizer) for weight in weights])
        if options.prior is None:
            self.weight = np.zeros(self.count)
        self.relative = [not m.load.force.any() for m in measurements]
        _check_scale(measurements, self.relative, options.limits)
        # whether bounds have to hold for a map whose scale a total force fixes
        self.scaled_by_force = options.limits.given and options.limits.known is None and any(self.relative)
        self.starts = None
        if starts[0] is not None:
            self.starts = [given(start, m) for start, m in zip(starts, measurements, strict=True)]
        self.resumed = all(isinstance(start, Result) for start in starts)
        self.rtol = min(_solve_tolerance(frame) for m in measurements for frame in m.frames)
        self.limits: list[tuple[Any, Any]] = []  # of each level
        self.levels = [measurements]  # from fine to coarse, each with all members
        self.history = History(self.count, options.progress, f"reconstruct ({options.prior_name})", places)
        self.discrepancy = Discrepancy(self.count) if options.prior is None else None
        self.data_watches: list[Stopwatch] = []
        self.prior_watch = Stopwatch()
        self.fidelity: Fidelity | None = None  # of the level that is being worked on
        self.begun: tuple[int, Iterate] | None = None  # level and point of the start, not evaluated
        self.reached: tuple[int, Iterate] | None = None  # level and point of the finest level reached
        self.weak: list[Undetermined] | None = None  # what the data do not determine, of each member

    def results(self) -> list[Result]:
        """Run, and pack one `Result` for each member.

        Ctrl-C, or a solve that fails whatever the step, ends the run with the map of the last step.
        """
        with self.history.running(), self.device.activated():
            try:
                status = self._optimise()
            except KeyboardInterrupt:
                if self.reached is None:
                    raise
                status = ["interrupted"] * self.count
            except SolveError:
                self.reached = self.reached or self.begun
                if self.reached is None:
                    raise
                status = ["failed"] * self.count
            return self._packed(status)

    @property
    def objective(self) -> float:
        """J + weight R of the first member where the run has arrived; for priors with an energy."""
        assert self.reached is not None and self.weight is not None
        number, point = self.reached
        assert point.data is not None
        prior = self.options.prior_on(self.levels[number][0].geometry)
        return float(np.ravel(point.data.value)[0] + self.weight[0] * numbers(prior.value(point.z))[0])

    def _optimise(self):
        """Visit the levels from coarse to fine; returns each member's status on the finest."""
        z = self._first_maps()
        status: Any = None
        first = None  # the homogeneous maps, on the coarsest level
        for number in reversed(range(len(self.levels))):
            fidelity = self.fidelity = self._fidelity(self.levels[number])
            problem = self._problem(number, fidelity, z)
            if self.reached is None:
                self.begun = number, problem.start
                self.reached = number, problem.start._replace(data=fidelity.evaluate(np.exp(z), self.rtol))
                first = self.reached[1] if self.starts is None else None
            if self.weight is None and not self.options.optimizer.chooses_weight:
                self.weight, start = choose_weight(
                    problem, self.reached[1], self.levels[0], self.levels[number], self._fidelity
                )
                problem = replace(problem, weight=self.weight, start=start)
            point, status = self.options.optimizer.minimise(problem)
            if number == 0 and self.scaled_by_force:
                point, status = self._rescaled(problem, point, status)
            if self.discrepancy is not None:
                point = self._least_discrepant(self.discrepancy, point, fidelity)
            self.reached = number, point
            if problem.coarsest:
                self.weak = undetermined(fidelity, self.levels[number], point, first, self.rtol, self.options.limits)
            if number:
                z = self._refined(point.z, number)
        return ["converged" if one == "stopped" else one for one in status]

    def _first_maps(self):
        """Lays the coarser levels out; z (B, N) to begin with on the coarsest, within the bounds."""
        coarsest_nodes = self.options.coarsest_nodes
        if self.starts is None and coarsest_nodes is not None:
            while all(coarse := [coarsen(m, coarsest_nodes) for m in self.levels[-1]]):
                if not self.options.suits(coarse[0].geometry):
                    break
                self.levels.append(coarse)
        xp = self.device.native.xp
        z = self._homogeneous(self.levels[-1]) if self.starts is None else np.log(xp.stack(self.starts))
        middle = z.mean(axis=-1, keepdims=True)
        self.limits = [self.options.limits.on(level[0].geometry, middle) for level in self.levels]
        return np.clip(z, *self.limits[-1])

    def _problem(self, number, fidelity, z) -> Problem:
        options, geometry = self.options, fidelity.measurement.geometry
        prior = timed(options.prior_on(geometry), self.prior_watch)
        dual = prior.start_dual() if isinstance(prior, LinearizablePrior) else None
        chooses = options.optimizer.chooses_weight
        limits = self.options.limits
        return Problem(
            fidelity=fidelity,
            prior=prior,
            weight=None if chooses and self.automatic else self.weight,
            start=Iterate(z, dual=dual),
            rtol=self.rtol,
            limits=self.limits[number],
            movable=limits.movable(geometry, z),
            report=self._reporter(number, fidelity),
            max_iterations=options.max_iterations,
            step_length=options.step_length,
            finest=number == 0,
            coarsest=number == len(self.levels) - 1,
            resumed=self.resumed,
            homogeneous=self._homogeneous(self.levels[number]) if chooses else None,
            splitting=options.splitting,
            node_ratio=geometry.n_nodes / options.geometry.n_nodes,
            announce_weight=self._take_weight,
        )

    def _reporter(self, number, fidelity):
        """The `Report` of a level: keeps the latest point and the history, and asks the stopping rule."""
        shape = fidelity.measurement.geometry.node_shape

        def report(point, weight, step, gradient_norm, accepted):
            chi2 = 2 * point.data.value / fidelity.n_data
            self.reached = (number, point)
            self.history.record(shape, point, weight, chi2, step, gradient_norm, accepted)
            if self.discrepancy is None:
                return np.zeros(self.count, bool)
            return self.discrepancy(chi2, point.z, accepted)

        return report

    def _take_weight(self, weight):
        self.weight = weight

    def _least_discrepant(self, rule, point, fidelity):
        """The maps with the least chi2, which need not be the last ones."""
        z = rule.z
        if z is None or not bool((z != point.z).any()):
            return point
        return Iterate(z, fidelity.evaluate(np.exp(z), self.rtol))

    def _packed(self, status) -> list[Result]:
        assert self.reached is not None
        number, point = self.reached
        x, data = np.exp(point.z), point.data
        if number:  # interrupted on a coarse level
            self.fidelity = None  # whose memory the finest level may need
            z = point.z
            for coarse in range(number, 0, -1):
                z = self._refined(z, coarse)
            x, data = np.exp(z), None
        fidelity = self.fidelity or self._fidelity(self.levels[0])
        if self.options.correction is not None:
            apply = self.prior_watch.wrap(self.options.correction.apply)
            x, data = correct(x, apply, self.options.geometry.node_shape, self.limits[0]), None
        try:
            data = data or fidelity.evaluate(x, self.rtol)
        except SolveError:  # the measured displacement stands in for the one that could not be computed
            status, data = ["failed"] * self.count, _without_solution(x, fidelity)
        chi2 = np.broadcast_to(2 * data.value / fidelity.n_data, self.count)
        timing = {"data": sum(watch.seconds for watch in self.data_watches), "prior": self.prior_watch.seconds}
        timing["rest"] = self.history.seconds - sum(timing.values())
        low, high = self.limits[number]
        held = numbers((((point.z <= low) | (point.z >= high)) & (low < high)).mean(axis=-1))
        frames = None
        if isinstance(fidelity, JointFidelity) and isinstance(data, JointEvaluation):
            frames = 2 * data.frame_values / fidelity.frame_n_data[:, None]
        results = pack(
            self.levels[0], self.options, x, data, chi2, frames, status, self.weight, held, self.history, timing
        )
        return results if self.weak is None else [flagged(*both) for both in zip(results, self.weak, strict=True)]

    def _fidelity(self, measurements) -> Fidelity:
        fidelity = data_term(measurements, self.options.gradient, self.rtol)
        self.data_watches.append(fidelity.watch)
        return fidelity

    def _homogeneous(self, level):
        """The best homogeneous maps of a level (B, N); where nothing else fixes their scale, that of the known moduli,
        or of the total force if the modulus has to keep to bounds.
        """
        z = self.device.native.xp.stack([homogeneous(m) for m in level])
        if self.scale is None:
            return z
        return z + column(self.scale, z)

    @cached_property
    def scale(self):
        """Changes of the scale of homogeneous maps (B,), logarithms; None where forces fix it or nothing does."""
        known = self.options.limits.known
        if known is not None and any(self.relative):
            return np.where(self.relative, np.nanmean(np.log(known)) - np.log(TISSUE), 0.0)
        if not self.scaled_by_force:
            return None
        measurements = self.levels[0]
        z = self.device.native.xp.stack([homogeneous(m) for m in measurements])
        return self._force_shift(z, self._fidelity(measurements).evaluate(np.exp(z), self.rtol))

    def _force_shift(self, z, data):
        """Logarithms of the factors (B,) by which the measured total forces differ from those of maps."""
        shift = np.zeros(len(z))
        for k, m in enumerate(self.levels[0]):
            if self.relative[k]:
                found = force_factor(m, np.exp(z[k]), data.displacement[k])
                assert found is not None
                shift[k] = np.log(found[0])
        return shift

    def _rescaled(self, problem, point, status):
        """Maps that keep to the bounds and answer with the measured total force.

        Without bounds, the objective does not depend on the scale, which can be set at the end. Where bounds hold some
        nodes, it prefers the scale at which they hinder least. So the mean of log x is held, and changed until the
        forces agree; with priors that cannot be linearised, only the start is scaled.
        """
        held, mean = isinstance(problem.prior, LinearizablePrior), numbers(point.z.mean(axis=-1))
        held = held and self.weight is not None and bool((self.weight > 0).all())
        for _ in range(MAX_SCALE_STEPS):
            data = point.data if point.data is not None else problem.fidelity.evaluate(np.exp(point.z), self.rtol)
            shift = self._force_shift(point.z, data)
            if np.abs(shift).max() <= SCALE_TOL:
                break
            mean = mean + shift
            z = np.clip(point.z + column(shift, point.z), *problem.limits)
            prior = HeldScale(problem.prior, mean, self.weight) if held and self.weight is not None else problem.prior
            again = replace(problem, prior=prior, start=Iterate(z, dual=point.dual), resumed=True)
            point, status = self.options.optimizer.minimise(again)
        return point, status

    def _refined(self, z, number):
        """Maps carried from a level to the next finer one."""
        coarse, fine = (self.levels[k][0].geometry for k in (number, number - 1))
        z = refine(z.reshape(-1, *coarse.node_shape), coarse, fine).reshape(len(z), -1)
        return np.clip(z, *self.limits[number - 1])


def _without_solution(x, fidelity):
    """What stands in for the data term at moduli (B, N) for which a solve fails: nothing but the measured field."""
    m, xp = fidelity.measurement, fidelity.device.xp
    field = xp.zeros((len(x), *m.displacement.shape[: -len(m.geometry.node_shape)], m.geometry.n_nodes))
    field += fidelity.measured
    value = np.full(len(x), np.nan)

    def unknown(*arguments):
        raise SolveError("the data term is not known here")

    return Evaluation(value, xp.zeros_like(x), field, field, field, unknown, unknown, unknown, unknown)


def _check_scale(measurements, relative, limits):
    """Force noise and bounds have a meaning only where something fixes the scale of the modulus."""
    if limits.known is not None:
        return
    for m, of_unknown_scale in zip(measurements, relative, strict=True):
        if of_unknown_scale and m.force_std[m.load.loaded].any():
            raise ValueError(
                "force_std is not zero, but no force is known: nothing tells how large the modulus is against that "
                "noise. Set force_std to zero; the result is then relative"
            )
        if of_unknown_scale and limits.given and not has_total_force(m):
            raise ValueError(
                "bounds are in pascals, but no force is known, so the modulus is relative: leave them out, or give "
                "a total_force with the load, or the modulus of some region by known"
            )


def _solve_tolerance(m):
    """Relative tolerance of the solves, well below the noise: that of the displacements that weigh most."""
    noise = np.mean(m.displacement_std[m.observed] ** -2.0) ** -0.5 / m.size
    return float(np.clip(SOLVE_SHARE * noise, TIGHTEST_RTOL, LOOSEST_RTOL))
