"""Data sets of stiffness maps: true modulus, noisy measurement and unregularised map, in one HDF5 file.

Every sample is a function of the configuration and of its own seed alone, so it does not matter in which process or in
which run it is made. Whoever makes a sample writes it to a `ResumableFolder` beside the output. When all of them are
there, they are packed into the output file, which appears under its name only when it is complete. Layout:
docs/datasets.md.
"""

from __future__ import annotations

import errno
import json
import warnings
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib import import_module
from inspect import signature
from math import prod
from pathlib import Path

import numpy as np

from .. import __version__, phantoms
from ..backend.processors import processors
from ..backend.tasks import check_workers, worked_on
from ..boundary import compression
from ..geometry import Grid
from ..io.sizes import check_size
from ..laws import LAWS
from ..measurement import Measurement
from ..progress import progress_bar
from ..resumable import ResumableFolder, difference, reserve
from ..simulation import NOISES, simulate
from .masks import Scan, collect, describe, on_grid, read_mask
from .posterior import posterior_errors
from .settings import Setting

FORMAT = "elastofast data set"
VERSION = 1  # of the layout
SPLITS = ("train", "validation", "test")
# "lesions": stiff lesions in an even background, all measured alike. "wide": each map measured in its own way
# (`settings.Setting`), and a share of them of many kinds of tissue (`phantoms.tissue`).
WORLDS = ("lesions", "wide")
UNREGULARISED_STEPS = 20  # at most, for the unregularised maps of the wide world
TRAINING, HELD_OUT = 541, 30  # default numbers of maps; HELD_OUT each for validation and test
HELD_OUT_SHARE = 0.05  # the same with masks, where it is a share of all masks
# bytes that HDF5 takes beyond the uncompressed arrays, estimated from above, of which space is reserved
SAMPLE_OVERHEAD, FILE_OVERHEAD = 2048, 2**20

# arrays, one for each sample; name: (type, unit, what it is)
FIELDS = {
    "modulus": (np.float32, "Pa", "true Young's modulus"),
    "mask": (np.uint8, "1", "1 inside a lesion"),
    "displacement": (np.float64, "m", "noisy displacement, axial and lateral component"),
    "displacement_std": (np.float32, "m", "standard deviation of its noise"),
    "unregularised": (np.float32, "Pa", "modulus reconstructed without a prior"),
    "errors": (np.float32, "1", "draws of the error of log modulus that a reconstruction has about the truth"),
}
OPTIONAL = ("unregularised", "errors")  # fields that a file may lack
# the same for numbers, one for each sample
NOTES = {
    "seed": (np.uint64, "1", "of the sample's random numbers"),
    "group": (np.int64, "1", "samples of one patient or one lesion have the same number"),
    "split": (np.uint8, "1", "0 train, 1 validation, 2 test"),
}


class Dataset:
    """A data set file, read sample by sample.

    Open it with `Dataset.open`, as a context manager. The methods below take the index of a sample, or an array of
    indices, whose shape is then put in front of the shape of one sample.

    Attributes
    ----------
    geometry : Grid
    law : Law
    load : Boundary
    snr : float
        Signal-to-noise ratio of the displacements in decibels.
    config : dict
        The arguments of `build_dataset` by which the samples were made.
    settings : list of Setting, or None
        How each map of the wide world is measured; None where all are measured alike.
    seeds, groups : numpy.ndarray of int, shape (n,)
        Seed and group of each sample; no group is in two splits.
    sources : list of str
        Mask file of each sample, or "built-in".

    Examples
    --------
    >>> with Dataset.open("breast.h5") as data:  # doctest: +SKIP
    ...     for i in data.indices("test"):
    ...         result = ef.reconstruct(data.measurement(i))
    """

    def __init__(self, file, path):
        self._file, self.path = file, path
        attributes = file.attrs
        if attributes.get("format") != FORMAT:
            raise ValueError(f"expected a '{FORMAT}' file, it holds {attributes.get('format') or list(file)[:12]}")
        if attributes["version"] > VERSION:
            raise ValueError(
                f"the file has layout version {attributes['version']}, this elastofast reads up to {VERSION}: update it"
            )
        self.config = json.loads(attributes["config"])
        self.snr = float(attributes["snr"])
        self.geometry = Grid(tuple(attributes["grid_shape"].tolist()), tuple(attributes["grid_spacing"].tolist()))
        check_size("modulus", self.geometry.shape, np.dtype(FIELDS["modulus"][0]).itemsize, path.stat().st_size)
        self.law = LAWS[attributes["law"]](float(attributes["poisson"]))
        self.load = compression(self.geometry, pressure=float(attributes["pressure"]))
        n = len(file["seed"])
        for name in (*FIELDS, *NOTES, "source"):
            if name in OPTIONAL and name not in file:
                continue
            shape = _shape(name, self.geometry, self.config.get("errors", 0)) if name in FIELDS else ()
            if file[name].shape != (n, *shape):
                raise ValueError(f"{name} must have shape {(n, *shape)}, got {file[name].shape}")
        self.seeds, self.groups, self._splits = (file[name][()] for name in NOTES)
        self.sources = file["source"].asstr()[()].tolist()
        self.settings = None
        if "setting" in file:
            self.settings = [Setting(**json.loads(text)) for text in file["setting"].asstr()[()]]

    @classmethod
    def open(cls, path) -> Dataset:
        """Open a data set file.

        Parameters
        ----------
        path : path-like

        Returns
        -------
        Dataset

        Raises
        ------
        ValueError
            If the file is no data set, damaged, or cut short.
        OSError
            If the file is missing or may not be read.
        """
        import h5py

        path = Path(path)
        with open(path, "rb"):  # h5py would report a missing file as a damaged one
            pass
        file = None
        try:
            file = h5py.File(path, "r")
            return cls(file, path)
        except Exception as error:  # damaged bytes make h5py raise nearly anything
            if file is not None:
                file.close()
            raise ValueError(f"{path}: cannot be read as a data set: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def __len__(self):
        return len(self.seeds)

    def __repr__(self):
        counts = ", ".join(f"{len(self.indices(split))} {split}" for split in SPLITS)
        return f"Dataset({str(self.path)!r}, {self.geometry!r}, {self.law!r}, {self.snr:g} dB, {counts})"

    def indices(self, split) -> np.ndarray:
        """Indices of the samples of one split, in increasing order.

        Parameters
        ----------
        split : {"train", "validation", "test"}

        Returns
        -------
        numpy.ndarray of int
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        return np.flatnonzero(self._splits == SPLITS.index(split))

    def modulus(self, i) -> np.ndarray:
        """True Young's modulus in pascals, float32, shape (..., *geometry.shape)."""
        return self._read("modulus", i)

    def mask(self, i) -> np.ndarray:
        """Lesion nodes, bool, shape (..., *geometry.shape)."""
        return self._read("mask", i) != 0

    def unregularised(self, i) -> np.ndarray:
        """Modulus reconstructed without a prior in pascals, float32, shape (..., *geometry.shape)."""
        if "unregularised" not in self._file:
            raise ValueError(f"{self.path}: the data set was built without unregularised maps")
        return self._read("unregularised", i)

    def errors(self, i) -> np.ndarray:
        """Draws of the error that a reconstruction makes in log x, float32, shape (..., draws, *geometry.shape).

        See `posterior.posterior_errors`.
        """
        if "errors" not in self._file:
            raise ValueError(f"{self.path}: the data set was built without draws of the error")
        return self._read("errors", i)

    def measurement(self, i) -> Measurement:
        """The noisy measurement of one sample, with the true modulus as its reference.

        Parameters
        ----------
        i : int

        Returns
        -------
        Measurement
        """
        values = (self._read(name, int(i)) for name in ("displacement", "displacement_std", "modulus"))
        if self.settings is not None:
            setting = self.settings[int(i)]
            return setting.measurement(setting.grid(self.geometry), self.config["pressure"], *values)
        displacement, std, modulus = values
        return Measurement(self.geometry, self.law, self.load, displacement, std, reference=modulus)

    def _read(self, name, i):
        index = np.asarray(i)
        if index.dtype.kind not in "iu" and index.size:
            raise TypeError(f"an index must be a whole number or an array of them, got {i!r}")
        n = len(self)
        if ((index < -n) | (index >= n)).any():
            raise IndexError(f"index out of range: the data set has {n} samples, got {i!r}")
        data = self._file[name]
        check_size(name, data.shape[1:], data.dtype.itemsize, self.path.stat().st_size)
        out = np.empty((index.size, *data.shape[1:]), data.dtype)
        for row, k in zip(out, index.ravel().astype(np.int64) % n, strict=True):
            try:
                data.read_direct(row, int(k))
            except OSError as error:
                raise ValueError(f"{self.path}: sample {k} is damaged: {error}") from error
        return out.reshape(*index.shape, *data.shape[1:])


def build_dataset(
    path,
    *,
    world="lesions",
    tissue=0.5,
    masks=None,
    layout="auto",
    count=None,
    validation=None,
    test=None,
    shape=(128, 128),
    extent=(30e-3, 30e-3),
    law="plane_stress",
    poisson=0.495,
    pressure=100.0,
    snr=35.0,
    noise="white",
    background=(10e3, 15e3),
    lesion=(30e3, 80e3),
    kind="random",
    size=(0.05, 0.35),
    pairs=0.15,
    soft=0.25,
    edge=(1.0, 3.0),
    texture=0.0,
    variation=0.0,
    unregularised=True,
    errors=2,
    seed=0,
    jobs=None,
    scheduler=None,
    force=False,
    progress=False,
) -> None:
    """Make stiffness maps with their simulated measurements and unregularised reconstructions.

    The body is compressed as by `compression`. If the run is interrupted, even by a kill, the finished samples stay in
    the folder ``<path>.parts``, and another call with the same arguments makes only the missing ones. The samples
    depend on the arguments alone, neither on ``jobs`` nor on interruptions.

    Samples are made by spawned processes, so a script that calls this function needs ``if __name__ == "__main__":``.

    Parameters
    ----------
    path : path-like
        HDF5 file to write. Layout: docs/datasets.md.
    world : {"lesions", "wide"}, optional
        Stiff lesions in an even background that are all measured alike; or many kinds of law, load and noise, which are
        drawn for each map, so that ``law``, ``poisson``, ``snr`` and ``noise`` cannot be given.
    tissue : float, optional
        Share of the maps of the wide world that are of many kinds of tissue, see `elastofast.phantoms.tissue`; the
        others are as in the world of lesions.
    masks : path-like, optional
        Folder of lesion masks, see `elastofast.learning.masks`; default built-in shapes.
    layout : str, optional
        Layout of that folder; by default it is detected.
    count : int, optional
        Number of training maps; default 541, with masks all that the other splits leave.
    validation, test : int or float, optional
        Number of maps that are held out, or their share if below 1; default 30, with masks 0.05. With masks, whole
        groups (patients, duplicates) are held out, as many as fit into the number.
    shape : (int, int), optional
        Nodes, axial and lateral.
    extent : (float, float), optional
        Size of the body in metres, axial and lateral.
    law : {"plane_stress", "plane_strain"}, optional
    poisson : float, optional
    pressure : float, optional
        Pressure on the top in pascals.
    snr, noise : optional
        See `simulate`.
    background, lesion : (float, float), optional
        Ranges in pascals from which Young's modulus is drawn uniformly, for each background and for each lesion.
    kind : {"random", "oval", "lobulated", "spiculated"}, optional
        Shape of built-in lesions.
    size : (float, float), optional
        Diameter of built-in lesions as a fraction of the lateral extent.
    pairs : float, optional
        Share of built-in maps with two lesions.
    soft : float, optional
        Share of maps whose lesions have soft margins.
    edge : (float, float), optional
        Width of soft margins in node distances.
    texture, variation : float, optional
        Relative standard deviation of a texture everywhere and of a slow variation of the background.
    unregularised : bool, optional
        Whether to make the unregularised reconstructions.
    errors : int, optional
        For each map, the number of draws of the error that a reconstruction of it makes; critics are trained on these
        draws (`posterior.posterior_errors`).
    seed : int, optional
    jobs : int, optional
        Number of processes of one thread each; by default one for each processor.
    scheduler : str, optional
        Address of a Dask scheduler (`distributed`), such as ``"tcp://10.0.0.1:8786"``, whose workers make the samples
        in place of processes here. They need a file system that is shared with this process: docs/howto/many.md.
    force : bool, optional
        Replace an existing file, and discard an interrupted run with other arguments.
    progress : bool, optional
        Show progress bars where stderr is a terminal.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range, or an interrupted run had other arguments.
    FileExistsError
        If the file exists and was made with other arguments. If it was made with the same ones, nothing is done.
    OSError
        If a file cannot be read or written.
    RuntimeError
        If a process died, a cluster is of no use, or a sample cannot be made.
    ImportError
        If ``scheduler`` is given and `distributed` is not installed.
    KeyboardInterrupt
        After Ctrl-C, with a message that says how many samples are kept.

    Warns
    -----
    UserWarning
        If masks were left out, because they are unreadable, have no lesion, or one that is too small for the grid.

    Examples
    --------
    >>> build_dataset("breast.h5", masks="Dataset_BUSI_with_GT", snr=35.0)  # doctest: +SKIP
    """
    import_module("h5py")  # a missing package is reported before the work, not after it
    path = Path(path)
    config = {
        "elastofast": __version__,
        "shape": _numbers("shape", shape, 2, int),
        "extent": _numbers("extent", extent, 2),
        "law": law,
        "poisson": float(poisson),
        "pressure": float(pressure),
        "snr": float(snr),
        "noise": noise,
        "background": _numbers("background", background, 2),
        "lesion": _numbers("lesion", lesion, 2),
        "soft": float(soft),
        "edge": _numbers("edge", edge, 2),
        "texture": float(texture),
        "variation": float(variation),
        "unregularised": bool(unregularised),
        "errors": whole_number("errors", errors, 0),
        "seed": whole_number("seed", seed, 0),
    }
    if masks is None:
        config |= {"kind": kind, "size": _numbers("size", size, 2), "pairs": float(pairs)}
    if world != "lesions":  # not written otherwise, so that files from before there were worlds are known again
        config |= {"world": world, "tissue": float(tissue)}
        _check_world(config, masks)
    jobs = jobs if jobs is None else whole_number("jobs", jobs, 1)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the folder of the output does not exist", str(path))
    grid = _check(config)
    check_workers(jobs, scheduler)
    where = {"processes": jobs or processors(), "scheduler": scheduler, "files": () if masks is None else (masks,)}
    if masks is None:
        tasks = _plan_shapes(config, count, validation, test)
    else:
        tasks = _plan_masks(config, collect(masks, grid, layout, progress), masks, count, validation, test)
    config |= {split: sum(t.split == k for t in tasks) for k, split in enumerate(SPLITS)}

    _build(path, config, tasks, where, force, progress)


def _build(path, config, tasks, where, force, progress):
    """Make the file, or the rest of it, unless it is there already."""
    folder = ResumableFolder(path.with_name(path.name + ".parts"))
    if not force and _is_made(path, config) and (not folder.path.exists() or folder.difference(config)):
        return
    advice = "go on with its arguments, delete it, or force"
    with folder.begin(config, content="an interrupted run", advice=advice, force=force):
        if force or not _is_made(path, config):
            try:
                _make(config, tasks, folder, where, progress)
                _pack(config, tasks, folder, path, progress)
            except KeyboardInterrupt:
                made = sum(folder.holds(task.part) for task in tasks)
                raise KeyboardInterrupt(
                    f"with {made} of {len(tasks)} samples kept in {folder.path}; the same again goes on from there"
                ) from None
        folder.remove_items()  # also those of a run that was killed just before


def _is_made(path, config) -> bool:
    """Whether the file is there; errors if it is damaged or was made with other arguments."""
    if not path.exists():
        return False
    try:
        with Dataset.open(path) as finished:
            if other := difference(finished.config, config):
                raise OtherDatasetError(path, other)
    except ValueError as error:
        raise ValueError(f"{error}; delete it, or force, to build it anew") from error
    return True


class OtherDatasetError(FileExistsError):
    """A data set of this name exists and was made with other arguments; ``difference`` says which they were."""

    def __init__(self, path, difference):
        text = f"exists already, made with {difference}; give another name or force"
        super().__init__(errno.EEXIST, text, str(path))
        self.difference = difference


# plan ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """A sample to be made; ``index`` is its place in the file."""

    index: int
    split: int
    seed: int
    group: int
    source: str = "built-in"
    scan: Scan | None = None

    @property
    def part(self) -> str:
        """Name of its file until all samples are there."""
        return f"{self.index:06d}.npz"


def _plan_shapes(config, count, validation, test):
    count = TRAINING if count is None else whole_number("count", count, 1)
    held = [_held(name, value, HELD_OUT, count) for name, value in (("validation", validation), ("test", test))]
    # numbered within its split, so that the test maps are the same whatever the number of training maps
    places = [(split, k) for split, n in enumerate((count, *held)) for k in range(n)]
    return [_Task(i, split, _seed(config, split, k), group=i) for i, (split, k) in enumerate(places)]


def _plan_masks(config, collection, folder, count, validation, test):
    if collection.skipped:
        warnings.warn(f"{folder}: left out {describe(collection.skipped)}", stacklevel=3)
    scans, groups = collection.scans, collection.groups
    config["masks"] = {"layout": collection.layout, "scans": len(scans), "digest": collection.digest}
    sizes = np.bincount(groups)
    free = np.random.default_rng(_seed(config)).permutation(len(sizes)).tolist()
    chosen: dict[int, list[int]] = {}
    for split, name, value in ((2, "test", test), (1, "validation", validation)):
        number = room = _held(name, value, HELD_OUT_SHARE, len(scans))
        chosen[split] = []
        for group in list(free):
            if sizes[group] <= room:
                room -= sizes[group]
                free.remove(group)
                chosen[split].append(group)
        if room == number > 0 or not free:
            raise ValueError(
                f"{name} cannot hold out {number} of {len(scans)} masks in {len(sizes)} groups of the same patient "
                f"or lesion, the largest of {sizes.max()}; ask for another number or share"
            )
    chosen[0] = free
    members = {split: [i for g in chosen[split] for i in np.flatnonzero(groups == g)] for split in sorted(chosen)}
    if count is not None:
        members[0] = members[0][: whole_number("count", count, 1)]
    places = [(split, i) for split, scans_of in members.items() for i in sorted(scans_of)]
    return [
        _Task(k, split, _seed(config, int(i)), int(groups[i]), scans[i].name, scans[i])
        for k, (split, i) in enumerate(places)
    ]


def _seed(config, *key) -> int:
    return int(np.random.SeedSequence(config["seed"], spawn_key=key).generate_state(1, np.uint64)[0])


def _check_world(config, masks):
    """Refuse unknown worlds, and arguments that the wide one draws for each map."""
    if config["world"] not in WORLDS:
        raise ValueError(f"world must be one of {', '.join(WORLDS)}, got {config['world']!r}")
    if masks is not None:
        raise ValueError("masks are of the world 'lesions'; the wide world has built-in shapes")
    if not 0 <= config["tissue"] <= 1:
        raise ValueError(f"tissue must be a share from 0 to 1, got {config['tissue']}")
    usual = signature(build_dataset).parameters
    for name in ("law", "poisson", "snr", "noise"):
        if config[name] != usual[name].default:
            raise ValueError(f"{name} is drawn for each map of the wide world, it cannot be given")


def _check(config) -> Grid:
    """Refuse arguments out of range before the work; types and lengths have been checked already. The grid."""
    plane = [name for name, law in LAWS.items() if law.dim == 2]
    if config["law"] not in plane:
        raise ValueError(f"law must be {' or '.join(plane)}, got {config['law']!r}")
    if config["noise"] not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)}, got {config['noise']!r}")
    if not np.isfinite(config["snr"]):
        raise ValueError(f"snr must be finite (decibels), got {config['snr']}")
    if min(config["shape"]) < 2:
        raise ValueError(f"shape needs at least 2 nodes along every axis, got {config['shape']}")
    for name in ("soft", "pairs"):
        if not 0 <= config.get(name, 0) <= 1:
            raise ValueError(f"{name} must be a share from 0 to 1, got {config[name]}")
    low, high = config["edge"]
    if not 0 <= low <= high < np.inf:
        raise ValueError(f"edge must be a pair (low, high) with 0 <= low <= high (node distances), got {[low, high]}")
    grid, _, _ = _body(config)
    _phantom(config | {"pairs": 0}, grid, np.random.default_rng(0), np.eye(*grid.shape, dtype=bool))
    return grid


def _numbers(name, values, n, kind=float):
    try:
        numbers = [kind(v) for v in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != n or any(a != b for a, b in zip(numbers, values, strict=True)):
        raise ValueError(f"{name} must hold {n} {'whole ' if kind is int else ''}numbers, got {values!r}")
    return numbers


def whole_number(name: str, value, least: int = 1) -> int:
    """An argument as an int; ValueError if it is not a whole number of at least ``least``."""
    if isinstance(value, bool) or value != int(value) or value < least:
        raise ValueError(f"{name} must be a whole number, {least} or more, got {value!r}")
    return int(value)


def _held(name, value, default, total):
    """Number of maps of a split that is held out."""
    value = default if value is None else value
    if 0 < value < 1:
        return max(1, round(value * total))
    if value != int(value) or value < 0:
        raise ValueError(f"{name} must be a number of maps or a share below 1, got {value!r}")
    return int(value)


# one sample ---------------------------------------------------------------------------------------


def _body(config):
    """Grid, law and load."""
    return _make_body(
        *map(tuple, (config["shape"], config["extent"])), config["law"], config["poisson"], config["pressure"]
    )


@cache
def _make_body(shape, extent, law, poisson, pressure):
    grid = Grid(shape, tuple(e / (n - 1) for e, n in zip(extent, shape, strict=True)))
    return grid, LAWS[law](poisson), compression(grid, pressure=pressure)


def _sample(config, task) -> dict[str, np.ndarray]:
    """Arrays of one sample, by their names in `FIELDS`."""
    from ..inversion.reconstruct import reconstruct

    grid, law, load = _body(config)
    map_rng, noise_rng, error_rng, setting_rng = np.random.default_rng(task.seed).spawn(4)
    # rounded to the stored types first, so that simulation and reconstruction use exactly what a reader will find
    if config.get("world") == "wide":
        setting = Setting.draw(setting_rng)
        grid = setting.grid(grid)
        m, mask = setting.simulate(grid, config["pressure"], partial(_of_wide_world, config, map_rng), noise_rng)
        arrays = {"modulus": _stored("modulus", m.reference), "mask": _stored("mask", mask)}
        arrays |= {name: _stored(name, getattr(m, name)) for name in ("displacement", "displacement_std")}
        values = (arrays[name] for name in ("displacement", "displacement_std", "modulus"))
        m = setting.measurement(grid, config["pressure"], *values)
        arrays["setting"] = np.array(json.dumps(asdict(setting)))
    else:
        modulus, mask = _phantom(config, grid, map_rng, task.scan and on_grid(read_mask(task.scan), grid))
        arrays = {"modulus": _stored("modulus", modulus), "mask": _stored("mask", mask)}
        m = simulate(grid, law, load, arrays["modulus"], snr=config["snr"], noise=config["noise"], seed=noise_rng)
        arrays |= {name: _stored(name, getattr(m, name)) for name in ("displacement", "displacement_std")}
        displacement, std, truth = (arrays[name] for name in ("displacement", "displacement_std", "modulus"))
        m = Measurement(grid, law, load, displacement, std, reference=truth)
    if config["errors"]:
        arrays["errors"] = _stored("errors", posterior_errors(m, config["errors"], error_rng))
    if config["unregularised"]:
        # where the model is wrong, the iteration would never reach chi2 1
        result = reconstruct(m, prior="none", max_iterations=UNREGULARISED_STEPS if "setting" in arrays else None)
        factor = scale(m.reference) if result.relative else 1.0
        arrays["unregularised"] = _stored("unregularised", result.modulus * factor)
    return arrays


def scale(modulus) -> float:
    """Geometric mean of a true map, which a relative one lacks."""
    return float(np.exp(np.log(modulus).mean()))


def _stored(name, array):
    return array.astype(FIELDS[name][0])


def _phantom(config, grid, rng, mask=None):
    """Modulus and lesion mask: those of a given mask, or of a built-in shape."""
    how = {name: config[name] for name in ("background", "lesion", "texture", "variation")}
    how["edge"] = rng.uniform(*config["edge"]) if rng.random() < config["soft"] else 0.0
    if "kind" not in config:
        return phantoms.from_mask(grid, mask, seed=rng, **how), mask
    how |= {"kind": config["kind"], "size": config["size"], "n_lesions": 1 + int(rng.random() < config["pairs"])}
    return phantoms.retried(lambda: phantoms.lesion(grid, seed=rng, **how))


def _of_wide_world(config, rng, grid):
    """Modulus and lesion mask of a map of the wide world."""
    if rng.random() < config["tissue"]:
        return phantoms.tissue(grid, seed=rng, background=config["background"])
    return _phantom(config, grid, rng)


# all samples --------------------------------------------------------------------------------------


def _make(config, tasks, folder, where, progress):
    """Make the missing samples."""
    missing = [task for task in tasks if not folder.holds(task.part)]
    if not missing:
        return
    with (
        progress_bar("making maps", "map", progress, len(tasks), len(tasks) - len(missing)) as bar,
        closing(worked_on(partial(_work, config, folder), missing, **where)) as samples,
    ):
        for _ in samples:
            bar.update()


def _work(config, folder, task):
    """Make a sample and keep it in the folder, unless that was done by a worker that was lost just after."""
    if folder.holds(task.part):
        return
    try:
        arrays = _sample(config, task)
    except (ValueError, RuntimeError, OSError) as error:
        raise RuntimeError(f"sample {task.index} ({task.source}, seed {task.seed}): {error}") from error
    folder.confirm()
    folder.add(task.part, arrays)


def _pack(config, tasks, folder, path, progress):
    """Gather all samples in the output."""
    with folder.packing(path) as file:
        _write(file, config, tasks, folder, progress)


def _write(target, config, tasks, folder, progress):
    import h5py

    grid, _, _ = _body(config)
    with h5py.File(target, "w") as file, progress_bar("writing", "map", progress, len(tasks)) as bar:
        file.attrs.update(
            format=FORMAT,
            version=VERSION,
            elastofast_version=__version__,
            grid_shape=grid.shape,
            grid_spacing=grid.spacing,
            config=json.dumps(config),
            **{name: config[name] for name in ("law", "poisson", "pressure", "snr", "noise")},
        )
        names = [name for name in FIELDS if name not in OPTIONAL or config[name]]
        shapes = {name: _shape(name, grid, config["errors"]) for name in names}
        size = sum(np.dtype(FIELDS[name][0]).itemsize * prod(shape) for name, shape in shapes.items())
        reserve(target, len(tasks) * (size + SAMPLE_OVERHEAD) + FILE_OVERHEAD)
        for name, shape in shapes.items():
            layout = {"chunks": (1, *shape), "shuffle": True, "compression": "gzip", "compression_opts": 1}
            file.create_dataset(name, (len(tasks), *shape), FIELDS[name][0], **layout)
        for name, (kind, *_) in NOTES.items():
            file[name] = np.array([getattr(task, name) for task in tasks], kind)
        file.create_dataset("source", data=[task.source for task in tasks], dtype=h5py.string_dtype())
        texts = {"source": "mask file, or built-in"}
        if "world" in config:
            file.create_dataset("setting", (len(tasks),), dtype=h5py.string_dtype())
            texts["setting"] = "how the map is measured, as JSON"
        for name, (_, unit, text) in (FIELDS | NOTES | {name: (None, "", t) for name, t in texts.items()}).items():
            if name in file:
                file[name].attrs["units"], file[name].attrs["description"] = unit, text
        for task in tasks:
            for name, array in folder.read(task.part).items():
                file[name][task.index] = array.item() if name == "setting" else array
            bar.update()


def _shape(name, grid, draws):
    if name == "errors":
        return (draws, *grid.shape)
    return (2, *grid.shape) if name.startswith("displacement") else grid.shape
