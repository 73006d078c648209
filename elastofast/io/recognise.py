"""What the variables of somebody else's file may be: a proposal for its sidecar, with the reason for every guess."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product, takewhile
from typing import Any

import numpy as np

from ..errors import DataError
from .candidates import Candidate, candidates
from .containers import Container, read_container
from .layout import MEASUREMENT, MODULUS
from .placement import Placement, place_on_grid
from .roles import axial_and_lateral, axis_of_spacing, words_of
from .sidecar import KEYS, STATED, UNITS, UNKNOWN, Sidecar
from .sources import Sources
from .strain import LARGEST_STRAIN, SMALLEST_STRAIN, MeanGradient

__all__ = ["Proposal", "propose"]

SMALLEST_FIELD = 9  # values of the smallest array that may be a displacement field, 3 x 3 nodes
# mean strains that quasi-static experiments have; a unit is guessed so that the strain is among them
USUAL_STRAIN = (1e-4, 0.1)
USUAL_WIDTH = (2e-3, 0.3)  # metres, of what ultrasound images show; a unit is guessed so that the width is among them
LEVELS = 16  # an array with more different values is no mask
# Minus lateral over axial strain, and what it is for an incompressible body between frictionless plates. The ranges
# are chosen, not studied.
RATIOS = {"plane_stress": (0.35, 0.65, 0.5), "plane_strain": (0.75, 1.25, 1.0)}
FILTERED = {"filtered", "filt", "smoothed", "smooth"}  # words of fields that are not the measured ones


@dataclass
class Proposal:
    """What a file holds, and how it might be read.

    Attributes
    ----------
    files : list of Container
    sidecar : Sidecar or None
        None for files in elastofast's own layout, which need none.
    notes : list of str
        What was seen.
    warnings : list of str
        What is doubtful.
    """

    files: list[Container]
    sidecar: Sidecar | None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def propose(paths: Iterable[str | os.PathLike]) -> Proposal:
    """Look at the file or files of one measurement and propose a sidecar.

    Parameters
    ----------
    paths : iterable of path-like
        The file; further ones in the same folder where its components are in several.

    Raises
    ------
    OSError, ImportError
        If a file cannot be opened, or a package is missing that reads it.
    ValueError
        If a file is empty, damaged or of no kind that is known, or nothing in it can be a displacement field.
    """
    first, *others = [read_container(path) for path in paths]
    if "format" in first and first.get("format") in (MEASUREMENT, MODULUS):
        return Proposal([first], None, [f"a file of elastofast itself: '{first.get('format')}'; it needs no sidecar"])
    if "vertices" in first:
        return Proposal([first], None, ["a file in the layout of the comp-elast data, which needs no sidecar"])
    guess = _Guess(first, [_more(first, other) for other in others])
    guess.make()
    sidecar = Sidecar(guess.values, "the proposal", guess.reasons)
    return Proposal(guess.sources.files, sidecar, guess.notes, guess.warnings)


def _more(first, other):
    """The entry of ``files.more`` for a further file: where that can be, one that fits files with other names too."""
    a, b = first.path.name, other.path.name
    if other.path.parent != first.path.parent:
        raise DataError(f"{other.path}: the files of a measurement must be in one folder, {first.path.parent}")
    start = _common(a, b)
    end = _common(a[start:][::-1], b[start:][::-1])
    old, new = a[start : len(a) - end], b[start : len(b) - end]
    if old and a.count(old) > 1 and start:  # one more character tells the place
        old, new = a[start - 1] + old, b[start - 1] + new
    return f"{old} -> {new}" if old and a.replace(old, new) == b else b


def _common(a, b) -> int:
    """How many characters two texts have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


@dataclass
class _Fields:
    """The displacement on its grid in units of the file, and its mean gradient."""

    u: np.ndarray
    placement: Placement
    gradient: MeanGradient


class _Guess:
    """The values of a sidecar as they are found out one after the other, with the reasons."""

    def __init__(self, file, more):
        self.sources = Sources(file, more)
        self.values = {name: key.default for name, key in KEYS.items()}
        self.values["files.more"] = more
        self.reasons: dict[str, str] = {}
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.candidates = candidates(self.sources)
        self.pair: list[Candidate] = []  # the axial component, and the lateral one if there is one

    def set(self, key, value, why) -> None:
        self.values[key], self.reasons[key] = value, why

    def make(self) -> None:
        """Fill in everything; what cannot be told stays to be stated."""
        self._choose_displacement()
        self._state_law_and_load()
        self.reasons["noise.std"] = "the file has no noise level"
        if not self.pair:
            return
        self._choose_coordinates()
        self._take_stated_units()
        fields = None
        try:
            fields = self._orient()
        except ValueError as error:  # such as coordinates that are on no regular grid
            self.warnings.append(str(error))
        if self.pair[0].why:
            self.warnings.append(f"{self.pair[0].text} is a guess: {self.pair[0].why.lstrip('; ')}")
        if fields is None:
            return
        self._guess_units(fields)
        self._guess_law(fields)
        self._choose_noise()
        self._choose_mask()
        self._crop(fields)

    # which variables ----------------------------------------------------------------------------

    def _choose_displacement(self) -> None:
        """The components of the displacement, or that it has to be stated which they are."""
        found, why = self._fields()
        axes = {c.axis for c in found} - {""}
        if axes:
            axial, lateral, why = axial_and_lateral(axes)
            along = {axis: [c for c in found if c.axis == axis] for axis in (axial, lateral)}
            pairs = [
                [a, b] for a in along[axial] for b in along[lateral] if a.role.rest == b.role.rest and a.size == b.size
            ] or [[c] for c in along[axial] or along[lateral]]
            pairs.sort(key=lambda pair: (bool(FILTERED & set(pair[0].role.rest)), len(pair[0].role.rest)))
        elif len(found) <= 2:
            pairs = [found]
        else:
            names = ", ".join(c.text for c in found[:8])
            self.set("axial.displacement", UNKNOWN, f"{len(found)} arrays may be it: {names}")
            self.warnings.append(f"which array is the displacement cannot be told; it may be {names}")
            return
        self.pair = pairs[0]
        if len(pairs) > 1:
            others = ", ".join("/".join(c.text for c in other) for other in pairs[1:6])
            why += f"; there are {len(pairs)} candidates, the others are {others}"
            if any(FILTERED & set(pair[0].role.rest) for pair in pairs):
                why += "; fields that were filtered have correlated noise"
            chosen = "/".join(c.text for c in self.pair)
            self.warnings.append(f"{len(pairs)} fields may be the displacement: {chosen} was taken, not {others}")
        self._name_displacement(why)

    def _fields(self) -> tuple[list[Candidate], str]:
        """Arrays that may be components of the displacement, and why, where no name says of which direction."""
        if found := [c for c in self.candidates if c.kind == "displacement" and c.size >= SMALLEST_FIELD]:
            return found, "its name does not say of which direction it is"
        # matrices that are named by a direction alone and are no grids of coordinates
        named = [c for c in self.candidates if c.kind == "coordinate" and len(c.shape) == 2]
        found = [c for c in named if self._varies_both_ways(c)]
        if found := found or [c for c in named if c.axis in ("axial", "lateral")]:
            self.candidates = [c for c in self.candidates if c not in found]
            return found, ""
        unknown = [c for c in self.candidates if not c.kind and c.size >= SMALLEST_FIELD]
        if not unknown:
            names = ", ".join(self.sources.names()[:20]) or "none"
            notes = "".join(f"; {note}" for file in self.sources.files for note in file.notes)
            raise DataError(
                f"{self.sources.files[0].path}: no variable can be a displacement field; the arrays are: {names}{notes}"
            )
        largest = max(c.size for c in unknown)
        return [c for c in unknown if c.size == largest], "its name does not say what it is; no other array is as large"

    def _varies_both_ways(self, c) -> bool:
        """Whether a matrix is constant along neither of its axes."""
        values = self.sources.select(c.text, "axial.displacement")
        return all(bool((np.nan_to_num(np.diff(values, axis=axis)) != 0).any()) for axis in (0, 1))

    def _name_displacement(self, why) -> None:
        for c, direction in zip(self.pair, ("axial", "lateral"), strict=False):
            self.set(f"{direction}.displacement", c.text, why + c.why)
        if len(self.pair) == 1:
            self.set("lateral.displacement", "", "no second component was found")

    def _choose_coordinates(self) -> None:
        """Coordinates of every value, those of rows and columns, or the spacing."""
        size, shape = self.pair[0].size, self.pair[0].shape
        fitting = [
            c
            for c in self.candidates
            if c.kind == "coordinate" and (c.size == size or (len(shape) == 2 and c.size in shape))
        ]
        axes = {c.axis for c in fitting} - {""}
        names = axial_and_lateral(axes)[:2] if len(axes) > 1 else (next(iter(axes), ""), "")
        if len(self.pair) == 2 and {c.axis for c in self.pair} <= axes:  # the same names as the components have
            names = self.pair[0].axis, self.pair[1].axis
        for direction, axis in zip(("axial", "lateral"), names, strict=True):
            found = [c for c in fitting if c.axis == axis and axis]
            found.sort(key=lambda c: (c.size != size, len(c.role.rest), c.text))
            if found:
                why = f"named as the coordinate along {axis}{found[0].why}"
                if len(found) > 1:
                    others = ", ".join(c.text for c in found[1:5])
                    why += f"; also possible: {others} (the coordinates of the undeformed state are needed)"
                self.set(f"{direction}.coordinate", found[0].text, why)
        missing = [d for d in ("axial", "lateral") if not self.values[f"{d}.coordinate"]]
        if missing:
            spacing, why = self._spacing()
            for direction in missing:
                self.set(f"{direction}.spacing", spacing["axial lateral".split().index(direction)], why)

    def _spacing(self) -> tuple[list[Any], str]:
        """The spacing along depth and width that the file states, as voxel size or as numbers with such a name."""
        if self.pair[0].spacing:
            h = list(self.pair[0].spacing)
            return h, "the voxel size that the file states"
        found: dict[str, tuple[float, str]] = {}
        for number, file in enumerate(self.sources.files, 1):
            for name, variable in file.variables.items():
                axis = axis_of_spacing(name)
                if axis is None or variable.dtype.kind not in "fiu" or int(np.prod(variable.shape)) > 2:
                    continue
                values = np.ravel(file.array(name)).astype(float).tolist()
                label = name if number == 1 else f"{number}:{name}"
                if len(values) == 2:
                    return values, f"{label} in the file, taken as axial and lateral"
                found[axis] = values[0], label
        if "" in found:
            value, label = found[""]
            return [value, value], f"{label} in the file"
        axial, lateral, _ = axial_and_lateral(set(found))
        if {axial, lateral} <= set(found):
            return [found[axial][0], found[lateral][0]], f"{found[axial][1]} and {found[lateral][1]} in the file"
        return [UNKNOWN, UNKNOWN], "the file has neither coordinates nor a spacing"

    # directions ---------------------------------------------------------------------------------

    def _orient(self) -> _Fields:
        """Which axis of the arrays is depth, which component is axial, and which signs: as a compression has them."""
        named = any(c.axis for c in self.pair)
        swaps = (False, True) if len(self.pair) == 2 and not named else (False,)
        readings: dict[tuple[int, bool], _Fields] = {}
        errors = []
        for axis, swap in product((0, 1), swaps):  # rows as depths first
            try:
                readings[axis, swap] = self._read(axis, swap)
            except ValueError as error:
                errors.append(error)
        if not readings:
            raise errors[0]
        fitting = {axis for axis, _ in readings}
        axis, swap = next(iter(readings))
        for other, reading in readings.items():
            if reading.gradient.clearer_than(readings[axis, swap].gradient):
                axis, swap = other
        fields = readings[axis, swap]
        if not fields.placement.scattered:
            why = "rows are depths in images and matrices, and nothing in the file says otherwise"
            if len(fitting) == 1 and fields.placement.shape[0] != fields.placement.shape[1]:
                why = "only so the coordinates are as many as rows and columns"
            elif axis:
                why = "with columns as depths the field looks like a compression along depth, with rows as depths not"
            self._turn(axis)
            self.reasons["axial.array_axis"] = why
        if swap:
            self.pair.reverse()
        if swaps[1:]:
            why = "no name says which component is axial"
            why += "; this choice has the larger strain along depth" if fields.gradient.compressed else ""
            self._name_displacement(why)
        if fields.gradient.mixed_up:
            self.warnings.append(
                "the displacement changes mainly across its own directions: axial and lateral may be mixed up, in the "
                "displacements, in the coordinates or in axial.array_axis, or the body was turned"
            )
        self._guess_signs(fields)
        self.reasons["axial.grows"] = (
            "depth increases downwards in images, but not in all programs, and the file does not say. With open edges "
            "a wrong choice only turns the map upside down"
        )
        return self._read()

    def _turn(self, axis) -> None:
        """Take an axis of the arrays as depth; spacings that the file states by axis go with it."""
        self.values["axial.array_axis"] = axis
        if axis and self.pair[0].spacing:
            a, b = self.values["axial.spacing"], self.values["lateral.spacing"]
            self.values["axial.spacing"], self.values["lateral.spacing"] = b, a

    def _guess_signs(self, fields) -> None:
        if len(self.pair) < 2:
            self.reasons["axial.sign"] = "of one component the sign cannot be told; if edges are open it has no effect"
            return
        axial, lateral = fields.gradient.strains
        if axial * lateral > 0 and abs(lateral) > abs(axial) / 10:
            key = "axial.sign" if axial > 0 else "lateral.sign"
            why = (
                f"with the signs of the file the tissue would {'swell' if axial > 0 else 'shrink'} along depth and "
                "across, which incompressible tissue does not do. Is this component turned, or its coordinate?"
            )
            self.set(key, -1, why)
            self.warnings.append(f"{key} = -1 is a guess: {why}")
        elif axial > 0:
            self.reasons["axial.sign"] = (
                "the tissue is then stretched along depth: right for a compression that is released. If it was "
                "compressed, both signs are turned"
            )
        else:
            self.reasons["axial.sign"] = "the tissue is then compressed along depth"

    def _read(self, axis=None, swap=False) -> _Fields:
        """The fields with the present guesses, in units of the file; a spacing that is not known counts as 1."""
        changes: dict[str, Any] = {
            k: 1.0 for k in ("axial.spacing", "lateral.spacing") if self.values[k] in (UNKNOWN, 0.0)
        }
        if axis is not None:
            changes["axial.array_axis"] = axis
            if axis and self.pair[0].spacing:
                changes |= {"axial.spacing": self.pair[0].spacing[1], "lateral.spacing": self.pair[0].spacing[0]}
        sidecar = Sidecar(self.values | changes)
        placement = place_on_grid(self.sources, sidecar)
        u = []
        for c, direction in zip(self.pair[:: -1 if swap else 1], ("axial", "lateral"), strict=False):
            key = f"{direction}.displacement"
            u.append(placement.place(self.sources.select(c.text, key), key) * sidecar[f"{direction}.sign"])
        if not np.isfinite(u).any():
            raise DataError(f"axial.displacement: {self.pair[0].text!r} holds no numbers")
        stack = np.stack(u)
        return _Fields(stack, placement, MeanGradient.of(stack, placement.spacing))

    # units --------------------------------------------------------------------------------------

    def _take_stated_units(self) -> None:
        """Units that the file states."""
        coordinate = next((c for c in self.candidates if c.text == self.values["axial.coordinate"]), None)
        stated = coordinate.unit if coordinate else self.pair[0].unit if self.pair[0].spacing else ""
        for key, unit in (("units.coordinate", stated), ("units.displacement", self.pair[0].unit)):
            if unit:
                self.set(key, unit, STATED)
            else:
                self.reasons[key] = "the file does not say"
        if len({c.unit for c in self.pair}) > 1:
            units = " and ".join(repr(c.unit) for c in self.pair)
            self.warnings.append(f"the components have different units, {units}; elastofast takes one for both")

    def _guess_units(self, fields) -> None:
        """Units that make the field as large and as strained as fields of tissue are."""
        key, spacing = "units.coordinate", fields.placement.spacing
        width = max(n * h for n, h in zip(fields.placement.shape, spacing, strict=True))
        if UNKNOWN in (self.values["axial.spacing"], self.values["lateral.spacing"]):
            self.reasons[key] = "the file states no spacing"
        elif self.values[key] == UNKNOWN:
            usual = [u for u in ("m", "mm", "um") if USUAL_WIDTH[0] <= width * UNITS[u] <= USUAL_WIDTH[1]]
            if min(spacing) >= 1 and self._whole(self.values["axial.coordinate"]):
                self.set(key, "px", "the coordinates are whole numbers")
            elif len(usual) == 1:
                self.set(key, usual[0], f"the field is then {width * UNITS[usual[0]] * 1e3:.3g} mm large")
            else:
                self.reasons[key] = f"the file does not say; the field is {width:.4g} of them large"
        self._guess_displacement_unit(fields.gradient.largest, spacing[0])
        if "px" in (self.values["units.displacement"], self.values["units.coordinate"]):
            why = "a unit is px, and the file does not say how large a pixel is; 0.05 mm would be [5e-5, 5e-5]"
            self.set("units.pixel", UNKNOWN, why)

    def _whole(self, text) -> bool:
        """Whether a coordinate has whole numbers."""
        values = self.sources.select(text, "axial.coordinate") if text else np.array([np.nan])
        values = values[np.isfinite(values)]
        return values.size > 0 and bool(np.allclose(values, np.rint(values), rtol=0, atol=1e-6))

    def _guess_displacement_unit(self, strain, spacing) -> None:
        """Strain and spacing are those in units of the file."""
        key, where = "units.displacement", self.values["units.coordinate"]
        unit = self.values[key]
        if where == UNKNOWN:
            if unit == UNKNOWN:
                self.reasons[key] = (
                    "the file does not say, and without a spacing in a known unit the strain does not tell"
                )
            return
        if unit == UNKNOWN and USUAL_STRAIN[0] <= strain <= USUAL_STRAIN[1]:
            self.set(key, where, f"that of the coordinates; the mean strain is then {strain:.2%}")
            return
        value = strain * (_scale(where if unit == UNKNOWN else unit, where) or np.nan)
        why = f"with a displacement in {where if unit == UNKNOWN else unit} and coordinates in {where}"
        impossible = not SMALLEST_STRAIN < value < LARGEST_STRAIN
        why += f" the mean strain would be {value:.3g}, which is {'impossible' if impossible else 'unusual'}"
        if unit == UNKNOWN:
            others = {u: strain * scale for u in UNITS if u != "cm" and (scale := _scale(u, where))}
            others["px of one node distance"] = strain * spacing
            usual = [f"{v:.2%} in {u}" for u, v in others.items() if USUAL_STRAIN[0] <= v <= USUAL_STRAIN[1]]
            self.reasons[key] = why + f"; it would be {' and '.join(usual)}" * bool(usual)
            self.warnings.append(f"units.displacement: {self.reasons[key]}")
        elif not USUAL_STRAIN[0] <= value <= USUAL_STRAIN[1] and np.isfinite(value):
            doubt = "the file states a wrong unit" if impossible else "does the file state the right units?"
            self.warnings.append(f"units.displacement: {why}: {doubt}")

    # noise, region, law, load -------------------------------------------------------------------

    def _beside(self, kind) -> list[Candidate]:
        """Fields of some kind with as many values as the displacement."""
        return [c for c in self.candidates if c.kind == kind and c.size == self.pair[0].size]

    def _choose_noise(self) -> None:
        if found := self._beside("std"):
            by_axis = {c.axis: c for c in reversed(found)}
            chosen = [by_axis.get(c.axis, found[0]) for c in self.pair]
            self.set("noise.variable", chosen[0].text, "named as a standard deviation: is it in units.displacement?")
            self.set("noise.std", 0.0, "noise.variable has it")
            if chosen[-1] is not chosen[0]:
                self.set("noise.lateral_variable", chosen[-1].text, "named as that of the lateral component")
        if found := self._beside("quality"):
            values = self.sources.select(found[0].text, "noise.quality")
            low, high = np.nanquantile(values, [0.01, 0.99])
            self.set("noise.quality", found[0].text, "named as a quality")
            self.set(
                "noise.threshold",
                0.0,
                f"98 % of the values are from {low:.3g} to {high:.3g}; raise it to leave bad matches out",
            )

    def _choose_mask(self) -> None:
        for c in self._beside("mask"):
            values = self.sources.select(c.text, "region.mask")
            levels, counts = np.unique(values[np.isfinite(values)], return_counts=True)
            if not 1 <= len(levels) <= LEVELS:
                continue
            self.set("region.mask", c.text, "named as a mask or a flag")
            if {"roi", "valid", "inside"} & set(words_of(c.text)) and len(levels) > 1:
                return
            most, share = float(levels[np.argmax(counts)]), counts.max() / counts.sum()
            shown = ", ".join(f"{v:g}" for v in levels)
            self.set("region.measured", [most], f"{share:.0%} of the values are {most:g}; there are {shown}")
            if len(levels) > 1:
                self.warnings.append(f"region.measured = [{most:g}] is a guess: {share:.0%} of {c.text} are {most:g}")
            return

    def _state_law_and_load(self) -> None:
        self.set("law.kind", "plane_stress", "the data do not tell; this is what elastofast's own examples use")
        self.set("law.poisson", 0.495, "soft tissue is nearly incompressible")
        self.set(
            "load.kind",
            "open",
            "the file says nothing about forces, and this assumes nothing. The map is then known only up to a factor; "
            "state the pressure or the strain of a compression if you know it",
        )

    def _guess_law(self, fields) -> None:
        if len(self.pair) < 2 or not fields.gradient.strains[0] or self.values["axial.spacing"] == UNKNOWN:
            return
        ratio = -fields.gradient.strains[1] / fields.gradient.strains[0]
        for kind, (low, high, ideal) in RATIOS.items():
            if low <= ratio <= high:
                why = f"lateral over axial strain is {-ratio:.2f}; for an incompressible body it would be {-ideal:g}"
                self.set("law.kind", kind, why)

    def _crop(self, fields) -> None:
        """Leave out rows and columns at the rim in which nothing was measured."""
        measured = np.isfinite(fields.u).any(axis=0)
        inside = []
        for i, name in enumerate(("rows", "columns")):
            held = np.flatnonzero(measured.any(axis=1 - i))
            inside.append(slice(held[0], held[-1] + 1))
            if len(held) and (held[0] > 0 or held[-1] < measured.shape[i] - 1):
                ends = [int(held[0]), int(held[-1])]
                self.set(f"region.{name}", ends, f"beyond them nothing was measured; there are {measured.shape[i]}")
        shape, h = fields.placement.shape, fields.placement.spacing
        known = UNKNOWN not in (self.values["axial.spacing"], self.values["lateral.spacing"])
        self.notes.append(
            f"grid of {shape[0]} x {shape[1]} nodes (depth x width)" + (f", spacing {h[0]:.6g} x {h[1]:.6g}" * known)
        )
        missing = 1 - measured[*inside].mean()
        if missing:
            self.notes.append(f"{missing:.2%} of the nodes inside are missing")
        scale = _scale(self.values["units.displacement"], self.values["units.coordinate"])
        if scale:
            names = ("axial", "lateral")
            strains = (f"{name} {g * scale:.3%}" for name, g in zip(names, fields.gradient.strains, strict=False))
            self.notes.append(f"mean strain: {', '.join(strains)}")


def _scale(displacement, coordinate) -> float | None:
    """What a strain in units of the file has to be multiplied by; None if the units do not tell."""
    if displacement == coordinate and displacement != UNKNOWN:
        return 1.0
    if displacement in UNITS and coordinate in UNITS:
        return UNITS[displacement] / UNITS[coordinate]
    return None
