"""A known map of the Poisson ratio: the form against dense sums, and what is built on it."""

import pickle

import device
import numpy as np
import pytest
from dense import dense_psi
from scipy.sparse.linalg import spsolve
from test_poisson import log_error, triangles

import elastofast as ef
from elastofast.backend.device import to_host
from elastofast.inversion.coarsen import coarsen
from elastofast.io import load_modulus, save_modulus
from elastofast.laws import LameNumbers

PLANE = [ef.PlaneStress, ef.PlaneStrain]
GRID = ef.Grid((5, 6), (1e-3, 2e-3))
TETRAHEDRA = ef.Mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], [[0, 1, 2, 3], [1, 2, 3, 4]])
BODIES = {"grid": GRID, "triangles": triangles(4), "tetrahedra": TETRAHEDRA}
CASES = [(kind, law) for kind in ("grid", "triangles") for law in PLANE] + [("tetrahedra", ef.Solid)]


def fields(geometry, seed=0):
    """Poisson ratios, moduli and two displacements."""
    rng = np.random.default_rng(seed)
    nodes = geometry.node_shape
    u, v = rng.normal(size=(2, geometry.dim, *nodes))
    return rng.uniform(-0.2, 0.49, nodes), rng.uniform(1e3, 2e3, nodes), u, v


def soft_inside(n, law=ef.PlaneStress, inside=0.3, outside=0.49):
    """A square with a lesion, another Poisson ratio in a part of it, and its measurement."""
    grid = ef.Grid((n, n), (32e-3 / (n - 1),) * 2)
    truth, _ = ef.inclusion(grid, (14e-3, 18e-3), 6e-3, modulus=40e3, background=12e3)
    nu = np.full(grid.shape, outside)
    nu[n // 3 : 2 * n // 3, n // 4 : n // 2] = inside
    return truth, nu, ef.simulate(grid, law(nu), ef.compression(grid, pressure=100.0), truth, snr=45.0, seed=2)


@pytest.mark.parametrize(("kind", "law"), CASES)
def test_contractions_are_those_of_the_dense_form(kind, law):
    geometry = BODIES[kind]
    nu, x, u, v = fields(geometry)
    form, own = ef.ElasticForm(geometry, law(nu)), law(nu)
    parts = [dense_psi(geometry, LameNumbers(law(0.3), *numbers)) for numbers in ((1.0, 0.0), (0.0, 1.0))]
    weights = own.lame_lambda.ravel(), own.lame_mu.ravel()
    psi = sum(weight[:, None, None] * part for weight, part in zip(weights, parts, strict=True))
    k = np.einsum("n,nij->ij", x.ravel(), psi)
    for found, expected in (
        (form.stiffness(x).toarray(), k),
        (form.force(x, u).ravel(), k @ u.ravel()),
        (form.sensitivity(u, v).ravel(), np.einsum("i,nij,j->n", v.ravel(), psi, u.ravel())),
        (form.contraction(u).toarray(), np.einsum("nij,j->in", psi, u.ravel())),
    ):
        assert np.abs(found - expected).max() < 1e-13 * np.abs(expected).max()
    again = form.stiffness(x)
    assert form.stiffness(2 * x, out=again) is again and np.allclose(again.toarray(), 2 * k)
    assert form.force(x.astype(np.float32), u.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("law", PLANE)
@pytest.mark.parametrize("shifted", [False, True])
def test_solves_are_those_of_the_matrix(law, shifted):
    grid = ef.Grid((19, 23), (1e-3, 1.2e-3))
    nu, x, u, _ = fields(grid)
    form, load = ef.ElasticForm(grid, law(nu)), ef.compression(grid, pressure=1.0)
    active, shift = load.loaded.ravel(), 300 * u**2 if shifted else None
    solver = form.solver(x.ravel(), load.loaded.reshape(2, -1), shift if shift is None else shift.reshape(2, -1))
    matrix = form.stiffness(x).tolil()
    matrix.setdiag(matrix.diagonal() + (0 if shift is None else shift.ravel()))
    matrix = matrix.tocsr()
    b = u.reshape(2, -1)
    expected = np.zeros(u.size)
    expected[active] = spsolve(matrix[active][:, active].tocsc(), b.ravel()[active])
    found = solver.solve(b, rtol=1e-10).value
    assert np.abs(found.ravel() - expected).max() < 1e-7 * np.abs(expected).max()
    solver.update(2 * x.ravel(), None if shift is None else 2 * shift.reshape(2, -1))
    assert np.allclose(solver.solve(b, rtol=1e-10).value.ravel(), expected / 2, atol=1e-7 * np.abs(expected).max())
    solver.update(x.ravel(), None if shift is None else shift.reshape(2, -1))
    product = np.where(active, matrix @ np.where(active, expected, 0.0), 0.0)
    assert np.allclose(solver.apply(expected.reshape(2, -1)).ravel(), product)
    energy = expected @ (matrix @ expected)
    for accuracy in (0.3, 0.01):
        off = solver.approximate_inverse(b, accuracy).ravel() - expected
        assert off @ (matrix @ off) < accuracy**2 * energy


@pytest.mark.parametrize("law", PLANE)
def test_iterations_do_not_grow_with_the_grid(law):
    def iterations(n):
        truth, _, m = soft_inside(n, law, 0.45, 0.495)
        solver = m.form.solver(truth.ravel(), m.load.loaded.reshape(2, -1))
        return solver.solve(m.load.force.reshape(2, -1)).iterations

    few, many = iterations(33), iterations(97)
    assert many <= few + 3 and many <= {ef.PlaneStress: 12, ef.PlaneStrain: 22}[law]


@pytest.mark.parametrize("kind", ["grid", "open", "mesh"])
@pytest.mark.parametrize("law", PLANE)
def test_gradient_of_the_data_term(kind, law):
    geometry = triangles(9) if kind == "mesh" else ef.Grid((9, 9), (4e-3, 4e-3))
    nu, x, direction, _ = fields(geometry, 3)
    m = ef.simulate(geometry, law(nu), ef.compression(geometry, pressure=100.0), x, snr=30.0)
    if kind == "open":
        edge = np.ones((2, 9, 9), bool)
        edge[:, 1:-1, 1:-1] = False
        m = m.derived(load=ef.Boundary(open=edge))
    fidelity, step = ef.Fidelity(m, rtol=1e-11), 1e-4 * x * np.cos(direction[0])
    slope = (fidelity(1.1 * x + step)[0] - fidelity(1.1 * x - step)[0]) / 2
    assert slope == pytest.approx((fidelity(1.1 * x)[1] * step).sum(), rel=1e-5)


@pytest.mark.parametrize("law", PLANE)
def test_reconstructions_are_as_good_as_with_one_ratio(law):
    truth, nu, m = soft_inside(33, law, 0.3, 0.495)
    uniform = ef.simulate(m.geometry, law(0.495), m.load, truth, snr=45.0, seed=2)
    known, one = (ef.reconstruct(each, prior="tv", progress=False) for each in (m, uniform))
    assert known.status == "converged" and known.chi2 < 1.1
    assert np.array_equal(known.poisson, nu)
    assert log_error(known, truth) < 1.1 * log_error(one, truth)
    wrong = ef.Fidelity(m.derived(law=law(0.495)))
    assert 2 * wrong(truth)[0] > 2 * wrong.n_data


def test_coarse_levels_keep_the_map():
    _, nu, m = soft_inside(33)
    own = coarsen(m, 16).law.poisson
    assert own.shape == (17, 17)
    assert own[8, 6] == pytest.approx(0.3) and own[2, 12] == pytest.approx(0.49)
    mesh = triangles(33)
    moved = coarsen(
        ef.simulate(mesh, ef.PlaneStress(nu.ravel()), ef.compression(mesh, pressure=1.0), np.full(33**2, 1e4)), 16
    )
    assert moved.law.poisson.shape == (moved.geometry.n_nodes,) and moved.law.poisson.min() < 0.32


def test_on_a_device(monkeypatch):
    put, get = device.install(monkeypatch)
    for law in PLANE:
        nu, x, u, v = fields(ef.Grid((33, 40), (1e-3, 1e-3)))
        geometry = ef.Grid((33, 40), (1e-3, 1e-3))
        form, load = ef.ElasticForm(geometry, law(nu)), ef.compression(geometry, pressure=1.0)
        assert np.allclose(get(form.force(put(x), put(u))), form.force(x, u), rtol=1e-12)
        assert np.allclose(get(form.sensitivity(put(u), put(v))), form.sensitivity(u, v), rtol=1e-12)
        m = ef.simulate(geometry, law(nu), load, x, snr=30.0)
        there = m.derived(displacement=m.displacement)
        there.device = ef.Measurement(geometry, law(nu), load, put(m.displacement), m.displacement_std).device
        (value, gradient), (expected, own) = ef.Fidelity(there)(put(1.1 * x)), ef.Fidelity(m)(1.1 * x)
        assert to_host(value) == pytest.approx(expected, rel=1e-6)
        assert np.abs(get(gradient) - own).max() < 1e-5 * np.abs(own).max()


@pytest.mark.parametrize("suffix", ["h5", "npz", "mat"])
def test_files_keep_the_map(tmp_path, suffix):
    _, nu, m = soft_inside(33)
    m.save(tmp_path / f"m.{suffix}")
    assert ef.load_measurement(tmp_path / f"m.{suffix}").law == m.law
    result = ef.reconstruct(m, prior="tv", max_iterations=2, progress=False)
    save_modulus(tmp_path / f"x.{suffix}", result, m.geometry)
    assert np.array_equal(load_modulus(tmp_path / f"x.{suffix}")[2]["poisson"], nu)


def test_a_sidecar_names_its_variable(tmp_path):
    _, nu, m = soft_inside(33)
    nu = nu.copy()
    nu[5, 7] = np.nan
    np.savez(tmp_path / "m.npz", uz=m.displacement[0], ux=m.displacement[1], nu=nu)
    sidecar = {
        "axial": {"displacement": "uz", "spacing": 1.0},
        "lateral": {"displacement": "ux", "spacing": 1.0},
        "units": {"displacement": "m", "coordinate": "mm"},
        "noise": {"std": 1e-7},
        "law": {"kind": "plane_stress", "poisson": 0.45, "poisson_variable": "nu"},
        "region": {"rows": [2, 30]},
        "load": {"kind": "open"},
    }
    found = ef.load_measurement(tmp_path / "m.npz", sidecar)
    assert np.array_equal(found.law.poisson, np.where(np.isnan(nu), 0.45, nu)[2:31])


def test_laws_with_maps_are_compared_and_copied_by_value():
    _, nu, m = soft_inside(33)
    law = ef.PlaneStress(nu)
    assert law == m.law and hash(law) == hash(m.law) and law != ef.PlaneStress(nu + 1e-3) != ef.PlaneStress(0.3)
    assert pickle.loads(pickle.dumps(law)) == law and "0.3 to 0.49" in repr(m)
    nu[:] = 0
    assert law.poisson.max() == 0.49 and not law.poisson.flags.writeable
    assert len(ef.JointMeasurement([m, m.derived(law=ef.PlaneStress(m.law.poisson.copy()))]).frames) == 2


def test_mistakes_are_named():
    _, nu, m = soft_inside(33)
    with pytest.raises(ValueError, match=r"poisson must lie in \(-1, 1\) for PlaneStress, got 1.2 \(3 such values\)"):
        ef.PlaneStress(np.where(np.arange(33 * 33).reshape(33, 33) < 3, 1.2, nu))
    with pytest.raises(ValueError, match="one value for each node"):
        m.derived(law=ef.PlaneStress(nu[:-1]))
    with pytest.raises(ValueError, match="has a map"):
        ef.reconstruct(m, poisson="estimate")
    with pytest.raises(TypeError, match="poisson must be a number, or one for each node"):
        ef.PlaneStress("soft")
