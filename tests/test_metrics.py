import math

import numpy as np
import pytest

from elastofast import metrics
from elastofast.geometry import Grid, Mesh
from elastofast.phantoms import inclusion

GRID = Grid((40, 50), (1e-3, 1e-3))
TRUTH, MASK = inclusion(GRID, (18e-3, 25e-3), 8e-3, modulus=50e3, background=10e3)
X = TRUTH * np.random.default_rng(0).uniform(0.8, 1.3, TRUTH.shape)


def test_errors_are_those_by_hand():
    x, truth = [1.0, 2.0, 6.0], [2.0, 2.0, 4.0]
    assert metrics.relative_l2(x, truth) == pytest.approx(math.sqrt(5 / 24))
    assert metrics.rmse(x, truth) == pytest.approx(math.sqrt(5 / 3))
    assert metrics.mae(x, truth) == pytest.approx(1.0)
    assert metrics.symmetric_rms(x, truth) == pytest.approx(math.sqrt(((2 / 3) ** 2 + 0.4**2) / 3))


@pytest.mark.parametrize("metric", [metrics.relative_l2, metrics.rmse, metrics.mae, metrics.symmetric_rms])
def test_a_weight_of_two_counts_a_node_twice(metric):
    x, truth = np.array([1.0, 2.0, 6.0]), np.array([2.0, 3.0, 4.0])
    assert metric(x, truth, [1, 2, 1]) == pytest.approx(metric(x[[0, 1, 1, 2]], truth[[0, 1, 1, 2]]))


def test_psnr_takes_its_range_from_the_truth_or_as_given():
    mse = np.mean((X - TRUTH) ** 2)
    assert metrics.psnr(X, TRUTH) == pytest.approx(10 * np.log10(40e3**2 / mse))
    assert metrics.psnr(X, TRUTH, data_range=80e3) == pytest.approx(10 * np.log10(80e3**2 / mse))
    assert metrics.psnr(TRUTH, TRUTH) == np.inf


def test_ssim_is_wangs_formula():
    from scipy.ndimage import gaussian_filter

    def blur(a):
        return gaussian_filter(a, 1.5, radius=5)

    mx, mt = blur(X), blur(TRUTH)
    vx, vt, cov = blur(X * X) - mx**2, blur(TRUTH * TRUTH) - mt**2, blur(X * TRUTH) - mx * mt
    c1, c2 = (0.01 * 40e3) ** 2, (0.03 * 40e3) ** 2
    s = (2 * mx * mt + c1) * (2 * cov + c2) / ((mx**2 + mt**2 + c1) * (vx + vt + c2))
    assert metrics.ssim(X, TRUTH) == pytest.approx(s[5:-5, 5:-5].mean(), rel=1e-6)
    assert metrics.ssim(TRUTH, TRUTH) == pytest.approx(1.0)


def test_contrast_to_noise_ratios_are_their_formulas():
    t, b = X[MASK], X[~MASK]
    expected = 2 * (b.mean() - t.mean()) ** 2 / (b.var() + t.var())
    assert metrics.cnre(X, MASK, ~MASK) == pytest.approx(expected)
    assert metrics.cnre(X, MASK, ~MASK, decibel=True) == pytest.approx(10 * np.log10(expected))
    assert metrics.cnr(X, MASK, ~MASK) == pytest.approx(abs(b.mean() - t.mean()) / np.sqrt(b.var() + t.var()))
    assert metrics.cnre(np.where(MASK, 4.0, 1.0), MASK, ~MASK) > 1e20  # no variance


def test_region_weights_count_nodes():
    x = np.array([1.0, 2.0, 5.0, 9.0, 2.0, 9.0])
    t, b = np.array([1, 1, 0, 0, 1, 0], bool), np.array([0, 0, 1, 1, 0, 1], bool)
    kept = np.array([1, 1, 1, 1, 0, 0], bool)
    w = np.array([1, 2, 1, 2, 0, 0])
    for metric in (metrics.cnre, metrics.cnr, metrics.gcnr):
        assert metric(x[kept], t[kept], b[kept], w[kept]) == pytest.approx(metric(x, t, b))


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.5])
def test_gcnr_of_two_gaussians_is_one_less_their_overlap(shift):
    rng = np.random.default_rng(1)
    n = 200_000
    x = np.concatenate([rng.normal(size=n), rng.normal(shift, 1, n)])
    target = np.arange(2 * n) >= n
    # densities of equal width cross half way: overlap 2 Phi(-shift / 2)
    assert metrics.gcnr(x, target, ~target) == pytest.approx(math.erf(shift / (2 * math.sqrt(2))), abs=0.01)


def test_gcnr_lies_between_zero_and_one_on_any_scale():
    assert metrics.gcnr(TRUTH, MASK, ~MASK) == 1.0
    assert metrics.gcnr(np.ones_like(TRUTH), MASK, ~MASK) == 0.0
    # a threshold that separates does so on any scale
    noisy = np.where(MASK, X + 200e3, X)
    assert metrics.gcnr(np.exp(noisy / 1e5), MASK, ~MASK) == pytest.approx(metrics.gcnr(noisy, MASK, ~MASK))


def test_contrast_ratio_error_does_not_depend_on_the_scale():
    x = np.where(MASK, 30e3, 10e3)
    assert metrics.contrast_ratio_error(x, TRUTH, MASK, ~MASK) == pytest.approx(abs(3 / 5 - 1))
    assert metrics.contrast_ratio_error(7 * TRUTH, TRUTH, MASK, ~MASK) == pytest.approx(0.0, abs=1e-12)


def test_region_masks_leave_a_band_of_the_stated_width():
    t, b = metrics.region_masks(TRUTH, GRID, guard=0)
    assert np.array_equal(t, MASK) and np.array_equal(b, ~MASK)
    square = np.zeros(GRID.shape, bool)
    square[10:20, 5:30] = True
    t, b = metrics.region_masks(np.where(square, 5.0, 1.0), GRID, guard=2)
    expected_t, expected_b = np.zeros_like(square), np.ones_like(square)
    expected_t[12:18, 7:28] = True
    expected_b[8:22, 3:32] = False
    assert np.array_equal(t, expected_t) and np.array_equal(b, expected_b)


def test_region_masks_find_several_and_softer_lesions():
    three = np.full(GRID.shape, 10e3)
    three[5:9, 5:9], three[20:25, 30:36] = 30e3, 80e3
    assert np.array_equal(metrics.region_masks(three, GRID, guard=0)[0], three > 10e3)
    assert np.array_equal(metrics.region_masks(1 / TRUTH, GRID, guard=0)[0], MASK)


def test_a_small_lesion_keeps_its_last_node():
    dot = np.zeros(GRID.shape, bool)
    dot[20, 20] = True
    t, b = metrics.region_masks(np.where(dot, 5.0, 1.0), GRID, guard=3)
    assert np.array_equal(t, dot) and np.array_equal(b, ~dot)


def split(grid):
    """The grid's cells cut into triangles, one diagonal each."""
    n = np.arange(grid.n_nodes).reshape(grid.shape)
    a, b, c, d = (s.ravel() for s in (n[:-1, :-1], n[1:, :-1], n[1:, 1:], n[:-1, 1:]))
    return Mesh(grid.points, np.concatenate([np.c_[a, b, c], np.c_[a, c, d]]))


def test_region_masks_on_a_mesh_drop_cells_across_the_margin():
    mesh = split(GRID)
    t, b = metrics.region_masks(TRUTH.ravel(), mesh, guard=1)
    assert not (t & b).any()
    together = t[mesh.cells].any(axis=1) & b[mesh.cells].any(axis=1)
    assert not together.any()
    mixed = np.ptp(MASK.ravel()[mesh.cells].astype(int), axis=1) == 1
    assert not (t | b)[np.unique(mesh.cells[mixed])].any()
    assert (t | b).sum() == mesh.n_nodes - len(np.unique(mesh.cells[mixed]))


def test_evaluate_collects_all_metrics():
    e = metrics.evaluate(X, TRUTH, GRID, guard=1)
    t, b = metrics.region_masks(TRUTH, GRID, guard=1)
    assert e["relative_l2"] == metrics.relative_l2(X, TRUTH)
    assert e["ssim"] == metrics.ssim(X, TRUTH)
    assert e["gcnr"] == metrics.gcnr(X, t, b)
    assert e["cnre_db"] == metrics.cnre(X, t, b, decibel=True)
    assert all(np.isfinite(value) for value in e.values())


def test_dice_and_position_are_those_of_a_shifted_lesion():
    """Two discs whose centres are a known distance apart; the overlap is counted by hand."""
    other, shifted = inclusion(GRID, (18e-3, 29e-3), 8e-3, modulus=40e3, background=12e3)
    value, shown = metrics.dice(other, TRUTH, MASK)
    assert np.array_equal(shown, shifted)
    assert value == pytest.approx(2 * (MASK & shifted).sum() / (MASK.sum() + shifted.sum()))
    diameter = metrics.lesion_diameter(MASK, GRID)
    assert diameter == pytest.approx(16e-3, rel=0.05)
    assert metrics.position_error(shown, MASK, GRID) == pytest.approx(4e-3 / diameter, rel=1e-6)
    assert metrics.dice(1 / other, 1 / TRUTH, MASK)[0] == value  # a soft lesion
    assert metrics.position_error(np.zeros_like(MASK), MASK, GRID) == np.inf
    e = metrics.evaluate(other, TRUTH, GRID)
    assert (e["dice"], e["found"], e["false_alarms"]) == (value, 1.0, 0)


def test_detections_count_lesions_found_and_regions_that_are_none():
    x = np.full(GRID.shape, 10e3)
    x[5:8, 5:8] = 20e3  # stiff, and large enough to be taken for a lesion
    x[30:33, 40:44] = 5e3  # soft
    x[20, 2] = 50e3  # one node
    x[12:16, 12:16] = 14e3  # too little contrast
    two = np.zeros(GRID.shape, bool)
    two[4:8, 4:8] = two[20:26, 20:26] = True
    assert metrics.detections(x, two) == (0.5, 1)
    assert metrics.detections(7 * x, two) == (0.5, 1)
    assert metrics.detections(x, two, contrast=1.3) == (0.5, 2)
    found, alarms = metrics.detections(x, np.zeros(GRID.shape, bool))
    assert np.isnan(found) and alarms == 2


def test_tissue_without_a_lesion_has_false_alarms_only():
    flat, none = np.full(GRID.shape, 10e3), np.zeros(GRID.shape, bool)
    for truth in (flat, flat * np.linspace(0.9, 1.1, 50)):
        e = metrics.evaluate(TRUTH, truth, GRID, mask=none)
        assert e["false_alarms"] == 1 and np.isnan([e["found"], e["dice"], e["gcnr"]]).all()


def test_evaluate_weighs_a_mesh_by_area():
    mesh = split(GRID)
    e = metrics.evaluate(X.ravel(), TRUTH.ravel(), mesh)
    assert e["rmse"] == metrics.rmse(X.ravel(), TRUTH.ravel(), mesh.node_weights)
    assert e["symmetric_rms"] == metrics.symmetric_rms(X, TRUTH)
    assert np.isnan(e["ssim"]) and np.isfinite(e["cnre"])


def test_evaluate_of_a_constant_truth_has_no_lesion_metrics():
    e = metrics.evaluate(X, np.full(GRID.shape, 10e3), GRID)
    assert np.isfinite(e["relative_l2"]) and np.isnan(e["gcnr"]) and np.isnan(e["psnr"])


def test_a_relative_modulus_is_scaled_to_the_truth():
    assert metrics.evaluate(3 * TRUTH, TRUTH, GRID, relative=True)["relative_l2"] < 1e-12
    scaled = metrics.evaluate(1e-4 * X, TRUTH, GRID, relative=True)["relative_l2"]
    best = min(metrics.relative_l2(s * X, TRUTH) for s in np.linspace(0.9, 1.1, 2001))
    assert scaled == pytest.approx(best, rel=1e-4) and scaled <= best


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.rmse([1.0], [1.0, 2.0]), r"same shape, got \(1,\) and \(2,\)"),
        (lambda: metrics.rmse([np.nan], [1.0]), "x must be finite"),
        (lambda: metrics.rmse([1.0], [1.0], [-1.0]), "weights must be 1 finite numbers, none negative"),
        (lambda: metrics.symmetric_rms([-1.0], [1.0]), "must be positive"),
        (lambda: metrics.psnr([1.0, 2.0], [1.0, 1.0]), "truth is constant, so data_range must be given"),
        (lambda: metrics.psnr([1.0, 2.0], [1.0, 3.0], data_range=-1), "data_range must be positive.*got -1"),
        (lambda: metrics.ssim(np.ones((5, 5)), np.eye(5)), "at least 11 x 11 nodes, got shape"),
        (lambda: metrics.cnre(X, MASK, MASK), "target and background overlap"),
        (lambda: metrics.cnre(X, MASK & False, MASK), "target is empty"),
        (lambda: metrics.gcnr(X, MASK[1:], MASK), r"target must have the shape of x"),
        (lambda: metrics.region_masks(np.ones(GRID.shape), GRID), "truth is constant"),
        (lambda: metrics.region_masks(-TRUTH, GRID), "truth must be positive and finite"),
        (lambda: metrics.region_masks(TRUTH, GRID, mask=MASK | True), "mark some nodes, not all"),
        (lambda: metrics.region_masks(TRUTH, GRID, guard=-1), "guard must be a whole number"),
        (lambda: metrics.evaluate(X[1:], TRUTH, GRID), r"modulus must have the geometry's shape \(40, 50\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
