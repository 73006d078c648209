"""What runs on a device, against the CPU path: on the stand-in of device.py everywhere, on a GPU with ``-m gpu``."""

import device
import numpy as np
import pytest

import elastofast as ef
from elastofast.backend import device as arrays
from elastofast.forward import grid_cuda as grid_device
from elastofast.forward.grid import smoother
from elastofast.inversion.unpenalised import UnpenalisedDirections, plateau_range

LAWS = {"stress": ef.PlaneStress(0.495), "strain": ef.PlaneStrain(0.495)}
TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}
SHAPES = [(2, 2), (7, 9), (33, 40), (64, 65)]


def cupy_device(monkeypatch):
    """The way to a CuPy array and back; skips without a GPU."""
    cuda = pytest.importorskip("elastofast._cuda", reason="elastofast._cuda is not built")
    try:
        cuda.device_count()
    except RuntimeError as error:
        pytest.skip(str(error))
    cupy = pytest.importorskip("cupy")
    return cupy.asarray, arrays.to_host


def torch_device(monkeypatch):
    """The way to a CUDA torch tensor and back; skips without a GPU."""
    cupy_device(monkeypatch)
    torch = pytest.importorskip("torch")
    return lambda a: torch.as_tensor(a, device="cuda"), arrays.to_host


@pytest.fixture(
    params=[device.install, *(pytest.param(d, marks=pytest.mark.gpu) for d in (cupy_device, torch_device))],
    ids=["stand-in", "cupy", "torch"],
)
def memory(request, monkeypatch):
    return request.param(monkeypatch)


@pytest.fixture(params=LAWS)
def law(request):
    return LAWS[request.param]


def relative(actual, expected):
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    return np.abs(actual - expected).max() / np.abs(expected).max()


def body(shape, law, dtype=np.float64, batch=(), seed=0):
    """Form, modulus and two displacements; cells are not square."""
    rng = np.random.default_rng(seed)
    form = ef.ElasticForm(ef.Grid(shape, (1e-3, 1.3e-3)), law)
    x = np.exp(0.4 * rng.normal(size=(*batch, *shape))).astype(dtype)
    u, v = rng.normal(size=(2, *batch, 2, *shape)).astype(dtype)
    return form, x, u, v


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_contractions_are_those_of_the_cpu(memory, law, dtype, shape, batch):
    put, get = memory
    form, x, u, v = body(shape, law, dtype, batch)
    assert relative(get(form.force(put(x), put(u))), form.force(x, u)) < TOLERANCE[dtype]
    assert relative(get(form.sensitivity(put(u), put(v))), form.sensitivity(u, v)) < TOLERANCE[dtype]


def test_one_modulus_serves_many_displacements_of_flat_layout(memory, law):
    put, get = memory
    form, x, u, _ = body((33, 40), law, batch=(5,))
    flat = u.reshape(5, 2, -1)
    assert relative(get(form.force(put(x[0].ravel()), put(flat))), form.force(x[0].ravel(), flat)) < 1e-12


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_sparse_matrices_are_those_of_the_cpu(memory, law, dtype, shape):
    put, to_host = memory[0], arrays.to_host
    form, x, u, _ = body(shape, law, dtype)
    for field, make in ((x, form.stiffness), (u, form.contraction)):
        expected, found = make(field), make(put(field))
        assert found.shape == expected.shape
        np.testing.assert_array_equal(to_host(found.indices), expected.indices)
        assert relative(to_host(found.data), expected.data) < TOLERANCE[dtype]
        again = make(put(2 * field), out=found)
        assert again is found and relative(to_host(found.data), 2 * expected.data) < TOLERANCE[dtype]


@pytest.mark.parametrize("shape", [(2, 2), (2, 400), (12, 32), (13, 33), (23, 63), (24, 64)])
def test_tiles_of_cells_cover_grids_of_any_shape(memory, law, shape):
    put, get = memory
    form, x, u, v = body(shape, law)
    assert relative(get(form.force(put(x), put(u))), form.force(x, u)) < 1e-12
    assert relative(get(form.sensitivity(put(u), put(v))), form.sensitivity(u, v)) < 1e-12


LOADS = {
    "pressure": lambda grid: ef.compression(grid, pressure=100.0),
    "strain": lambda grid: ef.compression(grid, strain=0.01),
    "all edges": lambda grid: ef.Boundary(fixed=edges(grid.shape)),
}


def edges(shape):
    mask = np.ones((2, *shape), bool)
    mask[:, 1:-1, 1:-1] = False
    return mask


def own(memory):
    """The way to the library's own arrays, which solvers take, and back."""
    put, get = memory

    def take(array):
        there = put(array)
        return arrays.device_of(x=there).asarray(there)

    return take, get


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("shape", [(8, 9), (40, 53), (65, 130), (24, 200)])
@pytest.mark.parametrize("shifted", [False, True])
def test_solvers_do_what_the_cpu_does(memory, law, load, shape, shifted):
    put, get = own(memory)
    form, x, b, _ = body(shape, law)
    active = LOADS[load](form.geometry).loaded.reshape(2, -1)
    shift = np.random.default_rng(1).uniform(0.5, 2, b.shape).reshape(2, -1) if shifted else None
    b = b.reshape(2, -1)
    host = form.solver(x.ravel(), active, shift)
    there = form.solver(put(x.ravel()), active, None if shift is None else put(shift))
    w = host.apply(b)
    assert relative(get(there.apply(put(b))), w) < 1e-12
    levels = there.eigenvalue_bounds()
    np.testing.assert_allclose(levels.ravel(), host._core.eigenvalue_bounds, rtol=1e-5)
    assert relative(get(there.precondition(put(b))), host.precondition(b)) < 1e-4  # single precision inside
    expected, found = host.solve(b, rtol=1e-9), there.solve(put(b), rtol=1e-9)
    assert abs(found.iterations - expected.iterations) <= 1
    assert found.residual <= 1e-9
    assert np.linalg.norm((b - host.apply(get(found.value)))[active]) <= 1.01e-9 * np.linalg.norm(b[active])


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_moduli_that_are_not_finite_end_in_an_error(memory, law, value):
    put, _ = own(memory)
    form, x, b, _ = body((40, 53), law)
    x[20, 30] = value
    solver = form.solver(put(x.ravel()), LOADS["pressure"](form.geometry).loaded.reshape(2, -1))
    with pytest.raises(RuntimeError, match="stopped at a relative residual of nan"):
        solver.solve(put(b.reshape(2, -1)))


def test_forward_solves_of_a_batch_are_those_of_the_cpu(memory, law):
    put, get = memory
    form, x, _, _ = body((40, 53), law, batch=(4,))
    x[1] *= 1e5  # each member has its own scale
    load = ef.compression(form.geometry, pressure=100.0)
    expected, found = ef.solve_forward(form, x, load, rtol=1e-10), get(ef.solve_forward(form, put(x), load, rtol=1e-10))
    for one, other in zip(found, expected, strict=True):
        assert relative(one, other) < 1e-6


def test_last_plans_are_remembered(monkeypatch):
    put, _ = device.install(monkeypatch)
    form, x, _, _ = body((20, 31), LAWS["stress"])
    active = ef.compression(form.geometry, pressure=1.0).loaded.reshape(2, -1)
    first, second = (form.solver(put(x.ravel()), active.copy()) for _ in range(2))
    assert first._plan is second._plan


@pytest.mark.parametrize("force_std", [0.0, 1e-3])
@pytest.mark.parametrize("opened", [False, True])
def test_covariance_is_that_of_the_cpu(memory, law, force_std, opened):
    put, get = memory
    form, x, r, _ = body((33, 40), law)
    x *= 1e4
    mask = edges(x.shape)
    load = ef.Boundary(open=mask) if opened else ef.compression(form.geometry, pressure=100.0)
    std = 1e-6 * np.random.default_rng(0).uniform(1, 3, r.shape)
    host = ef.NoiseCovariance(form, x, load, std, force_std)
    there = ef.NoiseCovariance(form, put(x), load, std, force_std)
    assert relative(get(there.apply(put(r))), host.apply(r)) < 1e-12
    if opened and force_std == 0:
        return  # hundreds of iterations: apply says enough
    expected, found = host.solve(r), there.solve(put(r))
    assert abs(found.iterations - expected.iterations) <= 1
    assert relative(get(found.value), expected.value) < 1e-5


BODIES = [(1, 100.0), (2, 150.0), (3, 80.0)]  # seed, pressure


def measured(law, put=None, force_std=0.0, seed=1, pressure=100.0, shape=(40, 53)):
    grid = ef.Grid(shape, (6e-4, 6e-4))
    load = ef.compression(grid, pressure=pressure)
    truth, _ = ef.lesion(grid, seed=seed)
    m = ef.simulate(grid, law, load, truth, snr=35.0)
    u = m.displacement if put is None else put(m.displacement)
    return ef.Measurement(grid, law, load, u, m.displacement_std, force_std), truth


@pytest.mark.parametrize("force_std", [0.0, 1e-4])
@pytest.mark.parametrize("gradient", ["exact", "frozen"])
def test_fidelity_and_its_gradients_are_those_of_the_cpu(memory, law, gradient, force_std):
    put, get = memory
    (host, truth), (there, _) = measured(law, None, force_std), measured(law, put, force_std)
    value, slope = ef.Fidelity(host, gradient)(truth)
    found, other = ef.Fidelity(there, gradient)(put(truth))
    assert abs(found / value - 1) < 1e-9
    assert relative(get(other), slope) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        dict(prior="tv", weight=300.0),
        dict(prior="tikhonov", weight=300.0, gradient="frozen"),
        dict(prior="none", max_iterations=2),  # every step without a prior magnifies rounding, the third by a thousand
        dict(prior="tv", weight=300.0, optimizer="l-bfgs", max_iterations=5),
        dict(prior="tv", weight=300.0, optimizer="descent", max_iterations=2, gradient="frozen"),
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_reconstructions_are_those_of_the_cpu(memory, options):
    put, get = memory
    (host, _), (there, _) = measured(LAWS["stress"]), measured(LAWS["stress"], put)
    expected, found = ef.reconstruct(host, **options), ef.reconstruct(there, **options)
    assert found.status == expected.status
    # solves are loose and steps truncated: noise of 1e-7 of the data moves the CPU's own maps by up to 2e-3
    assert np.linalg.norm(get(found.modulus) - expected.modulus) < 0.01 * np.linalg.norm(expected.modulus)
    np.testing.assert_allclose(found.chi2, expected.chi2, rtol=0.01)
    assert get(found.displacement).shape == expected.displacement.shape


def test_how_sure_a_map_is_and_what_the_data_determine_are_those_of_the_cpu(memory):
    put, _ = memory
    grid = ef.Grid((9, 8), (1e-3, 1e-3))
    truth, _ = ef.inclusion(grid, (4e-3, 3e-3), 2e-3, modulus=30e3, background=10e3)
    host = ef.simulate(grid, LAWS["stress"], ef.compression(grid, pressure=100.0), truth, snr=50.0)
    there = ef.Measurement(grid, host.law, host.load, put(host.displacement), host.displacement_std)
    expected, found = (ef.uncertainty(ef.reconstruct(m, "tikhonov", 30.0), m, 3).std for m in (host, there))
    assert isinstance(found, np.ndarray) and np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)
    np.testing.assert_allclose(ef.diagnose(there).std, ef.diagnose(host).std, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "force_std"),
    [
        (dict(prior="tv", weight=[400.0, 300.0, 200.0]), 0.0),
        (dict(prior="tv", weight=300.0, max_iterations=3), 1e-4),
        (dict(prior="tikhonov", weight=300.0, gradient="frozen"), 0.0),
        (dict(prior="none", max_iterations=1), 0.0),  # two would magnify rounding, see above
        (dict(prior="critic", max_iterations=3), 0.0),
        (dict(prior="tv", weight=300.0, optimizer="l-bfgs", max_iterations=3), 0.0),
    ],
    ids=lambda o: "-".join(map(str, o.values())) if isinstance(o, dict) else str(o),
)
def test_reconstructions_of_a_batch_are_those_of_each_measurement_on_the_cpu(memory, options, force_std):
    """Measurements of other bodies under other loads, in one go, come out as each does by itself on the CPU."""
    if options["prior"] == "critic":
        pytest.importorskip("torch")
    put, get = memory
    hosts = [measured(LAWS["stress"], None, force_std, seed, pressure)[0] for seed, pressure in BODIES]
    there = [measured(LAWS["stress"], put, force_std, seed, pressure)[0] for seed, pressure in BODIES]
    found = ef.reconstruct(there, **options)
    weights = options.get("weight")
    for k, (host, result) in enumerate(zip(hosts, found, strict=True)):
        if isinstance(weights, list):
            options = options | dict(weight=weights[k])
        expected = ef.reconstruct(host, **options)
        assert result.status == expected.status
        assert result.weight == pytest.approx(expected.weight, rel=1e-3)
        assert np.linalg.norm(get(result.modulus) - expected.modulus) < 0.02 * np.linalg.norm(expected.modulus)
        np.testing.assert_allclose(result.chi2, expected.chi2, rtol=0.01)
        assert [entry["iteration"] for entry in result.history] == [*range(1, len(result.history) + 1)]


def test_members_with_and_without_force_noise_do_not_mix(monkeypatch):
    put, get = device.install(monkeypatch)
    noise = (0.0, 1e-4)
    hosts = [measured(LAWS["stress"], None, force_std)[0] for force_std in noise]
    there = [measured(LAWS["stress"], put, force_std)[0] for force_std in noise]
    options = dict(prior="tikhonov", weight=300.0, max_iterations=2)
    for host, result in zip(hosts, ef.reconstruct(there, **options), strict=True):
        expected = ef.reconstruct(host, **options)
        assert np.linalg.norm(get(result.modulus) - expected.modulus) < 0.02 * np.linalg.norm(expected.modulus)
        np.testing.assert_allclose(result.chi2, expected.chi2, rtol=0.01)


def test_steps_of_a_batch_are_taken_together(monkeypatch):
    """On a device there are as many set-ups for three measurements as for the one that takes the most steps."""
    put, _ = device.install(monkeypatch)
    members = [measured(LAWS["stress"], put, 0.0, seed, pressure)[0] for seed, pressure in BODIES]
    made = []
    original = grid_device.DeviceSolver.__init__
    monkeypatch.setattr(
        grid_device.DeviceSolver, "__init__", lambda self, b, x, *a: made.append(x.shape) or original(self, b, x, *a)
    )
    results = ef.reconstruct(members, "tv", weight=300.0, max_iterations=6)
    together = sum(shape == (3, 40 * 53) for shape in made)
    steps = [len(result.history) for result in results]
    assert max(steps) < together < 1.5 * max(steps) < sum(steps)


def test_measurements_on_other_grids_are_worked_on_by_themselves(monkeypatch):
    put, get = device.install(monkeypatch)
    grids = [ef.Grid(shape, (6e-4, 6e-4)) for shape in ((20, 22), (24, 21), (20, 22))]
    members = []
    for seed, grid in enumerate(grids):
        x, _ = ef.lesion(grid, seed=seed)
        m = ef.simulate(grid, LAWS["stress"], ef.compression(grid, pressure=100.0), x, snr=35.0, seed=seed)
        members.append(ef.Measurement(grid, m.law, m.load, put(m.displacement), m.displacement_std))
    for m, result in zip(members, ef.reconstruct(members, "tv", weight=100.0), strict=True):
        assert result.geometry is m.geometry
        expected = get(ef.reconstruct(m, "tv", weight=100.0).modulus)
        assert np.linalg.norm(get(result.modulus) - expected) < 0.01 * np.linalg.norm(expected)


def test_automatic_weight_is_near_that_of_the_cpu(memory):
    put, _ = memory
    (host, _), (there, _) = measured(LAWS["stress"]), measured(LAWS["stress"], put)
    np.testing.assert_allclose(ef.reconstruct(there).weight, ef.reconstruct(host).weight, rtol=0.1)


def test_automatic_weight_from_several_at_once_is_as_good(memory):
    """On a device several weights are tried at once, each from the homogeneous map: they are as good."""
    put, get = memory
    (host, truth), (there, _) = (measured(LAWS["stress"], p, shape=(100, 104)) for p in (None, put))
    expected, found = ef.reconstruct(host, "tv"), ef.reconstruct(there, "tv")
    assert found.history[0]["shape"] == (50, 52)
    assert 2 / 3 < found.weight / expected.weight < 3 / 2  # weights are tried in steps of two
    one, other = (np.linalg.norm(x - truth) for x in (expected.modulus, get(found.modulus)))
    assert other == pytest.approx(one, rel=0.02)
    assert [entry["iteration"] for entry in found.history] == [*range(1, len(found.history) + 1)]
    weights = [e["weight"] for e in found.history if e["shape"] == (50, 52)]
    assert weights[0] == 1000.0 and len(found.history) < 1.5 * len(expected.history)  # one map's steps, not all five's


@pytest.mark.parametrize("prior", [ef.priors.Tikhonov, ef.priors.TotalVariation])
def test_priors_are_those_of_the_cpu(memory, prior):
    put, get = memory
    _, x, _, _ = body((20, 31), LAWS["stress"], batch=(3,))
    prior = prior(ef.Grid((20, 31), (1e-3, 1e-3)))
    (value, slope), (found, other) = prior(x), prior(put(x))
    np.testing.assert_allclose(get(found), value, rtol=1e-12)
    assert relative(get(other), slope) < 1e-12


@pytest.mark.parametrize("prior", [ef.priors.Tikhonov, ef.priors.TotalVariation])
@pytest.mark.parametrize("spacing", [(1e-3, 1e-3), (1e-3, 2e-3)], ids=["square", "oblong"])
def test_linearized_priors_are_those_of_the_cpu(memory, prior, spacing):
    put, get = memory
    prior, rng = prior(ef.Grid((20, 31), spacing)), np.random.default_rng(0)
    z, dz, v = 0.3 * rng.standard_normal((3, 2, 620))
    device = arrays.device_of(z=put(z))
    with device.activated():
        there = [device.asarray(put(a)) for a in (z, dz, v)]
        duals, models = zip(*(both(prior, *fields) for fields in ((z, dz), there[:2])), strict=True)
        np.testing.assert_allclose(models[1].value, models[0].value, rtol=1e-12)
        np.testing.assert_allclose(prior.value(there[0]), prior.value(z), rtol=1e-12)
        for name in ("gradient", "diagonal"):
            assert relative(get(getattr(models[1], name)), getattr(models[0], name)) < 1e-12
        for _ in range(2):  # the second product works in memory of the first
            assert relative(get(models[1].curvature(there[2])), models[0].curvature(v)) < 1e-12
        if duals[0] is not None:
            assert relative(get(duals[1]), duals[0]) < 1e-12


def both(prior, z, dz):
    dual = prior.step_dual(prior.start_dual(), z, dz)
    return dual, prior.linearize(z, dual)


def test_critic_and_correction_are_those_of_the_cpu(memory):
    pytest.importorskip("torch")
    put, get = memory
    (host, truth), (there, _) = measured(LAWS["stress"]), measured(LAWS["stress"], put)
    critic = ef.priors.Critic.load()
    (value, slope), (found, other) = critic(truth), critic(put(truth))
    assert float(found) == pytest.approx(value, rel=1e-5)
    assert type(other) is type(put(truth)) and relative(get(other), slope) < 1e-3
    for options in (dict(max_iterations=6), dict(max_iterations=2, optimizer="descent", weight=10.0)):
        expected, found = (ef.reconstruct(m, prior=critic, **options) for m in (host, there))
        assert found.status == expected.status
        # a network takes rounding further than the solves do
        assert np.linalg.norm(get(found.modulus) - expected.modulus) < 0.02 * np.linalg.norm(expected.modulus)
    correct = ef.priors.PostProcessing.load().apply
    assert relative(get(correct(put(truth))), correct(truth)) < 1e-5


def test_denoiser_is_that_of_the_cpu(memory):
    pytest.importorskip("torch")
    put, get = memory
    z = np.log(body((40, 53), LAWS["stress"], batch=(2,))[1]).reshape(2, -1) + np.log(12e3)
    prior = ef.priors.PlugAndPlay.load()
    together = prior.target(z, (40, 53))
    assert relative(get(prior.target(put(z), (40, 53))), together) < 1e-4
    for one, expected in zip(z, together, strict=True):
        assert relative(get(prior.target(put(one), (40, 53))), expected) < 1e-4


def discs(*shape):
    """Three maps of log x with a disc each, the last a flat one."""
    i, j = np.mgrid[: shape[0], : shape[1]]
    return np.stack([h * np.clip(9 - 3 * h - np.hypot(i - 20, j - 25), -1, 1) for h in (1.0, 1.5, 0.0)])


def test_unpenalised_directions_are_those_of_the_cpu(memory):
    put, get = memory
    maps, which = discs(40, 53), np.array([True, False, True])
    z, v = maps.reshape(3, -1), np.random.default_rng(0).standard_normal((3, maps[0].size))
    take = arrays.device_of(z=put(z)).asarray
    for members in (which, ~which):
        host, there = (
            UnpenalisedDirections(z, (40, 53), members),
            UnpenalisedDirections(take(put(z)), (40, 53), members),
        )
        assert relative(get(there.project(take(put(v)))), host.project(v)) < 1e-10
        assert relative(get(there.project_contrast(take(put(v)))), host.project_contrast(v)) < 1e-10
    for found, expected in zip(plateau_range(take(put(maps))), plateau_range(maps), strict=True):
        np.testing.assert_array_equal(get(found), expected)


def test_unpenalised_directions_are_found_with_one_copy_to_the_host(monkeypatch):
    put, get = device.install(monkeypatch)
    copies = []
    monkeypatch.setattr(device.Library, "asnumpy", staticmethod(lambda a: copies.append(a.shape) or get(a)))
    z = put(discs(96, 96).reshape(3, -1))
    moves = UnpenalisedDirections(z, (96, 96))
    moves.project(z), moves.project_contrast(z), plateau_range(z.reshape(3, 96, 96))
    assert len(copies) == 1 and np.prod(copies[0]) < z.values.size / 4


def test_covariance_preconditions_as_on_the_cpu(memory, law):
    put, get = own(memory)
    form, x, r, _ = body((33, 40), law)
    load = ef.compression(form.geometry, pressure=100.0)
    host, there = (ef.NoiseCovariance(form, field, load, 1e-6, 1e-4) for field in (1e4 * x, put(1e4 * x)))
    r = r.reshape(2, -1)
    assert relative(get(there.precondition(put(r))), host.precondition(r)) < 1e-4


def test_single_precision_moduli_give_single_precision_displacements(memory, law):
    put, get = memory
    form, x, _, _ = body((40, 53), law, np.float32)
    load = ef.compression(form.geometry, strain=0.01)
    found = get(ef.solve_forward(form, put(1e4 * x), load))
    assert relative(found, ef.solve_forward(form, 1e4 * x, load)) < 1e-5


def test_results_can_be_saved_and_evaluated(memory, tmp_path):
    put, get = memory
    m, truth = measured(LAWS["stress"], put)
    result = ef.reconstruct(m, "tikhonov", weight=300.0, max_iterations=2)
    result.save(tmp_path / "map.npz")
    np.testing.assert_array_equal(ef.load_modulus(tmp_path / "map.npz")[0], get(result.modulus))
    on_host, there = (ef.metrics.evaluate(a, truth, m.geometry) for a in (get(result.modulus), result.modulus))
    assert there == on_host


def test_arrays_of_different_places_are_refused(memory):
    put, _ = memory
    form, x, u, v = body((7, 9), LAWS["stress"])
    with pytest.raises(TypeError, match=r"x is on .* and u on host memory"):
        form.force(put(x), u)
    with pytest.raises(TypeError, match=r"u is on host memory .* and v on"):
        form.sensitivity(u, put(v))
    load = ef.compression(form.geometry, pressure=1.0)
    with pytest.raises(TypeError, match=r"modulus is on .* and r on host memory"):
        ef.NoiseCovariance(form, put(x), load, 1e-6).solve(u)
    m = ef.Measurement(form.geometry, form.law, load, put(1e-6 * u), 1e-6)
    with pytest.raises(TypeError, match=r"displacement is on .* and x on host memory"):
        ef.Fidelity(m)(x)
    with pytest.raises(TypeError, match="start is on host memory"):
        ef.reconstruct(m, start=x, weight=1.0)


def test_arrays_of_different_dtypes_are_refused(memory):
    put, _ = memory
    form, x, u, _ = body((7, 9), LAWS["stress"])
    with pytest.raises(TypeError, match="x and u must have one dtype, got float64 and float32"):
        form.force(put(x), put(u.astype(np.float32)))


def test_meshes_stay_on_the_host(monkeypatch):
    pytest.importorskip("numba")
    put, _ = device.install(monkeypatch)
    form = ef.ElasticForm(ef.Mesh([[0, 0], [1, 0], [0, 1]], [[0, 1, 2]]), LAWS["stress"])
    with pytest.raises(TypeError, match="need a Grid"):
        form.force(put(np.ones(3)), put(np.ones((2, 3))))


def test_force_writes_into_a_given_array_and_refuses_one_that_does_not_fit(memory):
    put, get = memory
    form, x, u, _ = body((7, 9), LAWS["stress"])
    out = put(np.zeros_like(u))
    assert form.force(put(x), put(u), out=out) is out
    assert relative(get(out), form.force(x, u)) < 1e-12
    with pytest.raises(ValueError, match=r"out must be a C-contiguous float64 array of shape \(2, 7, 9\)"):
        form.force(put(x), put(u), out=put(np.zeros((7, 9))))


def test_workspace_needs_no_initial_values(monkeypatch):
    """A hierarchy set up in memory full of NaN equals one set up in zeros: nothing is read before it is written."""
    law, shape = LAWS["strain"], (40, 53)
    form, x, r, _ = body(shape, law)
    kernels = device.host_executor()
    core = kernels.GridForm(*shape, *form.geometry.spacing, law.lame_lambda, law.lame_mu, True)
    fixed = ef.compression(form.geometry, pressure=1.0).fixed.astype(np.uint8)
    plan = kernels.Multigrid(core, fixed.reshape(2, -1), False, -1, 1, smoother=smoother(law.multigrid))
    queue, results = kernels.Queue(), []

    def at(a):
        return a.ctypes.data

    constants = plan.constants()
    for byte in (0, 255):
        workspace, scratch = (np.full(n, byte, np.uint8) for n in (plan.workspace_bytes, plan.scratch_bytes))
        plan.set_up(queue, at(constants), at(workspace), at(scratch), at(x), 0, 0, 0)
        scratch[:] = 255  # free again
        z = np.full_like(r, np.nan)
        recording = kernels.Recording()
        plan.precondition(queue, recording, at(constants), at(workspace), True, 0, 0, 0.0, 0.0, at(r), at(z))
        results.append(z)
    assert np.isfinite(results[0]).all()
    np.testing.assert_array_equal(*results)


def test_moduli_that_are_not_positive_are_refused(memory):
    put, _ = memory
    form, x, _, _ = body((20, 31), LAWS["stress"])
    x[3, 4] = -1.0
    with pytest.raises(ValueError, match=r"x must be positive .* its smallest value is -1"):
        ef.solve_forward(form, put(x), ef.compression(form.geometry, pressure=1.0))
