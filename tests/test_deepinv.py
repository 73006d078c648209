"""DeepInverse's own distance, optimisers and denoisers against ours."""

import sys
from pathlib import Path
from runpy import run_path
from types import ModuleType

import numpy as np
import pytest
from test_fidelity import measure, truth
from test_manners import wild

import elastofast as ef
from elastofast.inversion import splitting
from elastofast.inversion.problem import Iterate, Problem

torch = pytest.importorskip("torch")
try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):  # torchvision's operators are of another build of torch; nothing here needs them
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]
    sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")
deepinv = pytest.importorskip("deepinv")
ed = pytest.importorskip("elastofast.interop.deepinv")

LOW, SCALE = np.log(1e3), np.log(100.0)


def rms(a):
    return float(np.sqrt(np.mean(np.asarray(a) ** 2)))


def problem(nodes):
    """A simulated measurement, its displacement and a homogeneous first map, as tensors."""
    grid = ef.Grid((nodes, nodes), (32e-3 / (nodes - 1),) * 2)
    law, load = ef.PlaneStress(0.495), ef.compression(grid, pressure=100.0)
    m = ef.simulate(grid, law, load, ef.lesion(grid, seed=1, size=(0.3, 0.4))[0], snr=35.0, seed=0)
    start = torch.full((1, 1, nodes, nodes), np.log(12.5e3), dtype=torch.float64)
    return m, torch.tensor(m.displacement)[None], start


@pytest.mark.parametrize("kind", ["pressure", "strain"])
def test_physics_and_data_term_agree_with_deepinverse(kind):
    form, load, x, *_ = truth("9 x 10", "plane stress", kind)
    m, _ = measure("9 x 10", "plane stress", kind)
    z, y = torch.tensor(np.log(x))[None, None], torch.tensor(m.displacement)[None]
    physics, misfit = ed.Elastography(form, load, rtol=1e-12), ed.Misfit(m, rtol=1e-11)
    np.testing.assert_allclose(physics(z)[0], ef.solve_forward(form, x, load), atol=1e-12)
    distance = deepinv.optim.L2(sigma=float(m.displacement_std[load.loaded][0]))
    y = torch.where(torch.tensor(load.loaded.copy()), y, physics(z))  # what is prescribed is no measurement
    np.testing.assert_allclose(misfit(z, y, physics), distance(z, y, physics), rtol=1e-6)
    expected = distance.grad(z, y, physics)
    np.testing.assert_allclose(misfit.grad(z, y, physics), expected, atol=1e-5 * float(expected.abs().max()))
    assert torch.equal(misfit(z), misfit(z, torch.tensor(m.displacement)[None]))


def test_batches_float32_and_moduli_that_cannot_be_solved():
    m, x = measure("9 x 10", "plane stress", "pressure")
    other, _ = measure("9 x 10", "plane stress", "pressure", seed=1)
    z = torch.tensor(np.log(np.stack([x, wild(x.shape)])))[:, None]
    values, slopes = ed.Misfit([m, other])(z), ed.Misfit([m, other]).grad(z.float())
    value, gradient = ef.Fidelity(m)(x)
    assert float(values[0]) == pytest.approx(value) and values[1] == np.inf
    assert slopes.dtype == torch.float32 and not slopes[1].any()
    np.testing.assert_allclose(slopes[0, 0], x * gradient, atol=1e-4 * np.abs(x * gradient).max())
    with pytest.raises(ValueError, match="one channel"):
        ed.Misfit(m)(z[0])


def test_unfolded_networks_are_trained_through_the_proximal_map():
    m, y, start = problem(9)
    model = deepinv.optim.HQS(
        ed.Misfit(m, tolerance=1e-5), deepinv.optim.Tikhonov(), stepsize=2e-3, lambda_reg=1e-4, max_iter=2, unfold=True,
        g_first=True, sigma_denoiser=0.0,
    )  # fmt: skip
    stepsize = model.params_algo["stepsize"][0]

    def loss():
        return model(y, None, init=start).sub(start).square().mean()

    loss().backward()
    slope, h = float(stepsize.grad), 5e-5
    with torch.no_grad():
        stepsize += h
        ahead = loss()
        stepsize -= 2 * h
        assert slope == pytest.approx(float(ahead - loss()) / (2 * h), rel=1e-2)


def test_energy_has_the_gradient_of_its_value():
    grid = ef.Grid((9, 10), (1e-3, 1e-3))
    prior, rng = ed.Energy(ef.priors.TotalVariation(grid)), np.random.default_rng(0)
    z, dz = (torch.tensor(rng.normal(size=(2, 1, *grid.shape))) for _ in range(2))
    slope = (prior(z + 1e-5 * dz) - prior(z - 1e-5 * dz)) / 2e-5
    np.testing.assert_allclose((prior.grad(z) * dz).sum(dim=(1, 2, 3)), slope, rtol=1e-5)
    with pytest.raises(TypeError, match="cannot be differentiated"):
        prior(z.requires_grad_())
    with pytest.raises(TypeError, match="value and gradient"):
        ed.Energy(3)


def native(m, prior, weight, start, steps):
    """The fixed point of our splitting, with every direction penalised and without its early stopping."""
    one = np.ones(1)
    schedule = splitting.Schedule(
        None, weight * one, weight * one, np.inf * one, np.inf, one, -np.inf * one, np.zeros(1, int), np.array([steps])
    )
    problem = Problem(
        ef.Fidelity(m, rtol=1e-10), prior, weight * one, Iterate(start.numpy().reshape(1, -1)), 1e-10,
        (np.log(1e2), np.log(1e6)), lambda *given: np.zeros(1, bool),
    )  # fmt: skip
    return splitting.half_quadratic_splitting(problem, schedule)[0].z.reshape(start.shape)


def theirs(m, y, denoiser, weight, start):
    """The fixed point of DeepInverse's half-quadratic splitting."""
    prior, misfit = deepinv.optim.PnP(denoiser), ed.Misfit(m, tolerance=1e-4)
    options = {"max_iter": 80, "g_first": True, "early_stop": True, "thres_conv": 1e-7, "sigma_denoiser": 0.02}
    return deepinv.optim.HQS(misfit, prior, stepsize=1 / weight, **options)(y, None, init=start).numpy()


@pytest.mark.parametrize(("name", "weight"), [("Critic", 5000.0), ("PlugAndPlay", 1000.0)])
def test_our_priors_have_the_same_fixed_point_in_their_optimiser(monkeypatch, name, weight):
    monkeypatch.setattr(splitting, "REST_TOL", 1e-9)
    m, y, start = problem(24)
    prior = getattr(ef.priors, name).load()
    found = theirs(m, y, ed.TargetDenoiser(prior), weight, start)
    assert rms(found - start.numpy()) > 0.05
    assert rms(found - native(m, prior, weight, start, 60)) < 1e-4


def test_their_denoiser_has_the_same_fixed_point_in_our_optimiser(monkeypatch):
    monkeypatch.setattr(splitting, "REST_TOL", 1e-9)
    m, y, start = problem(16)
    filter_ = deepinv.models.BilateralFilter()

    class OfLogarithm(deepinv.models.Denoiser):
        def forward(self, x, sigma=None, **options):
            return LOW + SCALE * filter_((x - LOW) / SCALE, sigma)

    found = theirs(m, y, OfLogarithm(), 1000.0, start)
    assert rms(found - start.numpy()) > 0.05
    assert rms(found - native(m, ed.DenoiserPrior(filter_, sigma=0.02), 1000.0, start, 60)) < 1e-4


def test_a_denoiser_with_random_weights_is_noticed():
    grid = ef.Grid((24, 24), (1e-3, 1e-3))
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="changes a constant image"):
        ed.DenoiserPrior(deepinv.models.DnCNN(1, 1, pretrained=None, depth=4, nf=8)).check(grid)
    with pytest.warns(UserWarning, match="changes a constant image"):
        ed.DenoiserPrior(deepinv.models.DnCNN(3, 3, pretrained=None, depth=4, nf=8), channels=3).check(grid)
    ed.DenoiserPrior(deepinv.models.MedianFilter(3)).check(grid)
    with pytest.raises(ValueError, match="two increasing moduli"):
        ed.DenoiserPrior(deepinv.models.MedianFilter(3), modulus_range=(1e4, 1e3))
    with pytest.raises(TypeError, match="denoiser must be an object"):
        ed.DenoiserPrior(deepinv.models.MedianFilter)


def test_example():
    errors = run_path(str(Path(__file__).parent.parent / "examples" / "with_deepinv.py"))["main"](
        nodes=24, iterations=15
    )
    assert all(error < 0.25 for error in errors.values())
