"""What the name of a variable says: displacement or coordinate, noise, quality or mask, and along which axis."""

from __future__ import annotations

import re
from typing import NamedTuple

from .sidecar import UNITS

__all__ = ["SPACING", "Role", "axial_and_lateral", "axis_of_spacing", "role_of", "unit_of", "words_of"]

# words by what they say; a name is split at capitals, digits and signs, and read in this order
WORDS = {
    "other": {
        "exx",
        "eyy",
        "exy",
        "ezz",
        "exz",
        "eyz",
        "strain",
        "vorticity",
        "shear",
        "magnitude",
        "time",
        "modulus",
        "id",
    },
    "std": {"std", "sigma", "sd", "stdev", "error", "err", "uncertainty", "unc"},
    "quality": {"corr", "correlation", "cc", "ncc", "zncc", "quality", "snr", "score", "coefficient", "confidence"},
    "mask": {"mask", "roi", "flag", "flags", "valid", "status", "type", "typevector", "inside"},
    "displacement": {"displacement", "displacements", "disp", "displ", "deformation", "motion", "u", "v", "w"},
    "coordinate": {"coordinate", "coordinates", "coord", "position", "pos", "depth", "row", "rows", "col", "column"},
}
SPACING = {"spacing", "pitch", "pixelsize", "pixel", "resolution", "step", "dx", "dy", "dz"}
AXES = {
    **{word: "axial" for word in ("axial", "ax", "depth")},
    **{word: "lateral" for word in ("lateral", "lat")},
    **{word: "x" for word in ("x", "horizontal", "col", "column", "u")},
    **{word: "y" for word in ("y", "vertical", "row", "rows", "v")},
    **{word: "z" for word in ("z", "w")},
}
BESIDE_COORDINATES = {"image", "pixel", "grid", "vec", "vector", "axis", "mm", "um", "px", "m"}
COMPOUND = re.compile(r"^(u|d|disp|displ|displacement|def|pos|coord)(x|y|z|ax|axial|lat|lateral)$")  # such as "uaxial"
REVERSED = re.compile(r"^(x|y|z|ax|axial|lat|lateral)(disp|displ|displacement|coord|pos)$")
SHORT = {"d": "disp", "def": "disp"}
UNIT_NAMES = {
    **{word: "px" for word in ("pixel", "pixels", "pix")},
    **{word: "um" for word in ("µm", "μm", "micron", "microns")},
    **{word: "mm" for word in ("millimeter", "millimetre")},
    **{word: "m" for word in ("meter", "metre", "meters", "metres")},
}


class Role(NamedTuple):
    """What a name says.

    Attributes
    ----------
    kind : str
        "displacement", "coordinate", "std", "quality", "mask", "other", or empty.
    axis : str
        "axial", "lateral", "x", "y", "z", or empty.
    rest : tuple of str
        Its other words, such as "filtered".
    """

    kind: str
    axis: str
    rest: tuple[str, ...]


def words_of(name: str) -> list[str]:
    """The words of a name in lower case, without units in brackets and numbers of cells."""
    name = re.sub(r"[\[(<].*?[\])>]|\{\d+\}", " ", name)
    return [word.lower() for word in re.findall(r"[A-Z]?[a-zµ]+|[A-Z]+|\d+", name)]


def role_of(name: str) -> Role:
    """What a name says about a variable.

    Examples
    --------
    >>> role_of("DISPLACEMENT_X"), role_of("v [mm]"), role_of("depth")
    (Role(kind='displacement', axis='x', rest=()), Role(kind='displacement', axis='y', rest=()),
     Role(kind='coordinate', axis='axial', rest=()))
    """
    words: list[str] = []
    for word in words_of(name):
        split = COMPOUND.match(word) or REVERSED.match(word)
        words += [SHORT.get(part, part) for part in (split.groups() if split else [word])]
    held = set(words)
    axes = sorted((word for word in words if word in AXES), key=lambda word: word in "uvw")  # x before u, as in "u_x"
    axis = AXES[axes[0]] if axes else ""
    kind = next((kind for kind, known in WORDS.items() if held & known), "")
    if not kind and axis and all(word in AXES or word in BESIDE_COORDINATES or word.isdigit() for word in words):
        kind = "coordinate"
    rest = tuple(w for w in words if w not in AXES and w not in WORDS["displacement"] | WORDS["coordinate"])
    return Role(kind, axis, rest)


def axial_and_lateral(axes: set[str]) -> tuple[str, str, str]:
    """Which of the axes that names state are along depth and across, and why."""
    if "axial" in axes:
        return "axial", next((a for a in ("lateral", "x", "y", "z") if a in axes), "lateral"), "named so"
    if "lateral" in axes:
        return next((a for a in ("z", "y", "x") if a in axes), "axial"), "lateral", "the other is named lateral"
    if "y" in axes:
        return "y", "x", "y is taken as depth and x as width, as in images"
    if "z" in axes:
        return "z", "x", "z is taken as depth and x as width, as in ultrasound"
    return "x", "y", "only a component along x was found, which is taken as the axial one: is it?"


def axis_of_spacing(name: str) -> str | None:
    """The axis of a number that is named like a spacing, empty if it is for all axes, None if it is no spacing."""
    words = words_of(name)
    if not SPACING & set(words):
        return None
    return next((AXES[w.removeprefix("d")] for w in words if w.removeprefix("d") in AXES), "")


def unit_of(text: str) -> str:
    """The unit as a sidecar has it, empty if it is none of those."""
    text = UNIT_NAMES.get(text.lower(), text.lower())
    return text if text in (*UNITS, "px") else ""
