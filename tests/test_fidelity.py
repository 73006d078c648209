"""The data term and its gradients against the dense formula, central differences and statistics."""

import gc
import time
import weakref
from functools import cache

import numpy as np
import pytest
from dense import dense_psi
from scipy.spatial import Delaunay

from elastofast.backend.stopwatch import Stopwatch
from elastofast.boundary import Boundary, compression
from elastofast.forward.form import ElasticForm
from elastofast.forward.solve import solve_forward
from elastofast.geometry import Grid, Mesh
from elastofast.laws import PlaneStrain, PlaneStress
from elastofast.measurement import Measurement
from elastofast.misfit.curvature import DataCurvature
from elastofast.misfit.fidelity import Fidelity

SMALL = Grid((5, 6), (1e-3, 2e-3))
GEOMETRIES = {
    "grid": SMALL,
    "mesh": Mesh(SMALL.points, Delaunay(SMALL.points).simplices),
    "9 x 10": Grid((9, 10), (1e-3, 1e-3)),
    "33 x 30": Grid((33, 30), (1e-3, 1e-3)),
}
LAWS = {"plane stress": PlaneStress(0.495), "plane strain": PlaneStrain(0.45)}
LOADS = ["pressure", "strain", "open side", "all open"]
STDS = ["constant", "uneven", "holes"]
SIGMA = 2e-6  # metres, against displacements of about 1e-4


def make_load(geometry, kind):
    pressed = compression(geometry, strain=0.02) if kind == "strain" else compression(geometry, pressure=200.0)
    if kind in ("pressure", "strain"):
        return pressed
    points = geometry.points
    low, high = points == points.min(axis=0), points == points.max(axis=0)
    cut = (low | high).any(axis=1) if kind == "all open" else high[:, 1]
    is_open = np.broadcast_to(cut.reshape(geometry.node_shape), pressed.fixed.shape).copy()
    if kind == "all open":
        return Boundary(open=is_open)
    is_open &= ~pressed.fixed
    return Boundary(fixed=pressed.fixed, force=np.where(is_open, 0, pressed.force), open=is_open)


def make_std(kind, shape, fixed, seed=0):
    rng = np.random.default_rng(seed)
    std = np.full(shape, SIGMA)
    if kind == "uneven":
        std *= 10 ** rng.uniform(-0.5, 0.5, shape) * np.array([1.0, 3.0]).reshape(2, *[1] * (len(shape) - 1))
    elif kind == "holes":
        std[~fixed & (rng.random(shape) < 0.1)] = np.inf
    return std


@cache
def truth(geometry, law, kind):
    """Form, load, true modulus and the displacement that every part of the load agrees with."""
    form, load = ElasticForm(GEOMETRIES[geometry], LAWS[law]), make_load(GEOMETRIES[geometry], kind)
    x = np.random.default_rng(8).uniform(1e4, 4e4, form.node_shape)
    pressed = make_load(GEOMETRIES[geometry], "strain" if kind == "strain" else "pressure")
    return form, load, x, solve_forward(form, x, pressed, rtol=1e-12), pressed


def measure(geometry, law, kind, std="constant", force_std=0.0, seed=0):
    """A measurement with noise of exactly the stated statistics, and the true modulus."""
    form, load, x, u, pressed = truth(geometry, law, kind)
    rng = np.random.default_rng(seed)
    if force_std:
        error = np.where(load.loaded & pressed.loaded, force_std * rng.standard_normal(u.shape), 0)
        force = np.where(pressed.loaded, pressed.force - error, 0)
        applied = Boundary(fixed=pressed.fixed, displacement=pressed.displacement, force=force)
        u = solve_forward(form, x, applied, rtol=1e-12)
    std = make_std(std, form.dof_shape, load.fixed)
    noise = np.where(load.fixed | np.isinf(std), 0, rng.standard_normal(u.shape)) * np.where(np.isinf(std), 0, std)
    return Measurement(form.geometry, form.law, load, u + noise, std, force_std=force_std), x


@cache
def psi_of(geometry, law):
    return dense_psi(GEOMETRIES[geometry], LAWS[law])


class Dense:
    """J, z and u_hat from S_n^-1 e = K^T z, K e + S_w z = r, u_hat = u_m + e; S_n is infinite where not measured.

    An open dof that was not measured is expected to move as in a homogeneous body without forces, up to a standard
    deviation of the size of the field.
    """

    def __init__(self, m, psi):
        self.m, self.psi = m, psi
        self.rows, self.noisy = np.flatnonzero(m.load.loaded), np.flatnonzero(~m.load.fixed)
        self.motion, self.u = m.motion, m.still.ravel().copy()
        unseen = (np.isinf(m.displacement_std) & m.load.open).ravel()
        if unseen.any():
            k = psi.sum(axis=0)
            free = np.flatnonzero(m.load.loaded.ravel() | unseen)
            known = np.where(m.load.loaded.ravel() | unseen, 0.0, self.u)
            solution = np.linalg.solve(k[np.ix_(free, free)], -(k @ known)[free])
            self.u[unseen] = solution[unseen[free]]
        self.std = np.where(unseen, m.size, m.displacement_std.ravel())[self.noisy]
        self.sw = m.force_std.ravel()[self.rows]

    def __call__(self, x):
        k = np.einsum("n,nij->ij", x.ravel(), self.psi)[self.rows]
        r = self.m.load.force.ravel()[self.rows] - k @ self.u
        k = k[:, self.noisy]
        size = np.abs(k).max()
        system = np.block(
            [[np.diag((SIGMA / self.std) ** 2), -k.T / size], [k / size, np.diag((self.sw / (size * SIGMA)) ** 2)]]
        )
        both = np.linalg.solve(system, np.concatenate([np.zeros(len(self.noisy)), r / size]))
        z, u = np.zeros(self.u.size), self.u.copy()
        z[self.rows] = both[len(self.noisy) :] / (size * SIGMA**2)
        u[self.noisy] += both[: len(self.noisy)]
        return 0.5 * float(z[self.rows] @ r), z, u + self.motion.ravel()

    def differences(self, x, h=1e-3):
        """Gradient by central differences of fourth order."""
        g = np.empty(x.size)
        for n in range(x.size):
            step = np.zeros(x.size)
            step[n] = h * x.flat[n]
            step = step.reshape(x.shape)
            f = [self(x + i * step)[0] for i in (-2, -1, 1, 2)]
            g[n] = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * step.flat[n])
        return g


def case(geometry, law, kind, std, force_std):
    m, x_true = measure(geometry, law, kind, std, force_std)
    x = x_true * np.random.default_rng(5).uniform(0.8, 1.3, x_true.shape)
    return m, x, Dense(m, psi_of(geometry, law))


CASES = [(g, law, kind, std, w) for g in ("grid", "mesh") for law in LAWS for kind in LOADS for std in STDS
         for w in (0.0, 2e-3)]  # fmt: skip


@pytest.mark.parametrize(("geometry", "law", "kind", "std", "force_std"), CASES)
def test_value_gradients_and_displacement_are_the_dense_ones(geometry, law, kind, std, force_std):
    m, x, dense = case(geometry, law, kind, std, force_std)
    value, z, u = dense(x)
    psi = dense.psi
    tolerance = 1e-6 if std == "holes" else 1e-7
    for gradient in ("exact", "frozen"):
        j, g = Fidelity(m, gradient=gradient, rtol=1e-10)(x)
        assert isinstance(j, float) and g.shape == x.shape
        assert abs(j - value) <= tolerance * value
        through = (
            u if gradient == "exact" else np.where(np.isinf(m.displacement_std).ravel(), u, m.displacement.ravel())
        )
        expected = -np.einsum("i,nij,j->n", z, psi, through, optimize=True)
        assert np.linalg.norm(g.ravel() - expected) <= tolerance * np.linalg.norm(expected)
    evaluation = Fidelity(m, rtol=1e-10).evaluate(x.ravel())
    assert np.linalg.norm(evaluation.displacement.ravel() - u) <= 1e-6 * np.linalg.norm(u)
    assert np.array_equal(evaluation.displacement[m.load.fixed.reshape(2, -1)], m.displacement[m.load.fixed])


@pytest.mark.parametrize(("geometry", "law", "kind", "std", "force_std"), CASES)
def test_exact_gradient_is_the_derivative_of_the_dense_value(geometry, law, kind, std, force_std):
    m, x, dense = case(geometry, law, kind, std, force_std)
    g = Fidelity(m, rtol=1e-10)(x)[1].ravel()
    expected = dense.differences(x)
    assert np.linalg.norm(g - expected) <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize(("kind", "force_std"), [("pressure", 0.0), ("strain", 2e-3), ("all open", 0.0)])
def test_exact_gradient_is_the_derivative_of_the_value_on_a_larger_grid(kind, force_std):
    """Nothing but the library's own values, along one direction."""
    m, x = measure("33 x 30", "plane strain", kind, "uneven", force_std)
    fidelity, h = Fidelity(m, rtol=1e-11), 1e-3
    x = x * np.random.default_rng(5).uniform(0.9, 1.1, x.shape)
    _, g = fidelity(x)
    direction = x * (np.sign(g) + 0.3 * np.random.default_rng(6).standard_normal(x.shape))
    f = [fidelity(x + i * h * direction)[0] for i in (-2, -1, 1, 2)]
    slope = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)
    assert abs(np.vdot(g, direction) - slope) <= 1e-6 * abs(slope)


def test_frozen_gradient_is_not_the_derivative():
    """They differ by what noise does to the regressor: so a mix-up of the two would show."""
    m, x, dense = case("grid", "plane stress", "pressure", "constant", 0.0)
    frozen, expected = Fidelity(m, gradient="frozen")(x)[1].ravel(), dense.differences(x)
    assert np.linalg.norm(frozen - expected) > 1e-2 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", ["pressure", "open side"])
def test_value_and_gradient_of_clean_data_vanish_at_the_truth(kind):
    form, load, x, u, _ = truth("9 x 10", "plane stress", kind)
    m = Measurement(form.geometry, form.law, load, u, SIGMA)
    fidelity = Fidelity(m)
    wrong = fidelity(1.2 * x)
    right = fidelity(x)
    assert right[0] < 1e-8 * wrong[0]
    assert np.linalg.norm(right[1]) < 1e-4 * np.linalg.norm(wrong[1])


@pytest.mark.parametrize(("kind", "force_std"), [("pressure", 0.0), ("open side", 2e-3)])
@pytest.mark.parametrize("flat", [False, True])
def test_members_of_a_batch_are_evaluated_as_by_themselves(kind, force_std, flat):
    m, x = measure("9 x 10", "plane strain", kind, "uneven", force_std)
    batch = x * np.random.default_rng(1).uniform(0.8, 1.2, (2, 3, *x.shape))
    if flat:
        batch = batch.reshape(2, 3, -1)
    j, g = Fidelity(m)(batch)
    assert j.shape == (2, 3) and g.shape == batch.shape
    for i in np.ndindex(2, 3):
        one = Fidelity(m)(batch[i])
        np.testing.assert_allclose(j[i], one[0], rtol=1e-7)
        np.testing.assert_allclose(g[i], one[1], atol=1e-6 * np.abs(one[1]).max())


@pytest.mark.parametrize(
    ("kind", "force_std"), [("pressure", 0.0), ("strain", 0.0), ("pressure", 2e-3), ("all open", 0.0)]
)
def test_warm_starts_leave_no_trace(kind, force_std):
    m, x = measure("9 x 10", "plane strain", kind, "constant", force_std)
    fidelity = Fidelity(m)
    first = fidelity(x)
    fidelity(3 * x)
    again = fidelity(x)
    np.testing.assert_allclose(again[0], first[0], rtol=1e-7)
    np.testing.assert_allclose(again[1], first[1], atol=1e-6 * np.abs(first[1]).max())


@pytest.mark.parametrize(
    ("kind", "force_std"), [("pressure", 0.0), ("strain", 0.0), ("pressure", 2e-3), ("open side", 0.0)]
)
@pytest.mark.parametrize("law", LAWS)
def test_error_of_the_value_is_of_second_order_in_the_tolerance(kind, force_std, law):
    """The error is of the order of rtol^2 times the energy of the whole displacement in noise standard deviations."""
    m, x = measure("33 x 30", law, kind, "constant", force_std)
    x = 1.2 * x
    exact = Fidelity(m, rtol=1e-11).evaluate(x.ravel()).value
    scale = 0.5 * np.sum((m.displacement / m.displacement_std) ** 2)
    for rtol in (1e-2, 1e-3, 1e-4):
        error = abs(Fidelity(m).evaluate(x.ravel(), rtol=rtol).value - exact)
        assert error <= 0.003 * rtol**2 * scale


@pytest.mark.parametrize(
    ("kind", "std", "force_std"),
    [
        ("pressure", "constant", 0.0),
        ("strain", "uneven", 0.0),
        ("pressure", "holes", 0.0),
        ("pressure", "constant", 2e-3),
        ("strain", "holes", 2e-3),
        ("open side", "uneven", 0.0),
        ("all open", "constant", 2e-3),
        ("open side", "holes", 0.0),
    ],
)
@pytest.mark.parametrize("law", LAWS)
def test_twice_the_value_at_the_truth_is_chi_square_distributed(kind, std, force_std, law):
    """2 J is chi-square with n_data degrees of freedom: its mean and its variance over noise draws."""
    draws = 40
    values = []
    for seed in range(draws):
        m, x = measure("9 x 10", law, kind, std, force_std, seed)
        fidelity = Fidelity(m)
        values.append(2 * fidelity(x)[0])
    n = fidelity.n_data
    assert n == m.load.n_equations - np.isinf(m.displacement_std).sum()
    spread = np.sqrt(2 * n / draws)
    assert abs(np.mean(values) - n) < 3.5 * spread
    assert 0.5 < np.var(values) / (2 * n) < 1.8


@pytest.mark.parametrize(("kind", "force_std"), [("pressure", 0.0), ("strain", 0.0), ("open side", 2e-3)])
@pytest.mark.parametrize("geometry", ["9 x 10", "mesh"])
def test_data_term_and_its_solvers_are_freed_without_the_garbage_collector(geometry, kind, force_std, monkeypatch):
    """Solvers of large grids hold gigabytes, which no reference cycle may keep."""
    m, x = measure(geometry, "plane stress", kind, force_std=force_std)
    solver, made = m.form.backend.solver, []

    def recorded(*arguments):
        found = solver(*arguments)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(m.form.backend, "solver", recorded)
    gc.collect()
    gc.disable()
    try:
        fidelity = Fidelity(m)
        now = fidelity.evaluate(x.ravel())
        curvature = DataCurvature(fidelity, x.ravel(), now)
        curvature(x.ravel())
        held = [weakref.ref(fidelity), made[-1]]
        assert all(reference() is not None for reference in held)
        del fidelity, now, curvature
        assert all(reference() is None for reference in [*held, *made])
    finally:
        gc.enable()


@pytest.mark.parametrize("gradient", ["exact", "frozen"])
def test_gradient_and_hessian_are_taken_at_the_linearization_point(gradient):
    """D at the denoised displacement for the exact gradient, at the measured one for the frozen gradient."""
    m, x = measure("grid", "plane stress", "pressure")
    x, fidelity = x.ravel(), Fidelity(m, gradient, rtol=1e-10)
    now = fidelity.evaluate(x)
    expected = now.displacement if gradient == "exact" else m.displacement.reshape(2, -1)
    assert np.array_equal(now.linearization_point, expected)
    d = m.form.contraction(now.linearization_point)
    np.testing.assert_allclose(
        now.gradient, -(d.T @ now.multiplier.ravel()), rtol=1e-9, atol=1e-12 * np.abs(now.gradient).max()
    )
    v = np.random.default_rng(0).standard_normal(x.size)
    forces = np.where(m.load.loaded.ravel(), d @ (x * v), 0.0).reshape(2, -1)
    product = x * (d.T @ now.weighting(forces).ravel())
    np.testing.assert_allclose(DataCurvature(fidelity, x, now)(v), product, atol=1e-9 * np.abs(product).max())


def test_stopwatch_counts_nested_blocks_once():
    watch = Stopwatch()
    begin = time.perf_counter()
    with watch, watch:
        watch.wrap(time.sleep)(0.02)
    assert 0.02 <= watch.seconds <= time.perf_counter() - begin
    with pytest.raises(ZeroDivisionError), watch:
        raise ZeroDivisionError
    seconds = watch.seconds
    time.sleep(0.01)
    assert watch.seconds == seconds


# ---------------------------------------------------------------- messages


def test_wrong_arguments_are_named():
    m, x = measure("9 x 10", "plane stress", "pressure")
    with pytest.raises(TypeError, match="measurement must be a Measurement, got ndarray"):
        Fidelity(x)
    with pytest.raises(ValueError, match="gradient must be one of 'exact', 'frozen', got 'true'"):
        Fidelity(m, gradient="true")
    with pytest.raises(ValueError, match="rtol must be a number between 0 and 1, got 0"):
        Fidelity(m, rtol=0)
    fidelity = Fidelity(m)
    for bad, message in (
        (-x, "x must be positive"),
        (0 * x, "x must be positive .* smallest value is 0"),
        (np.where(x == x.max(), np.nan, x), "x must be finite, 1 of its 90 values"),
        (x.T, r"x must have shape .* got \(10, 9\)"),
    ):
        with pytest.raises(ValueError, match=message):
            fidelity(bad)
    with pytest.raises(TypeError, match="x must hold real numbers"):
        fidelity(x + 0j)


def test_measurements_that_say_nothing_are_refused():
    grid, law = GEOMETRIES["9 x 10"], LAWS["plane stress"]
    u, none = np.zeros((2, 9, 10)), np.zeros((2, 9, 10), bool)
    with pytest.raises(ValueError, match=r"free to move .* rotation"):
        Fidelity(Measurement(grid, law, Boundary(fixed=none), u, SIGMA))
    with pytest.raises(ValueError, match="no loaded dof, so there is no equation to fit"):
        Fidelity(Measurement(grid, law, Boundary(open=~none), u, SIGMA))
    load = make_load(grid, "all open")
    std = np.where(load.open, np.inf, SIGMA)
    std[:, 2:4] = np.inf
    std[:, 1:5, 1:5] = np.inf
    with pytest.raises(ValueError, match="fewer displacements were measured than there are unknown ones"):
        Fidelity(Measurement(grid, law, load, u, np.where(np.arange(10) < 7, np.inf, std)))
