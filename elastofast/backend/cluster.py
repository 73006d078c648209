"""Tasks on the workers of a Dask cluster (`distributed`), which may be on other machines.

Dask hands out the tasks, gives those of a lost worker to another one and reports what is finished. What is sent is
small: the function with its settings and the paths of files, and what it returns. The files themselves are read and
written by the workers, so these need a file system that is shared with the caller.
"""

from __future__ import annotations

import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from .processes import attended, told, use_one_thread

__all__ = ["check_cluster", "on_cluster"]

PATIENCE = 60  # seconds between two looks whether there are workers at all; chosen
POLL = 0.02  # seconds between two looks whether a task is finished; chosen, small beside a task
CONNECT = 10  # seconds until a scheduler must have answered; chosen, a busy one answers within one
# Further attempts at a task that raised an error, for the passing faults of shared file systems; chosen. Tasks of lost
# workers are repeated by the scheduler (distributed.scheduler.allowed-failures, 3 times by default).
RETRIES = 2


def check_cluster(scheduler) -> None:
    """Raise an error unless a scheduler answers at an address, and it and its workers have our versions.

    Parameters
    ----------
    scheduler : str
        Address of a Dask scheduler, such as ``"tcp://10.0.0.1:8786"``.

    Raises
    ------
    ImportError
        If `distributed` is not installed.
    ConnectionError
        If no scheduler answers.
    RuntimeError
        If the scheduler or a worker has another version of elastofast or of Python, or none.
    """
    with _client(scheduler):
        pass


def on_cluster(make, tasks, scheduler, files=()) -> Generator:
    """Results ``make(task)`` of all tasks in the order in which they are finished, from the workers of a cluster.

    They work in the current folder of the caller, and with one thread each.

    Parameters
    ----------
    make : callable
        Sent with each task.
    tasks : sequence
    scheduler : str
        Address of a Dask scheduler.
    files : sequence of path-like, optional
        Files and folders that every worker has to find.

    Raises
    ------
    RuntimeError
        If workers do not fit, see `check_cluster`, have several threads, do not see the files, or if the scheduler is
        lost or gives a task up. Exceptions of ``make`` are raised as they are.
    """
    with _client(scheduler) as client:
        from distributed import CancelledError, KilledWorker

        work = _Work(make, version("elastofast"), os.getcwd(), tuple(map(os.fspath, files)))
        futures = client.map(work, tasks, pure=False, retries=RETRIES, key="elastofast")
        try:
            for future in _finished(client, futures, scheduler):
                yield told(future.result())
                future.release()  # the scheduler forgets the result
        except KilledWorker as error:
            raise RuntimeError(
                f"{error.allowed_failures + 1} workers of the cluster at {scheduler} died over one task: out of memory "
                "or time; the same again goes on from what is finished"
            ) from error
        except CancelledError as error:
            raise RuntimeError(
                f"the scheduler at {scheduler} was lost; the same again goes on from what is finished"
            ) from error
        finally:
            client.cancel(futures)


def _finished(client, futures, scheduler) -> Iterator[Any]:
    """Futures as they are finished, and a warning while there is nobody who could work on them."""
    from distributed import as_completed

    finished, looked = as_completed(futures, loop=client.loop), -math.inf
    while not finished.is_empty():
        while not finished.has_ready():
            if time.monotonic() - looked > PATIENCE:
                looked = time.monotonic()
                with suppress(OSError):  # the scheduler is being lost, which its futures will tell
                    if not client.scheduler_info()["workers"]:
                        text = f"the scheduler at {scheduler} has no workers; the work waits for them"
                        warnings.warn(text, stacklevel=2)
            time.sleep(POLL)
        yield next(finished)


@contextmanager
def _client(scheduler) -> Iterator[Any]:
    """A client of the scheduler, whose versions have been checked."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(f'a scheduler needs Dask: pip install "elastofast[dask]" ({error})') from error
    try:
        client = Client(scheduler, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:  # a ValueError if the address cannot be understood
        raise ConnectionError(f"no Dask scheduler answers at {scheduler} within {CONNECT} s ({error})") from error
    with client:
        _check_versions(client.get_versions(packages=["elastofast"]))
        yield client


def _check_versions(found) -> None:
    ours = {"elastofast": version("elastofast"), "python": platform.python_version()}
    members = {"the scheduler": found["scheduler"]} | {f"the worker {a}": w for a, w in found["workers"].items()}
    for who, member in members.items():
        for name, own in ours.items():
            theirs = member["packages"].get(name)
            # of Python the first two numbers, by which what is sent can be read
            if theirs is None or (theirs.split(".")[:2] != own.split(".")[:2] if name == "python" else theirs != own):
                raise RuntimeError(f"{who} has {name} {theirs or 'not installed'}, this process {own}; they must agree")


@dataclass(frozen=True)
class _Work:
    """What a worker does with a task, once it is sure that it can."""

    make: Callable
    version: str
    folder: str
    files: Sequence[str]

    def __call__(self, task):
        from distributed import get_worker

        # here and not only before the work, because workers may join while it goes on
        where = f"the worker on {platform.node()}"
        if self.version != version("elastofast"):
            raise RuntimeError(f"{where} has elastofast {version('elastofast')}, the caller {self.version}")
        if (threads := get_worker().state.nthreads) > 1:
            raise RuntimeError(
                f"{where} works on {threads} tasks at a time; start workers with one thread: --nthreads 1"
            )
        for path in (self.folder, *self.files):
            if not os.path.exists(os.path.join(self.folder, path)):
                raise RuntimeError(
                    f"{where} does not see {path}; workers need the files of the caller under the same paths"
                )
        use_one_thread()
        with chdir(self.folder):  # relative paths mean the same as for the caller
            return attended(self.make, task)
