"""The examples of docs/architecture.md, "How to add a prior, an optimiser, a law", run as they stand there."""

import re
from pathlib import Path

import numpy as np
import pytest

import elastofast as ef
from elastofast.inversion import optimizers
from elastofast.priors import registry

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"


def example(file):
    """The names that the example of a file defines."""
    blocks = re.findall(r"```python\n(# (\S+)\n.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (code,) = (code for code, name in blocks if name == file and "import" in code)
    names = {"__name__": "example"}
    exec(code, names)
    return names


@pytest.fixture(scope="module")
def scan():
    grid = ef.Grid((40, 40), (1e-3, 1e-3))
    x, _ = ef.inclusion(grid, (18e-3, 21e-3), 8e-3, modulus=40e3, background=12e3)
    return ef.simulate(grid, ef.PlaneStress(0.495), ef.compression(grid, pressure=100.0), x, snr=35.0, seed=1)


def test_prior_of_the_page_has_its_gradient_and_finds_a_weight_of_its_own(scan, monkeypatch):
    log_normal = example("priors/lognormal.py")["LogNormal"]
    prior, x = log_normal(scan.geometry), scan.reference
    d, h = np.random.default_rng(0).standard_normal(x.shape) * 1e3, 1e-4
    slope = (prior(x + h * d)[0] - prior(x - h * d)[0]) / (2 * h)
    assert slope == pytest.approx((prior(x)[1] * d).sum(), rel=1e-6)
    assert prior(x)[0] == pytest.approx(prior.linearize(np.log(x).reshape(1, -1), None).value[0])
    monkeypatch.setitem(registry.NAMED, "lognormal", registry.NamedPrior("lognormal", "log-normal", make=log_normal))
    result = ef.reconstruct(scan, prior="lognormal")
    assert (result.prior, result.optimizer) == ("lognormal", "gauss-newton") and result.weight > 0
    strong = ef.reconstruct(scan, prior="lognormal", weight=1e6)
    np.testing.assert_allclose(strong.modulus, 12.5e3, rtol=0.05)


def test_learned_prior_of_the_page_is_trained_and_used(scan, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from elastofast.learning import recipes
    from elastofast.learning.dataset import build_dataset
    from elastofast.learning.training import train
    from elastofast.priors import networks

    smoother, smooth = example("priors/networks.py")["Smoother"], example("priors/learned.py")["Smooth"]
    recipe = example("learning/recipes.py")["SmootherRecipe"]
    monkeypatch.setitem(networks.KINDS, "smoother", smoother)
    monkeypatch.setitem(recipes.RECIPES, "smoother", recipe)
    build_dataset(tmp_path / "maps.h5", count=4, validation=1, test=1, shape=(40, 40), errors=0, jobs=1)
    train(recipe(steps=20, batch=4), tmp_path / "maps.h5", tmp_path / "smooth.safetensors", device="cpu")
    prior = smooth.load(tmp_path / "smooth.safetensors")
    result = ef.reconstruct(scan, prior=prior)
    assert (result.prior, result.optimizer) == ("Smooth", "splitting")
    assert result.chi2 < 1.2
    rough = ef.reconstruct(scan, prior="none")
    left = [np.log(r.modulus) - prior.target(np.log(r.modulus), scan.geometry.shape) for r in (result, rough)]
    assert np.linalg.norm(left[0]) < 0.5 * np.linalg.norm(left[1])


def test_optimiser_of_the_page_reaches_the_minimum_of_another(scan, monkeypatch):
    own = example("inversion/barzilai_borwein.py")["BarzilaiBorwein"]
    monkeypatch.setitem(optimizers.OPTIMIZERS, own.name, own())
    result = ef.reconstruct(scan, prior="tikhonov", weight=100.0, optimizer=own.name, max_iterations=100)
    newton = ef.reconstruct(scan, prior="tikhonov", weight=100.0)
    assert result.history[-1]["objective"] == pytest.approx(newton.history[-1]["objective"], rel=0.01)


def test_law_of_the_page_lies_between_plane_stress_and_plane_strain(scan):
    sheet = example("laws.py")["ConfinedSheet"]
    law, grid, x = sheet(0.3), scan.geometry, scan.reference
    tight, loose = type("Tight", (sheet,), {"confinement": 1e12})(0.3), type("Loose", (sheet,), {"confinement": 0})(0.3)
    assert tight.lame_lambda == pytest.approx(ef.PlaneStrain(0.3).lame_lambda)
    assert loose.lame_lambda == pytest.approx(ef.PlaneStress(0.3).lame_lambda)
    u = ef.solve_forward(ef.ElasticForm(grid, law), x, scan.load)
    stress, strain = (ef.solve_forward(ef.ElasticForm(grid, one), x, scan.load) for one in (loose, tight))
    assert abs(strain[0, 0]).mean() < abs(u[0, 0]).mean() < abs(stress[0, 0]).mean()
