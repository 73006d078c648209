"""Where the tasks of a long computation are worked on: in this process, in several here, or on a cluster."""

from __future__ import annotations

from collections.abc import Generator

from .cluster import check_cluster, on_cluster
from .processes import in_processes

__all__ = ["check_workers", "worked_on"]


def check_workers(jobs, scheduler) -> None:
    """Refuse a number of processes beside the address of a scheduler, and a scheduler that is of no use.

    Parameters
    ----------
    jobs : int or None
        Number of processes, if one was asked for.
    scheduler : str or None
        Address of a Dask scheduler, see `check_cluster` for the errors.
    """
    if scheduler is None:
        return
    if jobs is not None:
        raise ValueError(
            f"jobs counts processes of this machine, got {jobs} beside the scheduler {scheduler}: give one"
        )
    check_cluster(scheduler)


def worked_on(make, tasks, *, processes=0, scheduler=None, files=()) -> Generator:
    """Results ``make(task)`` of all tasks, in the order in which they are finished.

    Close the generator (`contextlib.closing`) if its loop may be left early; that ends the work.

    Parameters
    ----------
    make : callable
        Picklable unless the work is done in this process. It keeps what is large in files and returns what is small.
    tasks : sequence
        Small and picklable: paths and settings.
    processes : int, optional
        Number of spawned processes of one thread each; 0 works in this process with its threads.
    scheduler : str, optional
        Address of a Dask scheduler, whose workers do the work in place of processes here.
    files : sequence of path-like, optional
        Files and folders that workers on other machines have to find.

    Raises
    ------
    RuntimeError
        If a process or the cluster cannot go on. Exceptions of ``make`` are raised as they are.
    """
    if scheduler is not None:
        return on_cluster(make, tasks, scheduler, files)
    return in_processes(make, tasks, processes) if processes else (make(task) for task in tasks)
