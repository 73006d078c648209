import csv
import json
import signal
import sys

import numpy as np
import pytest

from elastofast import cli
from elastofast.boundary import compression
from elastofast.cli import batch
from elastofast.geometry import Grid
from elastofast.inversion.reconstruct import reconstruct
from elastofast.io import load_modulus
from elastofast.io.sidecar import Sidecar
from elastofast.laws import PlaneStress
from elastofast.measurement import Measurement
from elastofast.phantoms import inclusion
from elastofast.simulation import simulate

pytest.importorskip("elastofast._core")
for package in ("h5py", "matplotlib"):
    pytest.importorskip(package)

GRID = Grid((17, 15), (5e-4, 4e-4))
STD = 2e-7
QUICK = ("--prior", "tikhonov", "--weight", "3", "--quiet")
STATED = ("noise.std=2e-4", "load.kind=strain", "load.value=0.01", "load.force=2.5")


def run(*arguments, capsys=None):
    code = cli.main([str(a) for a in arguments])
    return (code, *capsys.readouterr()) if capsys else code


def scan(path, seed=0):
    """A table in millimetres of a simulated compression, as image-correlation programs write them."""
    modulus, _ = inclusion(GRID, (4e-3, 3e-3), 1.5e-3, 3e4, 1e4)
    m = simulate(GRID, PlaneStress(0.495), compression(GRID, strain=0.01), modulus, snr=60.0, seed=seed)
    z, x = GRID.points.T * 1e3
    rows = np.column_stack([x, z, *m.displacement[::-1].reshape(2, -1) * 1e3])
    np.savetxt(path, rows, delimiter=",", header="x [mm],y [mm],u [mm],v [mm]", comments="", fmt="%.12g")
    return m


@pytest.fixture
def sidecar(tmp_path):
    scan(tmp_path / "first.csv")
    path = tmp_path / "scan.toml"
    assert run("inspect", tmp_path / "first.csv", "-o", path) == 0
    return path


# inspect ------------------------------------------------------------------------------------------


def test_inspect_writes_a_sidecar_and_says_what_is_left_to_be_stated(tmp_path, capsys):
    scan(tmp_path / "a.csv")
    code, out, err = run("inspect", tmp_path / "a.csv", capsys=capsys)
    assert code == 0 and not err and 'std = "?"' in out  # printed, not written
    code, out, _ = run("inspect", tmp_path / "a.csv", "-o", tmp_path / "a.toml", capsys=capsys)
    assert code == 0 and "state noise.std" in out and "grid of 17 x 15 nodes" in out and "v [mm]" in out
    text = (tmp_path / "a.toml").read_text()
    assert "# TO BE STATED: the file has no noise level" in text
    (tmp_path / "a.toml").write_text(text.replace('std = "?"', "std = 2e-4"))
    code, out, _ = run("inspect", tmp_path / "a.csv", "-o", tmp_path / "a.toml", capsys=capsys)
    assert code == 2  # what a person has edited is not replaced
    code, out, _ = run("inspect", tmp_path / "a.csv", "--with", tmp_path / "a.toml", capsys=capsys)
    assert code == 0 and "Measurement(Grid(shape=(17, 15)" in out and "mean strain -0.9" in out and "0.2 um" in out


def test_inspect_knows_our_own_files(tmp_path, capsys):
    scan(tmp_path / "a.csv").save(tmp_path / "a.h5")
    code, out, _ = run("inspect", tmp_path / "a.h5", capsys=capsys)
    assert code == 0 and "'elastofast measurement'; it needs no sidecar" in out


def test_inspect_reports_errors_in_one_line(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("")
    code, _, err = run("inspect", tmp_path / "a.csv", capsys=capsys)
    assert code == 2 and err == f"elastofast: error: {tmp_path / 'a.csv'}: the file is empty\n"


# one file -----------------------------------------------------------------------------------------


def test_a_table_is_reconstructed_and_its_map_runs_it_again(tmp_path, capsys, sidecar):
    m = scan(tmp_path / "a.csv", seed=1)
    words = ("reconstruct", tmp_path / "a.csv", "--with", sidecar, *QUICK)
    code, _, err = run(*words, "-o", tmp_path / "x.h5", capsys=capsys)
    assert code == 2 and "scan.toml does not state noise.std" in err and "--set noise.std=VALUE" in err
    assert run(*words, "--set", *STATED, "-o", tmp_path / "x.h5") == 0
    modulus, geometry, info = load_modulus(tmp_path / "x.h5")
    load = compression(GRID, strain=0.01, total_force=2.5)
    expected = reconstruct(Measurement(GRID, m.law, load, m.displacement, STD), "tikhonov", 3.0)
    expected.save(tmp_path / "y.h5")
    assert load_modulus(tmp_path / "y.h5")[2]["config"]["optimizer"] == expected.optimizer
    np.testing.assert_allclose(modulus, expected.modulus, rtol=1e-3)
    np.testing.assert_allclose(geometry.spacing, GRID.spacing)
    config = info["config"]
    assert config["sidecar"]["noise"]["std"] == 2e-4 and len(config["sha256"]) == 64 and config["weight"] == 3.0
    again = config["command"].split()
    assert again[:2] == ["elastofast", "reconstruct"]
    assert run(*again[1:-2], *again[-2:], "--quiet") == 0
    assert np.array_equal(load_modulus(tmp_path / "x.h5")[0], modulus)


def test_wrong_units_stop_the_reconstruction(tmp_path, capsys, sidecar):
    words = ("reconstruct", tmp_path / "first.csv", "--with", sidecar, *QUICK, "-o", tmp_path / "x.h5")
    code, _, err = run(*words, "--set", *STATED, "units.displacement=m", capsys=capsys)
    assert code == 2 and err.count("\n") == 1 and "units.displacement: the mean strain is" in err
    code, _, err = run(*words, "--set", *STATED, "units.coordinate=m", "noise.std=2e-6", capsys=capsys)
    assert code == 0 and "elastofast: warning: the mean strain is" in err


# many files ---------------------------------------------------------------------------------------


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for k in range(3):
        scan(folder / f"p{k}.csv", seed=k)
    text = (folder / "p2.csv").read_text()
    (folder / "p3.csv").write_text(text[: text.rfind(",") - 3])  # half written
    (folder / "notes.md").write_text("not a measurement")
    return folder


def table(out):
    with open(out / "summary.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_reconstructed_with_a_table_of_all(tmp_path, capsys, sidecar, scans):
    out = tmp_path / "maps"
    words = ("reconstruct", scans, "--with", sidecar, "--set", *STATED, *QUICK, "-o", out)
    code, text, err = run(*words, "--plot", "png", capsys=capsys)
    assert code == 2 and "p3.csv: line 256 has 3 columns" in err  # one of four failed
    rows = table(out)
    assert [row["status"] for row in rows] == ["converged", "converged", "converged", "error"]
    assert "p2.csv" in text and "notes.md" not in text
    for k, row in enumerate(rows[:3]):
        modulus, _, info = load_modulus(out / f"p{k}.h5")
        assert float(row["modulus_median"]) == pytest.approx(np.median(modulus))
        assert float(row["chi2"]) == pytest.approx(info["chi2"])
        assert info["config"]["file"] == str(scans / f"p{k}.csv") and (out / f"p{k}.png").exists()
    code, _, err = run(*words, "--set", "noise.std=3e-4", capsys=capsys)
    assert code == 2 and "holds reconstructions with" in err and "give another folder" in err


def test_a_batch_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys, sidecar, scans):
    out = tmp_path / "maps"
    (scans / "p3.csv").unlink()
    words = ("reconstruct", scans, "--with", sidecar, "--set", *STATED, *QUICK, "-o", out, "--format", "npz")
    made = []
    one = batch._row

    def counted(work, folder, figure, path, name):
        if len(made) == 1 and sys.exc_info()[0] is None and path.name == "p1.csv" and not (out / "go").exists():
            signal.raise_signal(signal.SIGINT)
        made.append(path.name)
        return one(work, folder, figure, path, name)

    monkeypatch.setattr(batch, "_row", counted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    code, text, _ = run(*words, capsys=capsys)
    signal.signal(signal.SIGINT, before)
    assert code == 130 and made == ["p0.csv"] and "stopped with 2 files missing" in text
    (out / "go").touch()
    line = json.dumps({"file": "cut short"})[:9]
    with open(out / "results.jsonl", "a") as file:
        file.write(line)  # as a kill would leave it
    first = (out / "p0.npz").read_bytes()
    assert run(*words) == 0
    assert made == ["p0.csv", "p1.csv", "p2.csv"] and (out / "p0.npz").read_bytes() == first
    assert len(table(out)) == 3
    scan(scans / "p1.csv", seed=9)  # a file that has changed is reconstructed again, no other
    assert run(*words) == 0
    assert made[3:] == ["p1.csv"]


def test_files_that_belong_to_another_one_are_not_measurements_of_their_own(tmp_path):
    for name in ("p1_uz.txt", "p1_ux.txt", "p2_uz.txt", "p2_ux.txt", "roi.png", "notes.md"):
        (tmp_path / name).touch()
    sidecar = Sidecar.of({"files": {"more": ["_uz -> _ux", "roi.png"]}})
    assert [path.name for path in batch.files_of([tmp_path], sidecar)] == ["p1_uz.txt", "p2_uz.txt"]
    named = [tmp_path / "p2_uz.txt", tmp_path / "p2_uz.txt", tmp_path / "p1_uz.txt"]  # in the order given, each once
    assert [path.name for path in batch.files_of(named, sidecar)] == ["p2_uz.txt", "p1_uz.txt"]


def test_maps_of_files_of_one_name_are_kept_apart(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    paths = [tmp_path / "a" / "scan.csv", tmp_path / "b" / "scan.csv"]
    assert batch._names(paths) == ["a_scan_csv", "b_scan_csv"]
    assert batch._names([tmp_path / "a.csv", tmp_path / "a.mat"]) == ["a_csv", "a_mat"]
    assert batch._names([tmp_path / "a.csv", tmp_path / "b.nii.gz"]) == ["a", "b"]


def test_an_empty_folder_is_named(tmp_path, capsys, sidecar):
    (tmp_path / "none").mkdir()
    words = ("reconstruct", tmp_path / "none", "--with", sidecar, "--set", *STATED, "-o", tmp_path / "maps")
    code, _, err = run(*words, capsys=capsys)
    assert code == 2 and "none: the folder has no files with one of the suffixes .h5" in err
