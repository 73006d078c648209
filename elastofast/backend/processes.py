"""Tasks in spawned processes, which end with their parent and leave the answer to Ctrl-C to it."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context

from .processors import processors

__all__ = ["attended", "in_processes", "told", "use_one_thread"]

QUEUED = 2  # tasks for each process at a time, so that none has to wait for its next one
# What torch and the libraries of linear algebra read when they are loaded, which is before a process gets to our code.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def in_processes(make, tasks, jobs) -> Generator:
    """Results ``make(task)`` of all tasks in the order in which they are finished, from processes of one thread each.

    Parameters
    ----------
    make : callable
        Picklable, and sent to each process once.
    tasks : sequence
    jobs : int
        Number of processes; there are never more than processors or tasks.

    Raises
    ------
    RuntimeError
        If a process dies. Exceptions of ``make`` are raised as they are.
    """
    todo, jobs = iter(tasks), min(jobs, len(tasks) or 1, processors())
    pending: set[Future] = set()
    context = get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    with reader, writer, ProcessPoolExecutor(jobs, context, _start, (reader, make)) as pool:
        try:
            while True:
                with _interrupts_blocked(), _environment(ONE_THREAD):
                    room = QUEUED * jobs - len(pending)
                    pending |= {pool.submit(_work, task) for task in itertools.islice(todo, room)}
                if not pending:
                    return
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (told(future.result()) for future in done)
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a working process died: out of memory, or the calling script lacks 'if __name__ == \"__main__\":'; "
                "the same again goes on from what is finished"
            ) from error
        except BaseException:
            writer.close()  # ends the processes
            raise


def attended(make, task) -> tuple:
    """``make(task)`` in a working process, and the warnings that it gave; `told` passes them on where it was asked."""
    with warnings.catch_warnings(record=True) as caught:
        result = make(task)
    return result, [(str(warning.message), warning.category) for warning in caught]


def told(attended) -> object:
    """The result alone, once its warnings have been given."""
    result, caught = attended
    for text, category in caught:
        warnings.warn(text, category, stacklevel=2)
    return result


def use_one_thread() -> None:
    """Let this thread, and torch in this process, compute with one thread from now on.

    The rounding of sums depends on the number of threads, and tasks that run side by side keep the processors busy.
    """
    from .. import _core

    os.environ["OMP_NUM_THREADS"] = "1"  # read by torch where that is not loaded yet
    _core.set_num_threads(1)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


@contextmanager
def _interrupts_blocked():
    """Processes that are started inside never see Ctrl-C, which the terminal sends to all; the parent answers it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(variables):
    """Processes that are started inside see these variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_make: Callable | None = None  # of a spawned process


def _start(reader, make):
    global _make

    def leave():
        reader.poll(None)
        os._exit(1)

    # If the parent stops, even by a kill, the pipe ends; without this thread the worker would wait for tasks forever.
    threading.Thread(target=leave, daemon=True).start()
    _make = make


def _work(task):
    return attended(_make, task)
