"""The members of a list of measurements: which take their steps together, and which are worked on side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from contextvars import copy_context
from threading import Event
from typing import Any

from ..backend.processors import thread_pool, threads
from ..measurement import Measurement
from ..misfit.joint import alike
from ..result import Result
from .history import stopping
from .options import Options

__all__ = ["groups_of", "side_by_side"]


def groups_of(members: dict[int, Any], options: list[Options]) -> list[list[int]]:
    """Which members take their steps together: on a device those that share everything but their numbers.

    In host memory each is a group of its own; small ones are worked on side by side, see `backend.processors`.
    """
    groups: list[list[int]] = []
    for k, m in members.items():
        together = options[k].optimizer.batched and isinstance(m, Measurement)
        for group in groups if together else ():
            if isinstance(members[group[0]], Measurement) and alike(members[group[0]], m):
                group.append(k)
                break
        else:
            groups.append([k])
    return groups


def side_by_side(
    finish: Callable[[list[int]], list[Result]], groups: list[list[int]], members: dict[int, Any]
) -> Iterator[tuple[int, Result]]:
    """Members and their results, as far as Ctrl-C leaves them; if it leaves none, it is raised.

    Parameters
    ----------
    finish : callable
        From a group to the results of its members. In host memory small groups are worked on by several threads.
    groups : list of list of int
    members : dict of int to Measurement or JointMeasurement
    """
    nodes = max((m.geometry.n_nodes for m in members.values()), default=0)
    on_device = any(m.device.is_gpu for m in members.values())
    workers = 1 if on_device else threads(nodes, len(groups))
    for group, found in _in_turn(finish, groups) if workers <= 1 else _in_threads(finish, groups, workers):
        yield from zip(group, found, strict=True)


def _in_turn(finish, groups):
    some = False
    for group in groups:
        try:
            found = finish(group)
        except KeyboardInterrupt:
            if not some:
                raise
            return
        some = True
        yield group, found
        if any(result.status == "interrupted" for result in found):
            return


def _in_threads(finish, groups, workers):
    stop, results = Event(), {}
    token = stopping.set(stop)
    try:
        with thread_pool(workers) as pool:
            places = {pool.submit(copy_context().run, finish, group): k for k, group in enumerate(groups)}

            def end():
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)

            try:
                for future in as_completed(places):
                    results[places[future]] = found = future.result()
                    if any(result.status == "interrupted" for result in found):
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                end()
                for future, k in places.items():  # those that were running have ended with their last map, or without
                    if not future.cancelled() and future.exception() is None:
                        results[k] = future.result()
                if not results:
                    raise
            except BaseException:
                end()
                raise
    finally:
        stopping.reset(token)
    yield from ((groups[k], results[k]) for k in sorted(results))
