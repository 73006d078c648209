"""Folders of lesion masks, in the layouts of the public breast ultrasound data sets.

| layout | files |
|---|---|
| busi | ``benign (1).png``, ``benign (1)_mask.png``, ``benign (1)_mask_1.png``, ... in any subfolder |
| bus-bra | ``Images/bus_0001-l.png``, ``Masks/mask_0001-l.png``, ``bus_data.csv`` |
| breast | ``case001.png``, ``case001_tumor.png``, ``case001_tumor2.png``, ``case001_other1.png``, ... |
| udiat | ``original/000001.png``, ``GT/000001.png`` |
| plain | any images, each of them a mask |
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..progress import progress_bar

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif")
SMALLEST = 9  # nodes; smaller pieces are taken for specks of the drawing
LARGEST = 0.9  # share of the nodes; a mask that covers more of the frame leaves no background to compare with

COVERED = 0.5  # share of the area of a node that the lesion must cover
# An image is a mask if most of its pixels are dark or bright. Soft or compressed margins have levels between these
# shares of the maximum, but over less than half of the area of the lesion.
DARK, BRIGHT, BETWEEN = 0.1, 0.9, 0.5
# Two scans show the same lesion if their masks or their images are this similar (docs/datasets.md): the cosine of the
# masks on OUTLINE x OUTLINE points, which is their Dice coefficient if they have the same area, or the correlation of
# the difference hashes of the images, which have HASH x HASH bits.
SAME_MASK, SAME_IMAGE = 0.95, 0.8
OUTLINE, HASH = 64, 16
BLOCK = 1024  # scans that are compared with all others at a time, which bounds the memory


@dataclass(frozen=True)
class Scan:
    """One ultrasound image with the masks of its lesions.

    Attributes
    ----------
    name : str
        Path of the first mask inside the folder.
    masks : tuple of Path
        Mask files; a pixel is in a lesion if any of them says so.
    image : Path or None
        The ultrasound image, which is used only to find duplicates.
    patient : str or None
        The patient, where the folder tells.
    """

    name: str
    masks: tuple[Path, ...]
    image: Path | None = None
    patient: str | None = None


@dataclass
class Collection:
    """The usable scans of a folder.

    Attributes
    ----------
    layout : str
    scans : list of Scan
        In the order of their names.
    groups : numpy.ndarray of int, shape (n,)
        Scans of the same patient or of the same lesion have the same number.
    digest : str
        SHA-256 of names, masks and groups.
    skipped : dict of str to list of str
        The scans that were left out: for each reason, their names and details.
    """

    layout: str
    scans: list[Scan]
    groups: np.ndarray
    digest: str
    skipped: dict[str, list[str]] = field(default_factory=dict)


def find_scans(folder, layout="auto") -> tuple[str, list[Scan]]:
    """List the scans of a folder, without opening any image.

    Parameters
    ----------
    folder : path-like
    layout : {"auto", "busi", "bus-bra", "breast", "udiat", "plain"}, optional

    Returns
    -------
    layout : str
        The given or detected layout.
    scans : list of Scan
        In the order of their names.

    Raises
    ------
    ValueError
        If the layout is unknown or the folder holds no mask of that layout.
    OSError
        If the folder does not exist or cannot be read.
    """
    folder = Path(folder)
    if layout not in ("auto", *_LAYOUTS):
        raise ValueError(f"layout must be auto or one of {', '.join(_LAYOUTS)}, got {layout!r}")
    if not folder.is_dir():
        raise NotADirectoryError(20, "masks must be a folder; there is none of this name", str(folder))
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    for name in _LAYOUTS if layout == "auto" else (layout,):
        scans = _LAYOUTS[name](files, folder)
        if scans:
            return name, sorted(scans, key=lambda scan: scan.name)
    raise ValueError(
        f"{folder}: no mask of the layout {layout!r} among {len(files)} image files ({', '.join(SUFFIXES)})"
    )


def read_mask(scan) -> np.ndarray:
    """Read the masks of a scan and merge them.

    Parameters
    ----------
    scan : Scan

    Returns
    -------
    numpy.ndarray of bool, shape (height, width)
        True inside a lesion.

    Raises
    ------
    ValueError
        If a file cannot be read, is no mask (more than two levels), or its size differs from the others'.
    """
    merged = None
    for path in scan.masks:
        pixels = _pixels(path)
        high = pixels.max()
        mask = pixels > high / 2
        between = ((pixels > DARK * high) & (pixels < BRIGHT * high)).sum()
        if between > BETWEEN * mask.sum():
            raise ValueError(f"{path}: not a mask: {between} pixels are neither dark nor bright")
        if merged is not None and mask.shape != merged.shape:
            raise ValueError(f"{path}: the mask has {mask.shape} pixels, {scan.masks[0].name} has {merged.shape}")
        merged = mask if merged is None else merged | mask
    assert merged is not None
    return merged


def on_grid(mask, grid) -> np.ndarray:
    """Resample a mask on a grid, in whose middle it is placed undistorted and as large as possible.

    Parameters
    ----------
    mask : numpy.ndarray of bool, shape (height, width)
        With square pixels.
    grid : Grid

    Returns
    -------
    numpy.ndarray of bool, shape grid.shape
        Nodes of whose area the lesion covers at least half, without pieces of fewer than `SMALLEST` nodes.
    """
    from PIL import Image
    from scipy.ndimage import label

    height, width = (n * h for n, h in zip(grid.shape, grid.spacing, strict=True))
    rows, columns = mask.shape
    missing = max(0, round(columns * height / width) - rows), max(0, round(rows * width / height) - columns)
    padded = np.pad(mask.astype(np.float32), [(n // 2, n - n // 2) for n in missing])
    shrinks = padded.shape[0] >= grid.shape[0]
    # the mean over the area of each node; a mask that is enlarged would get stairs by it
    resampling = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    coverage = np.asarray(Image.fromarray(padded).resize(grid.shape[::-1], resampling))
    nodes = coverage >= COVERED
    labels, _ = label(nodes, structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    return nodes & (sizes >= SMALLEST)[labels]


def collect(folder, grid, layout="auto", progress=False) -> Collection:
    """Read a folder of masks, leave out unusable ones, and find scans that belong together.

    Parameters
    ----------
    folder : path-like
    grid : Grid
        Where the masks will be used.
    layout : str, optional
        See `find_scans`.
    progress : bool, optional
        Show a progress bar.

    Returns
    -------
    Collection
        Scans are in one group if they are of the same patient, where the folder tells, or if their masks or images are
        nearly the same: duplicates under another name, or the same image with other marks or another brightness.

    Raises
    ------
    ValueError, OSError
        If there is no usable mask; see also `find_scans`.
    """
    layout, scans = find_scans(folder, layout)
    skipped: dict[str, list[str]] = defaultdict(list)
    kept, patients, outlines, hashes = [], [], [], []
    digest = hashlib.sha256()
    with progress_bar("reading masks", "mask", progress, len(scans)) as bar:
        for scan in scans:
            try:
                mask, hashed = _usable(scan, grid)
            except _UnusableError as error:
                skipped[error.reason].append(error.details)
            else:
                kept.append(scan)
                patients.append(scan.patient)
                outlines.append(_outline(mask))
                hashes.append(hashed)
                digest.update(f"{scan.name} {scan.patient} {mask.shape} ".encode() + np.packbits(mask).tobytes())
            bar.update()
    if not kept:
        raise ValueError(f"{folder}: no usable mask; {describe(skipped)}")
    groups = _groups(patients, np.array(outlines), np.array(hashes))
    digest.update(groups.astype("<i8").tobytes())
    return Collection(layout, kept, groups, digest.hexdigest(), dict(skipped))


class _UnusableError(Exception):
    """Why a scan is left out."""

    def __init__(self, reason: str, details: str):
        super().__init__(reason, details)
        self.reason, self.details = reason, details


def _usable(scan, grid) -> tuple[np.ndarray, np.ndarray]:
    """Mask of a scan and the hash of its image."""
    try:
        mask, hashed = read_mask(scan), _difference_hash(scan.image)
    except ValueError as error:
        raise _UnusableError("unreadable", str(error)) from error
    if not mask.any():
        raise _UnusableError("without a lesion", scan.name)
    nodes = on_grid(mask, grid)
    if not nodes.any():
        raise _UnusableError("too small for the grid", scan.name)
    if nodes.mean() > LARGEST:
        raise _UnusableError("filled by the lesion", scan.name)
    return mask, hashed


def describe(skipped) -> str:
    """What was left out and why, in one line.

    Parameters
    ----------
    skipped : dict of str to list of str

    Returns
    -------
    str
    """
    return "; ".join(
        f"{len(names)} {reason} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for reason, names in skipped.items()
    )


# layouts ------------------------------------------------------------------------------------------


def _gather(files, folder, pattern, image_of, patient_of=lambda key: None) -> list[Scan]:
    """Scans from the files whose path matches a pattern; files with the same ``key`` belong to one scan."""
    masks = defaultdict(list)
    for path in files:
        match = re.fullmatch(pattern, path.relative_to(folder).as_posix(), re.IGNORECASE)
        if match:
            masks[match["key"]].append(path)
    present = {path.relative_to(folder).as_posix().lower(): path for path in files}
    return [
        Scan(
            paths[0].relative_to(folder).as_posix(),
            tuple(paths),
            present.get(image_of(key).lower()),
            patient_of(key),
        )
        for key, paths in masks.items()
    ]


def _busi(files, folder):
    return _gather(files, folder, r"(?P<key>.* \(\d+\))_mask(_\d+)?\.png", "{}.png".format)


def _bus_bra(files, folder):
    tables = sorted(folder.rglob("bus_data.csv"))
    patients = {}
    if tables:
        with open(tables[0], newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            lacking = {"ID", "Case"} - set(rows.fieldnames or ())
            if lacking:
                raise ValueError(f"{tables[0]}: the table lacks the column {', '.join(sorted(lacking))}")
            patients = {row["ID"].lower(): row["Case"] for row in rows}

    def parts(key):
        return re.fullmatch(r"(?P<top>.*)Masks/mask_(?P<id>.*)", key, re.IGNORECASE)

    def patient(key):
        name = parts(key)["id"].lower()
        # without a table: the number in the name is that of the patient
        return patients.get(f"bus_{name}", name.partition("-")[0].lstrip("0"))

    return _gather(
        files,
        folder,
        r"(?P<key>(.*/)?Masks/mask_\d+-\w+)\.png",
        lambda key: "{top}Images/bus_{id}.png".format(**parts(key).groupdict()),
        patient,
    )


def _breast(files, folder):
    # masks named "other" are of further lesions
    return _gather(files, folder, r"(?P<key>(.*/)?case\d+)_(tumor|other)\d*\.png", "{}.png".format)


def _udiat(files, folder):
    def image(key):
        return re.sub(r"(?i)(^|/)GT/", r"\1original/", key)

    scans = _gather(files, folder, r"(?P<key>(.*/)?GT/[^/]+\.\w+)", image)
    return scans if any(scan.image for scan in scans) else []


def _plain(files, folder):
    return [Scan(path.relative_to(folder).as_posix(), (path,)) for path in files]


# in the order in which they are tried
_LAYOUTS: dict[str, Callable[[list[Path], Path], list[Scan]]] = {
    "busi": _busi,
    "bus-bra": _bus_bra,
    "breast": _breast,
    "udiat": _udiat,
    "plain": _plain,
}


# pixels and duplicates ----------------------------------------------------------------------------


def _pixels(path) -> np.ndarray:
    """Maximum over the colours of each pixel, float32, shape (height, width); transparency is ignored."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            colours = image.convert("RGB") if image.mode in ("P", "PA") else image
            pixels = np.asarray(colours, dtype=np.float32)
            bands = colours.getbands()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error
    if pixels.ndim == 3:
        pixels = pixels[..., [band != "A" for band in bands]].max(axis=2)
    return pixels


def _outline(mask) -> np.ndarray:
    """The mask on OUTLINE x OUTLINE points, as a vector of unit length."""
    from PIL import Image

    small = Image.fromarray(mask.astype(np.float32)).resize((OUTLINE, OUTLINE), Image.Resampling.BOX)
    values = np.asarray(small).ravel()
    return values / max(np.linalg.norm(values), 1e-30)


def _difference_hash(path) -> np.ndarray:
    """Whether the image becomes brighter from each of 16 x 17 points to the next, as a vector of unit length.

    It is zero without an image, and then similar to no other one.
    """
    from PIL import Image

    if path is None:
        return np.zeros(HASH**2, np.float32)
    small = np.asarray(Image.fromarray(_pixels(path)).resize((HASH + 1, HASH), Image.Resampling.BOX))
    return np.where(np.diff(small, axis=1) > 0, 1, -1).astype(np.float32).ravel() / HASH


def _groups(patients, outlines, hashes) -> np.ndarray:
    """Numbers of the groups: connected components of the graph whose edges are equal patients and similar vectors."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(patients)
    first: dict[str, int] = {}
    pairs = [(i, first.setdefault(p, i)) for i, p in enumerate(patients) if p is not None]
    for vectors, least in ((outlines, SAME_MASK), (hashes, SAME_IMAGE)):
        for start in range(0, n, BLOCK):
            rows, columns = np.nonzero(vectors[start : start + BLOCK] @ vectors.T >= least)
            pairs += zip(rows + start, columns, strict=True)
    rows, columns = np.array(pairs).reshape(-1, 2).T
    return connected_components(coo_array((np.ones(len(rows)), (rows, columns)), shape=(n, n)), directed=False)[1]
