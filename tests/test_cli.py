import importlib.util
import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from elastofast import cli
from elastofast.cli.shared import ReconstructionBar
from elastofast.inversion.reconstruct import reconstruct
from elastofast.inversion.uncertainty import uncertainty
from elastofast.io import load_modulus
from elastofast.measurement import load_measurement

pytest.importorskip("elastofast._core")
for package in ("h5py", "matplotlib", "skimage"):
    pytest.importorskip(package)


def run(*arguments, capsys=None):
    code = cli.main([str(a) for a in arguments])
    return (code, *capsys.readouterr()) if capsys else code


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.h5"
    assert run("simulate", "-o", path, "--size", 24, 20, "--seed", 3) == 0
    return path


def one_error(code, out, err, text):
    assert code == 2
    assert err.count("\n") == 1 and err.startswith("elastofast: error: ")
    assert text in err
    assert "Traceback" not in out + err


# simulate -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".h5", ".npz", ".mat"])
def test_simulate_writes_what_it_was_asked_for(tmp_path, capsys, suffix):
    path = tmp_path / f"scan{suffix}"
    options = "--size 20 16 --spacing 1e-3 2e-3 --law plane_strain --poisson 0.45 --snr 40 --noise relative"
    code, out, _ = run("simulate", "-o", path, *options.split(), "--phantom", "oval", "--pressure", 50, capsys=capsys)
    assert code == 0 and str(path) in out
    m = load_measurement(path)
    assert m.geometry.shape == (20, 16) and m.geometry.spacing == (1e-3, 2e-3)
    assert m.law.name == "plane_strain" and m.law.poisson == 0.45
    assert m.load.force.sum() == pytest.approx(50 * 15 * 2e-3)
    assert np.ptp(m.displacement_std) > 0  # relative noise
    assert m.reference.min() < 20e3 < m.reference.max()


def test_simulate_by_strain_repeats_itself_for_a_seed(tmp_path):
    for name in "ab":
        assert run("simulate", "-o", tmp_path / f"{name}.npz", "--size", 16, "--strain", 0.02, "--seed", 9) == 0
    a, b = (load_measurement(tmp_path / f"{name}.npz") for name in "ab")
    assert np.array_equal(a.displacement, b.displacement)
    assert np.allclose(a.displacement[0, 0], 0.02 * 40e-3)
    assert np.ptp(a.displacement_std) == 0


# reconstruct --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".mat"])
def test_reconstruct_saves_map_figure_and_configuration(tmp_path, capsys, scan, suffix):
    out_path, plot = tmp_path / f"x{suffix}", tmp_path / "x.png"
    code, out, _ = run(
        *("reconstruct", scan, "-o", out_path, "--prior", "tikhonov", "--plot", plot),
        *("--bounds", 1e3, 2e5),
        capsys=capsys,
    )
    assert code == 0
    for word in ("status", "chi2", "weight", "relative_l2", "gcnr", str(out_path), str(plot)):
        assert word in out
    modulus, grid, info = load_modulus(out_path)
    assert modulus.shape == grid.shape == (24, 20)
    assert modulus.min() >= 1e3 * (1 - 1e-12) and modulus.max() <= 2e5 * (1 + 1e-12)
    assert info["config"]["prior"] == "tikhonov" and info["config"]["bounds"] == [1e3, 2e5]
    assert info["config"]["file"] == str(scan)
    assert info["chi2"] > 0 and info["status"] and info["displacement"].shape == (2, 24, 20)
    assert plot.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("prior", ["auto", "pnp"])
def test_reconstruct_uses_the_learned_prior_that_was_asked_for(tmp_path, capsys, prior):
    pytest.importorskip("torch")
    scan = tmp_path / "scan.npz"
    assert run("simulate", "-o", scan, "--size", 96) == 0
    code, _, err = run("reconstruct", scan, "-o", tmp_path / "x.npz", "--prior", prior, capsys=capsys)
    assert code == 0, err
    modulus, _, info = load_modulus(tmp_path / "x.npz")
    named, config = {"auto": "critic", "pnp": "pnp"}[prior], info["config"]
    assert config["prior"] == named and config["optimizer"] == "splitting"
    np.testing.assert_allclose(modulus, reconstruct(load_measurement(scan), named).modulus, rtol=1e-3)


def test_missing_packages_are_named_before_the_work(tmp_path, monkeypatch, capsys, scan):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = run("reconstruct", scan, "-o", tmp_path / "x.npz", "--plot", tmp_path / "x.png", capsys=capsys)
    assert code == 2 and "png files need matplotlib" in err and not (tmp_path / "x.npz").exists()


def test_reconstruct_records_the_stated_weight_and_noise_in_the_vtu_file(tmp_path, scan):
    out = tmp_path / "x.vtu"
    options = "--prior tikhonov --weight 2.5 --gradient frozen --displacement-std 1e-7"
    assert run("reconstruct", scan, "-o", out, *options.split()) == 0
    info = json.loads(out.read_text().split("<!-- ")[1].split(" -->")[0])
    config = info["config"]
    assert config["weight"] == 2.5 and config["gradient"] == "frozen" and config["displacement_std"] == 1e-7
    expected = reconstruct(load_measurement(scan, displacement_std=1e-7), "tikhonov", 2.5, gradient="frozen")
    assert info["weight"] == 2.5 and info["chi2"] == pytest.approx(expected.chi2, rel=1e-6)


def test_ctrl_c_saves_the_best_map_so_far(tmp_path, monkeypatch, scan):
    monkeypatch.setattr(ReconstructionBar, "__call__", lambda self, entry: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    assert run("reconstruct", scan, "-o", tmp_path / "x.npz", "--prior", "tikhonov") == 130
    signal.signal(signal.SIGINT, before)
    modulus, _, info = load_modulus(tmp_path / "x.npz")
    assert info["status"] == "interrupted"

    def interrupt(entry):
        raise KeyboardInterrupt

    expected = reconstruct(load_measurement(scan), "tikhonov", progress=interrupt)
    np.testing.assert_allclose(modulus, expected.modulus, rtol=1e-6)
    assert np.ptp(modulus) > 1e3  # no longer the homogeneous map


def test_reconstruct_says_how_sure_the_map_is(tmp_path, monkeypatch, capsys, scan):
    out, plot = tmp_path / "x.npz", tmp_path / "x.png"
    options = ("--prior", "tikhonov", "--weight", 3, "--uncertainty", 3)
    code, text, _ = run("reconstruct", scan, "-o", out, "--plot", plot, *options, capsys=capsys)
    assert code == 0 and "of log modulus" in text and plot.read_bytes()[:4] == b"\x89PNG"
    modulus, _, info = load_modulus(out)
    assert info["log_modulus_std"].shape == modulus.shape and info["log_modulus_errors"].shape == (3, *modulus.shape)
    assert info["config"]["uncertainty"] == 3 and "--uncertainty 3" in info["config"]["command"]
    m = load_measurement(scan)
    expected = uncertainty(reconstruct(m, "tikhonov", 3.0), m, 3)
    np.testing.assert_allclose(info["log_modulus_std"], expected.std, rtol=1e-6)

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("elastofast.cli.reconstruct.uncertainty", interrupt)
    assert run("reconstruct", scan, "-o", tmp_path / "y.npz", *options) == 130
    again, _, info = load_modulus(tmp_path / "y.npz")  # the map is not lost
    assert np.array_equal(again, modulus) and info["status"] == "interrupted" and "log_modulus_std" not in info


# demo and info ------------------------------------------------------------------------------------


def test_demo_tabulates_every_prior_with_both_gradients(tmp_path, capsys):
    code, out, _ = run("demo", "--size", 20, "--out", tmp_path / "demo.png", capsys=capsys)
    assert code == 0
    rows = [line.split()[:2] for line in out.splitlines()]
    for prior in ("none", "tikhonov", "tv"):
        for gradient in ("frozen", "exact"):
            assert [prior, gradient] in rows
    errors = {tuple(line.split()[:2]): line.split()[2] for line in out.splitlines() if len(line.split()) > 8}
    assert float(errors["tv", "exact"]) < 0.8 * float(errors["none", "exact"])
    assert (tmp_path / "demo.png").read_bytes()[:4] == b"\x89PNG"


def test_info_names_versions_and_what_is_missing(capsys, monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "meshio":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    code, out, _ = run("info", capsys=capsys)
    assert code == 0
    assert np.__version__ in out and "instruction set" in out and "threads" in out
    assert "meshio        missing, needed for Mesh.read: pip install meshio" in out
    assert "CUDA" in out


# errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "the following arguments are required: command"),
        (["paint"], "invalid choice: 'paint'"),
        (["reconstruct", "{scan}"], "required: -o/--output"),
        (["reconstruct", "{folder}/no.h5", "-o", "{folder}/x.npz"], "no.h5: No such file or directory"),
        (
            ["reconstruct", "{scan}", "-o", "{folder}/x.csv"],
            "must end in one of .npz, .h5, .hdf5, .mat, .vtu",
        ),
        (["reconstruct", "{scan}", "-o", "{folder}/no/x.npz"], "the folder of the output does not exist"),
        (["reconstruct", "{scan}", "-o", "{folder}/x.npz", "--plot", "x.doc"], "must end in one of .png"),
        (["reconstruct", "{scan}", "-o", "{folder}/x.npz", "--prior", "magic"], "invalid choice: 'magic'"),
        (
            ["reconstruct", "{scan}", "-o", "{folder}/x.npz", "--weight", "heavy"],
            "must be a number or auto, got 'heavy'",
        ),
        (["reconstruct", "{scan}", "-o", "{folder}/x.npz", "--weight", "-1"], "weight"),
        (["reconstruct", "{scan}", "-o", "{folder}/x.npz", "--bounds", "5", "1"], "bounds"),
        (["reconstruct", "{scan}", "-o", "{folder}/x.npz", "--displacement-std", "0"], "must be positive"),
        (["simulate", "-o", "{folder}/x.h5", "--size", "1"], "at least 2 nodes"),
        (["simulate", "-o", "{folder}/x.h5", "--size", "9", "9", "9"], "--size takes one or two"),
        (["simulate", "-o", "{folder}/x.h5", "--spacing", "1", "2", "3"], "--spacing takes one or two"),
        (
            ["simulate", "-o", "{folder}/x.h5", "--law", "plane_strain", "--poisson", "0.5"],
            "poisson must lie in",
        ),
        (["simulate", "-o", "{folder}/x.h5", "--pressure", "1", "--strain", "1"], "not allowed with"),
        (["simulate", "-o", "{folder}/x.csv"], "must end in one of .h5"),
        (["demo", "--out", "demo.doc"], "must end in one of .png"),
        (["demo", "--size", "1"], "at least 2 nodes"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, scan, arguments, text):
    capsys.readouterr()
    arguments = [a.format(scan=scan, folder=tmp_path) for a in arguments]
    one_error(*run(*arguments, capsys=capsys), text)


def test_a_foreign_file_is_one_line_too(tmp_path, capsys):
    (tmp_path / "scan.h5").write_text("hello\nworld")
    result = run("reconstruct", tmp_path / "scan.h5", "-o", tmp_path / "x.npz", capsys=capsys)
    one_error(*result, "scan.h5: not a file elastofast can read")


def test_a_missing_package_is_named_with_its_cure(tmp_path, capsys, monkeypatch, scan):
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "h5py", None)
    result = run("reconstruct", scan, "-o", tmp_path / "x.npz", capsys=capsys)
    one_error(*result, "h5py is missing, needed for HDF5 and MATLAB v7.3 files: pip install h5py")


def test_debug_raises_the_error_itself(tmp_path):
    with pytest.raises(FileNotFoundError):
        run("reconstruct", "--debug", tmp_path / "no.h5", "-o", tmp_path / "x.npz")


@pytest.mark.parametrize(
    "command", ["demo", "simulate", "dataset", "inspect", "reconstruct", "compare", "train", "info"]
)
def test_help_has_an_example(capsys, command):
    code, out, _ = run(command, "--help", capsys=capsys)
    assert code == 0 and f"example:\n  elastofast {command}" in out
    assert "None" not in out


def test_python_dash_m_runs_the_command_line():
    done = subprocess.run([sys.executable, "-P", "-m", "elastofast", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "reconstruct" in done.stdout
