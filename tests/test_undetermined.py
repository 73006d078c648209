"""What a map says about itself where the data determine nothing: the prior's answer is no answer."""

import warnings

import numpy as np
import pytest

import elastofast as ef

N = 21
GRID = ef.Grid((N, N), (1e-3, 1e-3))
LAW = ef.PlaneStress(0.3)
DEPTH, SIDE = (own.reshape(GRID.shape) for own in GRID.points.T)
PRESSED, PLATES = ef.compression(GRID, pressure=100.0), ef.compression(GRID, strain=0.01)
COLUMNS = np.where(SIDE < 7e-3, 3e4, 1e4)
LAYERS = np.where(DEPTH < 7e-3, 3e4, 1e4)
DISC = np.where(np.hypot(DEPTH - 1e-2, SIDE - 1e-2) < 5e-3, 3e4, 1e4)
FLAT = np.full(GRID.shape, 1e4)


def scan(modulus, load=PRESSED, snr=40.0, seed=0):
    return ef.simulate(GRID, LAW, load, modulus, snr=snr, seed=seed)


def opened(m):
    edges = np.ones((2, N, N), bool)
    edges[:, 1:-1, 1:-1] = False
    u = m.displacement + 1e-6  # moved a little, so that no edge is zero all along
    return ef.Measurement(GRID, LAW, ef.Boundary(open=edges), u, m.level)


def between_plates(snr=40.0):
    """Columns that two plates compress by the same strain: the displacement is that of any columns."""
    u = np.stack([0.01 * (DEPTH.max() - DEPTH), 0.003 * (SIDE - 1e-2)])
    std = np.sqrt(np.mean(u**2)) * 10 ** (-snr / 20)
    noisy = u + std * np.random.default_rng(0).normal(size=u.shape)
    return ef.Measurement(GRID, LAW, PLATES, np.where(PLATES.fixed, PLATES.displacement, noisy), std)


@pytest.mark.parametrize("snr", [25.0, 60.0])
@pytest.mark.parametrize("prior", ["tv", "tikhonov"])
def test_columns_between_plates_are_not_returned_as_a_homogeneous_body(snr, prior):
    result = ef.reconstruct(between_plates(snr), prior=prior)
    assert result.status == "undetermined" or prior == "tikhonov"
    assert result.undetermined == "how the modulus varies along axis 1 (lateral)"
    assert "determine how the modulus varies along axis 1" in result.message and "(known)" in result.message


def test_the_gradient_that_takes_measured_for_true_displacements_is_no_exception():
    result = ef.reconstruct(between_plates(), prior="tv", weight=100.0, gradient="frozen")
    assert result.undetermined == "how the modulus varies along axis 1 (lateral)"


def test_a_frame_under_another_load_or_known_moduli_determine_them():
    m = scan(COLUMNS, PLATES)
    joint = ef.reconstruct([m, scan(COLUMNS)], prior="tv", weight=100.0, joint=True)
    assert joint.status == "converged" and not joint.undetermined
    known = np.where(DEPTH > 1.7e-2, COLUMNS, np.nan)
    held = ef.reconstruct(m, prior="tv", weight=100.0, known=known)
    assert held.status == "converged" and not held.undetermined
    np.testing.assert_array_equal(held.known, known)


@pytest.mark.parametrize("snr", [25.0, 60.0])
@pytest.mark.parametrize("modulus", [FLAT, DISC, LAYERS, COLUMNS], ids=["flat", "disc", "layers", "columns"])
def test_what_a_pressure_determines_raises_no_alarm(modulus, snr):
    result = ef.reconstruct(scan(modulus, snr=snr), prior="tv", weight=100.0)
    assert result.status == "converged" and not result.undetermined and "determine" not in result.message


@pytest.mark.parametrize("kind", ["plates", "open", "axial"])
def test_contrasts_that_bend_the_stress_raise_none_either(kind):
    m = scan(DISC, PLATES if kind == "plates" else PRESSED)
    if kind == "axial":
        std = np.stack([np.full(GRID.shape, m.level), np.full(GRID.shape, np.inf)])
        m = ef.Measurement(GRID, LAW, PRESSED, m.displacement, std)
    result = ef.reconstruct(opened(m) if kind == "open" else m, prior="tv", weight=100.0)
    assert result.status == "converged" and not result.undetermined


def test_an_even_body_with_open_edges_is_said_not_to_be_determined():
    result = ef.reconstruct(opened(scan(FLAT)), prior="tv", weight=100.0)
    assert "determine how the modulus varies along axis 1" in result.message


def test_noise_that_hides_everything_is_said_and_uncertainty_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        m = scan(DISC)
        lost = ef.Measurement(GRID, LAW, PLATES, np.where(PLATES.fixed, PLATES.displacement, m.displacement), 1e-3)
        assert ef.reconstruct(lost, prior="tv", weight=100.0).undetermined == "anything about the modulus"
    m = between_plates()
    result = ef.reconstruct(m, prior="tikhonov", weight=100.0)
    with pytest.warns(UserWarning, match="the data do not determine how the modulus varies along axis 1"):
        ef.uncertainty(result, m, 3)


def test_direction_is_that_of_the_variation_whatever_the_axis_of_the_load():
    u = np.stack([0.003 * (DEPTH - 1e-2), 0.01 * (SIDE.max() - SIDE)])
    load = ef.compression(GRID, strain=0.01, axis=1)
    std = 0.01 * np.sqrt(np.mean(u**2))
    noisy = u + std * np.random.default_rng(0).normal(size=u.shape)
    m = ef.Measurement(GRID, LAW, load, np.where(load.fixed, load.displacement, noisy), std)
    assert ef.reconstruct(m, prior="tv", weight=100.0).undetermined == "how the modulus varies along axis 0 (axial)"


def test_ratio_of_unconnected_pieces_is_not_determined_without_a_force():
    node, points = np.arange(36).reshape(6, 6), np.stack(np.meshgrid(*[np.arange(6) * 1e-3] * 2, indexing="ij"), -1)
    corners = [node[:-1, :-1], node[1:, :-1], node[1:, 1:], node[:-1, 1:]]
    a, b, c, d = (own.ravel() for own in corners)
    cells, points = np.concatenate([np.c_[a, b, c], np.c_[a, c, d]]), points.reshape(-1, 2)
    mesh = ef.Mesh(np.concatenate([points, points + np.array([8e-3, 0])]), np.concatenate([cells, cells + 36]))
    top, bottom = mesh.points[:, 1] > 4.9e-3, mesh.points[:, 1] < 1e-9
    fixed = np.stack([np.isin(np.arange(72), [6, 42]), top | bottom])
    load = ef.Boundary(fixed=fixed, displacement=np.stack([np.zeros(72), -5e-5 * top]))
    truth = np.where(np.arange(72) < 36, 1e4, 5e4) * np.where(
        np.linalg.norm(mesh.points % 8e-3 - 2e-3, axis=1) < 1.5e-3, 3, 1
    )
    result = ef.reconstruct(ef.simulate(mesh, LAW, load, truth, snr=50.0), prior="tv", weight=100.0)
    assert result.status == "undetermined"
    assert result.undetermined == "the ratio of the moduli of the 2 unconnected pieces of the body"


def test_region_of_a_volume_is_named_along_its_three_axes():
    grid = ef.Grid((8, 8, 8), (1e-3, 1e-3, 1e-3))
    load = ef.compression(grid, pressure=100.0)
    m = ef.simulate(grid, ef.Solid(0.4), load, np.full(grid.shape, 1e4), snr=10.0)
    std = np.where(np.arange(8) < 2, m.level, 100 * m.level) * np.ones(m.displacement.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = ef.reconstruct(m.derived(displacement_std=std), prior="tikhonov", weight=10.0)
    assert result.status == "undetermined"
    assert "axial 0 to 7 mm, elevational 0 to 7 mm, lateral 5 to 7 mm" in result.undetermined
