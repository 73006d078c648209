"""Values of other people's files on a regular grid: from coordinates in any order, or from rows and columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..errors import DataError
from .sidecar import Sidecar
from .sources import Sources

__all__ = ["Placement", "place_on_grid", "regular_axis"]

IRREGULAR = 0.1  # deviation of a coordinate from a regular axis, over the spacing, above which it is refused
ROUNDING = 10.0  # ratio of two neighbouring sorted gaps that separates rounding errors from node distances; not studied
DIGITS = 10  # of a spacing that is found from coordinates; no measured coordinate has as many
LEAST_FILLED = 0.02  # share of the nodes of a grid that have values, below which it is none; chosen, not studied
RESAMPLE = (
    "Resample the displacement on one, for example with scipy.interpolate.griddata, or export it in coordinates of the "
    "undeformed state"
)
ELONGATION = 64  # a grid may be so many times as long as wide for its axes to be told from rounding; not studied


class Placement(NamedTuple):
    """Where values are on the grid.

    Attributes
    ----------
    shape : (int, int)
        Nodes along depth and width.
    spacing : (float, float)
        In the unit of the coordinates.
    place : callable
        Puts the values of a variable on the grid, depth increasing with the row; NaN where there is none.
    scattered : bool
        Whether every value has coordinates, so that the order of the values in the file has no meaning.
    """

    shape: tuple[int, int]
    spacing: tuple[float, float]
    place: Callable[[np.ndarray, str], np.ndarray]
    scattered: bool


def place_on_grid(sources: Sources, sidecar: Sidecar) -> Placement:
    """Find the grid of a file: from coordinates at every value, coordinates of rows and columns, or a spacing."""
    name = sidecar["axial.displacement"]
    field = sources.select(name, "axial.displacement")
    given = [sidecar["axial.coordinate"], sidecar["lateral.coordinate"]]
    axes = [
        sources.select(given[i], f"{direction}.coordinate").astype(np.float64) if given[i] else None
        for i, direction in enumerate(("axial", "lateral"))
    ]
    sizes = [None if a is None else a.size for a in axes]
    if field.size == 1:
        raise DataError(f"axial.displacement: {name!r} is a single number")
    if sizes == [field.size] * 2:
        return _scattered(axes, sidecar["axial.grows"] == "up")
    if field.ndim != 2:
        raise DataError(
            f"axial.displacement: {name!r} has the shape {field.shape}; "
            + (
                f"elastofast's grids are two-dimensional: take one slice or frame by an index, such as "
                f'"{name}[{", ".join([":"] * 2 + ["0"] * (field.ndim - 2))}]" (counted from 0)'
                if field.ndim > 2
                else "values in a row need coordinates of the same number: axial.coordinate and lateral.coordinate, "
                f"which have {sizes[0] or 'none'} and {sizes[1] or 'none'}"
            )
        )
    return _matrix(field.shape, axes, sidecar)


def _scattered(axes, up):
    """Values at given coordinates, in any order."""
    axes = [a.ravel() for a in axes]
    known = np.isfinite(axes[0]) & np.isfinite(axes[1])
    rows, columns = (regular_axis(a[known], f"{d}.coordinate") for a, d in zip(axes, ("axial", "lateral"), strict=True))
    shape = rows.nodes, columns.nodes
    row = rows.nodes - 1 - rows.number if up else rows.number
    node = row * shape[1] + columns.number
    filled = known.sum() / (shape[0] * shape[1])
    if filled < LEAST_FILLED:
        raise DataError(
            f"axial.coordinate, lateral.coordinate: only {filled:.1%} of the {shape[0]} x {shape[1]} nodes of a "
            f"regular grid through all coordinates have values: they are not on a grid. {RESAMPLE}"
        )
    twice = np.bincount(node, minlength=1) > 1
    if twice.any():
        first = np.flatnonzero(node == np.argmax(twice))[:2]
        lines = np.flatnonzero(known)[first]
        raise DataError(
            f"axial.coordinate, lateral.coordinate: {int(twice.sum())} nodes have several values (the first are number "
            f"{lines[0]} and {lines[1]}, counted from 0): are there several frames in the file, or is a coordinate "
            "named twice?"
        )

    def place(values, key):
        if values.size != known.size:
            raise DataError(f"{key} must have as many values as the coordinates, {known.size}, got {values.size}")
        placed = np.full(shape[0] * shape[1], np.nan)
        placed[node] = values.ravel()[known]
        return placed.reshape(shape)

    return Placement(shape, (rows.spacing, columns.spacing), place, True)


def _matrix(shape, axes, sidecar):
    """A matrix whose rows and columns have coordinates or a spacing."""
    axis = sidecar["axial.array_axis"]
    if axis not in (0, 1):
        raise DataError(f"axial.array_axis must be 0 or 1, got {axis}")
    counts = shape[axis], shape[1 - axis]
    spacing, backwards = [], []
    for direction, values, count in zip(("axial", "lateral"), axes, counts, strict=True):
        if values is None:
            h = sidecar[f"{direction}.spacing"]
            if not (np.isfinite(h) and h > 0):
                raise DataError(
                    f"{direction}.spacing must be positive where {direction}.coordinate is empty, got {h:g}: "
                    "state the distance between neighbouring nodes"
                )
            spacing.append(float(h))
            backwards.append(False)
            continue
        if values.size != count:
            raise DataError(
                f"{direction}.coordinate has {values.size} values, but the displacement has {count} along axis "
                f"{axis if direction == 'axial' else 1 - axis} (shape {shape}): is axial.array_axis right?"
            )
        found = regular_axis(values.ravel(), f"{direction}.coordinate")
        if found.nodes != count or not np.array_equal(np.sort(found.number), np.arange(count)):
            raise DataError(f"{direction}.coordinate: the {count} values must be different and without gaps")
        if not (np.array_equal(found.number, np.arange(count)) or np.array_equal(found.number[::-1], np.arange(count))):
            raise DataError(f"{direction}.coordinate must increase or decrease from node to node")
        spacing.append(found.spacing)
        backwards.append(bool(found.number[0] > 0))
    if sidecar["axial.grows"] == "up":
        backwards[0] = not backwards[0]

    def place(values, key):
        if values.shape != shape:
            raise DataError(f"{key} must have the shape of axial.displacement, {shape}, got {values.shape}")
        values = values.astype(np.float64)
        values = values.T if axis == 1 else values
        return values[:: -1 if backwards[0] else 1, :: -1 if backwards[1] else 1].copy()

    return Placement(counts, (spacing[0], spacing[1]), place, False)


class RegularAxis(NamedTuple):
    """Coordinates on a regular axis: the number of each, how many there are from the first to the last, and h."""

    number: np.ndarray
    nodes: int
    spacing: float


def regular_axis(values: np.ndarray, key: str) -> RegularAxis:
    """Numbers of coordinates along a regular axis.

    Coordinates may be rounded and may have gaps: the spacing is the common one of all neighbours.

    Raises
    ------
    ValueError
        If they are not on a regular axis; the message begins with ``key``.
    """
    levels, inverse = np.unique(values, return_inverse=True)
    if len(levels) < 2:
        raise DataError(f"{key}: all values are equal ({levels[0]:g})" if len(levels) else f"{key}: no values")
    gaps = np.diff(levels)
    ordered = np.sort(gaps)
    threshold = 0.0
    jumps = np.flatnonzero(ordered[1:] > ROUNDING * ordered[:-1])
    enough = np.sqrt(values.size / ELONGATION)  # the nodes of the shorter axis
    for jump in jumps:
        if len(ordered) - 1 - jump >= enough:
            threshold = ordered[jump]
    group = np.concatenate([[0], np.cumsum(gaps > threshold)])
    centres = np.bincount(group, levels) / np.bincount(group)
    steps = np.diff(centres)
    if not len(steps):
        raise DataError(f"{key}: all values are nearly equal ({centres[0]:g})")
    shortest = np.median(steps[steps < 1.5 * steps.min()])  # longer ones are gaps of several node distances
    numbers = np.concatenate([[0], np.cumsum(np.rint(steps / shortest))]).astype(int)
    spacing, origin = np.polyfit(numbers, centres, 1)
    away = np.abs(levels - origin - spacing * numbers[group]).max() / spacing
    if away > IRREGULAR:
        raise DataError(f"{key}: {_not_regular(steps)}")
    spacing = float(f"{spacing:.{DIGITS}g}")  # without the rounding errors of the fit
    return RegularAxis(numbers[group][inverse.reshape(values.shape)], int(numbers[-1]) + 1, spacing)


def _not_regular(steps):
    return (
        f"the values are not on a regular grid: neighbouring ones differ by {steps.min():.4g} to {steps.max():.4g}. "
        f"{RESAMPLE}"
    )
