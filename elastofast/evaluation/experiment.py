"""The paper's experiment: every method on the same held-out measurements, with errors, times and paired tests.

A comparison lives in a folder. Each finished run (one method on one map under one condition) adds a map and then a
line to ``results.jsonl``, so that whatever stops the work costs no more than the run it is at.
Layout: docs/comparison.md.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
import shlex
import shutil
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import numpy as np

from .. import __version__
from ..inversion.reconstruct import reconstruct
from ..io import write_atomically
from ..learning.dataset import Dataset, build_dataset, whole_number
from ..learning.workers import in_processes, progress_bar
from ..metrics import evaluate
from .results import COLUMNS, METHODS, METRICS, Comparison
from .scenarios import WORLDS, Condition, measure

__all__ = ["METHODS", "Comparison", "compare"]

NETWORKS = {"unet": "unet", "pnp": "dncnn", "critic-paper": "critic", "critic": "critic"}  # method: whose weights
PRIORS = {"critic": "Critic", "unet": "PostProcessing", "dncnn": "PlugAndPlay"}  # in elastofast.priors


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
    jobs=1,
    progress=False,
):
    """Reconstruct held-out maps with several methods and report how they do.

    Conditions are all pairs of a noise level and a world. A comparison that was interrupted, even by a kill, goes on
    where it was when called again with the same arguments.

    Parameters
    ----------
    out : path-like
        Folder for the results, made if it is not there. Layout: docs/comparison.md.
    data : path-like, optional
        Data set whose test split is used; by default built-in maps are made, as `build_dataset` makes its test
        maps: none of them is a training map of any data set.
    size : int, optional
        Nodes along each side of built-in maps; default 128.
    maps : int, optional
        Number of test maps, default 30; of a data set the first so many, default all.
    seed : int, optional
        Of built-in maps and of everything that is simulated anew.
    snr : sequence of float, optional
        Signal-to-noise ratios in decibels; default the data set's own, 35 for built-in maps.
    world : sequence of str, optional
        Names in `elastofast.evaluation.scenarios.WORLDS`.
    methods : sequence of str or (str, callable), optional
        Names in `METHODS`, or a name with a function from a `Measurement` to a `Result`, which with ``jobs`` above 1
        must be picklable. Default all of `METHODS`. The last is tested against each other one.
    weights : dict of str to path-like, optional
        Weights files for "critic", "unet" and "dncnn"; default those shipped with the package.
    jobs : int, optional
        1 runs in this process, with its threads. More are spawned processes of one thread each, whose times are
        marked as such; a script that asks for them needs ``if __name__ == "__main__":``.
    progress : bool, optional
        Show a bar on stderr if it is a terminal.

    Returns
    -------
    Comparison
        After Ctrl-C of what is there; its ``missing`` says how many runs are not.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range, the data set has no test maps or one without a lesion, weights are of the wrong
        kind or do not fit the maps, or the folder holds a comparison with other arguments.
    OSError, ImportError
        If a file cannot be read or written, or a package is missing.
    KeyboardInterrupt
        After Ctrl-C before anything was finished.

    Examples
    --------
    >>> done = compare("comparison", data="breast.h5", snr=[30, 35, 40])  # doctest: +SKIP
    >>> print(done)  # doctest: +SKIP
    """
    for package in ("h5py", "matplotlib", "skimage"):
        import_module(package)  # were one missing, that would show only after the work
    from .report import write_report

    out = Path(out)
    weights = {name: Path(path) for name, path in (weights or {}).items() if path is not None}
    functions = _methods(methods, weights)
    jobs = whole_number("jobs", jobs)
    _check_worlds(world, snr)
    named = [name for name, f in functions.items() if f.function is None]
    command = _command(out, data, size, maps, seed, snr, world, named, weights, jobs)
    path = _test_maps(out, data, size, maps, seed, jobs, progress)
    with Dataset.open(path) as opened:
        indices = _check_maps(opened, maps)
        conditions = [Condition(level, name) for level in _levels(snr, opened.snr) for name in world]
        for function in functions.values():
            function.check(opened.geometry)
        config = {
            "elastofast": __version__,
            "data": opened.config,
            "maps": [int(opened.seeds[i]) for i in indices],  # known by their seeds
            "seed": whole_number("seed", seed, 0),
            "conditions": [c.name for c in conditions],
            "methods": [*functions],
            "weights": {name: f.digest for name, f in functions.items() if f.digest},
        }
    folder = _Folder(out, config)
    runs = [
        _Run(c, k, int(i), name) for c, (k, i), name in itertools.product(conditions, enumerate(indices), functions)
    ]
    missing = [run for run in runs if run.key not in folder.rows]
    interrupted = False
    bench = _Bench(path, functions, seed, jobs)
    results = (bench(run) for run in missing) if jobs == 1 else in_processes(bench, missing, jobs)
    try:
        with (
            closing(results),
            progress_bar("comparing", "run", progress, len(runs), len(runs) - len(missing)) as bar,
        ):
            for run, row, modulus, truth in results:
                folder.add(run, row, modulus, truth)
                bar.update()
    except KeyboardInterrupt:
        interrupted = True
        if not folder.rows:
            raise KeyboardInterrupt("before any reconstruction was finished") from None
    rows = [folder.rows[run.key] for run in runs if run.key in folder.rows]
    comparison = Comparison(out, config, rows, len(runs) - len(rows), command)
    if not interrupted:
        folder.pack(conditions, functions, len(indices), opened.geometry.shape)
    write_report(comparison, opened.geometry, folder.map)
    return comparison


# methods ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Method:
    """A named function from a measurement to a Result, or one of `METHODS`, which load their network when needed."""

    name: str
    function: Callable | None = None
    path: Path | None = None  # weights in place of the shipped ones
    digest: str | None = None  # of the weights

    def check(self, geometry):
        """Load the network, if there is one, to see that it can look at the maps."""
        prior = self._prior()
        if not isinstance(prior, str):
            prior.check(geometry)

    def _prior(self):
        network = NETWORKS.get(self.name)
        if network is None or self.function is not None:
            return self.name
        return _load(network, self.path)

    def __call__(self, measurement):
        if self.function is not None:
            return self.function(measurement)
        prior = self._prior()
        if self.name != "critic-paper":
            return reconstruct(measurement, prior=prior)
        start = reconstruct(measurement, prior="none")
        result = reconstruct(measurement, prior=prior, optimizer="descent", gradient="frozen", start=start.modulus)
        result.timing = {name: result.timing[name] + start.timing[name] for name in result.timing}
        return result


def _methods(methods, weights) -> dict[str, _Method]:
    from .. import priors

    if unknown := sorted(weights.keys() - PRIORS.keys()):
        raise ValueError(f"weights must be given for {', '.join(PRIORS)}, got {unknown[0]!r}")
    chosen = {}
    for method in METHODS if methods is None else methods:
        name, function = (method, None) if isinstance(method, str) else method
        if function is None and name not in METHODS:
            raise ValueError(f"methods must be among {', '.join(METHODS)}, or (name, function), got {name!r}")
        if function is not None and (name in METHODS or not callable(function)):
            raise ValueError(f"a method of your own needs a new name and a function, got ({name!r}, {function!r})")
        if not name.replace("-", "_").isidentifier() or name == "truth":
            raise ValueError(f"the name of a method must be of letters, digits and hyphens, not truth, got {name!r}")
        if name in chosen:
            raise ValueError(f"methods names {name!r} twice")
        path, digest = None, None
        if function is None and (network := NETWORKS.get(name)) is not None:
            path = weights.get(network)
            shipped = files("elastofast") / "weights" / getattr(priors, PRIORS[network]).file
            digest = hashlib.sha256((path or shipped).read_bytes()).hexdigest()
        chosen[name] = _Method(name, function, path, digest)
    if not chosen:
        raise ValueError("methods is empty: nothing to compare")
    return chosen


@lru_cache
def _load(network, path):
    from .. import priors

    return getattr(priors, PRIORS[network]).load(path)


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
    """Makes runs; goes to other processes whole."""

    path: Path
    methods: dict[str, _Method]
    seed: int
    jobs: int

    def __call__(self, run):
        """The run, its row, its map in pascals or None, and the truth."""
        m, mask = _measured(self.path, run.index, run.condition, self.seed)
        row = dict.fromkeys(COLUMNS)
        row |= {"condition": run.condition.name, "snr": run.condition.snr, "world": run.condition.world}
        row |= {"map": run.map, "index": run.index, "method": run.method, "jobs": self.jobs}
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
        except Exception as error:  # whatever goes wrong in one method must not keep the others from being compared
            where = traceback.extract_tb(error.__traceback__)[-1]
            row["status"] = "error"
            row["message"] = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        row = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
        return run, row, modulus, m.reference.astype(np.float32)


@lru_cache(1)  # the methods follow one another on one measurement
def _measured(path, index, condition, seed):
    with Dataset.open(path) as data:
        return measure(data, index, condition, seed)


# the folder ---------------------------------------------------------------------------------------


class _Folder:
    """The state of a comparison on disk: its configuration, a line for each finished run, and the maps."""

    def __init__(self, out, config):
        self.out, self.parts, self.packed = out, out / "parts", out / "maps.h5"
        stated, self.lines = out / "config.json", out / "results.jsonl"
        self.parts.mkdir(parents=True, exist_ok=True)
        if stated.exists():
            if other := _difference("", json.loads(stated.read_text()), json.loads(json.dumps(config))):
                raise ValueError(f"{out} holds a comparison with {other}; give another folder or its arguments")
        else:
            write_atomically(stated, json.dumps(config, indent=1).encode())
        text = self.lines.read_text() if self.lines.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # a kill has cut the last line short
            write_atomically(self.lines, whole.encode())
        rows = map(json.loads, whole.splitlines())
        self.rows = {(row["condition"], row["map"], row["method"]): row for row in rows}

    def add(self, run, row, modulus, truth):
        """Keep a finished run: first its map, then its line, which makes it count."""
        for method, array in (("truth", truth), (run.method, modulus)):
            part = self._part(run.condition.name, run.map, method)
            if array is not None and not (method == "truth" and part.exists()):
                buffer = io.BytesIO()
                np.save(buffer, array)
                write_atomically(part, buffer.getvalue())
        with open(self.lines, "a") as file:
            file.write(json.dumps(row, default=float) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows[run.key] = row

    def map(self, condition, k, method):
        """Modulus in pascals of map k by a method or "truth", float32; NaN where there is none."""
        import h5py

        part = self._part(condition, k, method)
        if part.exists():
            return np.load(part, allow_pickle=False)
        if not self.packed.exists():
            return None
        with h5py.File(self.packed) as file:
            return file[condition][method][k]

    def pack(self, conditions, methods, count, shape):
        """Gather all maps in one file once all are there."""
        import h5py

        if not self.packed.exists():
            temporary = self.parts / "maps.h5"
            with h5py.File(temporary, "w") as file:
                for condition, method in itertools.product((c.name for c in conditions), ("truth", *methods)):
                    maps = file.create_dataset(
                        f"{condition}/{method}", (count, *shape), np.float32, chunks=(1, *shape), fillvalue=np.nan,
                        compression="gzip", compression_opts=1, shuffle=True,
                    )  # fmt: skip
                    maps.attrs["units"] = "Pa"
                    for k in range(count):
                        if self._part(condition, k, method).exists():
                            maps[k] = self.map(condition, k, method)
            os.replace(temporary, self.packed)
        shutil.rmtree(self.parts)

    def _part(self, condition, k, method):
        return self.parts / f"{condition}-{k:05d}-{method}.npy"


def _difference(name, theirs, ours) -> str:
    """What differs between two configurations, in words."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        found = (_difference(f"{name}.{k}".strip("."), theirs.get(k), ours.get(k)) for k in {**theirs, **ours})
        return ", ".join(filter(None, found))
    return "" if theirs == ours else f"{name} {_short(theirs)} in place of {_short(ours)}"


def _short(value) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(value)})"


# arguments ----------------------------------------------------------------------------------------


def _check_worlds(world, snr):
    if isinstance(world, str) or not world or len(set(world)) < len(world) or not set(world) <= set(WORLDS):
        raise ValueError(f"world must list some of {', '.join(WORLDS)}, each once, got {world!r}")
    if snr is not None and (not len(snr) or len(set(snr)) < len(snr) or not np.isfinite(snr).all()):
        raise ValueError(f"snr must list finite decibels, each once, got {snr!r}")


def _levels(snr, own):
    return [own] if snr is None else [float(level) for level in snr]


def _test_maps(out, data, size, maps, seed, jobs, progress) -> Path:
    """The data set file, made first if none is given."""
    if data is not None:
        if size is not None:
            raise ValueError("size is that of built-in maps; a data set has its own")
        return Path(data)
    size = 128 if size is None else whole_number("size", size, 11)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "test-maps.h5"
    count = {"count": 1, "validation": 0, "errors": 0, "test": 30 if maps is None else whole_number("maps", maps)}
    try:
        build_dataset(path, shape=(size, size), seed=seed, jobs=jobs, unregularised=False, progress=progress, **count)
    except FileExistsError as error:
        what = str(error.strerror).partition(";")[0].removeprefix("exists already, made with ")
        raise ValueError(f"{out} holds a comparison with {what}; give another folder or its arguments") from error
    return path


def _check_maps(data, maps) -> np.ndarray:
    """Indices of the test maps."""
    indices = data.indices("test")
    if not len(indices):
        raise ValueError(f"{data.path}: the data set has no test maps; build one with --test")
    if maps is not None:
        if whole_number("maps", maps) > len(indices):
            raise ValueError(f"maps must be at most the {len(indices)} test maps of {data.path}, got {maps}")
        indices = indices[:maps]
    for i in indices:
        mask = data.mask(i)
        if not mask.any() or mask.all():
            raise ValueError(f"{data.path}: sample {i} has no lesion and background to tell apart, which CNRe needs")
    return indices


def _command(out, data, size, maps, seed, snr, world, methods, weights, jobs) -> str:
    """The command line with the same effect."""
    words = ["elastofast", "compare", out]
    for name, value in (("data", data), ("size", size), ("maps", maps), ("seed", seed)):
        words += [] if value is None else [f"--{name}", value]
    words += [] if snr is None else ["--snr", *(f"{level:g}" for level in snr)]
    words += ["--world", *world, "--methods", *methods]
    for name, path in weights.items():
        words += [f"--{name}", path]
    return shlex.join(map(str, [*words, "--jobs", jobs]))
