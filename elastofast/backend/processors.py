"""The computer this runs on, and work that is shared out over its processors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from .. import _core

__all__ = ["processors", "side_by_side", "thread_pool", "threads"]

T = TypeVar("T")
R = TypeVar("R")

# Nodes of a body up to which members of a batch are worked on side by side, one thread each. Beyond, one solve keeps
# all processors busy by itself, and several hierarchies would not fit into their caches. Not studied.
SIDE_BY_SIDE_NODES = 2**17


def processors() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(nodes: int, members: int) -> int:
    """How many members of a batch on bodies of some nodes are worked on at a time: at most OMP_NUM_THREADS."""
    return min(_core.get_num_threads(), members) if nodes <= SIDE_BY_SIDE_NODES else 1


@contextmanager
def thread_pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads have one thread each for the kernels and for torch."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch is not None else 0

    def begin():
        _core.set_num_threads(1)  # of this thread alone
        if torch is not None:
            torch.set_num_threads(1)  # also of threads to come, hence the restoration below

    try:
        with ThreadPoolExecutor(workers, initializer=begin) as pool:
            yield pool
    finally:
        if torch is not None:
            torch.set_num_threads(before)


def side_by_side(work: Callable[[T], R], items: Iterable[T], workers: int) -> list[R]:
    """The results of some work on items, in their order; an error is raised once all work that began has ended."""
    if workers <= 1:
        return [work(item) for item in items]
    with thread_pool(workers) as pool:
        try:
            return list(pool.map(work, items))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
