import json
from dataclasses import asdict

import numpy as np
import pytest

import elastofast as ef
from elastofast.learning.settings import Setting, blurred_noise

GRID = ef.Grid((24, 20), (1e-3, 1e-3))


def disc(grid):
    y, x = np.indices(grid.shape)
    mask = (y - grid.shape[0] / 2) ** 2 + (x - grid.shape[1] / 2) ** 2 < 16
    return np.where(mask, 40e3, 10e3), mask


def simulated(seed=0, **changes):
    setting = Setting(**changes)
    grid = setting.grid(GRID)
    return (setting, grid, *setting.simulate(grid, 100.0, disc, np.random.default_rng(seed)))


def test_draws_cover_what_they_are_for():
    rng = np.random.default_rng(0)
    drawn = [Setting.draw(rng) for _ in range(600)]
    assert {s.law for s in drawn} == {"plane_stress", "plane_strain"}
    assert {s.edges for s in drawn} == {"plates", "bonded", "open"}
    for name, low, high in (("poisson", 0.3, 0.499), ("snr", 25, 60), ("aspect", 1, 4), ("blur", 0, 2.5)):
        values = [getattr(s, name) for s in drawn]
        assert low <= min(values) < low + 0.15 * (high - low) and high - 0.25 * (high - low) < max(values) <= high
    wrong = np.mean([s.poisson != s.true_poisson for s in drawn])
    assert 0.05 < wrong < 0.16 and all(abs(s.poisson - s.true_poisson) <= 0.03 + 1e-12 for s in drawn)
    assert any(s.axial_only for s in drawn) and not any(
        s.axial_only or s.lateral > 1 for s in drawn if s.edges == "open"
    )
    assert any(s.lateral == 10 for s in drawn) and 0.5 < np.mean([s.right for s in drawn]) < 1
    again = Setting(**json.loads(json.dumps(asdict(drawn[3]))))
    assert again == drawn[3]


def test_noise_has_the_stated_level_and_the_true_law_made_the_field():
    _, grid, m, mask = simulated(snr=30.0, lateral=10.0, poisson=0.45, true_poisson=0.4)
    assert m.law == ef.PlaneStress(0.45) and mask.any() and np.array_equal(m.reference, disc(GRID)[0])
    u = ef.solve_forward(ef.ElasticForm(grid, ef.PlaneStress(0.4)), m.reference, m.load)
    free = ~m.load.fixed
    noise = (m.displacement - u)[free] / m.displacement_std[free]
    assert noise.std() == pytest.approx(1, abs=0.05)
    assert m.displacement_std[1, 5, 5] == pytest.approx(10 * m.displacement_std[0, 5, 5])
    assert 10 * np.log10((u**2).sum() / (u.size * m.displacement_std[0, 5, 5] ** 2)) == pytest.approx(30, abs=0.2)


@pytest.mark.parametrize("edges", ["plates", "bonded", "open"])
def test_loads(edges):
    setting, _, m, _ = simulated(edges=edges, snr=200.0)
    inside = (slice(None), slice(1, -1), slice(1, -1))
    assert not m.load.fixed[inside].any() and not m.load.open[inside].any()
    if edges == "open":
        assert m.load.open.sum() == 2 * (2 * 24 + 2 * 18) and setting.relative
    else:
        assert m.load.force[0].sum() == pytest.approx(100 * 19e-3) and not m.load.open.any()
    if edges == "bonded":
        assert m.load.fixed[:, -1].all() and m.load.fixed[1, 0].all() and not m.load.fixed[0, 0].any()
    # the noiseless field is in equilibrium with what the measurement states
    force = m.form.force(m.reference, m.displacement)
    away = (force - m.load.force)[m.load.loaded]
    assert np.abs(away).max() < 1e-5 * np.abs(force).max()


def test_correlation_is_stated_or_not():
    for stated in (True, False):
        _, _, m, _ = simulated(blur=1.5, stated=stated)
        assert (m.displacement_correlation is not None) == stated
    noise = blurred_noise(np.random.default_rng(0), (2, 128, 128), 1.5)
    assert np.mean(noise[:, 1:] * noise[:, :-1]) == pytest.approx(np.exp(-1 / 9), abs=0.03)


def test_pixels_and_missing_components():
    _, grid, m, _ = simulated(aspect=3.0, axial_only=True)
    assert grid.spacing == pytest.approx((1e-3, 3e-3)) and m.geometry == grid
    assert np.isinf(m.displacement_std[1]).all() and np.isfinite(m.displacement_std[0]).all()
