"""What the scripts and tests of this folder share: the standard problems, tables, and the files of results."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path

import numpy as np

import elastofast as ef
from elastofast import _core

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "elastofast", "numpy", "scipy", "numba", "scikit-fem", "pypardiso", "mkl", "scikit-sparse", "pyamg"
)  # fmt: skip


def problem(n, law):
    """Form, modulus and load of the standard test: a 5:1 inclusion in a 40 mm square under 100 Pa."""
    grid = ef.Grid((n, n), (40e-3 / (n - 1),) * 2)
    x, _ = ef.inclusion(grid, center=(20e-3, 20e-3), radius=8e-3, modulus=50e3, background=10e3)
    return ef.ElasticForm(grid, law), x, ef.compression(grid, pressure=100.0)


def mesh_problem(n):
    """The same on triangles, in plane stress: every cell of the grid is cut in two."""
    form, x, _ = problem(n, LAWS["plane stress"])
    node = np.arange(n * n).reshape(n, n)
    a, b, c, d = (corner.ravel() for corner in (node[:-1, :-1], node[1:, :-1], node[1:, 1:], node[:-1, 1:]))
    # axis 1 of a mesh is axial, axis 0 of a grid
    mesh = ef.Mesh(form.geometry.points[:, ::-1], np.concatenate([np.c_[a, d, c], np.c_[a, c, b]]))
    return ef.ElasticForm(mesh, form.law), x.ravel(), ef.compression(mesh, pressure=100.0)


def volume_problem(n, poisson):
    """The same in a cube, with a sphere in it."""
    grid = ef.Grid((n, n, n), (40e-3 / (n - 1),) * 3)
    inside = np.linalg.norm(grid.points - 20e-3, axis=1).reshape(grid.shape) < 8e-3
    x = np.where(inside, 50e3, 10e3)
    return ef.ElasticForm(grid, ef.Solid(poisson)), x, ef.compression(grid, pressure=100.0)


def phantom(n, law, snr=35.0, seed=1):
    """The simulated measurement of a lesion in a 40 mm square under 100 Pa, and the lesion's mask."""
    grid = ef.Grid((n, n), (40e-3 / (n - 1),) * 2)
    truth, mask = ef.lesion(grid, seed=seed, kind="random", size=(0.2, 0.3))
    return ef.simulate(grid, law, ef.compression(grid, pressure=100.0), truth, snr=snr, seed=seed), mask


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
