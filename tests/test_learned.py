"""Learned priors: derivatives against finite differences, targets, splitting, and the draws that critics learn from."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import elastofast as ef
from elastofast import priors
from elastofast.inversion import splitting
from elastofast.inversion.initial import homogeneous
from elastofast.inversion.problem import Iterate, Problem
from elastofast.inversion.splitting import Schedule, half_quadratic_splitting
from elastofast.inversion.unpenalised import UnpenalisedDirections, plateau_range
from elastofast.learning import posterior
from elastofast.misfit.curvature import DataCurvature, curvature_scale
from elastofast.misfit.fidelity import Fidelity
from elastofast.priors.networks import build


def network(kind, seed=0, **architecture):
    torch.manual_seed(seed)
    made = build(kind, **architecture).double().eval()
    with torch.no_grad():  # some start with zero output
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def critic(kind="critic", **architecture):
    prior = {"critic": priors.Critic, "paper-critic": priors.PaperCritic}[kind]
    return prior(network(kind, **architecture), {})


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def scan():
    grid = ef.Grid((33, 33), (1e-3, 1e-3))
    x, _ = ef.inclusion(grid, (16e-3, 16e-3), 6e-3, modulus=50e3, background=12e3)
    return ef.simulate(grid, ef.PlaneStress(0.495), ef.compression(grid, pressure=100.0), x, snr=35.0, seed=1)


def moduli(rng, *shape):
    return 12.5e3 * np.exp(0.4 * rng.standard_normal(shape))


@pytest.mark.parametrize("prior", [critic(), critic("paper-critic", shape=(20, 28))], ids=["critic", "paper"])
def test_gradient_is_the_derivative(prior, rng):
    x, d = moduli(rng, 20, 28), rng.standard_normal((20, 28)) * 1e3
    _, gradient = prior(x)
    h = 1e-6  # the paper's critic has kinks
    slope = (prior(x + h * d)[0] - prior(x - h * d)[0]) / (2 * h)
    assert slope == pytest.approx((gradient * d).sum(), rel=1e-4)


def test_batches_and_tensors_give_what_single_maps_give(rng):
    prior, x = critic(), moduli(rng, 2, 3, 17, 19)
    value, gradient = prior(x)
    assert value.shape == (2, 3) and gradient.shape == x.shape
    one, slope = prior(x[1, 2])
    assert isinstance(one, float)
    assert value[1, 2] == pytest.approx(one, rel=1e-12)
    np.testing.assert_allclose(gradient[1, 2], slope, rtol=1e-9, atol=1e-18)
    value_t, gradient_t = prior(torch.from_numpy(x))
    assert isinstance(gradient_t, torch.Tensor)
    np.testing.assert_array_equal(gradient_t.numpy(), gradient)
    np.testing.assert_array_equal(value_t.numpy(), value)


def test_critic_does_not_know_the_unit(rng):
    prior, x = critic(), moduli(rng, 24, 24)
    assert prior(7 * x)[0] == pytest.approx(prior(x)[0], rel=1e-10)


def test_target_lies_at_the_distance_that_the_critic_states(rng):
    prior, z = critic(), np.log(moduli(rng, 16, 24)).ravel()
    away = (z - prior.target(z, (16, 24))) / prior.standard.scale
    value, _ = prior(np.exp(z).reshape(16, 24))
    assert np.hypot(np.linalg.norm(away), prior.network.tip) == pytest.approx(value, rel=1e-6)


def test_denoiser_and_correction_are_their_networks(rng):
    z = np.log(moduli(rng, 21, 18))
    middle = np.sort(z.ravel())[(z.size - 1) // 2]  # torch's median
    s = torch.from_numpy((z - middle) / 0.5)[None, None]
    denoiser = network("dncnn", channels=8, layers=2)
    expected = 0.5 * denoiser(s).detach().numpy()[0, 0] + middle
    got = priors.PlugAndPlay(denoiser, {}).target(z.ravel(), z.shape)
    np.testing.assert_allclose(got, expected.ravel(), rtol=1e-9)
    unet = network("unet", channels=4)
    expected = np.exp(0.5 * unet(s).detach().numpy()[0, 0] + middle)
    np.testing.assert_allclose(priors.PostProcessing(unet, {}).apply(np.exp(z)), expected, rtol=1e-9)


def test_networks_see_ratios_only(rng):
    """Maps of a batch are each taken at their own level."""
    x = moduli(rng, 2, 20, 24)
    units = np.array([1.0, 2e7]).reshape(2, 1, 1)
    pnp, unet = priors.PlugAndPlay(network("dncnn"), {}), priors.PostProcessing(network("unet", channels=4), {})
    np.testing.assert_allclose(unet.apply(units * x), units * unet.apply(x), rtol=1e-9)
    targets = [pnp.target(np.log(one).reshape(2, -1), (20, 24)) for one in (x, units * x)]
    np.testing.assert_allclose(targets[1], targets[0] + np.log(units[:, 0]), rtol=1e-9)
    with pytest.raises(ValueError, match="post-processing corrects log x"):
        priors.PostProcessing(network("unet", channels=4), {"standard": dict(scale=1e5, logarithmic=False)})


LONG = ef.Grid((29, 15), (1e-3, 2.5e-3))  # 29 x 36 square pixels


def lateral(maps, nodes):
    """Maps interpolated linearly along their rows to another number of nodes."""
    old, new = (np.linspace(0, 1, n) for n in (maps.shape[-1], nodes))
    return np.apply_along_axis(lambda row: np.interp(new, old, row), -1, maps)


@pytest.mark.parametrize("grid", [LONG, ef.Grid(LONG.shape[::-1], LONG.spacing[::-1])], ids=["lateral", "axial"])
def test_long_pixels_are_seen_as_square_ones(rng, grid):
    prior, turn = critic(), grid is not LONG
    z = np.log(moduli(rng, *grid.shape))
    fine = lateral(z.T if turn else z, 36)
    s = prior.standard.apply_to_log(torch.from_numpy(fine.T.copy() if turn else fine))
    error = prior.network.error(s[None, None])[0, 0].detach().numpy()
    back = lateral(error.T, 15).T if turn else lateral(error, 15)
    target = prior.on(grid).target(z.ravel(), grid.shape)
    np.testing.assert_allclose(target, (z - prior.standard.scale * back).ravel(), rtol=1e-9)
    assert prior.on(ef.Grid((9, 9), (1e-3, 1.2e-3))) is prior and prior.stretch == (1.0, 1.0)
    unet = priors.PostProcessing(network("unet", channels=4), {}).on(grid)
    assert unet.apply(np.exp(z)).shape == grid.shape and "2.5 : 1 interpolated" in unet.note


def test_energy_of_long_pixels_is_that_of_square_ones_and_has_its_gradient(rng):
    energy, d = priors.SquaredCritic(critic(), LONG), rng.standard_normal(LONG.shape)
    z = np.log(moduli(rng, *LONG.shape))
    square = priors.SquaredCritic(critic(), ef.Grid((29, 36), (1e-3, 1e-3)))
    assert energy.value(z.reshape(1, -1)) == pytest.approx(square.value(lateral(z, 36).reshape(1, -1)) / 2.5)
    h = 1e-5
    slope = (energy(np.exp(z + h * d))[0] - energy(np.exp(z - h * d))[0]) / (2 * h)
    assert slope == pytest.approx((energy(np.exp(z))[1] * np.exp(z) * d).sum(), rel=1e-5)


def test_reconstruction_on_long_pixels_says_so():
    x, _ = ef.inclusion(LONG, (14e-3, 17e-3), 6e-3, modulus=50e3, background=12e3)
    m = ef.simulate(LONG, ef.PlaneStress(0.495), ef.compression(LONG, pressure=100.0), x, snr=35.0, seed=1)
    prior = priors.Critic.load()
    result = ef.reconstruct(m, prior, weight=300.0)
    assert "saw pixels of 2.5 : 1 interpolated" in result.message
    assert "interpolated" not in ef.reconstruct(m, "tv").message
    away = np.log(result.modulus) - prior.on(LONG).target(np.log(result.modulus).ravel(), LONG.shape).reshape(
        LONG.shape
    )
    assert np.sqrt((away**2).mean()) < 0.03  # plausible to the network, on its pixels


class Known:
    """A prior whose idea of the true map never changes."""

    def __init__(self, z):
        self.z = z

    def target(self, z, shape):
        return self.z


@pytest.mark.parametrize("factor", [0.3, 30.0])
def test_splitting_reaches_a_stationary_point(scan, factor):
    fidelity = Fidelity(scan, rtol=1e-8)
    z = homogeneous(scan)
    scale = float(curvature_scale(DataCurvature(fidelity, np.exp(z), fidelity.evaluate(np.exp(z))), z)[0])
    target = np.log(scan.reference).ravel() + 0.1
    weight = factor * scale
    problem = Problem(
        fidelity, Known(target), None, Iterate(z[None]), rtol=1e-8, limits=(-np.inf, np.inf),
        report=lambda *step: np.zeros(1, bool),
    )  # fmt: skip
    schedule = Schedule(
        anchor=None,
        first_weight=np.array([weight]),
        weight=np.array([weight]),
        unpenalised_weight=np.array([3 * scale]),
        limiter_slack=np.inf,
        curvature=np.array([scale]),
        min_misfit_decrease=np.array([-np.inf]),
        steps=np.array([40]),
        max_iterations=np.array([65]),
    )
    point, _ = half_quadratic_splitting(problem, schedule)
    z = point.z[0]
    now = fidelity.evaluate(np.exp(z), 1e-9)
    away, push = z - target, np.exp(z) * now.gradient
    along = UnpenalisedDirections(target, scan.geometry.shape).project(away)
    pull = weight * (away - along) + min(weight, 3 * scale) * along
    assert np.linalg.norm(pull + push) < 0.05 * np.linalg.norm(pull)


def test_default_prior_is_the_critic_where_it_sees_maps():
    def measured(shape, spacing):
        grid = ef.Grid(shape, spacing)
        x, _ = ef.inclusion(grid, (0.015, 0.02), 0.006, 40e3, 12e3)
        return ef.simulate(grid, ef.PlaneStress(0.495), ef.compression(grid, pressure=100.0), x, snr=35.0, seed=0)

    m = measured((96, 100), (4e-4, 4e-4))
    result = ef.reconstruct(m, max_iterations=1)
    assert (result.prior, result.optimizer) == ("critic", "splitting")
    assert ef.reconstruct(m, weight=100.0, max_iterations=1).prior == "tv"
    assert ef.reconstruct(m, optimizer="l-bfgs", max_iterations=1).prior == "tv"
    assert ef.reconstruct(measured((96, 48), (4e-4, 8e-4)), max_iterations=1).prior == "tv"  # seen as 96 x 95
    assert ef.reconstruct(measured((96, 49), (4e-4, 8e-4)), max_iterations=1).prior == "critic"
    assert ef.reconstruct(measured((96, 100), (4e-4, 20e-4)), max_iterations=1).prior == "tv"


@pytest.mark.parametrize("world", ["lesion", "fibres"])
def test_automatic_prior_follows_the_evidence_in_the_measurement(world, rng):
    """Maps like those of the training keep the critic, others end as good as total variation."""
    grid = ef.Grid((96, 96), (4e-4, 4e-4))
    x = {
        "lesion": ef.lesion(grid, seed=3, kind="oval", size=(0.25, 0.3))[0],
        "fibres": np.where(gaussian_filter(rng.normal(size=grid.shape), 3) > 0, 2e4, 1e4),
    }[world]
    m = ef.simulate(grid, ef.PlaneStress(0.45), ef.compression(grid, pressure=100.0), x, snr=35.0, seed=0)
    result, tv = ef.reconstruct(m), ef.reconstruct(m, "tv")
    first, *others = result.comparison
    assert first["prior"] == "critic"
    if world == "lesion":
        assert (result.prior, result.fallback, others) == ("critic", "", [])
        assert first["distance"] < 0.0033 and first["held_back"].excess < 0
    else:
        assert (result.prior, result.fallback) == ("tv", "prior")
        assert "The data reject the map of prior 'critic'" in result.message
        np.testing.assert_array_equal(result.modulus, tv.modulus)


@pytest.mark.parametrize("prior", ["unet", "pnp"])
def test_networks_do_without_a_known_force(prior):
    """A relative map is shown to them at the level of tissue, which they were trained at."""
    grid = ef.Grid((96, 96), (4e-4, 4e-4))
    x, _ = ef.inclusion(grid, (0.015, 0.02), 0.006, 40e3, 12e3)
    m = ef.simulate(grid, ef.PlaneStress(0.495), ef.compression(grid, strain=0.01), x, snr=40.0, seed=0)
    none, result = ef.reconstruct(m, "none"), ef.reconstruct(m, prior)
    assert none.relative and result.relative
    error, before = (ef.metrics.evaluate(r.modulus, x, grid, relative=True)["relative_l2"] for r in (result, none))
    assert error < 0.7 * before


def test_splitting_ends_when_a_step_explains_no_more(scan, monkeypatch):
    """At the last weight it goes on while J falls by half, and no further."""
    prior = Known(np.log(scan.reference).ravel() + 0.1)
    weight = ef.reconstruct(scan, prior=prior).comparison[0]["weight"]  # with which the data reject the map
    history = ef.reconstruct(scan, prior=prior, weight=weight).history
    falls = -np.diff([h["data"] for h in history])
    last = [h["weight"] for h in history].index(history[-1]["weight"])  # of the schedule
    assert (falls[last:-1] > splitting.MIN_MISFIT_DECREASE).all() and falls[-1] <= splitting.MIN_MISFIT_DECREASE
    monkeypatch.setattr(splitting, "MAX_FINAL_STEPS", 1)
    monkeypatch.setattr(splitting, "MIN_MISFIT_DECREASE", -1e9)
    monkeypatch.setattr(splitting, "REST_TOL", 0.0)
    assert ef.reconstruct(scan, prior=prior, weight=weight).status == "max_iterations"


def test_a_target_needs_a_grid():
    mesh = ef.Mesh([[0.0, 0], [1, 0], [0, 1], [1, 1]], [[0, 1, 2], [1, 3, 2]])
    u = 1e-2 * np.random.default_rng(0).normal(size=(2, 4))
    m = ef.Measurement(mesh, ef.PlaneStress(0.4), ef.compression(mesh, pressure=1.0), u, 1.0)
    with pytest.raises(ValueError, match="a prior with a target needs a measurement on a Grid"):
        ef.reconstruct(m, prior=Known(np.zeros(4)))


def test_a_target_that_is_the_truth_is_reached_over_growing_weights(scan):
    truth = np.log(scan.reference)
    seen = []
    result = ef.reconstruct(scan, prior=Known(truth.ravel()), progress=seen.append)
    assert result.optimizer == "splitting" and result.prior == "Known"
    weights = [entry["weight"] for entry in seen]
    schedule = weights[weights.index(min(weights)) :]  # after the steps to the anchor
    assert len(schedule) >= 10 and schedule == sorted(schedule)
    assert result.weight == pytest.approx(weights[-1])
    error = np.linalg.norm(result.modulus - scan.reference) / np.linalg.norm(scan.reference)
    assert error < 0.05
    assert set(result.timing) == {"data", "prior", "rest"}
    assert sum(result.timing.values()) == pytest.approx(result.seconds, rel=0.05)
    assert min(result.timing.values()) >= 0


def test_the_map_does_not_depend_on_the_start(scan, rng):
    expected = ef.reconstruct(scan, prior="critic")
    rough = np.exp(rng.uniform(np.log(5e3), np.log(50e3), scan.geometry.shape))
    found = ef.reconstruct(scan, prior="critic", start=rough).modulus
    assert np.linalg.norm(found - expected.modulus) < 0.02 * np.linalg.norm(expected.modulus)


def test_a_result_is_continued_from_a_tenth_of_its_weight(scan):
    weights = []
    first = ef.reconstruct(scan, prior="critic")
    again = ef.reconstruct(
        scan, prior="critic", start=first, weight=first.weight, progress=lambda entry: weights.append(entry["weight"])
    )
    assert weights[0] == pytest.approx(0.1 * first.weight) and weights == sorted(weights)
    assert np.linalg.norm(again.modulus - first.modulus) < 0.05 * np.linalg.norm(first.modulus)


def test_critic_brings_every_optimizer_nearer_the_truth(scan):
    """From the unregularised map, which explains the data already, to one that the critic believes as well."""
    prior, fidelity, raw = priors.Critic.load(), Fidelity(scan), ef.reconstruct(scan, "none")

    def error(result):
        return ef.metrics.relative_l2(result.modulus, scan.reference)

    def objective(result):
        return fidelity(result.modulus)[0] + 300.0 * prior(result.modulus)[0]

    reached = {}
    for optimizer, steps, gain in (("splitting", None, 0.75), ("l-bfgs", 60, 0.9), ("descent", 40, 0.98)):
        weight = "auto" if optimizer == "splitting" else 300.0
        result = ef.reconstruct(scan, prior, weight, optimizer=optimizer, start=raw.modulus, max_iterations=steps)
        assert error(result) < gain * error(raw), optimizer
        assert 0.9 < result.chi2 < 1.1, optimizer
        reached[optimizer] = objective(result)
        if optimizer != "splitting":  # whose objective changes from step to step
            falling = [objective(raw), *(entry["objective"] for entry in result.history)]
            assert (np.diff(falling) < 0).all() and falling[-1] == pytest.approx(reached[optimizer], rel=1e-3)
    # the critic's target is where its value falls to: both ways lead to the same level of one objective
    assert reached["splitting"] == pytest.approx(reached["l-bfgs"], rel=0.05)
    assert max(reached.values()) < 0.6 * objective(raw)


def test_post_processing_corrects_the_unregularised_map(scan):
    prior = priors.PostProcessing(network("unet", channels=4), {})
    raw = ef.reconstruct(scan, prior="none")
    result = ef.reconstruct(scan, prior=prior)
    np.testing.assert_allclose(result.modulus, prior.apply(raw.modulus), rtol=1e-6)
    x = result.modulus
    assert result.chi2 == pytest.approx(2 * ef.Fidelity(scan)(x)[0] / Fidelity(scan).n_data, rel=1e-3)


def test_wrong_use_is_named(scan, tmp_path):
    with pytest.raises(TypeError, match="network must be a critic, got 'unet'"):
        priors.Critic(network("unet", channels=4), {})
    with pytest.raises(ValueError, match="sees maps of 16 x 16 nodes only, the measurement has 33 x 33"):
        ef.reconstruct(scan, prior=critic("paper-critic", shape=(16, 16)))
    with pytest.raises(ValueError, match="optimizer 'gauss-newton' does not work with prior 'Critic'"):
        ef.reconstruct(scan, prior=critic(), optimizer="gauss-newton")
    with pytest.raises(ValueError, match="weight must be positive for optimizer 'splitting'"):
        ef.reconstruct(scan, prior=critic(), weight=0)
    with pytest.raises(ValueError, match="take pixels of up to 4 : 1"):
        critic().check(ef.Grid((9, 9), (1e-3, 5e-3)))
    with pytest.raises(ValueError, match="needs nearly square pixels"):
        critic("paper-critic", shape=(16, 16)).check(ef.Grid((16, 16), (1e-3, 2e-3)))
    with pytest.raises(ValueError, match="two-dimensional grids"):
        critic().check(ef.Mesh(np.array([[0.0, 0], [1, 0], [0, 1]]), np.array([[0, 1, 2]])))
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="this is a pickle"):
        priors.Critic.load(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("kind", [priors.Critic, priors.PlugAndPlay, priors.PostProcessing])
def test_shipped_weights_load_in_single_precision_with_their_training(kind, scan):
    prior = kind.load()
    assert prior.configuration["training"]["data"]["seed"] is not None
    assert next(prior.network.parameters()).dtype == torch.float32
    prior.check(scan.geometry)


def test_drawn_errors_have_the_posterior_covariance(monkeypatch, rng):
    """E[d^T (H + rho) d] = n, with H assembled column by column."""
    grid = ef.Grid((9, 10), (1e-3, 1e-3))
    x, _ = ef.inclusion(grid, (4e-3, 4e-3), 2.1e-3, modulus=40e3, background=12e3)
    m = ef.simulate(grid, ef.PlaneStress(0.4), ef.compression(grid, pressure=100.0), x, snr=30.0)
    monkeypatch.setattr(posterior, "PENALTY", (1.0, 1.0))
    monkeypatch.setattr(posterior, "NOISE", (0.0, 0.0))
    monkeypatch.setattr(posterior, "STEPS", (90, 91))
    draws = posterior.posterior_errors(m, 150, rng).reshape(150, -1).astype(float)
    fidelity = Fidelity(m, rtol=1e-8)
    curvature = DataCurvature(fidelity, x.ravel(), fidelity.evaluate(x.ravel()))
    hessian = np.stack([curvature(e) for e in np.eye(x.size)])
    rho = float(curvature_scale(curvature, x.ravel())[0])
    energy = np.einsum("ki,ij,kj->k", draws, hessian + rho * np.eye(x.size), draws) / x.size
    # standard deviation of the mean is sqrt(2 / (90 * 150)) = .012; one V-cycle for each solve adds a few per cent
    assert energy.mean() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_plateau_range_is_the_range_of_medians_around_each_node(rng, batch):
    def around(field, reach):
        """Values within reach of each node, in a last axis; those beyond an edge are the edge's."""
        rows, columns = (np.arange(n)[:, None] + np.arange(-reach, reach + 1) for n in field.shape[-2:])
        rows, columns = rows.clip(0, field.shape[-2] - 1), columns.clip(0, field.shape[-1] - 1)
        return field[..., rows[:, None, :, None], columns[None, :, None, :]].reshape(*field.shape, -1)

    field = rng.standard_normal((*batch, 15, 12))
    levels = around(np.median(around(field, 1), axis=-1), 3)
    low, high = plateau_range(field)
    np.testing.assert_array_equal(low, levels.min(axis=-1))
    np.testing.assert_array_equal(high, levels.max(axis=-1))


def fields_of_moves(z):
    """All fields of `UnpenalisedDirections` as columns, those of the contrast last, and the number of these."""
    columns = []
    for weight, step in ((np.hypot(*np.gradient(z)), 16), (z - np.median(z), 64)):
        hats = []
        for n in z.shape:
            centres = np.arange(0, n - 1 + step, step)
            hats.append([np.interp(np.arange(n), centres, one) for one in np.eye(len(centres))])
        fields = [(weight * np.outer(a, b)).ravel() for a in hats[0] for b in hats[1]]
        kept = [f for f in fields if f @ f > 1e-3 * (weight**2).sum()]
        assert 0 < len(kept) < len(fields)
        columns += kept
    return np.stack(columns, axis=1), len(kept)


def test_unpenalised_directions_are_the_fit_of_fields_written_out(rng):
    shape, i, j = (150, 83), *np.mgrid[:150, :83]
    maps = [1.3 * (np.hypot(i - 40, j - 30) < 17), 0.8 * (np.hypot(i - 70, (j - 50) / 2) < 14) - 0.5 * (i - j > 110)]
    z, v = np.stack(maps).reshape(2, -1), rng.standard_normal((2, i.size))
    moves = UnpenalisedDirections(z, shape)
    part, contrast = moves.project(v), moves.project_contrast(v)
    for k in range(2):
        fields, last = fields_of_moves(maps[k])
        ridge = np.diag(np.sqrt(1e-9 * (fields**2).sum(axis=0)))
        found = np.linalg.lstsq(np.vstack([fields, ridge]), np.append(v[k], np.zeros(len(ridge))), rcond=None)[0]
        np.testing.assert_allclose(part[k], fields @ found, atol=1e-8 * np.abs(part[k]).max())
        expected = fields[:, -last:] @ found[-last:]
        np.testing.assert_allclose(contrast[k], expected, atol=1e-8 * np.abs(expected).max())


def test_unpenalised_directions_hold_shifts_and_contrasts():
    shape = (60, 70)
    i, j = np.mgrid[: shape[0], : shape[1]]

    def blob(row, radius, contrast):
        return contrast / (1 + np.exp((np.hypot(i - row, j - 33) - radius) / 1.5))

    z = blob(28, 12, 1.2)
    moves = UnpenalisedDirections(z.ravel(), shape)
    project = moves.project
    speckle, other = np.random.default_rng(0).standard_normal((2, z.size))
    part = project(speckle)
    np.testing.assert_allclose(project(part), part, atol=1e-6 * np.abs(part).max())
    assert part @ other == pytest.approx(speckle @ project(other), rel=1e-9)
    assert 0 < np.linalg.norm(part) < 0.2 * np.linalg.norm(speckle)
    for change in (blob(28.05, 12, 1.2) - z, blob(28, 12.05, 1.2) - z, blob(28, 12, 1.25) - z):
        left = change.ravel() - project(change.ravel())
        assert np.linalg.norm(left) < 0.15 * np.linalg.norm(change)
    stiffer = (blob(28, 12, 1.25) - z).ravel()
    assert np.linalg.norm(moves.project_contrast(stiffer) - stiffer) < 0.15 * np.linalg.norm(stiffer)
    flat = UnpenalisedDirections(np.full(60 * 70, 2.0), shape)
    assert not flat.project(speckle).any() and not flat.project_contrast(speckle).any()


def test_unpenalised_directions_of_a_batch_are_those_of_its_members(rng):
    shape, i, j = (40, 50), *np.mgrid[:40, :50]
    maps = [np.clip(9 + k - np.hypot(i - 20 + 4 * k, j - 25), -1, 1).ravel() for k in range(3)]
    z, v = np.stack(maps), rng.standard_normal((3, 2000))
    moves = UnpenalisedDirections(z, shape, np.array([True, False, True]))
    part, contrast = moves.project(v), moves.project_contrast(v)
    for k in (0, 2):
        np.testing.assert_allclose(part[k], UnpenalisedDirections(z[k], shape).project(v[k]), atol=1e-12)
        np.testing.assert_allclose(contrast[k], UnpenalisedDirections(z[k], shape).project_contrast(v[k]), atol=1e-12)
    assert not part[1].any() and not contrast[1].any()
    low, high = plateau_range(z.reshape(3, *shape))
    for k in range(3):
        expected = plateau_range(z[k].reshape(shape))
        np.testing.assert_array_equal(low[k], expected[0])
        np.testing.assert_array_equal(high[k], expected[1])


@pytest.mark.parametrize("chosen", ["ieee", "tf32"])
def test_networks_leave_the_callers_precision_alone(chosen):
    conv = getattr(torch.backends.cudnn, "conv", None)
    if conv is None:
        pytest.skip("this torch has no precision of convolutions")
    critic, before = ef.priors.Critic.load(), conv.fp32_precision
    inside = []
    critic.network.register_forward_hook(lambda *_: inside.append(conv.fp32_precision))
    try:
        conv.fp32_precision = chosen
        critic(np.full((32, 32), 1e4))
        assert inside == ["ieee"] and conv.fp32_precision == chosen
    finally:
        conv.fp32_precision = before
