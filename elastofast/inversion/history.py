"""What is recorded of every step, and who is told of it while it happens."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from threading import Event, Lock
from typing import Any

import numpy as np

from ..progress import progress_bar

__all__ = ["History", "stopping"]

logger = logging.getLogger(__name__)

# Where set, the event by which the threads of one call are told to stop.
stopping: ContextVar[Event | None] = ContextVar("stopping", default=None)
_telling = Lock()  # the caller's function is called by one thread at a time


class History:
    """The accepted steps of every member of a batch, told to a progress bar or to the caller's function.

    Parameters
    ----------
    count : int
        Number of members.
    progress : bool, callable or None
        True shows a bar; a callable gets each entry as it is made.
    title : str
        Of the bar.
    places : list of int, optional
        Numbers of the members in the caller's list, which entries then have as ``member``.
    """

    def __init__(self, count: int, progress: bool | Callable | None, title: str, places: list[int] | None = None):
        self.entries: list[list[dict[str, Any]]] = [[] for _ in range(count)]
        self._progress, self._title, self._places = progress, title, places
        self._bar: Any = None
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since `running` was called."""
        return time.perf_counter() - self._began

    def running(self) -> AbstractContextManager:
        """Context of the run: starts the clock and shows the bar if there is to be one."""
        self._began = time.perf_counter()
        if self._progress is not True:
            return nullcontext()
        self._bar = progress_bar(self._title, "step", True, leave=True, always=True)
        return self._bar

    def record(self, shape, point, weight, chi2, step, gradient_norm, accepted) -> None:
        """Add an entry for each member that took a step.

        Parameters
        ----------
        shape : tuple of int
            Of the level's node fields.
        point : Iterate
            With the data term and the prior's energies.
        weight, chi2, step, gradient_norm : numpy.ndarray, shape (B,)
        accepted : numpy.ndarray of bool, shape (B,)

        Raises
        ------
        KeyboardInterrupt
            In a thread that has been told to stop.
        """
        for k in np.flatnonzero(accepted):
            entry = {
                "iteration": len(self.entries[k]) + 1,
                "shape": shape,
                "weight": float(weight[k]),
                "objective": float(point.data.value[k] + weight[k] * point.prior[k]),
                "data": float(point.data.value[k]),
                "prior": float(point.prior[k]),
                "chi2": float(chi2[k]),
                "step": float(step[k]),
                "gradient_norm": float(gradient_norm[k]),
                "seconds": self.seconds,
            }
            if self._places is not None:
                entry["member"] = self._places[k]
            self.entries[k].append(entry)
            logger.debug("%s: %s", self._title, entry)
            if callable(self._progress):
                with _telling:
                    self._progress(entry)
        stop = stopping.get()
        if stop is not None and stop.is_set():
            raise KeyboardInterrupt
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix(chi2=f"{chi2.mean():.3f}", shape="x".join(map(str, shape)))
