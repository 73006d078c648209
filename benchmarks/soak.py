"""Many small reconstructions in one process: memory, threads and open files must not grow.

The measurements differ in size, load, law, noise, prior and in how the weight is found, so that no cache of one case
hides what another one leaves behind.

Usage: ``python benchmarks/soak.py [--count 10000] [--minutes 60]``. It ends at whichever comes first, and prints a row
of the table now and then. The exit status is 1 if something grew after the first tenth of the work. Linux only (/proc).
"""

import argparse
import gc
import itertools
import os
import sys
import time
import warnings

import numpy as np

import elastofast as ef

SHAPES = ((9, 9), (12, 10), (17, 17))
LAWS = (ef.PlaneStress(0.495), ef.PlaneStrain(0.45))
PRIORS = ("tv", "tikhonov", "none")
SEARCHED = 10  # one in so many chooses its weight, which takes ten times as long
ROWS = 20  # of the table
# What may be added after the first tenth: the allocator keeps pages, and Python's small objects come and go.
GROWTH_MIB = 8.0


def loads(grid):
    """A pressure, plates, and open edges."""
    edges = np.ones((2, *grid.shape), bool)
    edges[:, 1:-1, 1:-1] = False
    return ef.compression(grid, pressure=100.0), ef.compression(grid, strain=0.01), ef.Boundary(open=edges)


def measurements():
    """Measurements, priors and weights without end, no two of them alike."""
    cases = itertools.product(SHAPES, LAWS, range(3), PRIORS)
    for seed, (shape, law, k, prior) in enumerate(itertools.cycle(cases)):
        grid = ef.Grid(shape, (1e-3, 1e-3))
        truth, _ = ef.lesion(grid, seed=seed)
        m = ef.simulate(grid, law, ef.compression(grid, pressure=100.0), truth, snr=30.0, seed=seed)
        load = loads(grid)[k]
        if k == 1:
            m = ef.simulate(grid, law, load, truth, snr=30.0, seed=seed)
        weight = "auto" if seed % SEARCHED == 0 else 100.0
        yield ef.Measurement(grid, law, load, m.displacement, m.level), prior, weight


def state():
    """Resident memory in MiB, threads, open files and tracked objects of this process."""
    gc.collect()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return memory, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), len(gc.get_objects())


def main():
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=60.0, help="largest time, of the processor")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| reconstructions | seconds of the processor | memory, MiB | threads | open files | objects |")
    print("|---|---|---|---|---|---|", flush=True)
    first, begun = None, time.process_time()
    done, statuses, shown = 0, {}, 0
    for m, prior, weight in measurements():
        result = ef.reconstruct(m, prior=prior, weight=weight)
        statuses[result.status] = statuses.get(result.status, 0) + 1
        done += 1
        spent = time.process_time() - begun
        share = max(done / options.count, spent / (60 * options.minutes))
        if share >= 1 or int(share * ROWS) > shown:
            shown = int(share * ROWS)
            now = state()
            first = now if first is None and share >= 0.1 else first
            print(f"| {done} | {spent:.0f} | {now[0]:.1f} | {now[1]} | {now[2]} | {now[3]} |", flush=True)
            if share >= 1:
                break
    print("\nstatuses:", ", ".join(f"{n} {status}" for status, n in sorted(statuses.items())))
    growth = [b - a for a, b in zip(first, now, strict=True)]
    print(f"grown since the first tenth: {growth[0]:.1f} MiB, {growth[1]} threads, {growth[2]} open files")
    return 1 if growth[0] > GROWTH_MIB or growth[1] > 0 or growth[2] > 0 else 0


if __name__ == "__main__":
    sys.exit(main())
