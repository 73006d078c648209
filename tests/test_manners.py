"""What other programs may expect of a library: pickles, copies, forks, tensors, exceptions, pictures, logging."""

import copy
import logging
import multiprocessing
import pickle
import warnings

import numpy as np
import pytest
from scipy.optimize import minimize
from test_fidelity import GEOMETRIES, LAWS, measure

import elastofast as ef
from elastofast import _core
from elastofast.priors import Critic, PlugAndPlay, Tikhonov, TotalVariation

GRID = GEOMETRIES["9 x 10"]


def wild(shape):
    """A modulus over hundreds of decades, which no solver can do anything with."""
    return 10.0 ** np.random.default_rng(0).uniform(-150, 150, shape)


def copies(thing):
    return pickle.loads(pickle.dumps(thing)), copy.deepcopy(thing), copy.copy(thing)


@pytest.mark.parametrize("geometry", ["grid", "mesh"])
def test_copies_of_the_model_and_the_data_give_the_same_numbers(geometry):
    m, x = measure(geometry, "plane stress", "pressure", "holes")
    u = m.displacement
    fidelity = ef.Fidelity(m, rtol=1e-10, on_failure="inf")
    gamma = ef.NoiseCovariance(m.form, x, m.load, m.displacement_std)
    z = gamma.solve(u).value
    value, gradient = fidelity(x)
    for form, data, own, own_gamma in zip(*map(copies, (m.form, m, fidelity, gamma)), strict=True):
        assert np.array_equal(form.force(x, u), m.form.force(x, u))
        assert np.array_equal(data.displacement, u) and not data.displacement.flags.writeable
        assert not data.load.fixed.flags.writeable
        assert own(x)[0] == pytest.approx(value, rel=1e-9) and own(wild(x.shape))[0] == np.inf
        np.testing.assert_allclose(own(x)[1], gradient, atol=1e-7 * np.abs(gradient).max())
        np.testing.assert_allclose(own_gamma.solve(u).value, z)


def test_copies_of_priors_and_results():
    grid = ef.Grid((32, 32), (1e-3, 1e-3))
    x = np.random.default_rng(0).uniform(1e4, 2e4, grid.shape)
    for prior in (TotalVariation(grid), Tikhonov(grid), Critic.load(), PlugAndPlay.load()):
        for own in copies(prior):
            if isinstance(prior, PlugAndPlay):
                z = np.log(x).reshape(1, -1)
                np.testing.assert_array_equal(own.target(z, grid.shape), prior.target(z, grid.shape))
            else:
                np.testing.assert_array_equal(own(x)[1], prior(x)[1])
    m, _ = measure("9 x 10", "plane stress", "pressure")
    result = ef.reconstruct(m, prior="tv", max_iterations=2)
    for own in copies(result):
        np.testing.assert_array_equal(own.modulus, result.modulus)
        assert own.history == result.history and own.geometry == result.geometry


def _solve(arguments):
    return ef.solve_forward(*arguments)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes(method):
    """With more than one thread in the parent, a forked process used to wait for ever."""
    grid = ef.Grid((130, 130), (1e-3, 1e-3))
    form, load = ef.ElasticForm(grid, LAWS["plane stress"]), ef.compression(grid, pressure=100.0)
    x = np.random.default_rng(0).uniform(1e4, 2e4, grid.shape)
    before = _core.get_num_threads()
    try:
        _core.set_num_threads(2)
        here = ef.solve_forward(form, x, load)
        with multiprocessing.get_context(method).Pool(1) as pool:
            (there,) = pool.map_async(_solve, [(form, x, load)]).get(timeout=60)
        np.testing.assert_array_equal(there, here)
        assert _core.get_num_threads() == 2
    finally:
        _core.set_num_threads(before)


@pytest.fixture
def two_threads():
    before = _core.get_num_threads()
    _core.set_num_threads(2)
    yield
    _core.set_num_threads(before)


def test_members_side_by_side_are_those_alone(two_threads):
    ms = [measure("9 x 10", "plane stress", "pressure", seed=k)[0] for k in range(5)]
    told = []
    together = ef.reconstruct(ms, prior="tv", max_iterations=3, progress=told.append)
    _core.set_num_threads(1)
    for own, m in zip(together, ms, strict=True):
        np.testing.assert_array_equal(own.modulus, ef.reconstruct(m, prior="tv", max_iterations=3).modulus)
    assert {entry["member"] for entry in told} == set(range(5))
    x = np.stack([own.modulus for own in together])
    _core.set_num_threads(2)
    u = ef.solve_forward(ms[0].form, x, ms[0].load)
    np.testing.assert_array_equal(u[3], ef.solve_forward(ms[0].form, x[3], ms[0].load))


def test_members_side_by_side_can_be_interrupted(two_threads):
    ms = [measure("9 x 10", "plane stress", "pressure", seed=k)[0] for k in range(8)]

    def stop(entry):
        if entry["iteration"] == 3:
            raise KeyboardInterrupt

    results = ef.reconstruct(ms, prior="tv", progress=stop)
    assert len(results) == 8 and None in results
    done = [result for result in results if result is not None]
    assert done and all(result.status == "interrupted" and np.isfinite(result.modulus).all() for result in done)

    def fail(entry):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full") as caught:
        ef.reconstruct(ms, prior="tv", progress=fail)
    assert "of the list" in caught.value.__notes__[0]
    assert len(ef.reconstruct(ms[:2], prior="tv", max_iterations=1)) == 2  # nothing of it is left behind


@pytest.mark.parametrize("geometry", ["grid", "mesh"])
def test_moduli_that_cannot_be_solved(geometry):
    m, x = measure(geometry, "plane stress", "pressure")
    bad = [wild(x.shape), -x, np.full_like(x, np.nan)]
    for modulus, error in zip(bad, (ef.SolveError, ef.ModulusError, ef.ModulusError), strict=True):
        for call in (lambda x: ef.solve_forward(m.form, x, m.load), ef.Fidelity(m)):
            with pytest.raises(error):
                call(modulus)
            with pytest.raises(ef.ElastofastError):
                call(modulus)
    assert issubclass(ef.SolveError, RuntimeError) and issubclass(ef.ModulusError, ValueError)
    moduli = np.stack([x, *bad])
    u = ef.solve_forward(m.form, moduli, m.load, on_failure="inf")
    np.testing.assert_allclose(u[0], ef.solve_forward(m.form, x, m.load), rtol=1e-6, atol=1e-12)
    assert np.isposinf(u[1:]).all()
    fidelity = ef.Fidelity(m, on_failure="inf")
    values, gradients = fidelity(moduli)
    assert np.isfinite(values[0]) and np.isposinf(values[1:]).all() and not gradients[1:].any()
    assert fidelity(bad[1])[0] == np.inf
    with pytest.raises(ValueError, match="on_failure must be"):
        ef.Fidelity(m, on_failure="nan")
    with pytest.raises(ValueError, match="x must have shape"):  # which is no matter of its values
        fidelity(np.ones(3))


def test_a_line_search_comes_back_from_infinity():
    """SciPy's first step in x itself goes below zero, and its line search goes on."""
    m, truth = measure("9 x 10", "plane stress", "pressure")
    fidelity, shape = ef.Fidelity(m, on_failure="inf"), truth.shape
    values = []

    def objective(x):
        value, gradient = fidelity(1e4 * x.reshape(shape))
        values.append(value)
        return value, 1e4 * gradient.ravel()

    with np.errstate(all="ignore"):
        found = minimize(objective, np.full(truth.size, 1.2), jac=True, method="L-BFGS-B", options={"maxiter": 30})
    assert np.inf in values and np.isfinite(found.fun) and found.fun < 0.1 * values[0]


def test_wrong_priors_get_our_errors():
    torch = pytest.importorskip("torch")
    grid = ef.Grid((16, 16), (1e-3, 1e-3))
    form, load = ef.ElasticForm(grid, LAWS["plane stress"]), ef.compression(grid, pressure=100.0)
    u = ef.solve_forward(form, np.full(grid.shape, 1e4), load)
    m = ef.Measurement(grid, form.law, load, u, 1e-6)

    class Target:
        def __init__(self, answer):
            self.target = answer

    wrong = {
        "must have the shape": Target(lambda z, shape: z[:, :-1]),
        "is not finite": Target(lambda z, shape: np.nan * z),
        "two values": lambda x: x,
        "a gradient of the shape": lambda x: (1.0, x[:-1]),
        "a number as its energy": lambda x: ("a", x),
        "energy is nan at the start": lambda x: (np.nan, x),
        "a gradient with values that are NaN": lambda x: (0.0, np.nan * x),
        "torch module": torch.nn.Conv2d(1, 1, 3),
        "or an object with a target": object(),
        "make one of it": Target,
    }
    for message, prior in wrong.items():
        with pytest.raises(ef.PriorError, match=message) as caught:
            ef.reconstruct(m, prior=prior, weight=1.0)
        assert isinstance(caught.value, TypeError) and isinstance(caught.value, ValueError)
    as_tensors = Target(lambda z, shape: torch.zeros(z.shape, dtype=torch.float64) + float(np.log(1e4)))
    assert ef.reconstruct(m, prior=as_tensors, weight=1.0, max_iterations=1).modulus.shape == grid.shape


def test_cpu_tensors_in_give_tensors_out():
    torch, ei = pytest.importorskip("torch"), pytest.importorskip("elastofast.interop.torch")
    m, x = measure("9 x 10", "plane stress", "pressure")
    tensor, form = torch.tensor(x), m.form
    u = ef.solve_forward(form, tensor, m.load)
    gamma = ef.NoiseCovariance(form, tensor, m.load, m.displacement_std)
    own = ef.Measurement(GRID, form.law, m.load, torch.tensor(m.displacement), 2e-6)
    found = {
        "u": u,
        "f": form.force(tensor, u),
        "g": form.sensitivity(u, u),
        "Gamma v": gamma.apply(u),
        "z": gamma.solve(u).value,
        "gradient": ef.Fidelity(m)(tensor)[1],
        "values": ef.Fidelity(m)(tensor[None])[0],
        "prior": TotalVariation(GRID)(tensor)[1],
        "modulus": ef.reconstruct(own, prior="tv", max_iterations=1).modulus,
    }
    assert {name: type(value) for name, value in found.items()} == dict.fromkeys(found, torch.Tensor)
    np.testing.assert_array_equal(u, ef.solve_forward(form, x, m.load))
    out = torch.empty(u.shape, dtype=torch.float64)
    assert form.force(tensor, u, out=out) is out
    np.testing.assert_array_equal(out, form.force(x, u.numpy()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as those about arrays that are read-only
        masks = {name: ei.as_tensor(getattr(m.load, name)) for name in ("fixed", "force")}
        np.testing.assert_array_equal(ef.Boundary(**masks).loaded, m.load.loaded)
        assert not u[masks["fixed"]].any()
    with pytest.raises(TypeError, match="requires grad"):
        ef.solve_forward(form, tensor.requires_grad_(), m.load)
    with torch.no_grad():
        ef.solve_forward(form, tensor, m.load)


def test_what_is_shown_in_a_notebook():
    m, _ = measure("9 x 10", "plane stress", "pressure")
    result = ef.reconstruct(m, prior="tv", max_iterations=2)
    assert len(repr(result)) < 300 and "max_iterations" in repr(result)
    for thing in (m, result):
        html = thing._repr_html_()
        assert html.count("<img") == 1 and "data:image/png;base64," in html and len(html) < 100_000
    assert "kPa" in result._repr_html_()


def test_reconstructions_are_logged(caplog):
    m, _ = measure("9 x 10", "plane stress", "pressure")
    with caplog.at_level(logging.DEBUG, logger="elastofast"):
        ef.reconstruct(m, prior="tv", max_iterations=2)
    assert any("chi2" in record.getMessage() for record in caplog.records if record.levelno == logging.INFO)
    assert any(record.levelno == logging.DEBUG for record in caplog.records)
    assert logging.getLogger("elastofast").handlers  # quiet unless the program asks


def test_masked_arrays_are_refused_where_their_mask_would_be_lost(tmp_path):
    grid = ef.Grid((12, 12), (1e-3, 1e-3))
    x = np.ma.masked_array(np.full(grid.shape, 1e4), np.eye(12, dtype=bool))
    form, load = ef.ElasticForm(grid, ef.PlaneStress(0.4)), ef.compression(grid, pressure=100.0)
    m = ef.simulate(grid, form.law, load, x.data)
    calls = {
        "poisson": lambda: ef.PlaneStress(x / 1e5),
        "modulus": lambda: ef.save_modulus(tmp_path / "x.h5", x, grid),
        "truth": lambda: ef.metrics.evaluate(x.data, x, grid),
        "bounds": lambda: ef.reconstruct(m, prior="tv", bounds=(1e3, 9 * x)),
        "x": lambda: form.solver(x, load.loaded),
        "points": lambda: ef.Mesh(np.ma.masked_less(grid.points, 1e-9), [[0, 1, 2]]),
    }
    for name, call in calls.items():
        with pytest.raises(ef.DataError, match=f"{name} has masked entries"):
            call()
    assert not any(tmp_path.iterdir())


def test_a_solver_refuses_a_modulus_that_no_body_has():
    grid = ef.Grid((12, 12), (1e-3, 1e-3))
    form, load = ef.ElasticForm(grid, ef.PlaneStress(0.4)), ef.compression(grid, pressure=100.0)
    for wrong in (-1e4, 0.0, np.nan):
        with pytest.raises(ef.ModulusError, match="x must be"):
            form.solver(np.full(grid.n_nodes, wrong), load.loaded)
