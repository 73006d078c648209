"""Half-quadratic splitting with plain priors that name a target: what it converges to, and from where."""

import numpy as np
import pytest
from scipy.ndimage import median_filter
from scipy.optimize import minimize

import elastofast as ef
from elastofast.inversion.initial import homogeneous
from elastofast.inversion.problem import Iterate, Problem
from elastofast.inversion.splitting import Schedule, half_quadratic_splitting
from elastofast.inversion.unpenalised import UnpenalisedDirections
from elastofast.misfit.curvature import DataCurvature, curvature_scale

LOW, HIGH = np.log([12e3, 40e3])  # background and inclusion of the phantom


size = np.linalg.norm


class Known:
    """A prior whose idea of the true map never changes."""

    def __init__(self, z):
        self.z = z

    def target(self, z, shape):
        return np.broadcast_to(self.z, z.shape)


class TwoLevels:
    """Projection onto maps of two known moduli: not convex, so a start may lead to another map."""

    def target(self, z, shape):
        return np.where(z > (LOW + HIGH) / 2, HIGH, LOW)


class Median:
    """The median of 3 x 3 nodes, which a map of plateaus is a fixed point of."""

    def target(self, z, shape):
        return median_filter(z.reshape(-1, *shape), size=(1, 3, 3), mode="nearest").reshape(z.shape)


class Phantom:
    """A measurement with an inclusion, its data term, and the mean curvature h of that."""

    def __init__(self):
        self.grid = ef.Grid((25, 25), (1e-3, 1e-3))
        truth, _ = ef.inclusion(self.grid, (12e-3, 12e-3), 5e-3, np.exp(HIGH), np.exp(LOW))
        load = ef.compression(self.grid, pressure=100.0)
        self.scan = ef.simulate(self.grid, ef.PlaneStress(0.495), load, truth, snr=35.0, seed=1)
        self.fidelity = ef.Fidelity(self.scan, rtol=1e-9)
        self.truth, self.homogeneous = np.log(truth).ravel(), homogeneous(self.scan)
        x = np.exp(self.homogeneous)
        self.curvature = float(curvature_scale(DataCurvature(self.fidelity, x, self.fidelity.evaluate(x)), x)[0])

    def split(self, prior, weight, start=None, report=None, limits=(-np.inf, np.inf), **options):
        """Run the splitting to rest; returns the map, the status and the history of (z, weight)."""
        history = []

        def record(point, weights, *step):
            history.append((point.z[0].copy(), float(weights[0])))
            return np.zeros(1, bool)

        start = self.homogeneous if start is None else start
        problem = Problem(
            self.fidelity, prior, None, Iterate(start[None]), rtol=1e-9, limits=limits, report=report or record
        )
        options = (
            dict(
                anchor=None, first_weight=min(weight, self.curvature), weight=weight, unpenalised_weight=weight,
                limiter_slack=np.inf, curvature=self.curvature, min_misfit_decrease=-np.inf, steps=15,
                max_iterations=80,
            )
            | options
        )  # fmt: skip
        whole = ("anchor", "limiter_slack")  # for all members
        schedule = Schedule(**{name: a if name in whole else np.array([a]) for name, a in options.items()})
        point, (status,) = half_quadratic_splitting(problem, schedule)
        return point.z[0], status, history

    def push(self, z):
        """Gradient of the data term in z = log x."""
        return np.exp(z) * self.fidelity.evaluate(np.exp(z), 1e-10).gradient

    def misfit(self, z):
        return float(self.fidelity.evaluate(np.exp(z), 1e-10).value)


@pytest.fixture(scope="module")
def phantom():
    return Phantom()


@pytest.mark.parametrize(
    ("prior", "factor"),
    [("known", 0.3), ("known", 30.0), ("two levels", 0.3), ("two levels", 30.0), ("median", 0.3)],
)
def test_fixed_point_is_stationary(phantom, prior, factor):
    """The data's pull and that of the target balance at every node: x J'(x) + weight (z - P(z)) = 0."""
    prior = {"known": Known(phantom.truth + 0.1), "two levels": TwoLevels(), "median": Median()}[prior]
    weight = factor * phantom.curvature
    z, status, _ = phantom.split(prior, weight)
    pull = weight * (z - prior.target(z, phantom.grid.shape))
    assert status == "converged"
    assert size(pull + phantom.push(z)) < 0.01 * size(pull)


@pytest.mark.parametrize("prior", [Known, TwoLevels])
def test_fixed_point_is_stationary_with_a_smaller_weight_along_unpenalised_directions(phantom, prior):
    prior = prior(phantom.truth + 0.1) if prior is Known else prior()
    weight, small = 30.0 * phantom.curvature, 3.0 * phantom.curvature
    z, _, _ = phantom.split(prior, weight, unpenalised_weight=small, max_iterations=60)
    target = prior.target(z, phantom.grid.shape)
    away = z - target
    along = UnpenalisedDirections(target, phantom.grid.shape).project(away)
    pull = weight * (away - along) + small * along
    assert size(along) > 0.05 * size(away)
    assert size(pull + phantom.push(z)) < 0.01 * size(pull)


def test_fixed_point_of_a_known_target_minimises_the_objective(phantom):
    """J(x) + weight / 2 |z - target|^2, against a general minimiser."""
    target, weight = phantom.truth + 0.1, 3.0 * phantom.curvature

    def objective(z):
        now, away = phantom.fidelity.evaluate(np.exp(z), 1e-10), z - target
        return float(now.value) + 0.5 * weight * away @ away, np.exp(z) * now.gradient + weight * away

    found = minimize(objective, phantom.homogeneous, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    z, _, _ = phantom.split(Known(target), weight)
    assert found.success
    assert size(z - found.x) < 1e-3 * size(phantom.homogeneous - found.x)
    assert objective(z)[0] == pytest.approx(found.fun, rel=1e-6)


@pytest.mark.parametrize("prior", [Known, TwoLevels])
def test_a_larger_weight_ends_nearer_the_target_and_explains_the_data_less(phantom, prior):
    prior = prior(phantom.truth + 0.1) if prior is Known else prior()
    ends = [phantom.split(prior, factor * phantom.curvature)[0] for factor in (0.1, 1.0, 10.0, 100.0)]
    distances = [size(z - prior.target(z, phantom.grid.shape)) for z in ends]
    misfits = [phantom.misfit(z) for z in ends]
    assert (np.diff(distances) < 0).all() and distances[-1] < 0.5 * distances[0]
    assert (np.diff(misfits) > 0).all()


def test_the_map_does_not_depend_on_the_start_when_an_anchor_is_given(phantom):
    rough = phantom.homogeneous + np.random.default_rng(0).uniform(-0.8, 0.8, phantom.homogeneous.shape)
    starts, weight = (phantom.homogeneous, rough), 3.0 * phantom.curvature
    one, other = (phantom.split(TwoLevels(), weight, s, anchor=phantom.homogeneous[None])[0] for s in starts)
    assert size(one - other) < 1e-4 * size(one - phantom.homogeneous)
    # without it the rough start leads to another fixed point of the two levels
    one, other = (phantom.split(TwoLevels(), weight, s)[0] for s in starts)
    assert size(one - other) > 0.1 * size(one - phantom.homogeneous)


def test_steps_to_the_anchor_come_first_and_end_at_it(phantom):
    """They are firm and end once the map rests there; then the weight grows geometrically and stays at the last."""
    rough = phantom.homogeneous + np.random.default_rng(0).uniform(-0.8, 0.8, phantom.homogeneous.shape)
    first, weight = phantom.curvature, 50.0 * phantom.curvature
    options = dict(anchor=phantom.homogeneous[None], first_weight=first, steps=10, max_iterations=14)
    _, status, history = phantom.split(Known(phantom.truth + 0.1), weight, rough, **options)
    weights = np.array([w for _, w in history])
    firm = int((weights > 1.01 * weight).sum())
    assert 1 <= firm < 20 and (weights[:firm] == weights[0]).all() and weights[0] >= 100 * first
    np.testing.assert_allclose(weights[firm : firm + 10], np.geomspace(first, weight, 10))
    np.testing.assert_allclose(weights[firm + 10 :], weight)
    assert len(weights) == firm + 14 or status == "converged"
    settled, _, _ = phantom.split(Known(phantom.homogeneous), weights[0])
    assert size(history[firm - 1][0] - settled) < 1e-3 * size(rough - settled)
    assert size(settled - phantom.homogeneous) < 0.05 * size(rough - phantom.homogeneous)


def test_a_run_ends_when_a_step_explains_too_little_more(phantom):
    """At the last weight it goes on while the misfit falls by more than is asked of a step, and no further."""
    options = dict(unpenalised_weight=phantom.curvature, steps=5)
    _, _, whole = phantom.split(Median(), 3.0 * phantom.curvature, max_iterations=20, **options)
    falls = -np.diff([phantom.misfit(z) for z, _ in whole])[4:]  # of the steps after the schedule's
    assert (np.diff(falls[:9]) < 0).all()
    for asked in (np.inf, (falls[1] + falls[2]) / 2, (falls[7] + falls[8]) / 2):
        _, status, history = phantom.split(Median(), 3.0 * phantom.curvature, min_misfit_decrease=asked, **options)
        assert status == "converged" and len(history) == 5 + 1 + np.argmax(falls <= asked) < len(whole)


def test_bounds_hold_the_map_and_the_report_may_stop_it(phantom):
    limits = LOW + 0.1, HIGH - 0.2
    z, _, _ = phantom.split(Known(phantom.truth), 3.0 * phantom.curvature, limits=limits)
    assert z.min() == limits[0] and z.max() == limits[1]
    calls = []

    def report(*arguments):
        calls.append(arguments)
        return np.array([len(calls) == 3])

    _, status, _ = phantom.split(Known(phantom.truth), 3.0 * phantom.curvature, report=report)
    assert status == "stopped" and len(calls) == 3


@pytest.mark.parametrize("radius", [4e-3, 6e-3], ids=["too small", "too large"])
def test_the_limiter_keeps_the_map_near_the_levels_of_its_target(phantom, radius):
    """A boundary that has to shift far leaves overshoots by its linear model; the limiter cuts them off."""
    wrong, _ = ef.inclusion(phantom.grid, (12e-3, 12e-3), radius, np.exp(HIGH), np.exp(LOW))
    wrong = np.log(wrong).ravel()
    beyond, errors = [], []
    for slack in (np.inf, 0.0):
        options = dict(unpenalised_weight=0.1 * phantom.curvature, limiter_slack=slack, max_iterations=30)
        z, _, _ = phantom.split(Known(wrong), 100.0 * phantom.curvature, **options)
        levels = wrong + UnpenalisedDirections(wrong, phantom.grid.shape).project_contrast(z - wrong)
        beyond.append(max(z.max() - levels.max(), levels.min() - z.min()))
        errors.append(size(np.exp(z) - np.exp(phantom.truth)))
    assert beyond[0] > 0.5 and beyond[1] < 0.2
    assert errors[1] < errors[0]


def test_reconstruct_takes_any_object_with_a_target(phantom):
    raw, reference = ef.reconstruct(phantom.scan, "none"), phantom.scan.reference
    known = ef.reconstruct(phantom.scan, Known(phantom.truth))
    median = ef.reconstruct(phantom.scan, Median(), weight=phantom.curvature)
    assert (known.prior, median.prior) == ("Known", "Median")
    assert median.weight == pytest.approx(phantom.curvature)
    for result, limit in ((known, 0.02), (median, 0.8 * ef.metrics.relative_l2(raw.modulus, reference))):
        assert result.optimizer == "splitting" and result.status == "converged" and 0.8 < result.chi2 < 1.1
        assert ef.metrics.relative_l2(result.modulus, reference) < limit
