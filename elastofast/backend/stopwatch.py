"""Where the time of a reconstruction goes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["Stopwatch"]

P = ParamSpec("P")
R = TypeVar("R")


class Stopwatch:
    """Adds up the seconds spent inside ``with`` blocks and wrapped functions.

    Blocks may be nested: the time inside an inner block is counted once, as a part of the outer one. A stopwatch
    belongs to one thread.

    Attributes
    ----------
    seconds : float
        The time measured so far, without that of a block that has not ended.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0
        self._began = 0.0

    def __enter__(self) -> Stopwatch:
        if self._depth == 0:
            self._began = time.perf_counter()
        self._depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._began

    def wrap(self, function: Callable[P, R]) -> Callable[P, R]:
        """The function, with the time of its calls added to the stopwatch."""

        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with self:
                return function(*args, **kwargs)

        return timed
