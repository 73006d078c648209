"""The same input and settings give the same map, to the last bit, and a saved map says what they were."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import elastofast as ef
from elastofast import cli

GRID = ef.Grid((17, 15), (1e-3, 1e-3))
TRUTH, _ = ef.inclusion(GRID, (8e-3, 7e-3), 4e-3, modulus=3e4, background=1e4)
PRESSED = ef.compression(GRID, pressure=100.0)


def scan(load=PRESSED, seed=0):
    return ef.simulate(GRID, ef.PlaneStress(0.4), load, TRUTH, snr=35.0, seed=seed)


def test_one_and_two_threads_give_the_same_bits():
    code = (
        "import hashlib, elastofast as ef\n"
        "grid = ef.Grid((49, 40), (1e-3, 1e-3))\n"
        "for law in (ef.PlaneStress(0.495), ef.PlaneStrain(0.45)):\n"
        "    truth, _ = ef.lesion(grid, seed=3)\n"
        "    m = ef.simulate(grid, law, ef.compression(grid, pressure=100.0), truth, snr=35.0)\n"
        "    r = ef.reconstruct(m, prior='tv', weight=100.0)\n"
        "    print(hashlib.sha256(r.modulus.tobytes()).hexdigest(), r.chi2.hex(), m.checksum)\n"
    )
    found = []
    for threads in ("1", "2", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        found.append(done.stdout)
    assert found[0] == found[1] == found[2] and found[0].count("\n") == 2


def test_checksum_is_that_of_all_that_a_reconstruction_reads():
    m = scan()
    changes = {
        "displacement": m.displacement * (1 + 1e-15 * ~m.load.fixed),
        "displacement_std": 1.0001 * m.displacement_std,
        "force_std": 1e-9,
        "law": ef.PlaneStrain(0.4),
        "Poisson ratio of a node": ef.PlaneStress(np.where(np.arange(GRID.n_nodes) == 9, 0.39, 0.4)),
        "that of another": ef.PlaneStress(np.where(np.arange(GRID.n_nodes) == 10, 0.39, 0.4)),
        "load": ef.compression(GRID, pressure=100.1),
        "displacement_correlation": ef.Measurement(
            GRID, m.law, m.load, m.displacement, m.level, displacement_correlation=2e-3
        ).displacement_correlation,
    }
    changed = [{"law" if isinstance(value, type(m.law).__mro__[1]) else name: value} for name, value in changes.items()]
    sums = {m.checksum, *(m.derived(**change).checksum for change in changed)}
    assert len(sums) == 1 + len(changes)
    assert m.derived().checksum == m.checksum == scan().checksum
    two = ef.JointMeasurement([m, scan(seed=1)])
    assert two.checksum not in sums and two.checksum == ef.JointMeasurement([m, scan(seed=1)]).checksum


def test_result_keeps_and_saves_what_made_it(tmp_path):
    m, known = scan(), np.where(np.arange(17)[:, None] > 14, TRUTH, np.nan)
    result = ef.reconstruct(m, prior="tv", weight=50.0, bounds=(1e3, 1e5), known=known)
    assert result.bounds == (1e3, 1e5) and result.known is known and result.checksum == m.checksum
    result.save(tmp_path / "map.npz")
    _, _, info = ef.load_modulus(tmp_path / "map.npz")
    config = info["config"]
    assert config["checksum"] == m.checksum and config["bounds"] == [1e3, 1e5]
    assert config["settings"]["prior"] == "tv" and config["settings"]["weight"] == 50.0
    assert config["settings"]["noise"] == "auto" and not config["settings"]["started"]
    assert config["packages"]["numpy"] == np.__version__ and config["build"]["flags"]
    np.testing.assert_array_equal(info["known"], known)


def test_uncertainty_takes_bounds_and_known_moduli_from_the_result():
    m, known = scan(ef.compression(GRID, strain=0.01)), np.where(np.arange(17)[:, None] > 14, TRUTH, np.nan)
    result = ef.reconstruct(m, prior="tikhonov", weight=10.0, known=known)
    kept, given = ef.uncertainty(result, m, 3), ef.uncertainty(result, m, 3, known=known)
    np.testing.assert_array_equal(kept.errors, given.errors)
    assert not kept.std[15:].any()


@pytest.fixture
def saved(tmp_path, monkeypatch, capsys):
    """A map by the command, its measurement beside it, and the command."""
    pytest.importorskip("h5py")
    monkeypatch.chdir(tmp_path)
    scan().save("scan.npz")
    options = "--prior tikhonov --bounds 1e3 1e5 --uncertainty 3 --quiet"
    assert cli.main(["reconstruct", "scan.npz", "-o", "map.npz", *options.split()]) == 0
    capsys.readouterr()

    def command(*arguments):
        code = cli.main(["reconstruct", "--config", "map.npz", "-o", "again.npz", "--quiet", *arguments])
        return code, *capsys.readouterr()

    return command


def test_a_map_is_made_again_from_its_file(saved):
    code, out, err = saved()
    assert code == 0 and "equal to that in the file, bit for bit" in out and " then, " not in err
    (first, _, one), (second, _, two) = ef.load_modulus("map.npz"), ef.load_modulus("again.npz")
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(one["log_modulus_std"], two["log_modulus_std"])
    assert one["config"]["asked"] == two["config"]["asked"]


def test_another_input_is_refused_and_another_version_is_said(saved, tmp_path):
    code, _, err = saved("--weight", "3")
    assert code == 2 and "leave --weight out" in err
    (tmp_path / "scan.npz").rename(tmp_path / "moved.npz")
    code, _, err = saved()
    assert code == 2 and "scan.npz is not there any more: give its new place" in err
    assert saved("moved.npz")[0] == 0
    modulus, geometry, info = ef.load_modulus("map.npz")
    config = info["config"] | {"elastofast": "0.0.1"}
    ef.save_modulus("map.npz", modulus, geometry, config=config)
    code, _, err = saved("moved.npz")
    assert code == 0 and f"elastofast 0.0.1 then, {ef.__version__} now" in err
    scan(seed=1).save("moved.npz")
    code, _, err = saved("moved.npz")
    assert code == 2 and "moved.npz has changed since map.npz was made from it" in err
    ef.save_modulus("map.npz", modulus, geometry, config=json.loads('{"prior": "tv"}'))
    code, _, err = saved("moved.npz")
    assert code == 2 and "map.npz was not written by elastofast reconstruct" in err
