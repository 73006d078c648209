"""The layout of the files that the paper's authors published (docs/files.md, "The comp-elast layout")."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..boundary import Boundary
from ..errors import DataError
from ..geometry import Mesh
from ..laws import PlaneStrain
from .layout import need, shaped, whole_numbers

__all__ = ["unpack_comp_elast"]

LAW = PlaneStrain(0.495)  # material law of those files, which do not state it
FLAT = 1e-9  # height above the lowest node over the height of the body, below which a node is on the bottom


def unpack_comp_elast(file, overrides) -> dict[str, Any]:
    """Arguments of a `Measurement` from such a file; ``overrides`` are used in place of what it says."""
    geometry = overrides.get("geometry")
    if geometry is None:
        points = _columns(need(file, "vertices"), 2, "vertices")
        triangles = _columns(whole_numbers(need(file, "triangles"), "triangles"), 3, "triangles")
        geometry = Mesh(points, triangles, mean_dilatation=False)  # the elements that the fields were computed with
    n = geometry.n_nodes
    values = {"geometry": geometry, "law": LAW}
    if "load" not in overrides:
        lateral, axial = geometry.points.T
        bottom = np.flatnonzero(axial <= axial.min() + FLAT * np.ptp(axial))
        pin = bottom[np.argmin(np.abs(lateral[bottom] - (lateral.min() + lateral.max()) / 2))]
        fixed = np.zeros((2, n), dtype=bool)
        fixed[1, bottom] = True
        fixed[0, pin] = True
        force = np.zeros((2, n))
        if "fxy" in file:
            force = _interleaved(file.get("fxy"), n, "fxy")
            force[fixed] = 0.0  # reactions
        values["load"] = Boundary(fixed=fixed, force=force)
    if "displacement" not in overrides:
        values["displacement"] = _interleaved(need(file, "uxy"), n, "uxy")
    if "E" in file:
        values["reference"] = shaped(file.get("E"), (n,), "E")
    return values


def _columns(array, n, name):
    """A table of n columns, of which MATLAB files may hold the transpose."""
    array = np.asarray(array)
    if array.ndim == 2 and array.shape[1] != n and array.shape[0] == n:
        array = array.T
    if array.ndim != 2 or array.shape[1] != n:
        raise DataError(f"{name} must have {n} columns, got shape {array.shape}")
    return array


def _interleaved(array, n, name):
    """Components first, shape (2, n), of values that are stored as x and y for each node."""
    array = np.asarray(array, dtype=np.float64)
    if array.size != 2 * n:
        raise DataError(f"{name} must hold {2 * n} values, x and y for each of {n} nodes, got {array.size}")
    return np.ascontiguousarray(array.reshape(n, 2).T)
