"""Batches on the processor: many members through one call, against one after the other and one process per core.

    OMP_NUM_THREADS=2 python benchmarks/batches.py

Forward solves of a list of moduli, reconstructions of a list of measurements, and solves by one solver that is updated
in place of a new one for each modulus. Ratios are of times measured side by side; on a machine that does other work,
``--clock cpu`` compares what the ways cost in processor time, which shows their overhead but not what they gain.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
from side_by_side import print_table, race, save

import elastofast as ef
from elastofast import _core
from elastofast.backend.processors import processors

LAW, PRESSURE, SNR = ef.PlaneStress(0.495), 100.0, 100.0


def body(n):
    """Form and load."""
    grid = ef.Grid((n, n), (1e-3, 1e-3))
    return ef.ElasticForm(grid, LAW), ef.compression(grid, pressure=PRESSURE)


def moduli(n, members):
    """Rough maps, (members, n, n)."""
    return np.random.default_rng(0).uniform(1e4, 2e4, (members, n, n))


def measurements(n, members):
    """Simulated ones of these maps."""
    form, load = body(n)
    return [ef.simulate(form.geometry, LAW, load, x, snr=SNR, seed=k) for k, x in enumerate(moduli(n, members))]


def with_threads(count, work):
    """The work as a contestant with a number of threads of OpenMP."""

    def run():
        before = _core.get_num_threads()
        _core.set_num_threads(count)
        try:
            work()
        finally:
            _core.set_num_threads(before)

    return run


def one_thread():
    """What a working process begins with."""
    _core.set_num_threads(1)


def forward(form, load, x):
    """One forward solve."""
    return ef.solve_forward(form, x, load)


def reconstruct(iterations, m):
    """One reconstruction, with a weight that is given."""
    return ef.reconstruct(m, prior="tv", weight=1.0, max_iterations=iterations)


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[48, 128])
    parser.add_argument("--members", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=10, help="of a reconstruction")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--save", action="store_true", help="write the figures to benchmarks/results")
    options = parser.parse_args()
    cores, rows, found = min(processors(), _core.get_num_threads()), [], {}
    with ProcessPoolExecutor(cores, get_context("spawn"), initializer=one_thread) as pool:
        for n in options.nodes:
            (form, load), x = body(n), moduli(n, options.members)
            ms, flat = measurements(n, options.members), x.reshape(len(x), -1)
            force, solver = load.force.reshape(2, -1), form.solver(flat[0], load.loaded)

            def afresh(form=form, load=load, force=force, flat=flat):
                for one in flat:
                    form.solver(one, load.loaded).solve(force)

            def updated(solver=solver, force=force, flat=flat):
                for one in flat:
                    solver.update(one)
                    solver.solve(force)

            works = {
                "forward": (partial(forward, form, load), x, partial(ef.solve_forward, form, x, load)),
                "reconstruct": (
                    partial(reconstruct, options.iterations),
                    ms,
                    partial(reconstruct, options.iterations, ms),
                ),
            }
            for name, (work, items, together) in works.items():

                def in_turn(work=work, items=items):
                    for item in items:
                        work(item)

                share = max(1, len(items) // (4 * cores))
                contestants = {
                    "one call": with_threads(cores, together),
                    "in turn, one thread": with_threads(1, in_turn),
                    "in turn, all threads": with_threads(cores, in_turn),
                }
                if options.clock == "wall":  # the processor time of other processes is not seen from here
                    contestants["a process per core"] = lambda work=work, items=items, share=share: list(
                        pool.map(work, items, chunksize=share)
                    )
                found[f"{name} {n}"] = times = measure(contestants, options)
                rows.append([f"{name}, {n} x {n}", *ratios(times, "one call")])
            times = measure({"updated": with_threads(1, updated), "afresh": with_threads(1, afresh)}, options)
            found[f"solver {n}"] = times
            rows.append([f"solver, {n} x {n}", *ratios(times, "updated")])
    print_table(["work", "ms a member", "times of the other ways over this one"], rows)
    if options.save:
        save("batches", found)


def measure(contestants, options):
    """Milliseconds a member of each contestant."""
    clock = time.perf_counter if options.clock == "wall" else time.process_time

    def timed(run):
        def call():
            before = clock()
            run()
            return clock() - before

        return call

    times = race({name: timed(run) for name, run in contestants.items()}, options.rounds, patience=60.0)
    return {name: 1e3 * t["median"] / options.members for name, t in times.items()}


def ratios(times, reference):
    """The cells of a row."""
    others = ", ".join(f"{name} {t / times[reference]:.2f}" for name, t in times.items() if name != reference)
    return f"{times[reference]:.2f}", others


if __name__ == "__main__":
    main()
