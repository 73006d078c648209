"""Modulus maps: HDF5, NPZ, MATLAB and VTK files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend.device import to_host
from ..errors import DataError, refuse_masked
from ..geometry import Grid, Mesh
from .atomic import write_atomically
from .containers import read_container
from .layout import (
    MODULUS,
    VERSION,
    encode,
    listing,
    naming,
    need,
    pack_geometry,
    shaped,
    suffix_kind,
    unpack_geometry,
)
from .vtu import to_vtu

__all__ = ["load_modulus", "save_modulus"]


def save_modulus(
    path: str | os.PathLike, result: Any, geometry: Grid | Mesh, config: dict[str, Any] | None = None
) -> None:
    """Write a modulus map to an HDF5 (.h5, .hdf5), NPZ, MATLAB v5 (.mat) or VTU file.

    Parameters
    ----------
    path : path-like
        The file, whose suffix chooses the format. An existing file is replaced once the new one is complete.
    result : Result or array_like, shape geometry.node_shape
        A modulus in pascals, or a reconstruction, whose displacement, chi2, weight, status, message and, where it has
        one, uncertainty are written too.
    geometry : Grid or Mesh
        Where the nodes are. In a VTU file the coordinates are ``geometry.points``, and a grid becomes quadrilaterals.
    config : dict, optional
        The settings of the run, which are written as JSON (in a VTU file as an XML comment).

    Raises
    ------
    ValueError
        If the suffix is unknown or the modulus does not fit the geometry.
    OSError
        If the file cannot be written; no incomplete file is left behind.
    """
    modulus = getattr(result, "modulus", result)
    refuse_masked(modulus, "modulus")
    modulus = np.asarray(to_host(modulus), dtype=np.float64)
    if modulus.shape != geometry.node_shape:
        raise DataError(f"modulus must have the geometry's shape {geometry.node_shape}, got {modulus.shape}")
    fields = {"format": MODULUS, "version": VERSION, **pack_geometry(geometry), "modulus": modulus}
    for name, convert in _RESULT:
        value = getattr(result, name, None)
        if value is not None and np.size(value):
            fields[name] = convert(value)
    if "known" in fields:
        fields["known"] = fields["known"].reshape(geometry.node_shape)
    sure = getattr(result, "uncertainty", None)
    if sure is not None:
        fields |= {
            "log_modulus_std": sure.std,
            "log_modulus_errors": sure.errors,
            "log_modulus_errors_again": sure.again,
        }
    if config is not None:
        fields["config"] = json.dumps(config, default=str)
    kind = suffix_kind(path, ("hdf5", "npz", "mat", "vtu"))
    write_atomically(path, to_vtu(fields) if kind == "vtu" else encode(kind, fields))


_RESULT: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("displacement", to_host),
    ("relative", int),
    ("chi2", float),
    ("frame_chi2", np.asarray),
    ("weight", float),
    ("poisson", lambda ratio: ratio if np.ndim(ratio) else float(ratio)),
    ("poisson_interval", list),
    ("known", lambda value: np.ma.filled(np.ma.asarray(to_host(value), dtype=float), np.nan)),
    ("status", str),
    ("message", str),
)


def load_modulus(path: str | os.PathLike) -> tuple[np.ndarray, Grid | Mesh, dict[str, Any]]:
    """Read a modulus map that `save_modulus` wrote to an HDF5, NPZ or MATLAB file.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    modulus : numpy.ndarray, shape geometry.node_shape
        Pascals.
    geometry : Grid or Mesh
    info : dict
        The rest of the file: ``displacement``, ``chi2``, ``frame_chi2``, ``weight``, ``poisson``,
        ``poisson_interval``, ``status``, ``message``, ``relative``, ``known``, ``log_modulus_std``,
        ``log_modulus_errors`` and ``log_modulus_errors_again`` (of which `Uncertainty` gives intervals) and ``config``,
        where they are given.

    Raises
    ------
    OSError
        If the file is missing or cannot be opened.
    ValueError
        If the file is empty, damaged or not a modulus file.
    """
    file = read_container(path)
    with naming(file.path):
        if "format" not in file or file.get("format") != MODULUS:
            raise DataError(f"expected a '{MODULUS}' file; it holds {listing(file)}")
        geometry = unpack_geometry(file)
        modulus = shaped(need(file, "modulus"), geometry.node_shape, "modulus")
        names = "chi2", "frame_chi2", "weight", "poisson", "status", "message"
        info = {name: file.get(name) for name in names if name in file}
        if "known" in file:
            info["known"] = shaped(file.get("known"), geometry.node_shape, "known")
        if np.size(info.get("poisson", 0.0)) > 1:
            info["poisson"] = shaped(info["poisson"], geometry.node_shape, "poisson")
        if "poisson_interval" in file:
            info["poisson_interval"] = tuple(np.ravel(file.get("poisson_interval")).tolist())
        if "displacement" in file:
            displacement, shape = np.asarray(file.get("displacement")), (geometry.dim, *geometry.node_shape)
            frames = displacement.size // (geometry.dim * geometry.n_nodes)
            info["displacement"] = shaped(displacement, shape if frames <= 1 else (frames, *shape), "displacement")
        if "log_modulus_std" in file:
            info["log_modulus_std"] = shaped(file.get("log_modulus_std"), geometry.node_shape, "log_modulus_std")
        for name in ("log_modulus_errors", "log_modulus_errors_again"):
            if name in file:
                errors = np.asarray(file.get(name))
                info[name] = shaped(errors, (errors.size // geometry.n_nodes, *geometry.node_shape), name)
        info["relative"] = bool(file.get("relative")) if "relative" in file else False
        if "config" in file:
            info["config"] = json.loads(file.get("config"))
        return modulus, geometry, info
