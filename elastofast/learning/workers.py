"""Work shared out to spawned processes, which end with their parent and leave Ctrl-C to it."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context

__all__ = ["in_processes"]


def in_processes(make, tasks, jobs) -> Generator:
    """``make(task)`` for each task, as they get ready, from spawned processes of one thread each.

    Close the generator (`contextlib.closing`) if it may be left early: that ends the processes.

    Parameters
    ----------
    make : callable
        Picklable; sent to each process once.
    tasks : sequence
    jobs : int
        How many processes.

    Raises
    ------
    RuntimeError
        If a process dies; what ``make`` raises comes as it is.
    """
    todo, jobs = iter(tasks), min(jobs, len(tasks) or 1)
    pending: set[Future] = set()
    context = get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    with reader, writer, ProcessPoolExecutor(jobs, context, _start, (reader, make)) as pool:
        try:
            while True:
                with _interrupts_blocked():
                    pending |= {pool.submit(_work, task) for task in itertools.islice(todo, 2 * jobs - len(pending))}
                if not pending:
                    return
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a working process died: out of memory, or the calling script lacks 'if __name__ == \"__main__\":'; "
                "the same again goes on from what is finished"
            ) from error
        except BaseException:
            writer.close()  # ends the processes
            raise


@contextmanager
def _interrupts_blocked():
    """Processes started in here never see Ctrl-C, which goes to the whole group; it is for the parent to answer."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_make: Callable | None = None  # of a spawned process


def _start(reader, make):
    global _make
    os.environ["OMP_NUM_THREADS"] = "1"  # read by torch, which is not loaded yet
    from .. import _core

    _core.set_num_threads(1)  # the rounding of sums depends on the number of threads

    def leave():
        reader.poll(None)
        os._exit(1)

    # The pipe ends when the parent stops, even by a kill, after which a worker would wait for tasks for ever.
    threading.Thread(target=leave, daemon=True).start()
    _make = make


def _work(task):
    assert _make is not None
    return _make(task)
