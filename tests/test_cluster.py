import csv
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")
h5py = pytest.importorskip("h5py")
pytest.importorskip("matplotlib")

from chores import dying, failing, squared  # noqa: E402

from elastofast import _core, cli  # noqa: E402
from elastofast.backend import cluster  # noqa: E402
from elastofast.backend.tasks import check_workers, worked_on  # noqa: E402
from elastofast.boundary import compression  # noqa: E402
from elastofast.geometry import Grid  # noqa: E402
from elastofast.laws import PlaneStress  # noqa: E402
from elastofast.learning.dataset import build_dataset  # noqa: E402
from elastofast.phantoms import inclusion  # noqa: E402
from elastofast.simulation import simulate  # noqa: E402

QUIET = {"dashboard_address": ":0", "silence_logs": logging.CRITICAL}
SMALL = {"shape": (17, 17), "size": (0.2, 0.35), "count": 12, "validation": 1, "test": 2, "seed": 5}
GRID = Grid((17, 15), (5e-4, 4e-4))


@pytest.fixture(scope="module")
def two():
    """A cluster of two processes, which waits for a worker that is slowly started again."""
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "600s"}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, **QUIET) as made,
    ):
        yield made


@pytest.fixture
def one_thread():
    before = _core.get_num_threads()
    _core.set_num_threads(1)
    yield
    _core.set_num_threads(before)


def contents(path):
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


@pytest.fixture(scope="module")
def built(two, tmp_path_factory):
    """The same data set twice: from a process here, and from a cluster of which a worker was killed while it worked."""
    folder = tmp_path_factory.mktemp("data")
    build_dataset(folder / "here.h5", **SMALL, jobs=1)
    there, killed = folder / "there.h5", []

    def kill():
        while len(list(Path(f"{there}.parts").glob("[0-9]*.npz"))) < 3:
            time.sleep(0.001)
        killed.append(next(iter(two.workers.values())).pid)
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    build_dataset(there, **SMALL, scheduler=two.scheduler_address)
    killer.join()
    assert killed
    return folder / "here.h5", there


def test_a_cluster_that_loses_a_worker_makes_the_same_data_set(built):
    here, there = built
    assert here.read_bytes() == there.read_bytes()
    assert not Path(f"{there}.parts").exists()


def test_a_comparison_on_a_cluster_is_that_of_one_thread_here(built, two, tmp_path, one_thread):
    from elastofast.evaluation.experiment import compare

    arguments = {"data": built[0], "methods": ["none"]}
    here = compare(tmp_path / "here", **arguments)
    there = compare(tmp_path / "there", **arguments, scheduler=two.scheduler_address)
    assert there.missing == 0 and len(there.rows) == len(here.rows) == 2 and there.parallel()
    for a, b in zip(here.rows, there.rows, strict=True):
        assert a["relative_error"] == b["relative_error"] and b["jobs"] is None
    a, b = (tmp_path / name / "maps.h5" for name in ("here", "there"))
    with h5py.File(a) as a, h5py.File(b) as b:
        for name in ("truth", "none"):
            assert np.array_equal(a[f"35dB-clean/{name}"], b[f"35dB-clean/{name}"])
    assert f"--scheduler {two.scheduler_address}" in (tmp_path / "there" / "report.html").read_text()


def test_a_folder_is_reconstructed_on_a_cluster_from_relative_paths(two, tmp_path, monkeypatch, capsys, one_thread):
    monkeypatch.chdir(tmp_path)
    os.mkdir("scans")
    modulus, _ = inclusion(GRID, (4e-3, 3e-3), 1.5e-3, 3e4, 1e4)
    for k in range(2):
        m = simulate(GRID, PlaneStress(0.495), compression(GRID, pressure=100.0), modulus, snr=50.0, seed=k)
        m.save(f"scans/p{k}.npz")
    Path("scans/p2.npz").write_bytes(Path("scans/p1.npz").read_bytes()[:99])
    words = ["reconstruct", "scans", "--prior", "tikhonov", "--weight", "3", "--quiet"]
    tables = []
    for name, where in (("here", []), ("there", ["--plot", "png", "--scheduler", two.scheduler_address])):
        assert cli.main([*words, "-o", name, *where]) == 2  # one of the files is damaged
        assert "p2.npz" in capsys.readouterr().err
        with open(f"{name}/summary.csv", newline="") as file:
            tables.append([{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)])
    assert sorted(path.name for path in Path("there").glob("*.png")) == ["p0.png", "p1.png"]
    assert tables[0] == tables[1] and [row["status"] for row in tables[0]] == ["converged", "converged", "error"]
    for k in range(2):
        a, b = contents(f"here/p{k}.h5"), contents(f"there/p{k}.h5")
        assert np.array_equal(a["modulus"], b["modulus"])
    Path("scans/p2.npz").write_bytes(Path("scans/p1.npz").read_bytes())  # mended, and made by a process
    assert cli.main([*words, "-o", "here", "--jobs", "2"]) == 0
    assert np.array_equal(contents("here/p2.h5")["modulus"], contents("there/p1.h5")["modulus"])
    assert cli.main([*words[:1], "scans/p0.npz", "-o", "x.h5", "--jobs", "2"]) == 2
    assert "--jobs is for several files" in capsys.readouterr().err


# one task -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["here", "processes", "cluster"])
def test_every_way_gives_all_results_with_their_warnings_and_errors(two, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    how = {"here": {}, "processes": {"processes": 1}, "cluster": {"scheduler": two.scheduler_address}}[where]
    with pytest.warns(UserWarning, match="two is even"):
        found = list(worked_on(squared, [1, 2, 3], **how))
    assert sorted(found) == [(k * k, str(tmp_path), "1") for k in (1, 2, 3)]
    assert [*worked_on(squared, [], **how)] == []
    with pytest.raises(ValueError, match="7 cannot be done"):
        list(worked_on(failing, [7], **how))


def test_a_task_that_kills_its_workers_is_given_up(two):
    two.scheduler.allowed_failures = 0
    with pytest.raises(RuntimeError, match=r"1 workers of the cluster at .* died over one task: out of memory"):
        list(worked_on(dying, [1], scheduler=two.scheduler_address))
    two.scheduler.allowed_failures = 3


def test_workers_that_cannot_do_the_work_say_why(two, tmp_path):
    address = two.scheduler_address
    with pytest.raises(RuntimeError, match=r"does not see no-such\.h5; workers need the files of the caller"):
        list(worked_on(squared, [1], scheduler=address, files=["no-such.h5"]))
    with distributed.Client(two, set_as_default=False) as client:
        work = cluster._Work(squared, "0.0.0", str(tmp_path), ())
        with pytest.raises(RuntimeError, match=r"has elastofast .*, the caller 0\.0\.0"):
            client.submit(work, 1).result()
        found = client.get_versions(packages=["elastofast"])
    for name, version, text in (("elastofast", None, "elastofast not installed"), ("python", "3.9.1", "python 3.9.1")):
        packages = {**found["scheduler"]["packages"], name: version}
        with pytest.raises(RuntimeError, match=f"the worker tcp://a has {text}, this process .*; they must agree"):
            cluster._check_versions({**found, "workers": {"tcp://a": {"packages": packages}}})
    with distributed.LocalCluster(n_workers=0, processes=False, threads_per_worker=2, **QUIET) as threads:
        with pytest.warns(UserWarning, match="has no workers; the work waits"):
            threading.Timer(0.5, threads.scale, [1]).start()
            with pytest.raises(RuntimeError, match="works on 2 tasks at a time; start workers with one thread"):
                list(worked_on(squared, [1], scheduler=threads.scheduler_address))


def test_a_lost_scheduler_is_told():
    with distributed.LocalCluster(n_workers=0, processes=False, **QUIET) as lost:
        threading.Timer(0.5, lost.close).start()
        with pytest.warns(UserWarning), pytest.raises(RuntimeError, match=r"scheduler at .* was lost; the same again"):
            list(worked_on(squared, [1], scheduler=lost.scheduler_address))


def test_a_scheduler_that_is_not_there_and_a_missing_package_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "CONNECT", 0.3)
    words = ["dataset", str(tmp_path / "a.h5"), "--shape", "17", "--scheduler"]
    for address in ("tcp://127.0.0.1:9", "no where"):
        assert cli.main([*words, address]) == 2
        assert f"no Dask scheduler answers at {address} within 0.3 s" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="jobs counts processes of this machine, got 2 beside the scheduler"):
        check_workers(2, "tcp://127.0.0.1:9")
    assert cli.main([*words, "tcp://127.0.0.1:9", "--jobs", "2"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert cli.main([*words, "tcp://127.0.0.1:9"]) == 2
    assert 'a scheduler needs Dask: pip install "elastofast[dask]"' in capsys.readouterr().err
