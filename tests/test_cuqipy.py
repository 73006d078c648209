"""The likelihood against the data term, and CUQIpy's sampler on it."""

from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
from test_manners import wild

import elastofast as ef

cuqi = pytest.importorskip("cuqi")
ec = pytest.importorskip("elastofast.interop.cuqipy")


def test_likelihood_and_posterior_have_value_and_gradient():
    grid = ef.Grid((9, 9), (1e-3, 1e-3))  # GMRF takes square images only
    x = np.random.default_rng(8).uniform(1e4, 4e4, grid.shape)
    m = ef.simulate(grid, ef.PlaneStress(0.495), ef.compression(grid, pressure=200.0), x, snr=35.0, seed=0)
    z, dz = np.log(x).ravel(), np.random.default_rng(0).normal(size=x.size)
    value, gradient = ef.Fidelity(m)(x)
    own = ec.likelihood(m, rtol=1e-11)
    assert own.logd(z) == pytest.approx(-value)
    np.testing.assert_allclose(own.gradient(z), -(x * gradient).ravel(), atol=1e-6 * np.abs(x * gradient).max())
    prior = cuqi.distribution.GMRF(np.full(x.size, np.log(2e4)), 10.0, geometry=cuqi.geometry.Image2D(x.shape))
    posterior = cuqi.distribution.Posterior(own, prior)
    slope = (posterior.logd(z + 1e-5 * dz) - posterior.logd(z - 1e-5 * dz)) / 2e-5
    assert float(posterior.gradient(z) @ dz) == pytest.approx(float(np.squeeze(slope)), rel=1e-5)
    for bad in (np.log(wild(x.shape)).ravel(), np.full(x.size, 1e3), np.full(x.size, np.nan)):
        assert own.logd(bad) == -np.inf and not own.gradient(bad).any()


def test_example():
    before, after, _ = run_path(str(Path(__file__).parent.parent / "examples" / "with_cuqipy.py"))["main"](samples=20)
    assert after < 0.6 * before
