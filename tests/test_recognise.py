import numpy as np
import pytest
from scipy.io import savemat

from elastofast.io.recognise import propose
from elastofast.io.roles import role_of
from elastofast.measurement import load_measurement

SHAPE = (12, 9)
Z, X = np.meshgrid(np.arange(12) * 0.4, np.arange(9) * 0.5, indexing="ij")  # mm
AXIAL = -0.01 * Z + 1e-3 * Z**2 + 2e-4 * Z * X
LATERAL = 0.004 * X - 2e-4 * X**2


def proposal(path, *more):
    found = propose([path, *more])
    return found, found.sidecar.sections()


def as_measurement(path, found, **changes):
    """The measurement that a proposal reads, with what it leaves to be stated."""
    settings = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    return load_measurement(path, found.sidecar.changed(settings).sections(), displacement_std=1e-6)


def check(m):
    np.testing.assert_allclose(m.geometry.spacing, (4e-4, 5e-4), rtol=1e-6)
    np.testing.assert_allclose(m.displacement * 1e3, [AXIAL, LATERAL], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "kind", "axis"),
    [
        ("u", "displacement", "x"),
        ("v [mm]", "displacement", "y"),
        ("DISPLACEMENT_Y", "displacement", "y"),
        ("COORDINATE_X", "coordinate", "x"),
        ("Uz", "displacement", "z"),
        ("axialDisp", "displacement", "axial"),
        ("u_lateral", "displacement", "lateral"),
        ("disp.axial", "displacement", "axial"),
        ("depth", "coordinate", "axial"),
        ("Image Y [Pixel]", "coordinate", "y"),
        ("Horizontal Displacement U [mm]", "displacement", "x"),
        ("sigma_u", "std", "x"),
        ("corrCoef", "quality", ""),
        ("typevector_original{1}", "mask", ""),
        ("exx", "other", ""),
        ("temperature", "", ""),
    ],
)
def test_names_say_what_they_are(name, kind, axis):
    assert role_of(name)[:2] == (kind, axis)


# files that need nothing but the noise level ------------------------------------------------------


def dic(path, header="x [mm],y [mm],u [mm],v [mm]", factors=(1, 1, 1, 1), order=None):
    rows = np.column_stack([X.ravel(), Z.ravel(), LATERAL.ravel(), AXIAL.ravel()]) * factors
    order = np.random.default_rng(0).permutation(len(rows)) if order is None else order
    np.savetxt(path, rows[order], delimiter=",", header=header, comments="", fmt="%.9g")
    return path


def test_a_table_with_units_in_its_headings(tmp_path):
    found, sidecar = proposal(dic(tmp_path / "a.csv"))
    assert found.sidecar.unstated() == ["noise.std"] and not found.warnings
    assert sidecar["axial"]["displacement"] == "v [mm]" and sidecar["lateral"]["coordinate"] == "x [mm]"
    assert "images" in found.sidecar.reasons["axial.displacement"]
    check(as_measurement(tmp_path / "a.csv", found))


def test_a_table_without_headings_and_units(tmp_path):
    dic(tmp_path / "a.txt", header="")
    found, sidecar = proposal(tmp_path / "a.txt")
    assert sidecar["units"] == {"displacement": "mm", "coordinate": "mm", "pixel": []}
    assert "usual order" in found.sidecar.reasons["axial.displacement"]
    check(as_measurement(tmp_path / "a.txt", found))


def test_vectors_of_coordinates_and_names_of_ultrasound(tmp_path):
    savemat(
        tmp_path / "a.mat",
        {"z": Z[:, 0] * 1e-3, "x": X[0] * 1e-3, "uz": AXIAL * 1e-3, "ux": LATERAL * 1e-3, "corr": np.full(SHAPE, 0.9)},
    )
    found, sidecar = proposal(tmp_path / "a.mat")
    assert sidecar["units"]["coordinate"] == sidecar["units"]["displacement"] == "m"
    assert sidecar["noise"]["quality"] == "corr"
    check(as_measurement(tmp_path / "a.mat", found))


@pytest.mark.parametrize("transposed", [False, True])
def test_the_axis_of_depth_is_found_from_the_strain(tmp_path, transposed):
    fields = {"axial": AXIAL, "lateral": LATERAL}
    savemat(
        tmp_path / "a.mat", {"disp": {k: v.T if transposed else v for k, v in fields.items()}, "dz": 0.4, "dx": 0.5}
    )
    found, sidecar = proposal(tmp_path / "a.mat")
    assert sidecar["axial"]["array_axis"] == int(transposed)
    assert ("looks like a compression" in found.sidecar.reasons["axial.array_axis"]) == transposed
    check(as_measurement(tmp_path / "a.mat", found))


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("first", ["axial", "lateral"])
def test_components_without_names_are_told_by_the_strain(tmp_path, axis, first):
    fields = [AXIAL, LATERAL] if first == "axial" else [LATERAL, AXIAL]
    np.savez(tmp_path / "a.npz", disp=np.stack(fields, axis=axis), spacing=[0.4, 0.5])
    found, _ = proposal(tmp_path / "a.npz")
    assert "no name says which component is axial" in found.sidecar.reasons["axial.displacement"]
    check(as_measurement(tmp_path / "a.npz", found))


def test_two_files_and_a_mask(tmp_path):
    for name, field in (("uy", AXIAL), ("ux", LATERAL), ("mask", np.ones(SHAPE))):
        np.savetxt(tmp_path / f"p1_{name}.txt", field)
    found, sidecar = proposal(*(tmp_path / f"p1_{name}.txt" for name in ("uy", "ux", "mask")))
    assert sidecar["files"]["more"] == ["y -> x", "uy -> mask"]
    assert sidecar["region"]["mask"] == "3:data"
    assert set(found.sidecar.unstated()) == {
        *("axial.spacing", "lateral.spacing", "units.coordinate", "units.displacement", "noise.std")
    }
    units = {"units__coordinate": "mm", "units__displacement": "mm"}
    check(as_measurement(tmp_path / "p1_uy.txt", found, axial__spacing=0.4, lateral__spacing=0.5, **units))


def test_a_volume_of_vectors(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    volume = np.zeros((9, 12, 5, 1, 3), np.float32)
    volume[:, :, 2, 0, 0], volume[:, :, 2, 0, 1] = LATERAL.T, AXIAL.T
    image = nibabel.Nifti1Image(volume, np.diag([0.5, 0.4, 1, 1]))
    image.header.set_xyzt_units("mm")
    image.header.set_zooms((0.5, 0.4, 1, 1, 1))
    nibabel.save(image, tmp_path / "a.nii.gz")
    found, sidecar = proposal(tmp_path / "a.nii.gz")
    assert sidecar["axial"]["displacement"] == "data[:, :, 2, :, 1]"
    assert "two-dimensional: this is the middle slice" in found.sidecar.reasons["axial.displacement"]
    check(as_measurement(tmp_path / "a.nii.gz", found))


def test_cells_of_frames_with_filtered_fields(tmp_path):
    def cells(*frames):
        found = np.empty((len(frames), 1), object)
        for k, frame in enumerate(frames):
            found[k, 0] = frame
        return found

    pixel = 0.05
    savemat(
        tmp_path / "a.mat",
        {
            **{"x": cells(X / pixel, X / pixel), "y": cells(Z / pixel, Z / pixel)},
            **{"u_filtered": cells(LATERAL, LATERAL), "v_filtered": cells(AXIAL, AXIAL)},
            **{"u_original": cells(LATERAL / pixel, LATERAL), "v_original": cells(AXIAL / pixel, AXIAL)},
        },
    )
    found, sidecar = proposal(tmp_path / "a.mat")
    assert sidecar["axial"]["displacement"] == "v_original{1}" and sidecar["units"]["coordinate"] == "px"
    assert any("2 fields may be the displacement: v_original{1}" in text for text in found.warnings)
    assert found.sidecar.unstated() == ["units.pixel", "noise.std"]
    check(as_measurement(tmp_path / "a.mat", found, units__pixel=[5e-5]))


def test_rims_without_values_are_cut_off(tmp_path):
    holed = AXIAL.copy()
    holed[:2] = holed[:, -1] = holed[5, 5] = np.nan
    np.savez(tmp_path / "a.npz", axial=holed)
    found, sidecar = proposal(tmp_path / "a.npz")
    assert sidecar["region"]["rows"] == [2, 11] and sidecar["region"]["columns"] == [0, 7]
    assert "1.25% of the nodes inside are missing" in found.notes


# what is doubtful ---------------------------------------------------------------------------------


def test_a_turned_sign_is_guessed_and_warned_of(tmp_path):
    found, sidecar = proposal(dic(tmp_path / "a.csv", factors=(1, 1, 1, -1)))
    assert sidecar["axial"]["sign"] == -1 and any("axial.sign = -1 is a guess" in text for text in found.warnings)
    check(as_measurement(tmp_path / "a.csv", found))


def test_exchanged_coordinates_are_warned_of(tmp_path):
    found, _ = proposal(dic(tmp_path / "a.csv", header="y [mm],x [mm],u [mm],v [mm]"))
    assert any("changes mainly across its own directions" in text for text in found.warnings)


@pytest.mark.parametrize("unit", ["", " [m]"])
def test_a_displacement_in_pixels_on_metres_is_noticed(tmp_path, unit):
    header = f"x{unit},y{unit},u{unit},v{unit}"
    found, _ = proposal(dic(tmp_path / "a.csv", header=header, factors=(1e-3, 1e-3, 2.5, 2.5)))
    assert any("units.displacement: with a displacement in m and coordinates in m" in text for text in found.warnings)
    if unit:
        assert any("impossible: the file states a wrong unit" in text for text in found.warnings)
    else:
        assert "units.displacement" in found.sidecar.unstated()
        assert "in px of one node distance" in found.sidecar.reasons["units.displacement"]


def test_flags_are_a_guess(tmp_path):
    flags = np.zeros(SHAPE)
    flags[3, 3] = 4
    np.savez(tmp_path / "a.npz", axial=AXIAL, flags=flags)
    found, sidecar = proposal(tmp_path / "a.npz")
    assert sidecar["region"]["measured"] == [0.0]
    assert any("region.measured = [0] is a guess" in text for text in found.warnings)


def test_fields_that_no_name_tells_apart_are_left_to_be_stated(tmp_path):
    np.savez(tmp_path / "a.npz", first=AXIAL, second=AXIAL, third=LATERAL)
    found, _ = proposal(tmp_path / "a.npz")
    assert "axial.displacement" in found.sidecar.unstated()
    assert "3 arrays may be it: first, second, third" in found.sidecar.reasons["axial.displacement"]


def test_files_without_a_displacement_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Z)
    with pytest.raises(ValueError, match=r"a\.npz: no variable can be a displacement field; the arrays are: x, y"):
        propose([tmp_path / "a.npz"])


def test_irregular_coordinates_are_a_warning(tmp_path):
    factors = (1 + 0.1 * np.random.default_rng(0).normal(size=(108, 1))) * np.ones(4)
    found, _ = proposal(dic(tmp_path / "a.csv", factors=factors))
    assert any("not on a regular grid" in text for text in found.warnings)
