import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from elastofast.boundary import Boundary, compression
from elastofast.geometry import Grid, Mesh
from elastofast.io import load_modulus, save_modulus
from elastofast.io.layout import FIELDS
from elastofast.laws import PlaneStrain, PlaneStress
from elastofast.measurement import Measurement, load_measurement

h5py = pytest.importorskip("h5py")

RNG = np.random.default_rng(0)
GRID = Grid((6, 5), (1e-3, 2e-3))
MESH = Mesh([[0, 0], [10e-3, 0], [20e-3, 0], [0, 9e-3], [20e-3, 9e-3]], [[0, 1, 3], [1, 4, 3], [1, 2, 4]])
FORMATS = [".h5", ".hdf5", ".npz", ".mat"]


def on_grid():
    """Everything a file can hold: fixed and open dofs, a total force, holes, force noise, a reference."""
    load = compression(GRID, strain=0.01, total_force=3.0)
    open_ = np.zeros(load.fixed.shape, bool)
    open_[1, 2:4, 0] = True
    load = Boundary(fixed=load.fixed, displacement=load.displacement, open=open_, total_force=load.total_force)
    std = RNG.uniform(1e-8, 1e-7, load.fixed.shape)
    std[0, 3, 3] = np.inf
    return Measurement(
        GRID,
        PlaneStrain(0.49),
        load,
        np.where(load.fixed, load.displacement, RNG.normal(size=std.shape) * 1e-5),
        std,
        force_std=RNG.uniform(0, 1, std.shape),
        reference=RNG.uniform(1e3, 1e4, GRID.shape),
        displacement_correlation=(2e-3, 0.0),
    )


def on_mesh():
    return Measurement(
        MESH, PlaneStress(-0.2), compression(MESH, pressure=100.0), 1e-5 * RNG.normal(size=(2, 5)), [1e-5, 2e-5]
    )


def same(one, other):
    assert type(one.law) is type(other.law) and one.law.poisson == other.law.poisson
    if isinstance(one.geometry, Grid):
        assert one.geometry == other.geometry
    else:
        assert np.array_equal(one.geometry.points, other.geometry.points)
        assert np.array_equal(one.geometry.cells, other.geometry.cells)
    for name in ("fixed", "open", "force", "displacement"):
        assert np.array_equal(getattr(one.load, name), getattr(other.load, name))
    assert (one.load.total_force is None) == (other.load.total_force is None)
    if one.load.total_force is not None:
        assert one.load.total_force[:2] == other.load.total_force[:2]
        assert np.array_equal(one.load.total_force[2], other.load.total_force[2])
    for name in ("displacement", "displacement_std", "force_std"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert (one.displacement_correlation is None) == (other.displacement_correlation is None)
    if one.displacement_correlation is not None:
        assert all(map(np.array_equal, one.displacement_correlation, other.displacement_correlation))
    assert (one.reference is None) == (other.reference is None)
    assert one.reference is None or np.array_equal(one.reference, other.reference)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("make", [on_grid, on_mesh])
def test_a_measurement_comes_back_as_it_was(tmp_path, suffix, make):
    m = make()
    m.save(tmp_path / f"scan{suffix}")
    same(m, load_measurement(tmp_path / f"scan{suffix}"))
    assert [p.name for p in tmp_path.iterdir()] == [f"scan{suffix}"]


def test_the_content_decides_not_the_suffix(tmp_path):
    m = on_grid()
    m.save(tmp_path / "scan.npz")
    (tmp_path / "scan.npz").rename(tmp_path / "scan.dat")
    same(m, load_measurement(tmp_path / "scan.dat"))


def test_hdf5_states_units(tmp_path):
    on_grid().save(tmp_path / "scan.h5")
    with h5py.File(tmp_path / "scan.h5") as file:
        assert file.attrs["format"] == "elastofast measurement" and file.attrs["version"] == 1
        units = {name: data.attrs["units"] for name, data in file.items()}
    assert units["displacement"] == units["grid_spacing"] == "m"
    assert units["force"] == "N" and units["reference"] == "Pa" and units["fixed"] == "1"


def test_every_field_is_documented():
    text = (Path(__file__).parents[1] / "docs" / "files.md").read_text()
    for name, (unit, _) in FIELDS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"| {unit} |" in row or not unit


def as_matlab_73(source, target):
    """What MATLAB's save -v7.3 makes of a v5 file: a 512-byte header, columns first, text as numbers."""
    with h5py.File(target, "w", userblock_size=512) as file:
        for name, value in loadmat(source).items():
            if name.startswith("__"):
                continue
            if value.dtype.kind == "U":
                data = file.create_dataset(name, data=np.array([[ord(c)] for c in str(value[0])], np.uint16))
                kind = "char"
            else:
                data = file.create_dataset(name, data=value.T)
                kind = "logical" if value.dtype == np.uint8 else value.dtype.name
            data.attrs["MATLAB_class"] = np.bytes_(kind)
        file.create_group("#refs#")
    with open(target, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


@pytest.mark.parametrize("make", [on_grid, on_mesh])
def test_a_measurement_in_matlab_73_comes_back_as_it_was(tmp_path, make):
    m = make()
    m.save(tmp_path / "v5.mat")
    as_matlab_73(tmp_path / "v5.mat", tmp_path / "v73.mat")
    same(m, load_measurement(tmp_path / "v73.mat"))


def test_arguments_override_what_the_file_says(tmp_path):
    on_grid().save(tmp_path / "scan.h5")
    m = load_measurement(tmp_path / "scan.h5", displacement_std=3e-7, law=PlaneStress(0.3), reference=None)
    assert (m.displacement_std == 3e-7).all() and m.law == PlaneStress(0.3) and m.reference is None
    load = compression(GRID, pressure=2.0)
    assert load_measurement(tmp_path / "scan.h5", load=load).load is load
    with pytest.raises(TypeError, match="no argument 'std', expected one of geometry, law"):
        load_measurement(tmp_path / "scan.h5", std=1)


# the layout of the comp-elast data ---------------------------------------------------------------

POINTS = np.array([[x, y] for y in (0.0, 10e-3, 20e-3) for x in (0.0, 15e-3, 30e-3)])
CELLS = np.array([[a, a + 1, a + 4] for a in (0, 1, 3, 4)] + [[a, a + 4, a + 3] for a in (0, 1, 3, 4)], np.int32)


def comp_elast():
    u = RNG.normal(size=(9, 2)) * 1e-5
    u[:3, 1] = u[1, 0] = 0
    f = np.zeros((9, 2))
    f[6:, 1] = (-0.1, -0.2, -0.1)
    f[0, 1] = 0.4  # a reaction
    return (
        {
            "vertices": POINTS,
            "triangles": CELLS,
            "E": np.full((1, 9), 1e4),
            "uxy": u.reshape(1, -1),
            "fxy": f.reshape(1, -1),
            "GK": np.eye(18),
        },
        u,
        f,
    )


def check_comp_elast(m, u, f):
    assert np.array_equal(m.displacement, u.T)
    assert (m.displacement_std == 1e-9).all()
    assert m.load.fixed[1].tolist() == [True] * 3 + [False] * 6
    assert np.flatnonzero(m.load.fixed[0]).tolist() == [1]
    assert np.array_equal(m.load.force[1, 6:], f[6:, 1]) and m.load.force[1, 0] == 0
    assert m.law == PlaneStrain(0.495)
    assert (m.reference == 1e4).all()
    assert np.array_equal(m.geometry.points, POINTS)


def test_comp_elast_v5_file_is_read_in_our_layout(tmp_path):
    data, u, f = comp_elast()
    savemat(tmp_path / "d.mat", data)
    check_comp_elast(load_measurement(tmp_path / "d.mat", displacement_std=1e-9), u, f)
    assert load_measurement(tmp_path / "d.mat", displacement_std=1, law=PlaneStress(0.3)).law.name == "plane_stress"


def test_comp_elast_v73_file_is_read_in_our_layout(tmp_path):
    data, u, f = comp_elast()
    savemat(tmp_path / "d.mat", data)
    as_matlab_73(tmp_path / "d.mat", tmp_path / "d73.mat")
    check_comp_elast(load_measurement(tmp_path / "d73.mat", displacement_std=1e-9), u, f)


def test_comp_elast_states_no_noise_level(tmp_path):
    savemat(tmp_path / "d.mat", comp_elast()[0])
    assert not load_measurement(tmp_path / "d.mat").noise_known
    assert load_measurement(tmp_path / "d.mat", displacement_std=1e-8).noise_known


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uxy": np.ones((1, 17))}, "uxy must hold 18 values, x and y for each of 9 nodes, got 17"),
        ({"triangles": CELLS + 1}, "numbering starts at zero"),
        ({"triangles": CELLS + 0.5}, "triangles must hold whole numbers"),
        ({"vertices": np.ones((9, 4))}, "vertices must have 2 columns"),
        ({"E": np.ones((1, 4))}, r"E must have shape \(9,\), got"),
        ({"uxy": None}, "lacks 'uxy'"),
    ],
)
def test_comp_elast_variables_that_do_not_fit_are_named(tmp_path, change, message):
    data = {k: v for k, v in (comp_elast()[0] | change).items() if v is not None}
    savemat(tmp_path / "d.mat", data)
    with pytest.raises(ValueError, match=f"d.mat: .*{message}"):
        load_measurement(tmp_path / "d.mat", displacement_std=1e-9)


DATA3 = Path(__file__).parents[2] / "shared" / "data" / "comp-elast-Data3.zip"


@pytest.mark.skipif(not DATA3.exists(), reason="the published comp-elast Data3.zip is not at hand")
def test_the_published_file_is_read_with_its_load_and_moduli(tmp_path):
    zipfile.ZipFile(DATA3).extract("Data3.mat", tmp_path)
    m = load_measurement(tmp_path / "Data3.mat", displacement_std=1e-10)
    assert m.geometry.n_nodes == 742 and len(m.geometry.cells) == 1410
    assert m.load.force.sum() == pytest.approx(-0.3)
    assert (m.geometry.points[m.load.fixed[1], 1] == 0).all()
    assert m.geometry.points[m.load.fixed[0]].tolist() == [[0.015, 0.0]]
    assert set(np.unique(m.reference)) == {10e3, 50e3}
    assert m.displacement[1].min() == pytest.approx(-2.25699e-5)


# bad files ----------------------------------------------------------------------------------------


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.h5"):
        load_measurement(tmp_path / "nowhere.h5")
    with pytest.raises(OSError, match=str(tmp_path)):
        load_measurement(tmp_path)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9, 0.99])
def test_truncated_files_are_refused_by_name(tmp_path, suffix, part):
    path = tmp_path / f"scan{suffix}"
    on_grid().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ValueError, match=f"scan{suffix}: .*(damaged or cut short|lacks|holds)"):
        load_measurement(path)


@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_damaged_files_are_refused_by_name(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    on_grid().save(path)
    data = bytearray(path.read_bytes())
    for at in range(600, len(data) - 100, 37):
        data[at] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"scan{suffix}: "):
        load_measurement(path)


def test_empty_and_foreign_files_are_told_apart(tmp_path):
    path = tmp_path / "scan.h5"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"scan\.h5: the file is empty"):
        load_measurement(path)
    path.write_bytes(b"%PDF-1.7 something else entirely")
    with pytest.raises(ValueError, match=r"not a file elastofast can read: expected HDF5 .*starts with b'%PDF-1.7'"):
        load_measurement(path)
    (tmp_path / "scan.mat").write_bytes(b"%PDF-1.7 something else entirely")
    with pytest.raises(ValueError, match=r"scan.mat: cannot be read as a MATLAB v5 file"):
        load_measurement(tmp_path / "scan.mat")


@pytest.mark.parametrize("suffix", [".h5", ".npz", ".mat"])
def test_files_of_someone_else_are_refused_with_what_they_hold(tmp_path, suffix):
    path = tmp_path / f"other{suffix}"
    data = {"temperature": np.ones(3), "pressure": np.ones(2)}
    if suffix == ".h5":
        with h5py.File(path, "w") as file:
            file.update(data)
    elif suffix == ".npz":
        np.savez(path, **data)
    else:
        savemat(path, data)
    with pytest.raises(ValueError, match=r"expected a 'elastofast measurement' file.*holds the variables pressure, t"):
        load_measurement(path)


def rewrite(path, **changes):
    with np.load(path) as file:
        fields = {name: file[name] for name in file.files} | changes
    np.savez(path, **{name: value for name, value in fields.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"displacement": None}, "lacks 'displacement'"),
        ({"law": None}, "lacks 'law'"),
        ({"law": "rubber"}, "law must be one of plane_stress, plane_strain, solid, got 'rubber'"),
        ({"poisson": np.ones(2)}, "poisson must be one number, got array"),
        ({"law": np.ones(2)}, "law must be one of"),
        ({"poisson": 0.5}, r"poisson must lie in \(-1, 0.5\)"),
        ({"geometry": "sphere"}, "geometry must be 'grid' or 'mesh', got 'sphere'"),
        ({"grid_spacing": np.zeros(2)}, "spacing must be positive"),
        ({"version": 99}, "layout version 99, this elastofast reads up to 1"),
        ({"force": np.ones((2, 3, 3))}, r"force must have shape \(2, 6, 5\), got \(2, 3, 3\)"),
        ({"displacement": np.full((2, 6, 5), np.nan)}, "displacement must be finite"),
        ({"force": np.ones((2, 6, 5))}, "force must be zero on fixed dofs"),
    ],
)
def test_fields_that_do_not_fit_are_named(tmp_path, changes, message):
    on_grid().save(tmp_path / "scan.npz")
    rewrite(tmp_path / "scan.npz", **changes)
    with pytest.raises(ValueError, match=f"scan.npz: .*{message}"):
        load_measurement(tmp_path / "scan.npz")


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path(tmp_path / "sprung").touch, ())

    trap = np.empty(1, dtype=object)
    trap[0] = Trap()
    on_grid().save(tmp_path / "scan.npz")
    rewrite(tmp_path / "scan.npz", displacement=trap)
    with pytest.raises(ValueError, match=r"scan\.npz: cannot be read"):
        load_measurement(tmp_path / "scan.npz")
    assert not (tmp_path / "sprung").exists()


# writing ------------------------------------------------------------------------------------------


def test_an_unknown_suffix_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in one of \.h5, \.hdf5, \.npz, \.mat, got .*scan.csv"):
        on_grid().save(tmp_path / "scan.csv")
    with pytest.raises(ValueError, match=r"\.mat, \.vtu, got"):
        save_modulus(tmp_path / "x.csv", np.ones(GRID.shape), GRID)
    assert not any(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot write.*scan.h5"):
        on_grid().save(tmp_path / "no" / "scan.h5")


FULL = """
import resource, signal, sys
import numpy as np
from elastofast.geometry import Grid
from elastofast.io import save_modulus
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
grid = Grid((200, 200), (1.0, 1.0))
try:
    save_modulus(sys.argv[1], np.random.default_rng(0).uniform(1, 2, grid.shape), grid)
except OSError as error:
    print(error)
    sys.exit(3)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("suffix", [".h5", ".npz", ".mat", ".vtu"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, suffix):
    """The operating system refuses to write more than 20 kB, as a full disk would."""
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"old")
    run = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True)
    assert run.returncode == 3, run.stderr
    assert "cannot write" in run.stdout and str(path) in run.stdout
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_no_space_left_names_the_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write: No space left on device: .*scan.npz"):
        on_grid().save(tmp_path / "scan.npz")
    assert not any(tmp_path.iterdir())


# modulus maps -------------------------------------------------------------------------------------


def result(geometry):
    shape = geometry.node_shape
    return SimpleNamespace(
        modulus=RNG.uniform(1e3, 1e4, shape),
        displacement=RNG.normal(size=(geometry.dim, *shape)),
        chi2=0.97,
        weight=12.5,
        status="converged",
        message="all is well",
        relative=False,
    )


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("geometry", [GRID, MESH], ids=["grid", "mesh"])
def test_a_result_comes_back_as_it_was(tmp_path, suffix, geometry):
    r = result(geometry)
    config = {"prior": "tv", "bounds": [1e3, 1e5], "file": "a--b.h5"}
    save_modulus(tmp_path / f"x{suffix}", r, geometry, config=config)
    modulus, where, info = load_modulus(tmp_path / f"x{suffix}")
    assert np.array_equal(modulus, r.modulus)
    assert np.array_equal(where.points, geometry.points)
    assert np.array_equal(info["displacement"], r.displacement)
    assert info["chi2"] == 0.97 and info["weight"] == 12.5 and info["relative"] is False
    assert info["status"] == "converged" and info["message"] == "all is well" and info["config"] == config


@pytest.mark.parametrize("geometry", [GRID, MESH], ids=["grid", "mesh"])
def test_vtu_is_what_meshio_reads(tmp_path, geometry):
    meshio = pytest.importorskip("meshio")
    r = result(geometry)
    save_modulus(tmp_path / "x.vtu", r, geometry, config={"file": "a--b.h5"})
    mesh = meshio.read(tmp_path / "x.vtu")
    assert np.array_equal(mesh.points[:, :2], geometry.points)
    assert np.array_equal(mesh.point_data["modulus"], r.modulus.ravel())
    assert np.array_equal(mesh.point_data["displacement"][:, :2].T.ravel(), r.displacement.ravel())
    if geometry is GRID:
        corners = GRID.points[mesh.cells_dict["quad"]]
        x, y = corners[..., 0], corners[..., 1]
        area = (x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y).sum(1) / 2  # shoelace
        assert np.allclose(area, 2e-6) and len(area) == 20
    else:
        assert np.array_equal(mesh.cells_dict["triangle"], MESH.cells)
    comment = (tmp_path / "x.vtu").read_text().split("<!-- ")[1].split(" -->")[0]
    assert json.loads(comment)["config"] == {"file": "a--b.h5"}


def test_plain_arrays_are_saved_and_other_shapes_and_kinds_refused(tmp_path):
    save_modulus(tmp_path / "x.npz", np.ones(GRID.shape), GRID)
    modulus, _, info = load_modulus(tmp_path / "x.npz")
    assert (modulus == 1).all() and info == {"relative": False}
    with pytest.raises(ValueError, match=r"modulus must have the geometry's shape \(6, 5\), got \(5, 6\)"):
        save_modulus(tmp_path / "y.npz", np.ones((5, 6)), GRID)
    with pytest.raises(ValueError, match=r"x.npz: expected a 'elastofast measurement'.* holds a 'elastofast modulus'"):
        load_measurement(tmp_path / "x.npz")
    on_grid().save(tmp_path / "scan.npz")
    with pytest.raises(ValueError, match=r"scan.npz: expected a 'elastofast modulus' file; it holds a 'elastofast m"):
        load_modulus(tmp_path / "scan.npz")
