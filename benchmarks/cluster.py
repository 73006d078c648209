"""Work on a Dask cluster against work here: the same data set although workers are killed, and the overhead.

Two workers of a LocalCluster make a data set while every few samples one of them is killed (SIGKILL); the file must
have the bytes of the one that processes here make. Then both ways hand out tasks that only sleep for a second, so that
what else the machine does hardly matters.

    python benchmarks/cluster.py --samples 200 --kills 10 --tasks 100
"""

import argparse
import logging
import os
import signal
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import dask
from distributed import LocalCluster

from elastofast.backend.tasks import worked_on
from elastofast.learning.dataset import build_dataset

SIZE = 33  # nodes a side: samples of a tenth of a second


def compare_data_sets(cluster, folder, samples, kills):
    """Make the data set both ways; whether the files are the same."""
    small = {"shape": (SIZE, SIZE), "count": samples - 2, "validation": 1, "test": 1}
    here, there = folder / "here.h5", folder / "there.h5"
    build_dataset(here, **small, jobs=2)
    parts, killed = Path(f"{there}.parts"), []

    def alive(worker):
        return worker.worker_address in cluster.scheduler.workers

    def kill():
        for k in range(1, kills + 1):
            while len(list(parts.glob("[0-9]*.npz"))) < k * samples // (kills + 1):
                if there.exists():  # the work was quicker than the kills
                    return
                time.sleep(0.01)
            # only workers that the scheduler knows: a nanny gives one up that dies while it starts
            while not (pids := [w.pid for w in list(cluster.workers.values()) if alive(w) and w.pid not in killed]):
                time.sleep(0.01)
            os.kill(pids[0], signal.SIGKILL)
            killed.append(pids[0])

    killer = threading.Thread(target=kill)
    killer.start()
    build_dataset(there, **small, scheduler=cluster.scheduler_address)
    killer.join()
    same = here.read_bytes() == there.read_bytes()
    print(f"{samples} samples of {SIZE} x {SIZE}, {len(killed)} workers killed: {'same' if same else 'OTHER'} bytes")
    return same


def sleep(seconds):
    """A task of a known length, which needs no processor."""
    time.sleep(seconds)


def overhead(cluster, tasks):
    """Seconds beyond those of the tasks themselves, as a share of them."""
    with closing(worked_on(sleep, [0.0] * 4, scheduler=cluster.scheduler_address)) as warm:
        list(warm)
    began = time.perf_counter()
    with closing(worked_on(sleep, [1.0] * tasks, scheduler=cluster.scheduler_address)) as results:
        list(results)
    wall, least = time.perf_counter() - began, tasks / 2
    print(f"{tasks} tasks of 1 s on 2 workers: {wall:.2f} s, overhead {wall / least - 1:.2%}, connection included")
    return wall / least - 1


def main():
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=100)
    options = parser.parse_args()
    # LocalCluster gives up a worker that is not back after 15 s, which a busy machine may need to start it again
    dask.config.set({"distributed.deploy.lost-worker-timeout": "600s"})
    quiet = {"dashboard_address": ":0", "silence_logs": logging.CRITICAL}
    with LocalCluster(n_workers=2, threads_per_worker=1, **quiet) as cluster, tempfile.TemporaryDirectory() as folder:
        overhead(cluster, options.tasks)
        same = compare_data_sets(cluster, Path(folder), options.samples, options.kills)
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
