import gzip
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from elastofast.io import save_modulus
from elastofast.io.placement import regular_axis
from elastofast.io.sidecar import KEYS, Sidecar
from elastofast.laws import PlaneStrain
from elastofast.measurement import load_measurement

h5py = pytest.importorskip("h5py")

SHAPE, SPACING = (9, 7), (4e-4, 5e-4)
DEPTH, WIDTH = (np.arange(n) * h for n, h in zip(SHAPE, SPACING, strict=True))
Z, X = np.meshgrid(DEPTH, WIDTH, indexing="ij")
# a compression that no flip, turn or exchange leaves as it is
AXIAL = -0.01 * Z + 1.5 * Z**2 + 0.3 * Z * X
LATERAL = 0.005 * X - 0.8 * X**2 + 0.1 * Z * X
TRUE = np.stack([AXIAL, LATERAL])
STATED = {"law": {"kind": "plane_stress", "poisson": 0.495}, "load": {"kind": "open"}, "noise": {"std": 1e-3}}
TABLE = {
    **STATED,
    "axial": {"displacement": "v", "coordinate": "y"},
    "lateral": {"displacement": "u", "coordinate": "x"},
    "units": {"displacement": "mm", "coordinate": "mm"},
}
MATRIX = {
    **STATED,
    "axial": {"displacement": "uz", "spacing": 0.4},
    "lateral": {"displacement": "ux", "spacing": 0.5},
    "units": {"displacement": "mm", "coordinate": "mm"},
}


def merged(base, **changes):
    """A sidecar with changes, ``axial={"sign": -1}``."""
    return {name: {**base.get(name, {}), **changes.get(name, {})} for name in {**base, **changes}}


def table(path, rows, header="x,y,u,v"):
    np.savetxt(path, rows, delimiter=",", header=header, comments="", fmt="%.12g")
    return path


def rows(order=slice(None)):
    return np.column_stack([X.ravel(), Z.ravel(), LATERAL.ravel(), AXIAL.ravel()])[order] * 1e3


def check(m, missing=(), rtol=1e-9):
    assert m.geometry.shape == SHAPE
    np.testing.assert_allclose(m.geometry.spacing, SPACING, rtol=1e-9)
    measured = np.isfinite(m.displacement_std)
    expected = np.ones(TRUE.shape, bool)
    for node in missing:
        expected[:, *node] = False
    assert np.array_equal(measured, expected)
    np.testing.assert_allclose(m.displacement[measured], TRUE[measured], rtol=rtol, atol=1e-15)
    np.testing.assert_allclose(m.displacement_std[measured], 1e-6)


# tables -------------------------------------------------------------------------------------------


def test_a_table_in_any_order_with_gaps(tmp_path):
    order = np.random.default_rng(1).permutation(63)
    data = rows(order)
    data[3, 2:] = np.nan
    nan = np.unravel_index(order[3], SHAPE)
    gone = np.unravel_index(order[50], SHAPE)
    check(load_measurement(table(tmp_path / "a.csv", np.delete(data, 50, 0)), TABLE), [nan, gone])


def test_depth_may_grow_upwards_and_signs_may_be_turned(tmp_path):
    data = rows() * [1, -1, 1, -1] + [0, 7, 0, 0]  # depth and its displacement along an axis that points up
    check(load_measurement(table(tmp_path / "a.csv", data), merged(TABLE, axial={"grows": "up"})))
    data = rows() * [1, 1, -1, -1]
    sidecar = merged(TABLE, axial={"sign": -1}, lateral={"sign": -1})
    check(load_measurement(table(tmp_path / "b.csv", data), sidecar))


def test_units_of_pixels_microns_and_metres(tmp_path):
    pixel = [2e-5, 5e-5]
    data = rows() * 1e-3 / [pixel[1], pixel[0], pixel[1], pixel[0]]
    units = {"displacement": "px", "coordinate": "px", "pixel": pixel}
    m = load_measurement(table(tmp_path / "a.csv", data), merged(TABLE, units=units), displacement_std=1e-6)
    check(m)
    data = rows() * [1, 1, 1e3, 1e3]
    sidecar = merged(TABLE, units={"displacement": "um"}, noise={"std": 1.0})
    check(load_measurement(table(tmp_path / "b.csv", data), sidecar))
    with pytest.raises(ValueError, match=r"units.pixel must be the size of a pixel in metres"):
        load_measurement(tmp_path / "b.csv", merged(TABLE, units={"displacement": "px"}))


def test_coordinates_that_are_rounded_are_put_on_their_axis():
    h = 1 / 3
    values = np.round(np.arange(200) * h + 5, 2)
    axis = regular_axis(np.tile(np.delete(values, [3, 70, 71]), 4), "axial.coordinate")
    assert axis.nodes == 200 and axis.spacing == pytest.approx(h, rel=1e-4)
    assert np.array_equal(np.unique(axis.number), np.delete(np.arange(200), [3, 70, 71]))
    assert regular_axis(np.array([0.0, 2, 4, 6, 7, 9, 11]), "x").nodes == 12  # most nodes are missing
    jitter = np.tile(np.arange(50) * 0.2, 40) + np.random.default_rng(0).normal(size=2000) * 1e-5
    assert regular_axis(jitter, "x").nodes == 50
    with pytest.raises(ValueError, match=r"lateral.coordinate: the values are not on a regular grid"):
        regular_axis(np.cumsum(np.random.default_rng(0).uniform(1, 3, 50)), "lateral.coordinate")
    with pytest.raises(ValueError, match="x: all values are equal"):
        regular_axis(np.ones(5), "x")


def test_points_without_a_grid_are_refused(tmp_path):
    points = np.round(np.random.default_rng(0).uniform(0, 9, (200, 4)), 3)  # multiples of .001
    with pytest.raises(
        ValueError, match=r"only .*% of the .* nodes of a regular grid .* have values: they are not on a"
    ):
        load_measurement(table(tmp_path / "a.csv", points), TABLE)


def test_two_values_at_one_node_are_refused(tmp_path):
    data = np.vstack([rows(), rows()[:2]])
    with pytest.raises(ValueError, match=r"2 nodes have several values .*several frames"):
        load_measurement(table(tmp_path / "a.csv", data), TABLE)


# matrices of other programs -----------------------------------------------------------------------


def write_matrices(path, axial, lateral):
    fields = {"uz": axial, "ux": lateral}
    if path.suffix == ".mat":
        savemat(path, fields)
    elif path.suffix == ".npz":
        np.savez(path, **fields)
    else:
        with h5py.File(path, "w") as file:
            file.update(fields)
    return path


@pytest.mark.parametrize("suffix", [".mat", ".npz", ".h5"])
def test_one_matrix_for_each_component(tmp_path, suffix):
    path = write_matrices(tmp_path / f"a{suffix}", AXIAL * 1e3, LATERAL * 1e3)
    check(load_measurement(path, MATRIX))
    path = write_matrices(tmp_path / f"b{suffix}", AXIAL.T * 1e3, LATERAL.T * 1e3)
    check(load_measurement(path, merged(MATRIX, axial={"array_axis": 1})))
    path = write_matrices(tmp_path / f"c{suffix}", -AXIAL[::-1] * 1e3, LATERAL[::-1] * 1e3)
    check(load_measurement(path, merged(MATRIX, axial={"grows": "up"})))


def test_matlab_73_arrays_are_not_transposed(tmp_path):
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        cells = file.create_dataset("uz", (1, 2), dtype=h5py.ref_dtype)
        cells.attrs["MATLAB_class"] = np.bytes_("cell")
        for k in range(2):
            data = file.create_dataset(f"#refs#/{k}", data=AXIAL.T * 1e3 * (k + 1))
            data.attrs["MATLAB_class"] = np.bytes_("double")
            cells[0, k] = data.ref
        data = file.create_dataset("scan/ux", data=LATERAL.T * 1e3)
        data.attrs["MATLAB_class"] = np.bytes_("double")
    sidecar = merged(MATRIX, axial={"displacement": "uz{1}"}, lateral={"displacement": "scan.ux"})
    check(load_measurement(tmp_path / "a.mat", sidecar))


def test_coordinates_of_rows_and_columns_may_decrease(tmp_path):
    savemat(
        tmp_path / "a.mat",
        {"scan": {"uz": AXIAL[::-1] * 1e3, "ux": LATERAL[::-1] * 1e3, "z": DEPTH[::-1] * 1e3, "x": WIDTH * 1e3}},
    )
    axial = {"displacement": "scan.uz", "coordinate": "scan.z", "spacing": 0.0}
    lateral = {"displacement": "scan.ux", "coordinate": "scan.x", "spacing": 0.0}
    check(load_measurement(tmp_path / "a.mat", merged(MATRIX, axial=axial, lateral=lateral)))
    with pytest.raises(ValueError, match=r"axial.coordinate has 7 values, but the displacement has 9 along axis 0"):
        axial["coordinate"] = "scan.x"
        load_measurement(tmp_path / "a.mat", merged(MATRIX, axial=axial, lateral=lateral))


def test_components_frames_and_slices_are_selected_by_index(tmp_path):
    np.savez(tmp_path / "a.npz", u=np.stack([np.zeros_like(TRUE), TRUE * 1e3], axis=-1))
    sidecar = merged(MATRIX, axial={"displacement": "u[0, :, :, 1]"}, lateral={"displacement": "u[1, ..., -1]"})
    check(load_measurement(tmp_path / "a.npz", sidecar))
    with pytest.raises(ValueError, match=r"axial.displacement: 'u' has the shape \(2, 9, 7, 2\); .*two-dimensional"):
        load_measurement(tmp_path / "a.npz", merged(sidecar, axial={"displacement": "u"}))
    with pytest.raises(ValueError, match=r"'u\[0, :, :, 5\]' does not fit the shape \(2, 9, 7, 2\)"):
        load_measurement(tmp_path / "a.npz", merged(sidecar, axial={"displacement": "u[0, :, :, 5]"}))


def test_components_in_two_files(tmp_path):
    for name, field in (("uz", AXIAL), ("ux", LATERAL)):
        np.savetxt(tmp_path / f"p1_{name}.txt", field * 1e3)
    sidecar = merged(
        MATRIX, axial={"displacement": "data"}, lateral={"displacement": "2:data"}, files={"more": ["_uz -> _ux"]}
    )
    check(load_measurement(tmp_path / "p1_uz.txt", sidecar))
    (tmp_path / "p1_ux.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"p1_ux.txt"):
        load_measurement(tmp_path / "p1_uz.txt", sidecar)
    with pytest.raises(ValueError, match=r"files.more: '_a -> _b' does not fit"):
        load_measurement(tmp_path / "p1_uz.txt", merged(sidecar, files={"more": ["_a -> _b"]}))


def test_nifti_volumes_are_read_slice_by_slice(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    volume = np.zeros((7, 9, 3, 1, 2), np.float32)
    volume[:, :, 1, 0] = np.moveaxis(TRUE[::-1], 0, -1).swapaxes(0, 1) * 1e3
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    axial = {"displacement": "data[:, :, 1, 0, 1]", "array_axis": 1}
    sidecar = merged(MATRIX, axial=axial, lateral={"displacement": "data[:, :, 1, 0, 0]"})
    check(load_measurement(tmp_path / "a.nii.gz", sidecar), rtol=1e-6)
    data = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    (tmp_path / "b.nii").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"b\.nii: cannot be read as a NIfTI file"):
        load_measurement(tmp_path / "b.nii", sidecar)


# what was measured, and how well ------------------------------------------------------------------


def test_masks_and_qualities_say_what_was_measured(tmp_path):
    image = pytest.importorskip("PIL.Image")
    mask = np.full(SHAPE, 255, np.uint8)
    mask[2, 3] = 0
    image.fromarray(mask).save(tmp_path / "roi.png")
    image.fromarray((AXIAL * 1e3).astype(np.float32)).save(tmp_path / "uz.tif")
    quality = np.ones(SHAPE)
    quality[5, 1] = 0.3
    np.savetxt(tmp_path / "quality.csv", quality, delimiter=",")
    sidecar = merged(
        MATRIX,
        axial={"displacement": "data"},
        lateral={"displacement": ""},
        files={"more": ["roi.png", "quality.csv"]},
        region={"mask": "2:data"},
        noise={"quality": "3:data", "threshold": 0.5},
    )
    m = load_measurement(tmp_path / "uz.tif", sidecar)
    assert np.isinf(m.displacement_std[1]).all()
    measured = np.isfinite(m.displacement_std[0])
    assert not measured[2, 3] and not measured[5, 1] and measured.sum() == 61
    np.testing.assert_allclose(m.displacement[0][measured], AXIAL[measured], rtol=1e-6, atol=1e-12)
    m = load_measurement(tmp_path / "uz.tif", merged(sidecar, region={"measured": [0, 255]}))
    assert np.isfinite(m.displacement_std[0]).sum() == 62
    with pytest.raises(ValueError, match=r"region.mask: nothing is measured; .*\[0.0, 255.0\]"):
        load_measurement(tmp_path / "uz.tif", merged(sidecar, region={"measured": [7]}))
    with pytest.raises(ValueError, match=r"noise.threshold: the quality is nowhere 2 or more"):
        load_measurement(tmp_path / "uz.tif", merged(sidecar, noise={"threshold": 2}))


def test_the_noise_level_may_be_a_variable_or_follow_the_correlation(tmp_path):
    r = np.linspace(0.5, 0.99, 63).reshape(SHAPE)
    sigma = np.full(SHAPE, 2e-3)
    sigma[0, 0] = 0  # no standard deviation: not measured
    savemat(tmp_path / "a.mat", {"uz": AXIAL * 1e3, "ux": LATERAL * 1e3, "sigma": sigma, "r": r})
    m = load_measurement(tmp_path / "a.mat", merged(MATRIX, noise={"variable": "sigma", "std": 0.0}))
    assert np.isinf(m.displacement_std[:, 0, 0]).all() and np.allclose(m.displacement_std[:, 1:], 2e-6)
    m = load_measurement(tmp_path / "a.mat", merged(MATRIX, noise={"quality": "r", "scale": "correlation"}))
    jitter = np.sqrt(1 / r**2 - 1)
    np.testing.assert_allclose(m.displacement_std[0], 1e-6 * jitter / np.median(jitter))
    m = load_measurement(tmp_path / "a.mat", merged(MATRIX, noise={"lateral_std": 4e-3}))
    assert np.allclose(m.displacement_std[0], 1e-6) and np.allclose(m.displacement_std[1], 4e-6)


def test_rows_and_columns_are_cut_out(tmp_path):
    path = write_matrices(tmp_path / "a.npz", AXIAL * 1e3, LATERAL * 1e3)
    m = load_measurement(path, merged(MATRIX, region={"rows": [1, 6], "columns": [2, 6]}))
    np.testing.assert_allclose(m.displacement, TRUE[:, 1:7, 2:])
    with pytest.raises(ValueError, match=r"region.rows must be the first and the last of 9"):
        load_measurement(path, merged(MATRIX, region={"rows": [0, 9]}))


@pytest.mark.filterwarnings("ignore:displacement was measured on .* fixed dofs")
def test_loads(tmp_path):
    path = write_matrices(tmp_path / "a.npz", AXIAL * 1e3, LATERAL * 1e3)
    load = load_measurement(path, MATRIX).load
    assert load.open.sum() == 2 * (2 * 9 + 2 * 5) and not load.fixed.any()
    load = load_measurement(path, merged(MATRIX, load={"edges": ["top", "bottom"], "force": 3.0})).load
    assert load.open.sum() == 2 * 2 * 7 and load.total_force[:2] == (0, 3.0) and load.total_force.nodes[0].all()
    load = load_measurement(path, merged(MATRIX, load={"kind": "pressure", "value": 100.0})).load
    assert load.force[0].sum() == pytest.approx(100 * 6 * SPACING[1])
    load = load_measurement(path, merged(MATRIX, load={"kind": "strain", "value": 0.01, "force": 2.0})).load
    assert np.allclose(load.displacement[0, 0], 0.01 * 8 * SPACING[0]) and load.total_force.value == 2.0
    with pytest.raises(ValueError, match=r"load.force acts on the top"):
        load_measurement(path, merged(MATRIX, load={"edges": ["bottom"], "force": 3.0}))


def test_arguments_replace_what_the_sidecar_says(tmp_path):
    path = write_matrices(tmp_path / "a.npz", AXIAL * 1e3, LATERAL * 1e3)
    sidecar = {name: MATRIX[name] for name in ("axial", "lateral", "units", "load")}
    m = load_measurement(path, sidecar, displacement_std=1e-6, law=PlaneStrain(0.4))
    check(m)
    assert m.law == PlaneStrain(0.4)
    with pytest.raises(ValueError, match="geometry and sidecar cannot be given together"):
        load_measurement(path, sidecar, geometry=m.geometry)


# wrong units and axes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"displacement": "m"}, r"mean strain is 475.*%.*'m' and units.coordinate 'mm'"),
        ({"coordinate": "um"}, "mean strain is"),
        ({"displacement": "nm", "coordinate": "m"}, "mean strain is only .*far less than anything measures"),
    ],
)
def test_impossible_strains_name_the_units(tmp_path, units, message):
    path = write_matrices(tmp_path / "a.npz", AXIAL * 1e3, LATERAL * 1e3)
    with pytest.raises(ValueError, match=rf"units.displacement: the {message}"):
        load_measurement(path, merged(MATRIX, units=units))


def test_doubtful_fields_are_warned_of(tmp_path):
    path = write_matrices(tmp_path / "a.npz", AXIAL * 1e3, LATERAL * 1e3)
    with pytest.warns(UserWarning, match=r"units.coordinate 'm', so that the field is 3600 mm high"):
        load_measurement(path, merged(MATRIX, units={"displacement": "m", "coordinate": "m"}, noise={"std": 1e-3}))
    with pytest.warns(UserWarning, match="axial and lateral may be mixed up"):
        swapped = merged(MATRIX, axial={"displacement": "ux"}, lateral={"displacement": "uz"})
        load_measurement(path, swapped)
    with pytest.raises(ValueError, match=r"noise.std: the noise of 0.001 m is larger than all differences"):
        load_measurement(path, merged(MATRIX, noise={"std": 1.0}))


# the sidecar itself -------------------------------------------------------------------------------


def test_a_sidecar_is_written_and_read_as_it_was(tmp_path):
    sidecar = Sidecar.of(TABLE).changed(["axial.displacement=v [mm]", "region.rows=[1, 5]", "noise.std=.5"])
    assert (
        sidecar["axial.displacement"] == "v [mm]" and sidecar["region.rows"] == [1, 5] and sidecar["noise.std"] == 0.5
    )
    (tmp_path / "a.toml").write_text(sidecar.text(["A heading."]), encoding="utf-8-sig")  # as some editors save
    again = Sidecar.read(tmp_path / "a.toml")
    assert again.values == sidecar.values and set(again.values) == set(KEYS)
    assert Sidecar.of(sidecar.sections()).values == sidecar.values


def test_every_key_is_documented():
    text = (Path(__file__).parents[1] / "docs" / "files.md").read_text()
    for name in KEYS:
        assert f"`{name}`" in text, name


def test_what_is_not_stated_is_named(tmp_path):
    path = write_matrices(tmp_path / "a.npz", AXIAL * 1e3, LATERAL * 1e3)
    (tmp_path / "a.toml").write_text(Sidecar.of({}).text())
    with pytest.raises(ValueError, match=r"a.toml does not state axial.displacement .*noise.std \(standard deviation"):
        load_measurement(path, tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[axial", "not a TOML file"),
        ("[axial]\nsing = 1", "unknown key 'axial.sing'; did you mean axial.sign?"),
        ("[axial]\nsign = 2", "axial.sign must be one of 1, -1, got 2"),
        ("[units]\ndisplacement = 'inch'", "units.displacement must be one of m, cm, mm"),
        ("[noise]\nstd = 'small'", "noise.std must be a number or \"estimate\", got 'small'"),
        ("[region]\nrows = [0.5, 2]", "region.rows must be a list of numbers"),
        ("[load]\nedges = ['front']", "load.edges must be a list of top, bottom"),
        ("axial = 3", r"\[axial\] must be a section"),
        ("[axial]\narray_axis = true", "axial.array_axis must be a whole number"),
    ],
)
def test_mistakes_in_a_sidecar_are_named(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ValueError, match=rf"a.toml: {message}"):
        Sidecar.read(tmp_path / "a.toml")


def test_a_variable_that_is_not_there_is_named_with_those_that_are(tmp_path):
    path = table(tmp_path / "a.csv", rows())
    with pytest.raises(ValueError, match=r"a.csv: axial.displacement: no variable 'w'; there are x, y, u, v"):
        load_measurement(path, merged(TABLE, axial={"displacement": "w"}))


def test_a_file_without_a_sidecar_is_pointed_to_inspect(tmp_path):
    path = table(tmp_path / "a.csv", rows())
    with pytest.raises(ValueError, match=r"holds the variables u, v, x, y.*elastofast inspect a.csv -o a.toml"):
        load_measurement(path)


def test_a_map_serves_as_the_sidecar_it_was_made_with(tmp_path):
    path = table(tmp_path / "a.csv", rows())
    m = load_measurement(path, TABLE)
    config = {"sidecar": Sidecar.of(TABLE).sections()}
    save_modulus(tmp_path / "map.h5", np.ones(SHAPE), m.geometry, config=config)
    check(load_measurement(path, tmp_path / "map.h5"))
    save_modulus(tmp_path / "plain.h5", np.ones(SHAPE), m.geometry)
    with pytest.raises(ValueError, match=r"plain.h5: a sidecar is a .toml file, or a modulus file that was"):
        load_measurement(path, tmp_path / "plain.h5")
