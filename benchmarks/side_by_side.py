"""Fair races: all contestants in one run, interleaved, compared by their medians.

Times on a shared machine drift, so a ratio means something only if both sides were measured side by side. Set
OMP_NUM_THREADS before the start: elastofast, MKL and OpenBLAS all follow it.
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np

import elastofast as ef
from elastofast import _core

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "elastofast", "numpy", "scipy", "numba", "scikit-fem", "pypardiso", "mkl", "scikit-sparse", "pyamg"
)  # fmt: skip


def race(contestants, rounds=5, turn=0.02, patience=5.0):
    """Median and least time of each contestant, in seconds.

    Every round gives each contestant a turn, in alternating order: as many calls as fit into ``turn``
    seconds, at least one. A contestant is called without arguments; if it returns a float, that is its time,
    else it is timed here. The first call (compilation, caches, first touch of memory) does not count, unless
    it took more than ``patience`` seconds: then there is no second one.
    """
    times, calls = {}, {}
    for name, run in contestants.items():
        first = _time(run)
        if first > patience:
            times[name] = [first]
        else:
            times[name], calls[name] = [], max(1, round(turn / _time(run)))
    order = list(calls)
    for _ in range(rounds):
        for name in order:
            times[name] += [_time(contestants[name]) for _ in range(calls[name])]
        order.reverse()
    return {name: {"median": statistics.median(t), "min": min(t), "calls": len(t)} for name, t in times.items()}


def _time(run):
    before = time.perf_counter()
    own = run()
    return own if isinstance(own, float) else time.perf_counter() - before


class Remote:
    """A contestant under another interpreter: for each line in, it answers with ``seconds`` as JSON."""

    def __init__(self, *command):
        command = [str(part) for part in command]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self._answer()

    def __call__(self):
        """Let it run once; returns the seconds that it took."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.last = self._answer()
        return float(self.last["seconds"])

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise ImportError(f"{' '.join(self.process.args)} ended")
        return json.loads(line)

    def close(self):
        """End it."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@contextlib.contextmanager
def optional(peer):
    """Skip a peer that is not installed, and say why."""
    try:
        yield
    except (ImportError, OSError) as error:
        print(f"skipped {peer}: {error}", flush=True)


def problem(n, law):
    """Form, modulus and load of the standard test: a 5:1 inclusion in a 40 mm square under 100 Pa."""
    grid = ef.Grid((n, n), (40e-3 / (n - 1),) * 2)
    x, _ = ef.inclusion(grid, center=(20e-3, 20e-3), radius=8e-3, modulus=50e3, background=10e3)
    return ef.ElasticForm(grid, law), x, ef.compression(grid, pressure=100.0)


LAWS = {"plane stress": ef.PlaneStress(0.495), "plane strain": ef.PlaneStrain(0.495)}


def print_table(heads, rows):
    """Rows of text and numbers as a Markdown table."""
    print("\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in row) + " |", flush=True)


def save(name, tables):
    """Write tables, machine, date, versions and threads to results/<name>-<threads>.json."""
    threads = _core.get_num_threads()
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    record = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cpus": os.cpu_count(),
            "system": platform.platform(),
            "instruction_set": _core.build_info()["instruction_set"],
        },
        "threads": threads,
        "python": platform.python_version(),
        "versions": versions,
        "tables": tables,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{threads}.json"
    path.write_text(json.dumps(record, indent=1, default=_plain) + "\n")
    print(f"\nwrote {path}")


def _plain(value):
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"cannot write {type(value).__name__}")


def _processor():
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
