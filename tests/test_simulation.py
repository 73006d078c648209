import zipfile
from pathlib import Path

import numpy as np
import pytest

from elastofast.boundary import compression
from elastofast.geometry import Grid, Mesh
from elastofast.laws import PlaneStrain, PlaneStress
from elastofast.measurement import load_measurement
from elastofast.phantoms import inclusion
from elastofast.simulation import add_noise, simulate

RNG = np.random.default_rng(0)
FIELD = np.stack([RNG.uniform(0, 1e-4, (80, 60)), RNG.uniform(-3e-5, 2e-5, (80, 60))])


def snr(u, noisy):
    return 10 * np.log10(np.sum(u**2) / np.sum((noisy - u) ** 2))


@pytest.mark.parametrize("noise", ["white", "relative"])
@pytest.mark.parametrize("level", [20.0, 35.0])
def test_the_signal_to_noise_ratio_is_the_stated_one(noise, level):
    fixed = np.zeros(FIELD.shape, bool)
    fixed[0, -20:] = True  # no noise here, so the rest gets more
    noisy, std = add_noise(FIELD, level, noise, seed=1, fixed=fixed)
    assert np.array_equal(noisy[fixed], FIELD[fixed])
    assert snr(FIELD, noisy) == pytest.approx(level, abs=0.2)
    assert 10 * np.log10(np.sum(FIELD**2) / np.sum(std[~fixed] ** 2)) == pytest.approx(level)


@pytest.mark.parametrize("noise", ["white", "relative"])
def test_the_standard_deviation_is_that_of_the_noise(noise):
    draws = np.stack([add_noise(FIELD, 30.0, noise, seed=s)[0] - FIELD for s in range(200)])
    _, std = add_noise(FIELD, 30.0, noise)
    z = draws / std
    assert np.mean(z) == pytest.approx(0, abs=4 / np.sqrt(z.size))
    assert np.mean(z**2, axis=0).std() == pytest.approx(np.sqrt(2 / 200), rel=0.1)
    for part in (z[:, 0], z[:, 1]):
        assert np.mean(part**2) == pytest.approx(1, abs=4 * np.sqrt(2 / part.size))


def test_white_noise_has_one_level():
    assert np.ptp(add_noise(FIELD, 30.0)[1]) == 0


@pytest.mark.parametrize("axial", [0, 1])
def test_relative_noise_follows_the_stated_model(axial):
    _, std = add_noise(FIELD, 30.0, "relative", axial=axial)
    model = np.stack([np.sqrt(u**2 + np.ptp(u) ** 2) for u in FIELD])
    model[1 - axial] *= 1.7
    ratio = std / model
    assert np.allclose(ratio, ratio.flat[0], rtol=1e-12)


DATA3 = Path(__file__).parents[2] / "shared" / "data" / "comp-elast-Data3.zip"


@pytest.mark.skipif(not DATA3.exists(), reason="the published comp-elast Data3.zip is not at hand")
@pytest.mark.parametrize(("level", "c"), [(49.2, 1e-3), (35.1, 5e-3), (29.1, 10e-3), (25.5, 15e-3)])
def test_relative_noise_on_the_published_field_has_the_published_levels(tmp_path, level, c):
    """The authors choose c and report the ratio that it gives on this field."""
    zipfile.ZipFile(DATA3).extract("Data3.mat", tmp_path)
    m = load_measurement(tmp_path / "Data3.mat", displacement_std=1e-10)
    u = m.displacement
    _, std = add_noise(u, level, "relative", axial=1, fixed=m.load.fixed)
    assert (std[1] / np.hypot(u[1], np.ptp(u[1]))).max() == pytest.approx(c, rel=0.05)


def test_a_seed_fixes_the_noise():
    one, other = add_noise(FIELD, seed=3)[0], add_noise(FIELD, seed=3)[0]
    assert np.array_equal(one, other)
    assert not np.array_equal(one, add_noise(FIELD, seed=4)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((FIELD, 35.0, "pink"), "noise must be one of white, relative, got 'pink'"),
        ((FIELD, np.inf), "snr must be finite"),
        ((FIELD, np.nan), "snr must be finite"),
        ((0 * FIELD, 35.0), "displacement is zero"),
        ((FIELD * [[[1.0]], [[0.0]]], 35.0, "relative"), "one is zero everywhere; use noise='white'"),
    ],
)
def test_add_noise_refuses_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        add_noise(*arguments)


# forward solve and noise together -----------------------------------------------------------------

GRID = Grid((33, 25), (1e-3, 1e-3))


def test_a_homogeneous_sheet_under_pressure_has_the_textbook_displacement():
    """Uniaxial stress: u_axial falls linearly from p H / E to 0, u_lateral = nu p / E times the lever."""
    load = compression(GRID, pressure=200.0)
    m = simulate(GRID, PlaneStress(0.4), load, np.full(GRID.shape, 1e4), snr=120.0)
    z, y = GRID.points.T.reshape(2, *GRID.shape)
    assert np.allclose(m.displacement[0], 200 / 1e4 * (z.max() - z), atol=1e-5 * 6.4e-4)
    lateral = 0.4 * 200 / 1e4 * (y - 12e-3)
    assert np.allclose(m.displacement[1], lateral, atol=1e-5 * 6.4e-4)


def test_simulate_adds_the_stated_noise_and_keeps_the_truth():
    x, _ = inclusion(GRID, (16e-3, 12e-3), 5e-3, modulus=50e3, background=10e3)
    load = compression(GRID, pressure=100.0)
    clean = simulate(GRID, PlaneStrain(0.495), load, x, snr=200.0)
    for noise in ("white", "relative"):
        m = simulate(GRID, PlaneStrain(0.495), load, x, snr=30.0, noise=noise, seed=2)
        assert snr(clean.displacement, m.displacement) == pytest.approx(30.0, abs=0.4)
        assert np.array_equal(m.reference, x)
        assert (m.displacement[load.fixed] == 0).all()
        z = ((m.displacement - clean.displacement) / m.displacement_std)[~load.fixed]
        assert np.std(z) == pytest.approx(1.0, abs=0.1)
    assert np.array_equal(
        simulate(GRID, PlaneStrain(0.495), load, x, seed=2).displacement,
        simulate(GRID, PlaneStrain(0.495), load, x, seed=2).displacement,
    )


def test_force_noise_is_the_difference_between_true_and_stated_force():
    x = np.full(GRID.shape, 1e4)
    load = compression(GRID, pressure=100.0)
    m = simulate(GRID, PlaneStress(0.3), load, x, snr=200.0, force_std=1e-4, seed=5)
    residual = (load.force - m.form.force(x, m.displacement))[load.loaded]
    assert np.std(residual) == pytest.approx(1e-4, rel=0.1)
    assert (m.force_std == 1e-4).all()


def test_on_a_mesh_the_axial_component_is_the_last():
    n = np.arange(9 * 9).reshape(9, 9)
    points = 1e-3 * np.stack(np.meshgrid(np.arange(9.0), np.arange(9.0)), axis=-1).reshape(-1, 2)
    a, b, c, d = (s.ravel() for s in (n[:-1, :-1], n[:-1, 1:], n[1:, 1:], n[1:, :-1]))
    mesh = Mesh(points, np.concatenate([np.c_[a, b, c], np.c_[a, c, d]]))
    load = compression(mesh, pressure=100.0)
    m = simulate(mesh, PlaneStrain(0.3), load, np.full(81, 1e4), snr=40.0, noise="relative")
    clean = simulate(mesh, PlaneStrain(0.3), load, np.full(81, 1e4), snr=200.0).displacement
    c = m.displacement_std / np.hypot(clean, np.ptp(clean, axis=1, keepdims=True))
    assert np.allclose(c[1], c[1, 0], rtol=1e-6)
    assert np.allclose(c[0], 1.7 * c[1], rtol=1e-6)


def test_simulate_refuses_a_bad_modulus():
    load = compression(GRID, pressure=100.0)
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        simulate(GRID, PlaneStress(0.3), load, np.full((3, 3), 1e4))
    with pytest.raises(ValueError, match="positive"):
        simulate(GRID, PlaneStress(0.3), load, np.zeros(GRID.shape))
