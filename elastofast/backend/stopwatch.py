"""Where the time of a reconstruction goes."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["Stopwatch"]

P = ParamSpec("P")
R = TypeVar("R")


class Stopwatch:
    """Adds up the seconds spent inside ``with`` blocks and wrapped functions.

    Blocks may be nested: the time inside an inner block is counted once, as a part of the outer one. The seconds of
    threads that share a stopwatch are added up.

    Attributes
    ----------
    seconds : float
        The time measured so far, without that of a block that has not ended.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._blocks = _Blocks()
        self._lock = threading.Lock()

    def __enter__(self) -> Stopwatch:
        blocks = self._blocks
        if blocks.depth == 0:
            blocks.began = time.perf_counter()
        blocks.depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        blocks = self._blocks
        blocks.depth -= 1
        if blocks.depth == 0:
            with self._lock:
                self.seconds += time.perf_counter() - blocks.began

    def wrap(self, function: Callable[P, R]) -> Callable[P, R]:
        """The function, with the time of its calls added to the stopwatch."""

        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with self:
                return function(*args, **kwargs)

        return timed


class _Blocks(threading.local):
    """The nested blocks that a thread is inside of, and when the outermost began."""

    depth = 0
    began = 0.0
