"""Measurements in files of other programs, read as a sidecar says."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..boundary import Boundary, compression
from ..errors import DataError
from ..geometry import Grid
from ..laws import LAWS
from .containers import Container
from .placement import place_on_grid
from .sidecar import ESTIMATE, UNITS, Sidecar
from .sources import Sources
from .strain import LARGEST_STRAIN, SMALLEST_STRAIN, MeanGradient

__all__ = ["foreign_arguments"]

# beyond which a strain is doubtful: ultrasound resolves some 1e-4, and linear elasticity ends below 0.1
USUAL_STRAIN = (1e-5, 0.1)
USUAL_SIZE = (5e-4, 1.0)  # metres: the longer side of the fields that anybody measures on tissue, generously
SMALLEST_SCALE = 0.1  # the correlation coefficient lowers a standard deviation at most to this fraction; not studied


def foreign_arguments(file: Container, sidecar: Sidecar, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of a `Measurement` from a file and its sidecar.

    Parameters
    ----------
    file : Container
    sidecar : Sidecar
        Nothing in it may be left to be stated.
    overrides : mapping, optional
        Arguments that are used in place of what the sidecar says: ``law``, ``load``, and ``displacement_std`` as one
        number in metres, for all values that were measured, or None to have it estimated.

    Returns
    -------
    dict
        ``geometry``, ``law``, ``load``, ``displacement``, ``displacement_std`` and, where the sidecar states one,
        ``displacement_correlation``.

    Warns
    -----
    UserWarning
        If the size or the strain of the field is unusual, which wrong units cause, or the displacement changes mainly
        across its own directions, which mixed up axes cause.

    Raises
    ------
    ValueError
        If the sidecar does not fit the file; the message names its key.
    """
    overrides = overrides or {}
    sidecar.require(overrides)
    sources = Sources(file, sidecar["files.more"])
    placement = place_on_grid(sources, sidecar)
    displacement_unit, coordinate_unit = (_metres(sidecar, f"units.{what}") for what in ("displacement", "coordinate"))
    spacing = (placement.spacing[0] * coordinate_unit[0], placement.spacing[1] * coordinate_unit[1])
    measured = _region(sources, sidecar, placement)
    u, std = np.zeros((2, *placement.shape)), np.full((2, *placement.shape), np.inf)
    stated = overrides.get("displacement_std", sidecar["noise.std"])
    estimated = stated is None or stated == ESTIMATE
    if estimated and sidecar["noise.scale"] != "none":
        raise DataError(f"noise.scale is {sidecar['noise.scale']}, which needs a number as noise.std")
    for i, direction in enumerate(("axial", "lateral")):
        key = f"{direction}.displacement"
        if not sidecar[key]:
            continue
        values = placement.place(sources.select(sidecar[key], key), key)
        values *= sidecar[f"{direction}.sign"] * displacement_unit[i]
        if direction == "axial" and sidecar["axial.grows"] == "up":
            values = -values  # the sign belongs to the coordinate, which now points down
        if estimated:
            levels = np.zeros(placement.shape)
        elif "displacement_std" in overrides:
            levels = np.full(placement.shape, float(overrides["displacement_std"]))
        else:
            levels = _noise(sources, sidecar, placement, direction) * displacement_unit[i]
        there = measured & np.isfinite(values) & np.isfinite(levels)
        u[i][there], std[i][there] = values[there], levels[there]
    rows, columns = (
        _window(sidecar[f"region.{what}"], n, what)
        for what, n in zip(("rows", "columns"), placement.shape, strict=True)
    )
    u, std = u[:, rows, columns], std[:, rows, columns]
    _check_displacement(u, std, spacing, sidecar)
    grid = Grid(u.shape[1:], spacing)
    found: dict[str, Any] = {"geometry": grid, "displacement": u, "displacement_std": std}
    if estimated:
        found |= {"displacement": np.where(np.isfinite(std), u, np.nan), "displacement_std": None}
    if sidecar["noise.correlation"]:
        lengths = sidecar["noise.correlation"]
        if len(lengths) not in (1, 2):
            raise DataError(f"noise.correlation must be one length or two, axial and lateral, got {lengths}")
        found["displacement_correlation"] = (lengths[0] * coordinate_unit[0], lengths[-1] * coordinate_unit[1])
    found["law"] = overrides.get("law") or _law(sources, sidecar, placement, (rows, columns))
    found["load"] = overrides["load"] if "load" in overrides else _load(grid, sidecar)
    return found


def _metres(sidecar, key) -> tuple[float, float]:
    """Metres per unit along depth and width."""
    unit = sidecar[key]
    if unit != "px":
        return (UNITS[unit],) * 2
    pixel = sidecar["units.pixel"]
    if len(pixel) not in (1, 2) or not all(h > 0 for h in pixel):
        raise DataError(
            f"units.pixel must be the size of a pixel in metres, axial and lateral, because {key} is px; got {pixel}"
        )
    return pixel[0], pixel[-1]


def _region(sources, sidecar, placement) -> np.ndarray:
    """Where the displacement was measured well enough, by mask and quality."""
    measured = np.ones(placement.shape, bool)
    if sidecar["region.mask"]:
        mask = placement.place(sources.select(sidecar["region.mask"], "region.mask"), "region.mask")
        values = sidecar["region.measured"]
        measured &= np.isin(mask, values) if values else (np.nan_to_num(mask) != 0)
        if not measured.any():
            raise DataError(
                f"region.mask: nothing is measured; the mask has the values {np.unique(mask)[:8].tolist()}, of which "
                f"region.measured = {values or 'all but 0'} mean measured"
            )
    if sidecar["noise.quality"]:
        quality = placement.place(sources.select(sidecar["noise.quality"], "noise.quality"), "noise.quality")
        good = quality >= sidecar["noise.threshold"]
        if not good.any():
            raise DataError(
                f"noise.threshold: the quality is nowhere {sidecar['noise.threshold']:g} or more, "
                f"at most {np.nanmax(quality):g}"
            )
        measured &= good
    return measured


def _noise(sources, sidecar, placement, direction) -> np.ndarray:
    """Standard deviations in the unit of the displacement, NaN where they are not positive."""
    variable, std = sidecar["noise.variable"], sidecar["noise.std"]
    if direction == "lateral":
        variable = sidecar["noise.lateral_variable"] or variable
        std = sidecar["noise.lateral_std"] or std
    if variable:
        levels = placement.place(sources.select(variable, "noise.variable"), "noise.variable")
        return np.where(levels > 0, levels, np.nan)
    if not (np.isfinite(std) and std > 0):
        raise DataError(f"noise.std must be positive and finite (in units.displacement), got {std:g}")
    levels = np.full(placement.shape, float(std))
    if sidecar["noise.scale"] == "correlation":
        if not sidecar["noise.quality"]:
            raise DataError("noise.scale is correlation, but noise.quality names no correlation coefficient")
        r = placement.place(sources.select(sidecar["noise.quality"], "noise.quality"), "noise.quality")
        if np.nanmax(r) > 1 or np.nanmedian(r) <= 0:
            raise DataError(
                f"noise.scale: a correlation coefficient is at most 1, noise.quality is up to {np.nanmax(r):g}"
            )
        # the Cramer-Rao bound of a delay (Walker and Trahey 1995, IEEE Trans. UFFC 42(2), 301-308) grows like this
        with np.errstate(divide="ignore", invalid="ignore"):
            jitter = np.where(r > 0, np.sqrt(1 / r**2 - 1), np.nan)
        relative = jitter / np.nanmedian(jitter)
        levels *= np.maximum(relative, SMALLEST_SCALE)
    return levels


def _window(ends, count, what) -> slice:
    if not ends:
        return slice(None)
    if len(ends) != 2 or not 0 <= ends[0] < ends[1] < count:
        raise DataError(f"region.{what} must be the first and the last of {count}, counted from 0, got {ends}")
    return slice(ends[0], ends[1] + 1)


def _check_displacement(u, std, spacing, sidecar) -> None:
    """Refuse a displacement that no experiment on tissue has: the units are wrong then."""
    measured = np.isfinite(std)
    if not measured[0].any():
        raise DataError("axial.displacement: nothing was measured: every value is missing, masked or of low quality")
    known = np.where(measured, u, np.nan)
    gradient = MeanGradient.of(known, spacing)
    strain = gradient.largest
    height, width = (n * h * 1e3 for n, h in zip(u.shape[1:], spacing, strict=True))
    units = (
        f"units.displacement is {sidecar['units.displacement']!r} and units.coordinate {sidecar['units.coordinate']!r}"
        + (f" with pixels of {sidecar['units.pixel']} m" if sidecar["units.pixel"] else "")
        + f", so that the field is {height:.4g} mm high and {width:.4g} mm wide"
    )
    if strain > LARGEST_STRAIN:
        raise DataError(
            f"units.displacement: the mean strain is {strain:.2%}, which no experiment has; {units}: "
            "one of them is wrong"
        )
    spread = np.nanmax(known[0]) - np.nanmin(known[0])
    if gradient.known and strain < SMALLEST_STRAIN and spread < SMALLEST_STRAIN * u.shape[1] * spacing[0]:
        raise DataError(
            f"units.displacement: the mean strain is only {strain:.1e}, far less than anything measures; {units}: "
            "one of them is wrong"
        )
    size = max(height, width) * 1e-3
    usual = not gradient.known or USUAL_STRAIN[0] <= strain <= USUAL_STRAIN[1]
    if not (usual and USUAL_SIZE[0] <= size <= USUAL_SIZE[1]):
        warnings.warn(f"the mean strain is {strain:.2g}; {units}. Are these units right?", stacklevel=2)
    if gradient.mixed_up:
        warnings.warn(
            f"the displacement changes by {gradient.across:.2g} across, only by {gradient.stretch:.2g} along its own "
            "directions: axial and lateral may be mixed up, in axial.displacement, axial.coordinate or "
            "axial.array_axis, or the body was turned",
            stacklevel=2,
        )
    level = float(np.median(std[0][measured[0]]))
    if level > spread:
        raise DataError(
            f"noise.std: the noise of {level:.3g} m is larger than all differences of the axial displacement, "
            f"{spread:.3g} m; it must be in the unit of the displacement, {sidecar['units.displacement']!r}"
        )


def _law(sources, sidecar, placement, window):
    """The law, whose Poisson ratio may be a map; where it has no value, the number in the sidecar is taken."""
    poisson, key = sidecar["law.poisson"], "law.poisson_variable"
    if sidecar[key]:
        ratios = placement.place(sources.select(sidecar[key], key), key)[window]
        poisson = np.where(np.isnan(ratios), poisson, ratios)
    return LAWS[sidecar["law.kind"]](poisson)


def _load(grid, sidecar) -> Boundary:
    kind, value, force = sidecar["load.kind"], sidecar["load.value"], sidecar["load.force"]
    if kind == "pressure":
        if force:
            raise DataError("load.force must be 0 where load.kind is pressure: the pressure is the force")
        return compression(grid, pressure=value, contact=sidecar["load.contact"])
    if kind == "strain":
        return compression(grid, strain=value, total_force=force or None, contact=sidecar["load.contact"])
    free = np.zeros((2, *grid.shape), bool)
    sides = {"top": np.s_[:, 0], "bottom": np.s_[:, -1], "left": np.s_[:, :, 0], "right": np.s_[:, :, -1]}
    for edge in sidecar["load.edges"]:
        free[sides[edge]] = True
    if not force:
        return Boundary(open=free)
    if "top" not in sidecar["load.edges"]:
        raise DataError("load.force acts on the top, which must then be among load.edges")
    top = np.zeros(grid.shape, bool)
    top[0] = True
    return Boundary(open=free, total_force=(0, force, top))
