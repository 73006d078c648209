"""Options of the benchmarks, what their JSON says of the machine, and how each of them is measured."""

import contextlib
import functools
import importlib.metadata
import os
import threading
import time

import numpy as np
import pytest

from elastofast import _core

SIZES = "64,256"  # nodes a side: with these a run takes some minutes
PACKAGES = (
    *("elastofast", "numpy", "scipy", "numba", "torch", "pypardiso", "mkl", "scikit-sparse", "pyamg"),
    *("scikit-fem", "torch-fem"),
)
TRIAD = 8 << 20  # numbers in each of the three arrays of the triad, 64 MiB: far beyond the caches
BLOCK = 1 << 14  # numbers that the triad takes at a time, so that its two passes of NumPy move them once


def pytest_addoption(parser):
    """Which sizes are run, and where further peers may be."""
    group = parser.getgroup("elastofast benchmarks")
    group.addoption("--sizes", default=SIZES, help=f"nodes a side, up to 2048 make sense (default: {SIZES})")
    group.addoption("--other-python", default="/usr/bin/python3", help="interpreter that may have dolfinx and PETSc")


def pytest_generate_tests(metafunc):
    """A test with an argument n runs for each size."""
    if "n" in metafunc.fixturenames:
        metafunc.parametrize("n", [int(size) for size in metafunc.config.getoption("--sizes").split(",")])


def pytest_benchmark_update_machine_info(config, machine_info):
    """What decides on speed and stays the same from run to run; comparisons warn where it differs."""
    info = _core.build_info()
    machine_info["elastofast"] = {
        "threads": _core.get_num_threads(),
        "processors": len(os.sched_getaffinity(0)),
        **{name: info[name] for name in ("compiler", "flags", "instruction_set")},
    }


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Versions of all that takes part, and the bandwidth that was measured in this run."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    output_json["elastofast"] = {"versions": versions, "triad_bytes_per_second": bandwidth(_core.get_num_threads())}


@functools.cache
def bandwidth(threads):
    """Bytes per second of the triad a = b + s c (McCalpin's STREAM) with some threads: the best of five runs."""
    a, b, c = (np.full((threads, TRIAD // threads), value) for value in (0.0, 1.0, 2.0))

    def part(i):
        for start in range(0, a.shape[1], BLOCK):
            block = slice(start, start + BLOCK)
            np.multiply(c[i, block], 3.0, out=a[i, block])
            np.add(a[i, block], b[i, block], out=a[i, block])

    def run():
        workers = [threading.Thread(target=part, args=(i,)) for i in range(threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return time.perf_counter() - start

    run()  # first touch
    return 3 * a.nbytes / min(run() for _ in range(5))


@pytest.fixture
def measure(benchmark):
    """Runs a function as a benchmark of a group; returns its answer.

    ``group`` names the task, and peers that do the same work have the same; ``dofs`` is the number of unknowns (of all
    members of a batch), ``moved`` the bytes that the work has to read and write at least, where that is known.
    """

    def run(group, function, *arguments, dofs, moved=None, **options):
        benchmark.group = group
        answer = benchmark(function, *arguments, **options)
        if benchmark.stats is not None:  # None under --benchmark-disable
            least = benchmark.stats.stats.min
            benchmark.extra_info |= {"dofs": int(dofs), "dofs_per_second": dofs / least}
            if moved is not None:
                threads = _core.get_num_threads()
                benchmark.extra_info |= {
                    "bytes": int(moved),
                    "bytes_per_second": moved / least,
                    "share_of_triad": moved / least / bandwidth(threads),  # above 1 where all fits into a cache
                }
        return answer

    return run


@pytest.fixture
def other_python(request):
    """The interpreter of further peers; their time is not that of this process."""
    if any("process_time" in word for word in request.config.invocation_params.args):
        pytest.skip("peers under another interpreter cannot be timed by the process time of this one")
    return request.config.getoption("--other-python")


@pytest.fixture
def threads(request):
    """Sets the number of threads to the test's parameter while it runs."""
    before = _core.get_num_threads()
    _core.set_num_threads(request.param)
    yield request.param
    _core.set_num_threads(before)
