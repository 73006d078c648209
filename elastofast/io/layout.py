"""The layout of elastofast's own files: one flat list of named values, the same in HDF5, NPZ and MATLAB files.

It is described in docs/files.md.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..geometry import Grid, Mesh

__all__ = [
    "FIELDS",
    "MEASUREMENT",
    "MODULUS",
    "VERSION",
    "encode",
    "listing",
    "naming",
    "need",
    "number",
    "number_or_map",
    "pack_geometry",
    "shaped",
    "suffix_kind",
    "unpack_geometry",
    "whole_numbers",
]

VERSION = 1  # of the layout
MEASUREMENT = "elastofast measurement"
MODULUS = "elastofast modulus"

# name: (unit, description); masks are stored as 0 and 1, in HDF5 scalars and text are attributes of the root
FIELDS = {
    "format": ("", f"'{MEASUREMENT}' or '{MODULUS}'"),
    "version": ("1", "version of this layout"),
    "geometry": ("", "'grid' or 'mesh'"),
    "grid_shape": ("1", "nodes along each axis; axis 0 axial, axis 1 lateral"),
    "grid_spacing": ("m", "distance between nodes along each axis"),
    "points": ("m", "node coordinates, (N, d)"),
    "cells": ("1", "zero-based node numbers of each simplex, (M, d + 1)"),
    "mean_dilatation": ("1", "1 for elements that do not lock, 0 for ordinary ones"),
    "law": ("", "'plane_stress', 'plane_strain' or 'solid'"),
    "poisson": ("1", "Poisson ratio, one or one for each node"),
    "fixed": ("1", "1 where the displacement is known exactly"),
    "fixed_displacement": ("m", "that displacement, 0 elsewhere"),
    "force": ("N", "known nodal force (2-D: per metre of thickness)"),
    "open": ("1", "1 where the force is unknown"),
    "total_force_component": ("1", "component of the measured resultant force"),
    "total_force_value": ("N", "the measured resultant force (2-D: per metre of thickness)"),
    "total_force_nodes": ("1", "1 at the nodes that carry it"),
    "total_force_std": ("N", "standard deviation of the measured resultant force, 0 if it is not known"),
    "displacement": ("m", "displacement field, (d, nodes); of a joint reconstruction (frames, d, nodes)"),
    "displacement_std": ("m", "standard deviation of its noise, inf where not measured"),
    "displacement_correlation": ("1", "its correlation by distance in nodes, along axis 0, then axis 1"),
    "force_std": ("N", "standard deviation of the force noise"),
    "reference": ("Pa", "true modulus, for evaluation only"),
    "modulus": ("Pa", "reconstructed Young's modulus"),
    "log_modulus_std": ("1", "standard deviation of log modulus about the map, the bias of the prior included"),
    "log_modulus_errors": ("1", "draws of the error of log modulus, (draws, nodes)"),
    "log_modulus_errors_again": ("1", "the same at reconstructions of data simulated from the map, (draws, nodes)"),
    "relative": ("1", "1 if the modulus is known only up to a factor"),
    "chi2": ("1", "2 J / number of independent data, 1 when the fit explains the noise"),
    "frame_chi2": ("1", "the same of each frame of a joint reconstruction"),
    "weight": ("1", "prior weight"),
    "poisson_interval": ("1", "ends of the 95 % interval of the Poisson ratio, if it was estimated"),
    "known": ("Pa", "the modulus where it was known, NaN where it was sought"),
    "status": ("", "how the reconstruction ended"),
    "message": ("", "the same as advice"),
    "config": ("", "run configuration as JSON"),
}
SUFFIXES = {".h5": "hdf5", ".hdf5": "hdf5", ".npz": "npz", ".mat": "mat", ".vtu": "vtu"}


@contextmanager
def naming(path) -> Iterator[None]:
    """Put the name of a file in front of errors about its content."""
    try:
        yield
    except (TypeError, ValueError) as error:  # damaged fields have any type
        text = str(error)
        raise DataError(text if text.startswith(f"{path}: ") else f"{path}: {text}") from error


# reading ------------------------------------------------------------------------------------------


def need(container, name) -> Any:
    """The value of a field; ValueError with its meaning if the file lacks it."""
    if name not in container:
        raise DataError(f"the file lacks {name!r} ({FIELDS[name][1] if name in FIELDS else 'required'})")
    return container.get(name)


def number(container, name) -> float:
    """The value of a field that must be one number."""
    value = need(container, name)
    if not isinstance(value, int | float):
        raise DataError(f"{name} must be one number, got {value!r}")
    return value


def number_or_map(container, name, node_shape) -> Any:
    """The value of a field that may be one number, or one for each node."""
    if np.size(need(container, name)) == np.prod(node_shape):
        return shaped(container.get(name), node_shape, name)
    return number(container, name)


def shaped(array, shape, name) -> np.ndarray:
    """The array in the shape that it must have; formats may add or drop axes of length one, as MATLAB does."""
    array = np.asarray(array)
    if [n for n in array.shape if n != 1] != [n for n in shape if n != 1]:
        raise DataError(f"{name} must have shape {shape}, got {array.shape}")
    return array.reshape(shape)


def whole_numbers(array, name) -> np.ndarray:
    """The array as integers."""
    array = np.asarray(array)
    whole = array.astype(np.int64) if np.isfinite(array).all() else None
    if whole is None or (whole != array).any():
        raise DataError(f"{name} must hold whole numbers")
    return whole


def listing(container) -> str:
    """What a file holds, for a message."""
    kind = container.get("format") if "format" in container else None
    if kind:
        return f"a {kind!r}"
    names = sorted(container.variables)
    return f"the variables {', '.join(names[:12])}" if names else "no variables"


def unpack_geometry(container) -> Grid | Mesh:
    """The geometry of a file."""
    version = number(container, "version")
    if version > VERSION:
        raise DataError(f"the file has layout version {version:g}, this elastofast reads up to {VERSION}: update it")
    kind = str(need(container, "geometry"))
    if kind == "grid":
        shape, spacing = np.ravel(need(container, "grid_shape")), np.ravel(need(container, "grid_spacing"))
        return Grid(tuple(shape.tolist()), tuple(spacing.tolist()))
    if kind == "mesh":
        mean = bool(number(container, "mean_dilatation")) if "mean_dilatation" in container else True
        return Mesh(need(container, "points"), whole_numbers(need(container, "cells"), "cells"), mean)
    raise DataError(f"geometry must be 'grid' or 'mesh', got {kind!r}")


# writing ------------------------------------------------------------------------------------------


def pack_geometry(geometry) -> dict[str, Any]:
    """The fields of a geometry."""
    if isinstance(geometry, Grid):
        return {
            "geometry": "grid",
            "grid_shape": np.array(geometry.shape),
            "grid_spacing": np.array(geometry.spacing),
        }
    if isinstance(geometry, Mesh):
        return {
            "geometry": "mesh",
            "points": geometry.points,
            "cells": geometry.cells,
            "mean_dilatation": int(geometry.mean_dilatation),
        }
    raise TypeError(f"geometry must be a Grid or a Mesh, got {type(geometry).__name__}")


def suffix_kind(path: str | os.PathLike, kinds: tuple[str, ...]) -> str:
    """The format that the suffix of a file chooses, one of ``kinds``."""
    kind = SUFFIXES.get(Path(path).suffix.lower())
    if kind not in kinds:
        known = ", ".join(s for s, kind in SUFFIXES.items() if kind in kinds)
        raise DataError(f"path must end in one of {known}, got {str(path)!r}")
    return kind


def encode(kind: str, fields: dict[str, Any]) -> bytes:
    """The content of a file of the kind "hdf5", "npz" or "mat"."""
    return {"hdf5": _to_hdf5, "npz": _to_npz, "mat": _to_mat}[kind](fields)


def _to_hdf5(fields) -> bytes:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, value in fields.items():
            if not isinstance(value, np.ndarray):
                file.attrs[name] = value
                continue
            if value.dtype == bool:
                value = value.astype(np.uint8)
            data = file.create_dataset(name, data=value, compression="gzip", compression_opts=1, shuffle=True)
            data.attrs["units"], data.attrs["description"] = FIELDS[name]
    return buffer.getvalue()


def _to_npz(fields) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **fields)
    return buffer.getvalue()


def _to_mat(fields) -> bytes:
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, fields, do_compression=True)
    return buffer.getvalue()
