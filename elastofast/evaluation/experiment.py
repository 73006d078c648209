"""The paper's experiment: every method on the same held-out measurements, with errors, times and paired tests.

The state of a comparison is a folder. Each finished run (one method on one map under one condition) adds a map and then
a line in ``results.jsonl``, so whatever stops the work costs no more than the runs in the making.
Layout: docs/comparison.md.
"""

from __future__ import annotations

import itertools
import math
import shlex
import time
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import numpy as np

from .. import __version__
from ..backend.tasks import check_workers, worked_on
from ..learning.dataset import Dataset, OtherDatasetError, build_dataset, whole_number
from ..metrics import evaluate, lesion_diameter
from ..progress import progress_bar
from ..resumable import ResumableFolder, RowFile, reserve
from .methods import METHODS, Method, chosen_methods
from .results import COLUMNS, METRICS, Comparison
from .scenarios import SCENARIOS, Condition, measure

__all__ = ["METHODS", "Comparison", "compare"]

# Bytes beside its values, estimated from above: of the index of a map in HDF5, and of the names of its group
MAP_OVERHEAD, GROUP_OVERHEAD = 2048, 2**16


def compare(
    out,
    *,
    data=None,
    size=None,
    maps=None,
    seed=0,
    snr=None,
    world=("clean",),
    methods=None,
    weights=None,
    jobs=None,
    scheduler=None,
    progress=False,
) -> Comparison:
    """Reconstruct held-out maps with several methods, and report their errors and times.

    Conditions are all pairs of a noise level and a scenario. If a comparison is interrupted, even by a kill, another
    call with the same arguments makes only the missing runs.

    Parameters
    ----------
    out : path-like
        Folder for the results, which is made if it does not exist. Layout: docs/comparison.md.
    data : path-like, optional
        Data set whose test maps are used. By default built-in maps are made in the way in which `build_dataset` makes
        test maps, so that none of them is a training map of any data set.
    size : int, optional
        Nodes along each side of built-in maps; default 128.
    maps : int, optional
        Number of test maps, the first ones of a data set; default 30, with a data set all.
    seed : int, optional
        Seed of built-in maps and of everything that is simulated anew.
    snr : sequence of float, optional
        Signal-to-noise ratios in decibels; default that of the data set, 35 for built-in maps.
    world : sequence of str, optional
        Scenarios, by their names in `elastofast.evaluation.scenarios.SCENARIOS`.
    methods : sequence of str or (str, callable), optional
        Names in `METHODS`, or a new name with a function from a `Measurement` to a `Result`, which must be picklable if
        runs are made in other processes. Default all of `METHODS`. The last method is tested against each other one.
    weights : dict of str to path-like, optional
        Weights files by kind of network, one of `methods.WEIGHTS`; default those shipped with the package.
    jobs : int, optional
        With 1, the default, runs are made in this process with its threads; otherwise in this number of spawned
        processes of one thread each, and the report says that times are not comparable. A script that asks for more
        than 1 needs ``if __name__ == "__main__":``.
    scheduler : str, optional
        Address of a Dask scheduler (`distributed`), such as ``"tcp://10.0.0.1:8786"``, whose workers make the runs in
        place of this process. They need a file system that is shared with it: docs/howto/many.md.
    progress : bool, optional
        Show a progress bar where stderr is a terminal.

    Returns
    -------
    Comparison
        After Ctrl-C its ``missing`` is the number of runs that were not made.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range, the data set has no test maps or one without a lesion, weights are of the wrong
        kind or do not fit the maps, or the folder holds a comparison with other arguments.
    OSError, ImportError
        If a file cannot be read or written, or a package is missing.
    KeyboardInterrupt
        After Ctrl-C before any run was finished.

    Examples
    --------
    >>> done = compare("comparison", data="breast.h5", snr=[30, 35, 40])  # doctest: +SKIP
    >>> print(done)  # doctest: +SKIP
    """
    for package in ("h5py", "matplotlib", "skimage"):
        import_module(package)  # a missing package is reported before the work, not after it
    from .report import write_report

    out = Path(out)
    weights = {name: Path(path) for name, path in (weights or {}).items() if path is not None}
    functions = chosen_methods(methods, weights)
    jobs = jobs if jobs is None else whole_number("jobs", jobs)
    _check_conditions(world, snr)
    check_workers(jobs, scheduler)
    options = {"data": data, "size": size, "maps": maps, "seed": seed, "snr": snr, "world": world}
    options |= {"jobs": jobs, "scheduler": scheduler}
    command = _command(out, options, [name for name, f in functions.items() if f.function is None], weights)
    where = {"jobs": None if scheduler else jobs or 1, "scheduler": scheduler}
    path = _test_maps(out, data, size, maps, seed, where, progress)
    with Dataset.open(path) as opened:
        geometry, indices = opened.geometry, _check_maps(opened, maps)
        levels = [opened.snr] if snr is None else [float(level) for level in snr]
        conditions = [Condition(level, name) for level in levels for name in world]
        for function in functions.values():
            function.check(geometry)
        config = {
            "elastofast": __version__,
            "data": opened.config,
            "maps": [int(opened.seeds[i]) for i in indices],  # known by their seeds
            "seed": whole_number("seed", seed, 0),
            "conditions": [c.name for c in conditions],
            "methods": [*functions],
            "weights": {name: f.digest for name, f in functions.items() if f.digest},
        }
    runs = [
        _Run(c, k, int(i), name) for c, (k, i), name in itertools.product(conditions, enumerate(indices), functions)
    ]
    processes = 0 if jobs in (None, 1) else jobs
    how = {"processes": processes, "scheduler": scheduler, "files": (path, *weights.values())}
    with _Folder(out).at_work(config) as folder:
        bench = _Bench(path, functions, seed, where["jobs"], folder)
        interrupted = _make(runs, bench, folder, how, progress)
        rows = [folder.rows[run.key] for run in runs if run.key in folder.rows]
        comparison = Comparison(out, config, rows, len(runs) - len(rows), command)
        if not interrupted:
            folder.pack(conditions, functions, len(indices), geometry.shape)
        write_report(comparison, geometry, folder.map)
    return comparison


def _make(runs, bench, folder, how, progress) -> bool:
    """Make the runs that are not in the folder yet; whether Ctrl-C kept some of them from being made."""
    missing = [run for run in runs if run.key not in folder.rows]
    try:
        with (
            closing(worked_on(bench, missing, **how)) as results,
            progress_bar("comparing", "run", progress, len(runs), len(runs) - len(missing)) as bar,
        ):
            for run, row in results:
                folder.add_row(run, row)
                bar.update()
    except KeyboardInterrupt:
        if not folder.rows:
            raise KeyboardInterrupt("before any reconstruction was finished") from None
        return True
    return False


# one run ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """One method on one map under one condition."""

    condition: Condition
    map: int  # number among the test maps
    index: int  # in the data set
    method: str

    @property
    def key(self):
        return self.condition.name, self.map, self.method


@dataclass
class _Bench:
    """A function that makes a run, with all that it needs in another process."""

    path: Path
    methods: dict[str, Method]
    seed: int
    jobs: int | None  # for the row; None on a cluster
    folder: _Folder

    def __call__(self, run):
        """The run itself and its row, once its map in pascals, if there is one, and the true map are kept."""
        m, mask = _measured(self.path, run.index, run.condition, self.seed)
        row = dict.fromkeys(COLUMNS)
        row |= {"condition": run.condition.name, "snr": run.condition.snr, "world": run.condition.scenario}
        row |= {"map": run.map, "index": run.index, "method": run.method, "jobs": self.jobs}
        row["diameter"] = lesion_diameter(mask, m.geometry) if mask.any() else None
        modulus = None
        began = time.perf_counter()
        try:
            result = self.methods[run.method](m)
            row["seconds"] = time.perf_counter() - began
            row |= {"chi2": result.chi2, "status": result.status, "weight": result.weight, "message": result.message}
            if result.status == "interrupted":
                raise KeyboardInterrupt
            if result.timing:
                data, prior = result.timing["data"], result.timing["prior"]
                row |= {"seconds_data": data, "seconds_prior": prior, "seconds_rest": row["seconds"] - data - prior}
            errors = evaluate(result.modulus, m.reference, m.geometry, mask=mask, relative=result.relative)
            row |= {column: errors[name] for column, (_, name, _, _) in METRICS.items()}
            modulus = np.asarray(result.modulus, dtype=np.float32)
        except Exception as error:  # an error in one method must not keep the others from being compared
            where = traceback.extract_tb(error.__traceback__)[-1]
            row["status"] = "error"
            row["message"] = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        row = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
        self.folder.add_maps(run, modulus, m.reference.astype(np.float32))
        return run, row


@lru_cache(1)  # all methods reconstruct a measurement one after the other
def _measured(path, index, condition, seed):
    with Dataset.open(path) as data:
        return measure(data, index, condition, seed)


# the folder ---------------------------------------------------------------------------------------


class _Folder(ResumableFolder):
    """A comparison on disk: its configuration, a line for each finished run, and the maps."""

    def __init__(self, path):
        super().__init__(path, items="parts")
        self.packed = self.path / "maps.h5"

    @contextmanager
    def at_work(self, config) -> Iterator[_Folder]:
        """The folder with its finished runs, for a ``with`` statement; see `begin`."""
        with self.begin(config, content="a comparison", advice="give another folder or its arguments", indent=1):
            self._lines = RowFile(self.path / "results.jsonl")
            rows = ((row["condition"], row["map"], row["method"], row) for row in self._lines.rows)
            self.rows = {(c, k, method): row for c, k, method, row in rows if self._has_maps(c, k, method, row)}
            yield self

    def _has_maps(self, condition, k, method, row):
        """Whether the maps of a run are there, as they are before its line unless the disk lost them."""
        names = ("truth",) if row["status"] == "error" else ("truth", method)
        return self.packed.exists() or all(self.holds(_part(condition, k, name)) for name in names)

    def __getstate__(self):
        """Without the lines: workers elsewhere add maps."""
        return {name: value for name, value in vars(self).items() if name not in ("rows", "_lines")}

    def add_maps(self, run, modulus, truth):
        """Keep the map of a run, if it has one, and the true one."""
        self.confirm()
        name = _part(run.condition.name, run.map, "truth")
        if not self.holds(name):
            self.add(name, truth)
        if modulus is not None:
            self.add(_part(run.condition.name, run.map, run.method), modulus)

    def add_row(self, run, row):
        """Keep the line of a run whose maps are kept; by it the run counts as finished."""
        self._lines.add(row)
        self.rows[run.key] = row

    def map(self, condition, k, method):
        """Map k of a method or of "truth" in pascals, float32; NaN or None if there is none."""
        import h5py

        part = _part(condition, k, method)
        if self.holds(part):
            return self.read(part)
        if not self.packed.exists():
            return None
        try:
            with h5py.File(self.packed) as file:
                return file[condition][method][k]
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"{self.packed}: damaged: {error}; delete the folder {self.path} and run again") from error

    def pack(self, conditions, methods, count, shape):
        """Gather all maps in one file once all are there."""
        import h5py

        if not self.packed.exists():
            layout = {"chunks": (1, *shape), "compression": "gzip", "compression_opts": 1, "shuffle": True}
            with self.packing(self.packed) as target, h5py.File(target, "w") as file:
                names = [*itertools.product((c.name for c in conditions), ("truth", *methods))]
                reserve(target, len(names) * (count * (4 * math.prod(shape) + MAP_OVERHEAD) + GROUP_OVERHEAD))
                for condition, method in names:
                    name = f"{condition}/{method}"
                    maps = file.create_dataset(name, (count, *shape), np.float32, fillvalue=np.nan, **layout)
                    maps.attrs["units"] = "Pa"
                    for k in range(count):
                        part = _part(condition, k, method)
                        if self.holds(part):
                            maps[k] = self.read(part)
        self.remove_items()


def _part(condition, k, method):
    return f"{condition}-{k:05d}-{method}.npy"


# arguments ----------------------------------------------------------------------------------------


def _check_conditions(world, snr):
    if isinstance(world, str) or not world or len(set(world)) < len(world) or not set(world) <= set(SCENARIOS):
        raise ValueError(f"world must list some of {', '.join(SCENARIOS)}, each once, got {world!r}")
    if snr is not None and (not len(snr) or len(set(snr)) < len(snr) or not np.isfinite(snr).all()):
        raise ValueError(f"snr must list finite decibels, each once, got {snr!r}")


def _test_maps(out, data, size, maps, seed, where, progress) -> Path:
    """The data set file, which is made first if none is given."""
    if data is not None:
        if size is not None:
            raise ValueError("size is that of built-in maps; a data set has its own")
        return Path(data)
    size = 128 if size is None else whole_number("size", size, 11)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "test-maps.h5"
    count = {"count": 1, "validation": 0, "errors": 0, "test": 30 if maps is None else whole_number("maps", maps)}
    try:
        build_dataset(path, shape=(size, size), seed=seed, unregularised=False, progress=progress, **where, **count)
    except OtherDatasetError as error:
        text = f"{out} holds a comparison with {error.difference}; give another folder or its arguments"
        raise ValueError(text) from error
    return path


def _check_maps(data, maps) -> np.ndarray:
    """Indices of the test maps."""
    indices = data.indices("test")
    if not len(indices):
        raise ValueError(f"{data.path}: the data set has no test maps; build one with --test")
    if data.settings is not None:
        raise ValueError(
            f"{data.path}: maps of the wide world are measured in many ways and for training; compare others"
        )
    if maps is not None:
        if whole_number("maps", maps) > len(indices):
            raise ValueError(f"maps must be at most the {len(indices)} test maps of {data.path}, got {maps}")
        indices = indices[:maps]
    for i in indices:
        mask = data.mask(i)
        if not mask.any() or mask.all():
            raise ValueError(f"{data.path}: sample {i} has no lesion and background to tell apart, which CNRe needs")
    return indices


def _command(out, options, methods, weights) -> str:
    """The command line with the same effect."""
    words = ["elastofast", "compare", out]
    for name in ("data", "size", "maps", "seed"):
        words += [] if options[name] is None else [f"--{name}", options[name]]
    if options["snr"] is not None:
        words += ["--snr", *(f"{level:g}" for level in options["snr"])]
    words += ["--world", *options["world"], "--methods", *methods]
    for name, path in weights.items():
        words += [f"--{name}", path]
    words += ["--scheduler", options["scheduler"]] if options["scheduler"] else ["--jobs", options["jobs"] or 1]
    return shlex.join(map(str, words))
