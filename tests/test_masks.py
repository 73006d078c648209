import numpy as np
import pytest

from elastofast.geometry import Grid
from elastofast.learning.masks import SMALLEST, collect, find_scans, on_grid, read_mask
from elastofast.phantoms import from_mask

pytest.importorskip("PIL")
from PIL import Image

GRID = Grid((33, 33), (1e-3, 1e-3))


def disk(height=60, width=60, at=(30, 30), radius=12):
    y, x = np.mgrid[:height, :width]
    return np.hypot(y - at[0], x - at[1]) <= radius


def speckle(seed, height=60, width=60):
    return np.random.default_rng(seed).integers(0, 200, (height, width)).astype(np.uint8)


def write(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.asarray(pixels)
    image = Image.fromarray(pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels)
    (image.convert(mode) if mode else image).save(path)


def names(scans):
    return {scan.name: [path.name for path in scan.masks] for scan in scans}


# layouts ------------------------------------------------------------------------------------------


def test_busi_unites_the_masks_of_a_scan_and_skips_empty_ones(tmp_path):
    for k in (1, 2):
        write(tmp_path / f"benign/benign ({k}).png", speckle(k), "RGB")
        write(tmp_path / f"benign/benign ({k})_mask.png", disk(at=(20 + 5 * k, 30)))
    write(tmp_path / "benign/benign (2)_mask_1.png", disk(at=(50, 50), radius=5))
    write(tmp_path / "normal/normal (1)_mask.png", np.zeros((60, 60), bool))
    layout, scans = find_scans(tmp_path)
    assert layout == "busi"
    assert names(scans) == {
        "benign/benign (1)_mask.png": ["benign (1)_mask.png"],
        "benign/benign (2)_mask.png": ["benign (2)_mask.png", "benign (2)_mask_1.png"],
        "normal/normal (1)_mask.png": ["normal (1)_mask.png"],
    }
    assert [scan.image and scan.image.name for scan in scans] == ["benign (1).png", "benign (2).png", None]
    assert np.array_equal(read_mask(scans[1]), disk(at=(30, 30)) | disk(at=(50, 50), radius=5))
    found = collect(tmp_path, GRID)
    assert [scan.name for scan in found.scans] == ["benign/benign (1)_mask.png", "benign/benign (2)_mask.png"]
    assert found.skipped == {"without a lesion": ["normal/normal (1)_mask.png"]}


def test_bus_bra_knows_patients(tmp_path):
    for k, name in enumerate(("0001-l", "0001-r", "0002-l", "0003-l")):
        write(tmp_path / f"BUSBRA/Images/bus_{name}.png", speckle(k))
        write(tmp_path / f"BUSBRA/Masks/mask_{name}.png", disk(at=(20 + 6 * k, 15 + 9 * k)))
    table = tmp_path / "BUSBRA/bus_data.csv"
    table.write_text(
        "ID,Case,Pathology\nbus_0001-l,1,benign\nbus_0001-r,1,benign\nbus_0002-l,2,benign\nbus_0003-l,1,x\n"
    )
    found = collect(tmp_path, GRID)
    assert found.layout == "bus-bra"
    assert [scan.patient for scan in found.scans] == ["1", "1", "2", "1"]
    assert [scan.image.name for scan in found.scans][1] == "bus_0001-r.png"
    a, b, c, d = found.groups
    assert a == b == d != c
    table.unlink()
    assert [scan.patient for scan in find_scans(tmp_path)[1]] == ["1", "1", "2", "3"]
    table.write_text("ID,Pathology\nbus_0001-l,benign\n")
    with pytest.raises(ValueError, match=r"bus_data.csv: the table lacks the column Case"):
        find_scans(tmp_path)


def test_breast_collects_every_lesion_of_a_case(tmp_path):
    write(tmp_path / "case001.png", speckle(1))
    for name in ("tumor", "tumor2", "other1"):
        write(tmp_path / f"case001_{name}.png", disk())
    write(tmp_path / "case002.png", speckle(2))  # healthy, no mask
    layout, scans = find_scans(tmp_path)
    assert layout == "breast" and len(scans) == 1
    assert {path.name for path in scans[0].masks} == {"case001_tumor.png", "case001_tumor2.png", "case001_other1.png"}
    assert scans[0].image.name == "case001.png"


def test_udiat_pairs_masks_with_images_of_the_same_name(tmp_path):
    for k in range(2):
        write(tmp_path / f"original/00000{k}.png", speckle(k))
        write(tmp_path / f"GT/00000{k}.png", disk(at=(20 + 10 * k, 30)))
    layout, scans = find_scans(tmp_path)
    assert layout == "udiat" and [scan.name for scan in scans] == ["GT/000000.png", "GT/000001.png"]
    assert [scan.image.parent.name for scan in scans] == ["original"] * 2


def test_any_images_are_plain_masks_and_a_given_layout_must_fit(tmp_path):
    write(tmp_path / "a.bmp", disk())
    write(tmp_path / "deep/b.png", disk(at=(20, 20)))
    assert find_scans(tmp_path)[0] == "plain" and len(find_scans(tmp_path)[1]) == 2
    with pytest.raises(ValueError, match="no mask of the layout 'busi' among 2 image files"):
        find_scans(tmp_path, "busi")
    with pytest.raises(ValueError, match=r"layout must be auto or one of busi, .*, got 'bussi'"):
        find_scans(tmp_path, "bussi")


def test_folders_without_masks_are_refused(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere"):
        find_scans(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="among 0 image files"):
        find_scans(tmp_path)
    write(tmp_path / "empty.png", np.zeros((9, 9), bool))
    with pytest.raises(ValueError, match=r"no usable mask; 1 without a lesion \(empty.png\)"):
        collect(tmp_path, GRID)


# pixels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_image_is_read_as_the_same_mask(tmp_path, mode):
    path, mask = tmp_path / "mask.png", disk()
    if mode == "I;16":
        write(path, mask.astype(np.uint16) * 65535)
    else:
        write(path, mask, mode)
    (scan,) = find_scans(tmp_path)[1]
    assert np.array_equal(read_mask(scan), mask)


def test_labels_of_one_and_coloured_lesions_are_masks(tmp_path):
    write(tmp_path / "labels.png", disk().astype(np.uint8))
    red = np.zeros((60, 60, 3), np.uint8)
    red[disk()] = (200, 0, 0)
    write(tmp_path / "red.png", red)
    for scan in find_scans(tmp_path)[1]:
        assert np.array_equal(read_mask(scan), disk())


def test_lossy_masks_are_thresholded(tmp_path):
    path = tmp_path / "mask.jpg"
    write(path, disk(200, 200, (100, 100), 50))
    (scan,) = find_scans(tmp_path)[1]
    assert (read_mask(scan) != disk(200, 200, (100, 100), 50)).mean() < 0.002


def test_what_is_no_mask_is_named_and_left_out(tmp_path):
    write(tmp_path / "good.png", disk())
    write(tmp_path / "photo.png", speckle(0))
    (tmp_path / "text.png").write_text("no image")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    write(tmp_path / "speck.png", disk(200, 200, (100, 100), 2))
    write(tmp_path / "full.png", np.ones((40, 40), bool))
    scans = {scan.name: scan for scan in find_scans(tmp_path)[1]}
    for name, text in (("photo.png", "not a mask"), ("text.png", "cannot be read"), ("cut.png", "cannot be read")):
        with pytest.raises(ValueError, match=f"{name}: {text}"):
            read_mask(scans[name])
    found = collect(tmp_path, GRID)
    assert [scan.name for scan in found.scans] == ["good.png"]
    assert len(found.skipped["unreadable"]) == 3
    assert found.skipped["too small for the grid"] == ["speck.png"]
    assert found.skipped["filled by the lesion"] == ["full.png"]


def test_masks_of_one_scan_must_have_one_size(tmp_path):
    write(tmp_path / "benign (1)_mask.png", disk())
    write(tmp_path / "benign (1)_mask_1.png", disk(50, 60))
    (scan,) = find_scans(tmp_path)[1]
    with pytest.raises(ValueError, match=r"mask_1.png: the mask has \(50, 60\) pixels, .*_mask.png has \(60, 60\)"):
        read_mask(scan)


# onto the grid ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (20, 15)])
def test_masks_keep_their_form(size):
    height, width = size
    radius = 0.25 * min(size)
    nodes = on_grid(disk(height, width, ((height - 1) / 2, (width - 1) / 2), radius), GRID)
    rows, columns = np.nonzero(nodes)
    pixel = max(1, 33 / max(size))  # the borders that are added may differ by one
    assert (rows.mean(), columns.mean()) == pytest.approx((16, 16), abs=0.65 * pixel)
    # the longer side fills the grid
    assert nodes.sum() == pytest.approx(np.pi * (radius * 33 / max(size)) ** 2, rel=0.12)
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=1.3 * pixel)


def test_anisotropic_grids_keep_the_form_in_metres():
    grid = Grid((61, 31), (0.5e-3, 1e-3))  # 30 mm x 30 mm
    nodes = on_grid(disk(300, 300, (150, 150), 75), grid)
    rows, columns = np.nonzero(nodes)
    assert np.ptp(rows) * 0.5e-3 == pytest.approx(np.ptp(columns) * 1e-3, abs=1.1e-3)
    assert nodes.mean() == pytest.approx(np.pi / 16, rel=0.06)


def test_a_node_is_lesion_where_half_of_its_area_is():
    grid = Grid((10, 10), (1e-3, 1e-3))
    mask = disk(100, 100, (47, 52), 31)
    coverage = mask.reshape(10, 10, 10, 10).mean(axis=(1, 3))
    assert ((coverage > 0) & (coverage < 0.5)).any()
    assert np.array_equal(on_grid(mask, grid), coverage >= 0.5)


def test_specks_are_dropped():
    grid = Grid((32, 32), (1e-3, 1e-3))
    mask = np.zeros((32, 32), bool)
    mask[5:15, 5:15] = True
    mask[25:27, 25:29] = True
    assert 8 < SMALLEST
    assert on_grid(mask, grid)[5:15, 5:15].all() and on_grid(mask, grid).sum() == 100


# groups -------------------------------------------------------------------------------------------


def test_duplicates_are_one_group(tmp_path):
    smooth = np.kron(speckle(0, 15, 15), np.ones((8, 8), np.uint8))  # 120 x 120
    other = np.kron(speckle(1, 15, 15), np.ones((8, 8), np.uint8))
    masks = {
        1: disk(120, 120, (30, 30), 15),
        2: disk(120, 120, (80, 70), 25),  # the image of 1, another drawing
        3: disk(120, 120, (31, 30), 15),  # the mask of 1, one pixel off
        4: disk(120, 120, (90, 30), 20),
        5: disk(120, 120, (60, 90), 12),
    }
    images = {1: smooth, 2: (smooth * 0.7 + 20).astype(np.uint8), 3: other, 4: other[::-1], 5: other.T}
    for k in masks:
        write(tmp_path / f"benign ({k}).png", images[k])
        write(tmp_path / f"benign ({k})_mask.png", masks[k])
    groups = collect(tmp_path, GRID).groups
    assert groups[0] == groups[1] == groups[2]
    assert len({groups[0], groups[3], groups[4]}) == 3


def test_digest_tells_any_change(tmp_path):
    write(tmp_path / "a.png", disk())
    write(tmp_path / "b.png", disk(at=(20, 20)))
    first = collect(tmp_path, GRID).digest
    assert collect(tmp_path, GRID).digest == first
    changed = disk()
    changed[30, 30] = False
    write(tmp_path / "a.png", changed)
    assert collect(tmp_path, GRID).digest != first


# modulus of a mask --------------------------------------------------------------------------------


def test_each_piece_has_its_own_modulus():
    mask = np.zeros(GRID.shape, bool)
    mask[5:12, 5:12] = mask[20:28, 18:30] = True
    x = from_mask(GRID, mask, seed=1)
    (background,) = np.unique(x[~mask])
    (a,), (b,) = np.unique(x[5:12, 5:12]), np.unique(x[20:28, 18:30])
    assert 10e3 <= background <= 15e3 and a != b
    assert 30e3 <= min(a, b) and max(a, b) <= 80e3


def test_soft_margins_rise_across_the_edge():
    mask = np.zeros(GRID.shape, bool)
    mask[8:25, 8:25] = True
    x = from_mask(GRID, mask, seed=1, edge=4.0)
    line = x[16, :17]
    assert (np.diff(line) >= 0).all()
    assert np.array_equal(line[:6], np.full(6, line[0])) and np.ptp(line[10:]) == 0
    # halfway between the outermost lesion node, 8, and its neighbour
    assert (line[7] + line[8]) / 2 == pytest.approx((line[0] + line[16]) / 2)


def test_from_mask_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(33, 33\), got bool of shape \(3, 3\)"):
        from_mask(GRID, np.ones((3, 3), bool))


def test_variation_is_of_the_background_alone():
    mask = np.zeros(GRID.shape, bool)
    mask[8:25, 8:25] = True
    stds = [np.std(x := from_mask(GRID, mask, seed=s, variation=0.1)[~mask]) / x.mean() for s in range(40)]
    assert 0.04 < np.mean(stds) < 0.12  # below .1 because the field is smooth within the window
    assert np.ptp(from_mask(GRID, mask, seed=0, variation=0.1)[mask]) == 0
