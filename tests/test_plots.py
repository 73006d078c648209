from types import SimpleNamespace

import numpy as np
import pytest

from elastofast.boundary import compression
from elastofast.geometry import Grid, Mesh
from elastofast.laws import PlaneStress
from elastofast.measurement import Measurement
from elastofast.phantoms import inclusion
from elastofast.plots import (
    draw_displacement,
    draw_modulus,
    draw_profile,
    draw_uncertainty,
    plot_maps,
    plot_result,
)

pytest.importorskip("matplotlib")
pytest.importorskip("skimage")

GRID = Grid((40, 30), (1e-3, 2e-3))
N = np.arange(40 * 30).reshape(40, 30)
A, B, C, D = (s.ravel() for s in (N[:-1, :-1], N[1:, :-1], N[1:, 1:], N[:-1, 1:]))
MESH = Mesh(GRID.points[:, ::-1], np.concatenate([np.c_[A, B, C], np.c_[A, C, D]]))
TRUTH, _ = inclusion(GRID, (20e-3, 30e-3), 6e-3, modulus=50e3, background=10e3)


def on(geometry, field):
    return field.reshape(geometry.node_shape)


def image(path):
    from matplotlib.image import imread

    return imread(path)


@pytest.mark.parametrize("geometry", [GRID, MESH], ids=["grid", "mesh"])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_maps_are_drawn_with_their_errors_as_titles(tmp_path, geometry, count):
    truth = on(geometry, TRUTH)
    maps = {f"map {i}": truth * (1 + 0.1 * i) for i in range(count)}
    figure = plot_maps(maps, geometry, tmp_path / "maps.png", truth=truth, title="six ways")
    picture = image(tmp_path / "maps.png")
    assert min(picture.shape[:2]) > 400 and picture.std() > 0.05
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "truth"
    assert titles[1] == "map 0\nrelative error 0.000"
    if count > 1:
        assert titles[2] == "map 1\nrelative error 0.100"


def test_the_profile_is_the_row_through_the_lesion_in_millimetres_and_kilopascals():
    figure = plot_maps({"x": 2 * TRUTH}, GRID, truth=TRUTH)
    profile = next(axes for axes in figure.axes if axes.get_ylabel() == "modulus (kPa)" and axes.lines)
    for line, factor in zip(profile.lines, (1, 2), strict=True):
        assert np.allclose(line.get_xdata(), 2.0 * np.arange(30))
        assert np.allclose(line.get_ydata(), factor * TRUTH[20] / 1e3)


def test_the_profile_on_a_mesh_is_interpolated():
    linear = 1e3 * (1 + 100 * MESH.points[:, 0])
    figure = plot_maps({"x": linear}, MESH, depth=13.3e-3)
    line = figure.axes[-1].lines[0]
    assert np.allclose(line.get_ydata(), 1 + 100 * 1e-3 * line.get_xdata())


@pytest.mark.parametrize("suffix", [".pdf", ".svg"])
def test_suffix_decides_the_format(tmp_path, suffix):
    plot_maps({"x": TRUTH}, GRID, tmp_path / f"x{suffix}")
    assert (tmp_path / f"x{suffix}").read_bytes()[:5] in (b"%PDF-", b"<?xml")


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("geometry", [GRID, MESH], ids=["grid", "mesh"])
def test_relative_results_are_drawn_over_their_geometric_mean(tmp_path, geometry, reference):
    u = 1e-3 * geometry.points.T.reshape(2, *geometry.node_shape)
    truth = on(geometry, TRUTH)
    load = compression(geometry, pressure=1.0)
    u[load.fixed] = 0
    m = Measurement(geometry, PlaneStress(0.4), load, u, [1e-3, np.inf], reference=truth if reference else None)
    result = SimpleNamespace(
        modulus=truth,
        displacement=0 * u,
        history=[{"iteration": i, "chi2": 1 + 0.5**i} for i in range(4)],
        status="converged",
        chi2=1.0,
        relative=False,
        std=0.1 * truth / truth.max() if reference else None,
        frame_chi2=[],
        rejected=np.random.default_rng(0).random(u.shape) < 0.02 if reference else None,
        noise=None,
        known=np.where(truth > 30e3, truth, np.nan) if reference else None,
    )
    plot_result(result, m, tmp_path / "r.png")
    assert image(tmp_path / "r.png").std() > 0.05
    result.modulus, result.relative = truth / 7, True
    figure = plot_result(result, m)
    assert ("uncertainty" in [axes.get_title() for axes in figure.axes]) == reference
    axes = next(axes for axes in figure.axes if axes.get_ylabel() == "modulus / geometric mean" and axes.lines)
    for line in axes.lines:  # the truth and the map, which differ by a factor alone
        np.testing.assert_allclose(line.get_ydata(), axes.lines[0].get_ydata())
        assert line.get_ydata().max() < 10


def test_pyplot_is_left_alone():
    import sys

    before = "matplotlib.pyplot" in sys.modules
    plot_maps({"x": TRUTH}, GRID)
    assert ("matplotlib.pyplot" in sys.modules) == before


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (({}, GRID), {}, "maps is empty"),
        (
            ({"x": TRUTH[1:]}, GRID),
            {},
            r"maps\['x'\] must have the geometry's shape \(40, 30\), got \(39, 30\)",
        ),
        (({"x": TRUTH}, GRID), {"truth": TRUTH[1:]}, "truth must have the geometry's shape"),
        (({"x": TRUTH}, GRID), {"profiles": ["y"]}, r"profiles must name maps \(x\), got \['y'\]"),
        (({"x": TRUTH}, GRID, "x.doc"), {}, "path must end in .png, .pdf or .svg, got 'x.doc'"),
    ],
)
def test_plot_maps_refuses_arguments_that_do_not_fit(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        plot_maps(*arguments, **options)


def test_panels_take_and_return_axes_in_physical_units():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    assert draw_modulus(TRUTH, GRID, axes) is axes
    assert axes.images[0].get_extent() == [-1.0, 59.0, 39.5, -0.5]  # millimetres
    assert axes.images[0].get_array().max() == TRUTH.max() / 1e3
    u = 1e-6 * np.arange(2.0 * TRUTH.size).reshape(2, *GRID.shape)
    lateral = draw_displacement(u, GRID, component="lateral")
    np.testing.assert_allclose(lateral.images[0].get_array(), 1e6 * u[1])
    np.testing.assert_allclose(draw_uncertainty(TRUTH, GRID).images[0].get_array(), TRUTH)
    assert [line.get_label() for line in draw_profile({"truth": TRUTH, "x": TRUTH}, GRID).lines] == ["truth", "x"]


@pytest.mark.parametrize("geometry", [GRID, MESH], ids=["grid", "mesh"])
@pytest.mark.parametrize("of", ["own", "mask"])
def test_contour_runs_around_the_lesion(geometry, of):
    contour = True if of == "own" else on(geometry, TRUTH > 30e3)
    before = draw_modulus(on(geometry, TRUTH), geometry)
    axes = draw_modulus(on(geometry, TRUTH), geometry, contour=contour)
    assert len(axes.collections) == len(before.collections) + 1
    line = np.concatenate([path.vertices for path in axes.collections[-1].get_paths()])
    assert np.abs(np.hypot(*(line - (30.0, 20.0)).T) - 6.0).max() < 1.5  # millimetres; the nodes are up to two apart
    flat = draw_modulus(np.full(geometry.node_shape, 1e4), geometry, contour=True)
    assert len(flat.collections) == len(before.collections)


def test_scale_bar_has_a_round_length_that_it_states():
    axes = draw_modulus(TRUTH, GRID)
    start, end = axes.lines[0].get_xdata()
    assert axes.texts[0].get_text() == f"{end - start:g} mm" == "10 mm"


def test_known_nodes_are_hatched():
    axes = draw_modulus(TRUTH, GRID, known=np.where(TRUTH > 30e3, TRUTH, np.nan))
    assert axes.collections[-1].hatches == ["////"]
    with pytest.raises(ValueError, match="known must have the geometry's shape"):
        draw_modulus(TRUTH, GRID, known=TRUTH[1:])
    with pytest.raises(ValueError, match="component must be 'axial' or 'lateral', got 'x'"):
        draw_displacement(np.zeros((2, *GRID.shape)), GRID, component="x")
