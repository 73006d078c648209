"""Kills long work at many moments, starts it again, and compares what comes out with an undisturbed run.

    python tests/trust/kill.py --moments 50          # all works and all disturbances; prints a line of figures for each
    python tests/trust/kill.py dataset --moments 10  # one of them, fewer moments

Each work runs in a process that is forked from this one, so that a start costs nothing. The disturbances:

kill          SIGKILL, half of them at a random time, half at a random operation on a file (audit events of Python:
              open, rename, remove, mkdir; and fsync). Several kills in a row, then a run to the end.
truncated     a file that was written last is cut at a random place, as a power cut might do; then a run to the end,
              which must give the undisturbed result, or an error that names a file; without it, so must the next.
full disk     the output is on a disk (tmpfs, which takes root; otherwise files are limited by RLIMIT_FSIZE) with less
              space than it needs: an OSError; and once there is space again, a run to the end.
two           two processes on one output at once, started at random distances: each must end with the undisturbed
              result or with BlockingIOError.

After each disturbance every file that has its final name must be whole. Results are compared bit for bit, except for
seconds, dates and the names of files.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np

IN_A_ROW = 5  # kills before a run to the end
BUSY, ERROR = 3, 4  # exit statuses of a work


# works --------------------------------------------------------------------------------------------


def _inline(make, tasks, **where):
    yield from map(make, tasks)


class Dataset:
    """`build_dataset`; the samples are made in the process itself, as starting others would take most of the time."""

    name = "dataset"

    def prepare(self, folder):
        from elastofast.learning import dataset

        dataset.worked_on = _inline

    def run(self, out):
        from elastofast.learning.dataset import build_dataset

        build_dataset(out / "a.h5", shape=(17, 17), size=(0.3, 0.4), count=6, validation=1, test=1, jobs=1, seed=3)

    def result(self, out):
        return {"files": sorted(p.name for p in out.iterdir()), "bytes": (out / "a.h5").read_bytes()}


class Training:
    """`train` with a checkpoint every few steps."""

    name = "training"

    def prepare(self, folder):
        self.data = folder / "maps.h5"
        from elastofast.learning.dataset import build_dataset

        build_dataset(self.data, shape=(16, 16), size=(0.3, 0.4), count=6, validation=2, test=0, errors=0, jobs=1)

    def run(self, out):
        from elastofast.learning.recipes import recipe
        from elastofast.learning.training import train

        settings = {"steps": 60, "channels": 2, "crop": 16, "batch": 2}
        often = {"validate_every": 15, "checkpoint_every": 0.05, "log_every": 5}
        train(recipe("unet", **settings), self.data, out / "w.safetensors", resume=True, progress=False, device="cpu",
              **often)  # fmt: skip

    def result(self, out):
        from elastofast.priors import weights_file

        tensors, header = weights_file.read_tensors(out / "w.safetensors", weights_file.FORMAT, weights_file.VERSION)
        lines = [json.loads(line) for line in (out / "w.jsonl").read_text().splitlines()]
        return {
            "files": sorted(p.name for p in out.iterdir()),
            "tensors": {name: t.numpy().tobytes() for name, t in tensors.items()},
            "header": _timeless(header),
            "log": [_timeless(line) for line in lines if line["kind"] == "validation"],
        }


class Compare:
    """`compare` with two methods on two maps, and its report."""

    name = "comparison"

    def prepare(self, folder):
        from elastofast.learning.dataset import build_dataset

        self.data = folder / "test.h5"
        build_dataset(self.data, shape=(24, 24), size=(0.3, 0.35), pairs=0.0, count=1, validation=0, test=2, errors=0,
                      unregularised=False, jobs=1, seed=5)  # fmt: skip

    def run(self, out):
        from elastofast.evaluation.experiment import compare

        compare(out / "c", data=self.data, methods=("none", "tv"), snr=[30.0])

    def result(self, out):
        import h5py

        with h5py.File(out / "c/maps.h5") as file:
            maps = {f"{c}/{m}": file[c][m][()].tobytes() for c in file for m in file[c]}
        rows = [_timeless(json.loads(line)) for line in (out / "c/results.jsonl").read_text().splitlines()]
        unique = {json.dumps(row, sort_keys=True) for row in rows}  # a lost map is made again, with a line of its own
        return {
            "files": sorted(str(p.relative_to(out)) for p in out.rglob("*")),
            "maps": maps,
            "rows": sorted(unique),
            "tables": [_table(out / f"c/{name}.csv") for name in ("results", "summary")],
            "pictures": {p.name: p.read_bytes() for p in out.glob("c/*.png")},
            "page": re.sub(r"\d+\.\d\d|T[\d:]+", "", (out / "c/report.html").read_text().replace(str(out), "")),
        }


class Report(Compare):
    """The report of a comparison that is finished: every run writes it anew."""

    name = "report"

    def prepare(self, folder):
        super().prepare(folder)
        self.finished = folder / "finished"
        self.finished.mkdir()
        comparison = Compare()
        comparison.data = self.data
        work = Work(comparison, folder)
        if work(self.finished):
            raise RuntimeError(f"the comparison ended with {work.error()}")

    def run(self, out):
        if not (out / "c").exists():
            shutil.rmtree(out / "~c", ignore_errors=True)  # of a run whose disk was too small for the copy
            shutil.copytree(self.finished / "c", out / "~c")
            os.rename(out / "~c", out / "c")
        super().run(out)

    def result(self, out):
        shutil.rmtree(out / "~c", ignore_errors=True)
        return super().result(out)


class Batch:
    """`elastofast reconstruct` of several files into a folder."""

    name = "batch"
    more = ("--plot", "png")

    def prepare(self, folder):
        import elastofast as ef

        grid = ef.Grid((13, 13), (2e-3, 2e-3))
        load = ef.compression(grid, pressure=100.0)
        self.files = [folder / f"m{k}.npz" for k in range(3)]
        for k, path in enumerate(self.files):
            x = np.full(grid.shape, 1e4)
            x[4:8, 3 + k : 7 + k] = 3e4
            ef.simulate(grid, ef.PlaneStress(0.45), load, x, snr=35.0, seed=k).save(path)

    def run(self, out):
        from elastofast import cli

        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
            code = cli.main(["reconstruct", *map(str, self.files), "-o", str(out / "b"), "--prior", "tv", "--quiet",
                             "--format", "h5", *self.more])  # fmt: skip
        if code:
            text = errors.getvalue()
            raise (BlockingIOError if "another process" in text else OSError)(text)

    def result(self, out):
        rows = (json.loads(line) for line in (out / "b/results.jsonl").read_text().splitlines())
        return {
            "files": sorted(str(p.relative_to(out)) for p in out.rglob("*")),
            "maps": {p.name: _arrays(p) for p in sorted(out.glob("b/*.h5"))},
            "pictures": sorted(p.name for p in out.glob("b/*.png")),
            "rows": {row["file"]: _timeless(row) for row in rows},  # the last of each: others are errors
            "table": _table(out / "b/summary.csv"),
        }


WORKS = {work.name: work for work in (Dataset, Training, Compare, Batch, Report)}
TIMES = ("seconds", "date", "written", "output")


def _timeless(row):
    """Without what differs from run to run: times, and checksums of files that hold names of folders."""
    if not isinstance(row, dict):
        return row
    return {name: _timeless(value) for name, value in row.items() if not any(word in name for word in TIMES)}


def _table(path):
    with open(path, newline="") as file:
        return [_timeless(row) for row in csv.DictReader(file)]


def _arrays(path):
    import h5py

    with h5py.File(path) as file:
        return {name: file[name][()].tobytes() for name in file}


# running ------------------------------------------------------------------------------------------


class Work:
    """Runs a work in forked processes."""

    def __init__(self, work, folder):
        self.work, self.folder = work, folder

    def start(self, out, until=None, limit=None, count=None):
        """A process at work; with ``until``, it kills itself before its operation of that number on a file in out, with
        ``count``, it writes their number to a file at the end.
        """
        out.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        code = ERROR
        try:
            os.setsid()
            if limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            if until is not None or count is not None:
                made = _kill_before(until, str(out))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.work.run(out)
            if count is not None:
                count.write_text(str(made[0]))
            code = 0
        except BlockingIOError:
            code = BUSY
        except BaseException as error:
            with contextlib.suppress(OSError):
                (self.folder / "error.txt").write_text(f"{type(error).__name__}: {error}")
        finally:
            os._exit(code)

    def __call__(self, out, **how):
        """Run it to its end; the exit status, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.start(out, **how), 0)[1])

    def error(self):
        """The message of the last run that ended with ERROR."""
        return (self.folder / "error.txt").read_text()


def _kill_before(number, out):
    """Kill this process before its operation of that number on files below ``out``; a list with the number so far."""
    made = [0]
    watched = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}

    def step(event, arguments=()):
        if event == "os.fsync" or (event in watched and str(arguments[0]).startswith(out)):
            made[0] += 1
            if made[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)

    fsync = os.fsync

    def counted(fd):
        step("os.fsync")
        fsync(fd)

    os.fsync = counted
    sys.addaudithook(step)
    return made


def whole(out):
    """Names of files that are not hidden, have no temporary name, and cannot be read to their end."""
    import h5py
    from PIL import Image

    bad = []
    for path in out.rglob("*"):
        if not path.is_file() or path.name.startswith((".", "packed")) or "~c" in path.parts:
            continue
        try:
            if path.suffix == ".h5":
                with h5py.File(path) as file:
                    file.visititems(lambda name, data: data[()] if isinstance(data, h5py.Dataset) else None)
            elif path.suffix == ".npz":
                with zipfile.ZipFile(path) as file:
                    if file.testzip():
                        raise ValueError("damaged")
            elif path.suffix == ".npy":
                np.load(path)
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".png":
                with Image.open(path) as image:
                    image.load()
            elif path.suffix in (".safetensors", ".checkpoint"):
                import safetensors

                safetensors.safe_open(path, framework="np").__enter__()
            elif path.suffix == ".html" and not path.read_text().rstrip().endswith("</html>"):
                raise ValueError("cut short")
        except Exception as error:
            bad.append(f"{path.name}: {error}")
    return bad


# disturbances -------------------------------------------------------------------------------------


class Trial:
    """Disturbances of one work, with counts of what came out."""

    def __init__(self, work, folder, rng):
        self.work, self.folder, self.rng = work, folder, rng
        work.prepare(folder)
        self.runner = Work(work, folder)
        began = time.monotonic()
        out, count = folder / "undisturbed", folder / "count"
        if code := self.runner(out, count=count):
            raise RuntimeError(f"{work.name}: the undisturbed run ended with {code}: {self.runner.error()}")
        self.operations = int(count.read_text())
        self.seconds = time.monotonic() - began
        self.expected = work.result(out)
        self.size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
        self.number = 0
        self.failures = []

    def fresh(self):
        """A new folder for the output."""
        if self.number:
            shutil.rmtree(self.folder / f"out{self.number}", ignore_errors=True)
        self.number += 1
        return self.folder / f"out{self.number}"

    def check(self, out, what):
        """Run to the end and compare."""
        code = self.runner(out)
        if code:
            self.failures.append(f"{what}: ended with {code}: {self.runner.error()}")
            return False
        return self.compare(out, what)

    def compare(self, out, what):
        found = self.work.result(out)
        for name, value in self.expected.items():
            if found[name] != value:
                detail = f"{_short(found[name])} in place of {_short(value)}"
                self.failures.append(f"{what}: other {name}: {detail}")
                return False
        return True

    def intact(self, out, what):
        if bad := whole(out):
            self.failures.append(f"{what}: {bad}")

    def kill(self, moments):
        """SIGKILL at random moments."""
        done = runs = 0
        while done < moments:
            out, row = self.fresh(), []
            while len(row) < min(IN_A_ROW, moments - done):
                if (done + len(row)) % 2:
                    after = self.rng.randrange(1, self.operations + 1)
                    row.append(f"before operation {after}")
                    code = self.runner(out, until=after)
                else:
                    after = self.rng.uniform(0, self.seconds)
                    row.append(f"after {after:.3f} s")
                    pid = self.runner.start(out)
                    time.sleep(after)
                    os.kill(pid, signal.SIGKILL)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if code == -signal.SIGKILL:
                    self.intact(out, row[-1])
                    continue
                row.pop()  # it was finished before
                if code:
                    self.failures.append(f"{row}: ended with {code}: {self.runner.error()}")
                break
            done += len(row)
            runs += 1
            self.check(out, f"killed {', '.join(row)}")
        return f"{done} kills, {runs} runs to the end"

    def truncated(self, moments):
        """The file that was written last is cut short."""
        noticed = redone = 0
        for _ in range(moments):
            out = self.fresh()
            self.runner(out, until=self.rng.randrange(1, self.operations + 20))
            files = [p for p in out.rglob("*") if p.is_file() and p.stat().st_size and "~c" not in p.parts]
            if not files:
                continue
            last = max(files, key=lambda path: path.stat().st_mtime_ns)
            place = self.rng.randrange(last.stat().st_size)
            os.truncate(last, place)
            what = f"{last.relative_to(out)} cut at {place}"
            for _ in range(3):  # an error may name one file after the other
                code = self.runner(out)
                if code == 0:
                    redone += 1
                    self.compare(out, what)
                    break
                message = self.runner.error()
                if code != ERROR or last.name not in message or not last.exists():
                    self.failures.append(f"{what}: ended with {code}: {message}")
                    break
                noticed += 1
                last.unlink()  # which is what the message advises
        return f"{moments} files cut, {redone} results as undisturbed, of these {noticed} after an error"

    def full(self, moments):
        """Less space than is needed, and then enough."""
        refused = 0
        for _ in range(moments):
            out = self.fresh()
            space = max(4096, int(self.size * self.rng.uniform(0.02, 1.1)))
            with Disk(out, space) as disk:
                code = self.runner(out, limit=disk.limit)
                if code == ERROR:
                    refused += 1
                    message = self.runner.error()
                    if not any(text in message for text in ("space", "too large", "write")):
                        self.failures.append(f"{space} bytes: {message}")
                elif code:
                    self.failures.append(f"{space} bytes: ended with {code}")
                self.intact(out, f"{space} bytes")
                disk.enlarge()
                self.check(out, f"{space} bytes")
        return f"{moments} small disks ({disk.kind}), {refused} too small"

    def two(self, moments):
        """Two processes on one output."""
        busy = 0
        for _ in range(moments):
            out = self.fresh()
            first = self.runner.start(out)
            time.sleep(self.rng.uniform(0, 0.5 * self.seconds))
            second = self.runner.start(out)
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in (first, second)]
            busy += BUSY in codes
            if set(codes) not in ({0}, {0, BUSY}):
                self.failures.append(f"two at once: ended with {codes}: {self.runner.error()}")
            self.check(out, "two at once")
        return f"{moments} pairs, {busy} of them refused the second"


class Disk:
    """A folder with little space: a tmpfs, or else a limit on the size of files."""

    def __init__(self, path, space):
        self.path, self.space, self.limit, self.kind = path, space, None, "tmpfs"

    def __enter__(self):
        self.path.mkdir(parents=True)
        self.libc = ctypes.CDLL(None, use_errno=True)
        if self._mount(0, self.space):
            self.limit, self.kind = self.space // 3, "RLIMIT_FSIZE"
        return self

    def _mount(self, flags, size):
        return self.libc.mount(b"tmpfs", bytes(self.path), b"tmpfs", flags, f"size={size}".encode())

    def enlarge(self):
        """Give it enough space."""
        if self.limit is None:
            remount = 32  # MS_REMOUNT of mount(2)
            self._mount(remount, 2**28)

    def __exit__(self, *error):
        if self.limit is None:
            self.libc.umount2(bytes(self.path), 2)  # MNT_DETACH


def _short(value):
    text = str(value)
    return text if len(text) < 300 else f"{text[:300]}... ({len(text)})"


DISTURBANCES = {"kill": Trial.kill, "truncated": Trial.truncated, "full": Trial.full, "two": Trial.two}


def main():
    """Disturb the works that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", help=f"default: all of {', '.join(WORKS)}")
    parser.add_argument("--moments", type=int, default=50, help="kills of each work (default: 50)")
    parser.add_argument("--others", type=int, help="moments of each other disturbance (default: a fifth as many)")
    parser.add_argument("--only", choices=DISTURBANCES, nargs="+", default=[*DISTURBANCES], help="which disturbances")
    parser.add_argument("--seed", type=int, default=1, help="of the random moments (default: 1)")
    options = parser.parse_args()
    from elastofast import _core

    _core.set_num_threads(1)  # a forked process would not have the threads of this one
    others = max(1, options.moments // 5) if options.others is None else options.others
    failures = 0
    for name in options.works or WORKS:
        with tempfile.TemporaryDirectory() as folder:
            trial = Trial(WORKS[name](), Path(folder), random.Random(options.seed))
            for what in options.only:
                began = time.monotonic()
                moments = options.moments if what == "kill" else others
                text = DISTURBANCES[what](trial, moments)
                took = time.monotonic() - began
                print(f"{name:<11}{what:<10}{text}, {len(trial.failures)} failures, {took:.0f} s", flush=True)
                for failure in trial.failures:
                    print(f"  {failure}", flush=True)
                failures += len(trial.failures)
                trial.failures.clear()
    print(f"{failures} failures")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
