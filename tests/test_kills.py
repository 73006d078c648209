"""Work that is killed, runs out of disk, or is done twice at once: a short form of tests/trust/kill.py."""

import os
import random
import signal
import threading

import pytest
from trust import kill

from elastofast import _core
from elastofast.io.atomic import only_process, write_atomically

pytest.importorskip("h5py")


@pytest.fixture
def one_thread():
    before = _core.build_info()["threads"]
    _core.set_num_threads(1)  # a forked process would not have the threads of this one
    yield
    _core.set_num_threads(before)


class Writing:
    """Writes a file, of which an older one is there."""

    def prepare(self, folder):
        pass

    def run(self, out):
        write_atomically(out / "a", b"new" * 1000)

    def result(self, out):
        return {"files": sorted(path.name for path in out.iterdir()), "a": (out / "a").read_bytes()}


def test_a_file_is_the_old_or_the_new_one_whenever_its_writer_is_killed(tmp_path):
    trial = kill.Trial(Writing(), tmp_path, random.Random(0))
    assert trial.operations >= 3  # open, fsync, rename at least
    for number in range(1, trial.operations + 1):
        out = trial.fresh()
        out.mkdir()
        (out / "a").write_bytes(b"old")
        assert trial.runner(out, until=number) == -signal.SIGKILL
        assert (out / "a").read_bytes() in (b"old", b"new" * 1000)
        assert trial.check(out, f"operation {number}"), trial.failures


@pytest.mark.parametrize("name", ["dataset", "batch"])
def test_disturbed_work_ends_with_the_undisturbed_result(tmp_path, one_thread, name, monkeypatch):
    monkeypatch.setattr(kill.Batch, "more", ())  # figures are most of the work
    if name == "dataset":  # undone afterwards
        from elastofast.learning import dataset

        monkeypatch.setattr(dataset, "worked_on", dataset.worked_on)
    trial = kill.Trial(kill.WORKS[name](), tmp_path, random.Random(1))
    trial.kill(2)
    trial.truncated(1)
    trial.full(1)
    trial.two(1)
    assert not trial.failures


# the locks ----------------------------------------------------------------------------------------


def test_writers_of_one_file_take_turns(tmp_path):
    path = tmp_path / "a"
    contents = [bytes([k]) * 50_000 for k in range(8)]
    writers = [threading.Thread(target=write_atomically, args=(path, content)) for content in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_bytes() in contents and [*tmp_path.iterdir()] == [path]


def test_a_file_that_a_killed_writer_left_is_taken_over_and_a_link_is_not(tmp_path):
    path, victim = tmp_path / "a", tmp_path / "victim"
    (tmp_path / ".a.tmp").write_bytes(b"half of it, and longer than the new one")
    write_atomically(path, b"whole")
    assert path.read_bytes() == b"whole" and [*tmp_path.iterdir()] == [path]
    victim.write_bytes(b"precious")
    for link in (os.symlink, os.link):
        link(victim, tmp_path / ".a.tmp")
        write_atomically(path, b"new")
        assert victim.read_bytes() == b"precious" and path.read_bytes() == b"new"
        (tmp_path / ".a.tmp").unlink()


def test_an_output_belongs_to_one_process_at_a_time(tmp_path):
    lock = tmp_path / ".lock"
    lock.touch()  # left by a killed process
    with only_process(lock, "out"):
        with (
            pytest.raises(BlockingIOError, match="another process is working on it") as caught,
            only_process(lock, "out"),
        ):
            pass
        assert caught.value.filename == "out"
    assert not lock.exists()
    with only_process(lock, "out"):
        pass


def test_a_full_disk_is_reported_with_the_name_of_the_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="cannot write: No space left") as caught:
        write_atomically(path, b"new")
    assert caught.value.filename == str(path) and path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]
