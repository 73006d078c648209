import numpy as np
import pytest
from scipy.ndimage import label

from elastofast.geometry import Grid, Mesh
from elastofast.phantoms import TISSUE, inclusion, lesion, tissue

GRID = Grid((201, 161), (0.2e-3, 0.25e-3))  # 40 mm x 40 mm


def triangles(n):
    """Irregular triangulation of 40 mm x 30 mm, lateral then axial."""
    from scipy.spatial import Delaunay

    edge = np.linspace(0, 1, n)
    inner = np.random.default_rng(0).uniform(0.02, 0.98, (n * n, 2))
    sides = [
        np.c_[edge, 0 * edge],
        np.c_[edge, 0 * edge + 1],
        np.c_[0 * edge, edge],
        np.c_[0 * edge + 1, edge],
    ]
    points = np.unique(np.concatenate([*sides, inner]), axis=0) * (40e-3, 30e-3)
    cells = Delaunay(points).simplices
    a, b, c = (points[cells[:, i]].T for i in range(3))
    area = np.abs((b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0]) / 2
    return Mesh(points, cells[area > 1e-12])


@pytest.mark.parametrize("kind", ["oval", "lobulated", "spiculated", "random"])
@pytest.mark.parametrize("seed", range(4))
def test_lesions_lie_inside_with_moduli_and_diameters_in_range(kind, seed):
    x, mask = lesion(GRID, seed=seed, kind=kind)
    assert x.shape == mask.shape == GRID.shape and mask.dtype == bool
    inside, outside = np.unique(x[mask]), np.unique(x[~mask])
    assert len(inside) == len(outside) == 1
    assert 30e3 <= inside[0] <= 80e3 and 10e3 <= outside[0] <= 15e3
    pieces = np.bincount(label(mask)[0][mask])
    assert pieces.max() >= 0.95 * mask.sum()  # the tips of spikes may be thinner than a cell
    diameter = 2 * np.sqrt(GRID.node_weights[mask.ravel()].sum() / np.pi)
    assert 0.045 * 40e-3 <= diameter <= 0.36 * 40e-3
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    assert not border.any()


def test_the_stated_diameter_is_that_of_the_circle_of_equal_area():
    for kind in ("oval", "lobulated", "spiculated"):
        _, mask = lesion(GRID, seed=3, kind=kind, size=(0.3, 0.3))
        area = GRID.node_weights[mask.ravel()].sum()
        assert 2 * np.sqrt(area / np.pi) == pytest.approx(0.3 * 40e-3, rel=0.02)


def roughness(mask):
    """Perimeter squared over area of a mask, 4 pi for a disk (counted on the cell edges, so 16 there)."""
    perimeter = np.abs(np.diff(mask.astype(int), axis=0)).sum() + np.abs(np.diff(mask.astype(int), axis=1)).sum()
    return perimeter**2 / mask.sum()


def test_kinds_grow_rougher():
    grid = Grid((301, 301), (1e-4, 1e-4))
    rough = {
        kind: np.mean([roughness(lesion(grid, seed=s, kind=kind, size=(0.3, 0.3))[1]) for s in range(6)])
        for kind in ("oval", "lobulated", "spiculated")
    }
    assert rough["oval"] < rough["lobulated"] < rough["spiculated"]


def test_a_seed_fixes_the_map_and_a_generator_moves_on():
    assert np.array_equal(lesion(GRID, seed=5)[0], lesion(GRID, seed=5)[0])
    assert not np.array_equal(lesion(GRID, seed=5)[0], lesion(GRID, seed=6)[0])
    rng = np.random.default_rng(5)
    assert np.array_equal(lesion(GRID, seed=rng)[0], lesion(GRID, seed=5)[0])
    assert not np.array_equal(lesion(GRID, seed=rng)[0], lesion(GRID, seed=5)[0])  # a generator moves on


def test_the_same_body_looks_the_same_on_every_grid():
    fine = Grid((401, 321), (0.1e-3, 0.125e-3))
    for kind in ("oval", "spiculated"):
        x, _ = lesion(GRID, seed=2, kind=kind)
        assert np.mean(lesion(fine, seed=2, kind=kind)[0][::2, ::2] != x) == 0


def test_several_lesions_stay_apart():
    _, mask = lesion(GRID, seed=1, n_lesions=4, size=(0.1, 0.15))
    assert label(mask)[1] == 4
    assert not lesion(GRID, n_lesions=0)[1].any()


def test_soft_edges_stay_between_the_two_moduli():
    sharp, mask = lesion(GRID, seed=0)
    soft, _ = lesion(GRID, seed=0, edge=6.0)
    changed = soft != sharp
    assert changed.any()
    assert sharp.min() <= soft.min() and soft.max() <= sharp.max()
    from scipy.ndimage import distance_transform_edt as distance

    step = np.sqrt(0.2 * 0.25)  # of a node, mm
    reach = np.where(mask, distance(mask, GRID.spacing), distance(~mask, GRID.spacing)) / (step * 1e-3)
    assert reach[changed].max() <= 3 + 1.5  # half the width on each side, and the cell the margin runs through


@pytest.mark.parametrize("rms", [0.05, 0.2])
def test_texture_has_the_stated_rms(rms):
    ratios = []
    for seed in range(8):
        plain, _ = lesion(GRID, seed=seed)
        textured, _ = lesion(GRID, seed=seed, texture=rms)
        assert textured.min() > 0
        ratios.append(textured / plain)
    assert np.std(ratios) == pytest.approx(rms, rel=0.1)
    assert np.mean(ratios) == pytest.approx(1, abs=0.3 * rms)


def test_texture_on_the_nodes_of_a_grid_and_of_a_mesh_is_the_same_field():
    grid = Grid((21, 21), (1e-3, 1e-3))
    n = np.arange(441).reshape(21, 21)
    a, b, c, d = (s.ravel() for s in (n[:-1, :-1], n[1:, :-1], n[1:, 1:], n[:-1, 1:]))
    mesh = Mesh(grid.points, np.concatenate([np.c_[a, b, c], np.c_[a, c, d]]))
    one, other = (lesion(g, seed=4, n_lesions=0, texture=0.1)[0].ravel() for g in (grid, mesh))
    assert np.allclose(one, other, rtol=1e-10)


def test_a_lesion_on_a_mesh_has_the_stated_diameter():
    mesh = triangles(40)
    x, mask = lesion(mesh, seed=1, size=(0.3, 0.3), texture=0.05)
    assert x.shape == mask.shape == (mesh.n_nodes,)
    area = mesh.node_weights[mask].sum()
    assert 2 * np.sqrt(area / np.pi) == pytest.approx(0.3 * 40e-3, rel=0.1)


def test_a_lesion_on_a_coarse_grid_is_never_empty():
    grid = Grid((16, 16), (1e-3, 1e-3))
    assert all(lesion(grid, seed=s, size=(0.01, 0.01))[1].any() for s in range(20))


def test_inclusion_is_a_disk():
    x, mask = inclusion(GRID, (20e-3, 15e-3), 6e-3, modulus=50e3, background=10e3)
    r = np.hypot(GRID.points[:, 0] - 20e-3, GRID.points[:, 1] - 15e-3).reshape(GRID.shape)
    assert (x[r < 5.999e-3] == 50e3).all() and (x[r > 6.001e-3] == 10e3).all()
    assert np.array_equal(mask, x == 50e3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "square"}, "kind must be one of oval, lobulated, spiculated or random, got 'square'"),
        ({"background": (0, 1)}, r"background must be a pair \(low, high\) with 0 < low <= high \(pascals\)"),
        ({"lesion": (5e3, 1e3)}, "lesion must be a pair"),
        ({"lesion": 5e3}, "lesion must be a pair"),
        ({"size": (0.1, np.nan)}, "size must be a pair"),
        ({"size": (0.1, 0.9)}, "size must not exceed 0.8"),
        ({"n_lesions": -1}, "n_lesions must be a whole number"),
        ({"n_lesions": 1.5}, "n_lesions must be a whole number"),
        ({"edge": -1}, "edge must be zero or more"),
        ({"texture": np.inf}, "texture must be zero or more"),
        ({"n_lesions": 30, "size": (0.3, 0.3)}, "does not fit into the body.*n_lesions"),
    ],
)
def test_lesion_refuses_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        lesion(GRID, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1e-3,), 1e-3, 2.0, 1.0), "center must hold 2 finite coordinates"),
        (((1e-3, 1e-3), 0.0, 2.0, 1.0), "radius must be positive"),
        (((1e-3, 1e-3), 1e-3, -2.0, 1.0), "modulus must be positive"),
        (((1e-3, 1e-3), 1e-3, 2.0, np.nan), "background must be positive"),
        (((1.0, 1.0), 1e-3, 2.0, 1.0), "holds no node"),
    ],
)
def test_inclusion_refuses_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        inclusion(GRID, *arguments)
    with pytest.raises(TypeError, match="geometry must be a Grid or a Mesh"):
        inclusion(None, *arguments)


def test_tissue_has_what_it_is_for():
    grid = Grid((64, 64), (0.5e-3, 0.5e-3))
    drawn = [tissue(grid, seed=k) for k in range(120)]
    counts = [label(mask)[1] for _, mask in drawn]
    assert min(counts) == 0 and max(counts) >= 3  # maps without a lesion, and with several
    assert all(np.isfinite(x).all() and (x > 0).all() for x, _ in drawn)
    ratios = [np.median(x[mask]) / np.median(x[~mask]) for x, mask in drawn if mask.any()]
    assert min(ratios) < 0.5 and max(ratios) > 20  # soft and very stiff lesions
    plain = [len(np.unique(x)) for x, _ in drawn]
    assert min(plain) <= 2 and sum(n > 1000 for n in plain) > 30  # even tissue, and varying one
    again, _ = tissue(grid, seed=7)
    assert np.array_equal(again, drawn[7][0])


def test_tissue_keeps_to_its_ranges():
    grid = Grid((64, 64), (0.5e-3, 0.5e-3))
    ranges = {"layers": (1.0, 1.0 + 1e-12), "variation": (1e-9, 1e-9), "texture": (1e-9, 1e-9)}
    ranges |= {"contrast": (3.0, 3.0), "extreme": (3.0, 3.0), "soft": (3.0, 3.0)}
    for k in range(20):
        x, _ = tissue(grid, seed=k, background=(10e3, 10e3), **ranges)
        assert 10e3 * 0.999 < x.min() and x.max() < 9 * 10e3 * 1.001  # a lesion in a lesion is nine times as stiff
    with pytest.raises(ValueError, match=r"ranges must be among contrast, .*, got 'colour'"):
        tissue(grid, colour=(1.0, 2.0))
    with pytest.raises(ValueError, match="size must be a pair"):
        tissue(grid, size=(0.3, 0.1))
    assert TISSUE["soft"][1] < 1 < TISSUE["contrast"][0]
