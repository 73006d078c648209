"""The noise covariance Gamma = S_w + K S_n K^T against its dense form."""

from functools import cache

import numpy as np
import pytest
from dense import dense_psi
from scipy.spatial import Delaunay

from elastofast.boundary import Boundary, compression
from elastofast.forward.form import ElasticForm
from elastofast.geometry import Grid, Mesh
from elastofast.laws import PlaneStrain, PlaneStress
from elastofast.misfit.covariance import NoiseCovariance

LAWS = [PlaneStress(0.495), PlaneStrain(0.495)]
GRID = Grid((6, 7), (1e-3, 2e-3))
MESH = Mesh(GRID.points, Delaunay(GRID.points).simplices)
GEOMETRIES = {"grid": GRID, "mesh": MESH}


def make_load(geometry, kind):
    """Pressed between plates; the same with one side cut open; every edge cut open; some of everything."""
    load = compression(geometry, pressure=100.0)
    points = geometry.points
    edge = [(points[:, i] == end(points[:, i])).reshape(geometry.node_shape) for i in (0, 1) for end in (min, max)]
    is_open = np.zeros_like(load.fixed)
    if kind == "open side":
        is_open[:, edge[3]] = True
    elif kind == "all open":
        is_open[:, np.any(edge, axis=0)] = True
        return Boundary(open=is_open)
    elif kind == "mixed":
        is_open[0, edge[2]] = is_open[1, edge[3]] = True
    is_open &= ~load.fixed
    return Boundary(fixed=load.fixed, force=np.where(is_open, 0, load.force), open=is_open)


def make_std(kind, shape, seed=0):
    """Standard deviation of the displacement in the form a caller may give it."""
    rng, sigma = np.random.default_rng(seed), 1e-7
    return {
        "constant": sigma,
        "by component": sigma * np.array([1.0, 10.0]),
        "by node": sigma * 10 ** rng.uniform(-0.5, 0.5, shape[1:]),
        "by dof": sigma * 10 ** rng.uniform(-0.5, 0.5, shape),
        "holes": np.where(rng.random(shape) < 0.15, np.inf, sigma),
    }[kind]


def modulus(shape, seed=0):
    return np.random.default_rng(seed).uniform(1e4, 5e4, shape)


@cache
def psi_of(geometry, law):
    return dense_psi(geometry, law)


def dense_parts(form, x, load, std, force_std):
    """Rows of K that are equations, standard deviations of the displacement (fixed = 0) and of the force on the
    equations, and the equations' dof numbers."""
    k = np.einsum("n,nij->ij", x.ravel(), psi_of(form.geometry, form.law))
    if np.shape(std) == (2,):
        std = np.reshape(std, (2, *[1] * len(form.node_shape)))
    std = np.broadcast_to(std, form.dof_shape)
    if np.any(force_std):  # then an open dof that was not measured is 1000 times as noisy as the noisiest
        std = np.where(np.isinf(std) & load.open, 1e3 * std[~load.fixed & np.isfinite(std)].max(), std)
    rows = np.flatnonzero(load.loaded)
    force_std = np.broadcast_to(force_std, form.dof_shape)
    return k[rows], np.where(load.fixed, 0.0, std).ravel(), force_std.ravel()[rows], rows


def dense(form, x, load, std, force_std):
    """Gamma on the equations, and their dof numbers."""
    k, s, w, rows = dense_parts(form, x, load, std, force_std)
    return np.diag(w**2) + (k * s**2) @ k.T, rows


def dense_solve(form, x, load, std, force_std, r):
    """Gamma^-1 r on the equations. With e = S K^T z it solves S^-1 e = K^T z and K e + S_w z = r, also where S is
    infinite."""
    k, s, w, rows = dense_parts(form, x, load, std, force_std)
    free = s > 0
    k, s = k[:, free], s[free]
    size, noise = np.abs(k).max(), s.min()
    k, s, w = k / size, s / noise, w / (size * noise)
    system = np.block([[np.diag(s**-2.0), -k.T], [k, np.diag(w**2)]])
    rhs = np.concatenate([np.zeros(len(s)), r.ravel()[rows]])
    return np.linalg.solve(system, rhs)[len(s) :] / (size * noise) ** 2


def stiffness_scale(form, x):
    return form.stiffness(x).diagonal().max()


# ---------------------------------------------------------------- apply


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("kind", ["compression", "open side", "all open", "mixed"])
@pytest.mark.parametrize("std", ["constant", "by component", "by node", "by dof"])
@pytest.mark.parametrize("geometry", ["grid", "mesh"])
def test_apply_is_the_dense_covariance(law, kind, std, geometry):
    form = ElasticForm(GEOMETRIES[geometry], law)
    load, std, x = make_load(form.geometry, kind), make_std(std, form.dof_shape), modulus(form.node_shape)
    force_std = np.random.default_rng(2).uniform(0, 1e-3, form.dof_shape)
    v = np.random.default_rng(3).standard_normal((2, 3, *form.dof_shape))
    gamma, rows = dense(form, x, load, std, force_std)
    out = NoiseCovariance(form, x, load, std, force_std).apply(v)
    assert out.shape == v.shape
    expected = v.reshape(2, 3, -1)[..., rows] @ gamma
    result = out.reshape(2, 3, -1)[..., rows]
    np.testing.assert_allclose(result, expected, atol=1e-12 * np.abs(expected).max())
    assert not out[:, :, ~load.loaded].any()


def test_apply_is_refused_where_something_was_not_measured():
    form = ElasticForm(GRID, LAWS[0])
    gamma = NoiseCovariance(form, modulus(GRID.shape), make_load(GRID, "mixed"), make_std("holes", form.dof_shape))
    with pytest.raises(ValueError, match="displacement_std is infinite where nothing was measured, and so is Gamma"):
        gamma.apply(np.ones(form.dof_shape))


def test_apply_keeps_layout_and_dtype():
    form = ElasticForm(GRID, LAWS[0])
    gamma = NoiseCovariance(form, modulus(GRID.shape), make_load(GRID, "mixed"), 1e-7, 1e-3)
    v = np.random.default_rng(3).standard_normal(form.dof_shape)
    out = gamma.apply(v)
    assert np.array_equal(gamma.apply(v.reshape(2, -1)), out.reshape(2, -1))
    single = gamma.apply(v.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, out, rtol=0, atol=1e-6 * np.abs(out).max())


# ---------------------------------------------------------------- solve


def check_solve(form, kind, std, ratio, rtol=1e-10):
    """Error of z in the norm of Gamma, and the true residual; ``ratio`` is s_w / s_n in units of K."""
    load, x = make_load(form.geometry, kind), modulus(form.node_shape)
    force_std = ratio * 1e-7 * stiffness_scale(form, x)
    holes = np.isinf(std).any()
    matrix, rows = dense(form, x, load, np.where(np.isinf(std), 1e-7, std) if holes else std, force_std)
    gamma = NoiseCovariance(form, x, load, std, force_std)
    r = np.random.default_rng(1).standard_normal(form.dof_shape)
    solution = gamma.solve(r, rtol=rtol)
    z = solution.value
    assert z.shape == r.shape and not z[~load.loaded].any()
    exact = dense_solve(form, x, load, std, force_std, r)
    error = z.ravel()[rows] - exact
    assert error @ matrix @ error < 1e-12 * (exact @ matrix @ exact)
    b, z = r.ravel()[rows], z.ravel()[rows]
    residual = np.linalg.norm(b - matrix @ z) / np.linalg.norm(b)
    rounding = 1e-14 * np.linalg.norm(matrix) * np.linalg.norm(z) / np.linalg.norm(b)
    assert holes or abs(residual - solution.residual) < 1e-3 * residual + rounding
    assert min(solution.residual, solution.stage_residual) <= rtol
    return solution


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("kind", ["compression", "open side", "all open", "mixed"])
@pytest.mark.parametrize("ratio", [0.0, 1e-6, 1e-4, 1e-2, 1.0, 1e3])
@pytest.mark.parametrize("geometry", ["grid", "mesh"])
def test_solve_inverts_the_dense_covariance(law, kind, ratio, geometry):
    form = ElasticForm(GEOMETRIES[geometry], law)
    solution = check_solve(form, kind, 1e-7, ratio)
    if ratio == 0 and kind == "compression":
        assert solution.iterations == 0  # two forward solves


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("std", ["by component", "by node", "by dof", "holes"])
@pytest.mark.parametrize("ratio", [0.0, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("kind", ["compression", "mixed"])
@pytest.mark.parametrize("geometry", ["grid", "mesh"])
def test_solve_inverts_the_dense_covariance_of_uneven_noise(law, std, ratio, kind, geometry):
    form = ElasticForm(GEOMETRIES[geometry], law)
    check_solve(form, kind, make_std(std, form.dof_shape), ratio)


def test_solve_takes_force_noise_by_dof():
    form, load, x = ElasticForm(GRID, LAWS[1]), make_load(GRID, "mixed"), modulus(GRID.shape)
    force_std = np.where(np.random.default_rng(4).random(form.dof_shape) < 0.5, 0.0, 1e-3)
    r = np.random.default_rng(1).standard_normal(form.dof_shape)
    rows = np.flatnonzero(load.loaded)
    z = NoiseCovariance(form, x, load, 1e-7, force_std).solve(r, rtol=1e-10).value.ravel()[rows]
    exact = dense_solve(form, x, load, 1e-7, force_std, r)
    assert np.linalg.norm(z - exact) < 1e-6 * np.linalg.norm(exact)


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("n", [33, 65])
@pytest.mark.parametrize("ratio", [0.0, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 1e2])
def test_solve_takes_at_most_20_iterations_whatever_the_force_noise(law, n, ratio):
    """At most 20 whatever the force noise, and the residual is what it says."""
    form = ElasticForm(Grid((n, n), (0.03 / (n - 1),) * 2), law)
    x, load = modulus(form.node_shape), compression(form.geometry, pressure=100.0)
    gamma = NoiseCovariance(form, x, load, 1e-7, ratio * 1e-7 * stiffness_scale(form, x))
    r = np.random.default_rng(1).standard_normal(form.dof_shape)
    solution = gamma.solve(r, rtol=1e-8)
    assert solution.iterations <= 20
    assert min(solution.residual, solution.stage_residual) <= 1e-8
    r[~load.loaded] = 0
    residual = np.linalg.norm(r - gamma.apply(solution.value)) / np.linalg.norm(r)
    assert abs(residual - solution.residual) < 1e-3 * residual + 1e-12


def test_solution_without_force_noise_explains_the_force():
    """Without force noise S_n K^T z is the displacement that explains r, to the tolerance."""
    form = ElasticForm(Grid((33, 33), (1e-3, 1e-3)), LAWS[1])
    x, load = modulus(form.node_shape), compression(form.geometry, pressure=100.0)
    r = np.random.default_rng(1).standard_normal(form.dof_shape) * load.loaded
    solution = NoiseCovariance(form, x, load, 1e-7).solve(r, rtol=1e-9)
    n = np.where(load.fixed, 0, 1e-14 * form.force(x, solution.value))
    assert np.linalg.norm((form.force(x, n) - r)[load.loaded]) < 1e-5 * np.linalg.norm(r)
    assert solution.stage_residual <= 1e-9


def test_solve_from_a_guess_is_shorter_and_finds_the_same():
    form = ElasticForm(Grid((17, 20), (1e-3, 1e-3)), LAWS[1])
    x = modulus(form.node_shape)
    gamma = NoiseCovariance(form, x, make_load(form.geometry, "mixed"), 1e-7, 1e-4)
    r = np.random.default_rng(1).standard_normal(form.dof_shape)
    cold = gamma.solve(r)
    assert gamma.solve(r, x0=cold.value).iterations <= 1
    near = gamma.solve(r, x0=cold.value * 1.0001)
    assert near.iterations < cold.iterations
    np.testing.assert_allclose(near.value, cold.value, atol=1e-5 * np.abs(cold.value).max())
    flat = gamma.solve(r.reshape(2, -1), x0=cold.value.reshape(2, -1))
    assert flat.value.shape == (2, form.geometry.n_nodes)
    far = gamma.solve(r, x0=1e3 * np.random.default_rng(2).standard_normal(r.shape) * np.abs(cold.value).max())
    np.testing.assert_allclose(far.value, cold.value, atol=1e-5 * np.abs(cold.value).max())


def test_covariance_and_its_inverse_are_symmetric_and_positive():
    form = ElasticForm(GRID, LAWS[1])
    gamma = NoiseCovariance(form, modulus(GRID.shape), make_load(GRID, "mixed"), 1e-7, 1e-3)
    v, w = np.random.default_rng(5).standard_normal((2, *form.dof_shape))
    np.testing.assert_allclose(np.vdot(w, gamma.apply(v)), np.vdot(v, gamma.apply(w)), rtol=1e-10)
    zv, zw = gamma.solve(v).value, gamma.solve(w).value
    np.testing.assert_allclose(np.vdot(w, zv), np.vdot(v, zw), rtol=1e-6)
    assert np.vdot(v, zv) > 0


@pytest.mark.parametrize("force_std", [0.0, 1e-3])
def test_solve_of_zero_is_zero_without_iterations(force_std):
    load = make_load(GRID, "compression")
    gamma = NoiseCovariance(ElasticForm(GRID, LAWS[0]), modulus(GRID.shape), load, 1e-7, force_std)
    solution = gamma.solve(np.zeros((2, *GRID.shape)), x0=np.ones((2, *GRID.shape)))
    assert solution.iterations == 0 and solution.residual == 0 and not solution.value.any()


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("std", "message"),
    [
        (0.0, r"displacement_std must be positive \(metres\), got 0 at index \(0, 0, 0\)"),
        (-1e-7, r"displacement_std must be positive \(metres\), got -1e-07"),
        (np.nan, r"displacement_std must be positive \(metres\), got nan"),
        (np.array([1e-7, 0.0]), r"got 0 at index \(1, 0, 0\) \(41 such values\)"),
        (np.ones(3), r"must be a scalar or have shape \(2,\), \(6, 7\) or \(2, 6, 7\), got \(3,\)"),
        (np.inf, "displacement_std is infinite everywhere: nothing was measured"),
    ],
)
def test_displacement_std_that_is_not_positive_or_does_not_fit_is_refused(std, message):
    load = compression(GRID, pressure=100.0)
    with pytest.raises(ValueError, match=message):
        NoiseCovariance(ElasticForm(GRID, LAWS[0]), modulus(GRID.shape), load, std)


@pytest.mark.parametrize(
    ("std", "message"),
    [
        (-1.0, r"force_std must be finite and not negative \(newtons\), got -1"),
        (np.nan, "force_std must be finite and not negative"),
        (np.inf, "force_std must be finite and not negative"),
        (np.ones(2), r"force_std must be a scalar or have shape \(2, 6, 7\), got shape \(2,\)"),
    ],
)
def test_force_std_that_is_negative_infinite_or_does_not_fit_is_refused(std, message):
    load = compression(GRID, pressure=100.0)
    with pytest.raises(ValueError, match=message):
        NoiseCovariance(ElasticForm(GRID, LAWS[0]), modulus(GRID.shape), load, 1e-7, std)


def test_wrong_arguments_are_named():
    form, load, x = ElasticForm(GRID, LAWS[0]), compression(GRID, pressure=100.0), modulus(GRID.shape)
    gamma, r = NoiseCovariance(form, x, load, 1e-7, 1e-3), np.ones(form.dof_shape)
    with pytest.raises(TypeError, match="form must be an ElasticForm, got Grid"):
        NoiseCovariance(GRID, x, load, 1e-7)
    with pytest.raises(ValueError, match="x must be positive"):
        NoiseCovariance(form, -x, load, 1e-7)
    with pytest.raises(ValueError, match="x must be one field of shape"):
        NoiseCovariance(form, np.stack([x, x]), load, 1e-7)
    with pytest.raises(ValueError, match=r"free to move .* translation along axis 0"):
        NoiseCovariance(form, x, Boundary(fixed=np.zeros(form.dof_shape, bool)), 1e-7)
    with pytest.raises(ValueError, match="load has no loaded dof, so there is no equation"):
        NoiseCovariance(form, x, Boundary(open=np.ones(form.dof_shape, bool)), 1e-7)
    with pytest.raises(ValueError, match="r must be finite on the equations"):
        gamma.solve(np.full(form.dof_shape, np.nan))
    off = np.where(load.loaded, r, np.nan)  # entries that do not count
    assert np.array_equal(gamma.solve(off).value, gamma.solve(r).value)
    with pytest.raises(ValueError, match=r"r must have shape .* got \(6, 7\)"):
        gamma.solve(x)
    with pytest.raises(ValueError, match="r must be one field"):
        gamma.solve(np.stack([r, r]))
    with pytest.raises(ValueError, match="rtol must be a number between 0 and 1, got 2"):
        gamma.solve(r, rtol=2)
    with pytest.raises(ValueError, match=r"v must have shape .* got \(3,\)"):
        gamma.apply(np.ones(3))
    with pytest.raises(ValueError, match=r"x0 must have shape .* got \(6, 7\)"):
        gamma.solve(r, x0=x)
    with pytest.raises(RuntimeError, match=r"gamma\.solve stopped after 1 iterations at a relative residual of"):
        gamma.solve(r, maxiter=1)


def test_zero_std_is_allowed_where_the_displacement_is_fixed():
    form, load, x = ElasticForm(GRID, LAWS[0]), compression(GRID, pressure=100.0), modulus(GRID.shape)
    r = np.ones(form.dof_shape)
    std = np.where(load.fixed, 0.0, 1e-7)
    expected = NoiseCovariance(form, x, load, 1e-7).solve(r).value
    np.testing.assert_allclose(NoiseCovariance(form, x, load, std).solve(r).value, expected, rtol=1e-6)
