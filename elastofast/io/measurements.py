"""Measurements: our own layout, that of the paper's authors, and other people's files with a sidecar."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..boundary import Boundary
from ..errors import DataError
from ..laws import LAWS
from .atomic import write_atomically
from .comp_elast import unpack_comp_elast
from .containers import read_container
from .foreign import foreign_arguments
from .layout import (
    MEASUREMENT,
    VERSION,
    encode,
    listing,
    naming,
    need,
    number,
    pack_geometry,
    shaped,
    suffix_kind,
    unpack_geometry,
)
from .sidecar import Sidecar

__all__ = ["measurement_arguments", "save_measurement"]

ARGUMENTS = (
    "geometry", "law", "load", "displacement", "displacement_std", "force_std", "reference", "displacement_correlation",
)  # fmt: skip


@contextmanager
def measurement_arguments(path, sidecar, overrides) -> Iterator[dict[str, Any]]:
    """Arguments of a `Measurement` from a file, see `load_measurement`.

    Errors about them that are raised in the body of the ``with`` statement are reported with the name of the file.
    """
    for name in overrides:
        if name not in ARGUMENTS:
            raise TypeError(f"load_measurement() has no argument {name!r}, expected one of {', '.join(ARGUMENTS)}")
    file = read_container(path)
    with naming(file.path):
        if sidecar is not None:
            values = _with_sidecar(file, sidecar, overrides)
        elif "format" in file and file.get("format") == MEASUREMENT:
            values = _unpack(file, overrides)
        elif "vertices" in file:
            values = unpack_comp_elast(file, overrides)
        else:
            raise DataError(
                f"expected a '{MEASUREMENT}' file or the variables vertices, triangles, uxy, fxy and E; "
                f"it holds {listing(file)}. To read it anyway, state what they are in a sidecar, which "
                f'"elastofast inspect {file.path.name} -o {file.path.stem}.toml" proposes'
            )
        values = values | {name: value for name, value in overrides.items() if sidecar is None or name not in values}
        yield values


def _with_sidecar(file, sidecar, overrides) -> dict[str, Any]:
    """Arguments from a file of another program; the overrides are taken into account."""
    if not isinstance(sidecar, Sidecar):
        sidecar = Sidecar.of(sidecar) if isinstance(sidecar, Mapping) else Sidecar.read(sidecar)
    own = sorted({"geometry", "displacement"} & set(overrides))
    if own:
        raise DataError(f"{own[0]} and sidecar cannot be given together: the sidecar says where it is in the file")
    if np.ndim(overrides.get("displacement_std", 0.0)):
        raise DataError("displacement_std must be one number beside a sidecar; name a variable in noise.variable")
    return foreign_arguments(file, sidecar, overrides)


def _unpack(file, overrides) -> dict[str, Any]:
    """Arguments of a `Measurement` from a file in our own layout."""
    geometry = overrides.get("geometry") or unpack_geometry(file)
    nodes, dofs = geometry.node_shape, (geometry.dim, *geometry.node_shape)
    values = {"geometry": geometry}
    if "law" not in overrides:
        law = str(need(file, "law"))
        if law not in LAWS:
            raise DataError(f"law must be one of {', '.join(LAWS)}, got {law!r}")
        values["law"] = LAWS[law](number(file, "poisson"))
    if "load" not in overrides:
        masks = {name: shaped(need(file, name), dofs, name) != 0 for name in ("fixed", "open")}
        total = None
        if "total_force_value" in file:
            total = (
                int(number(file, "total_force_component")),
                number(file, "total_force_value"),
                shaped(need(file, "total_force_nodes"), nodes, "total_force_nodes") != 0,
            )
        values["load"] = Boundary(
            fixed=masks["fixed"],
            displacement=shaped(need(file, "fixed_displacement"), dofs, "fixed_displacement"),
            force=shaped(need(file, "force"), dofs, "force"),
            open=masks["open"],
            total_force=total,
        )
    for name in ("displacement", "displacement_std", "force_std"):
        if name not in overrides and (name != "displacement_std" or name in file):
            values[name] = shaped(need(file, name), dofs, name)
    if "displacement_correlation" in file and "displacement_correlation" not in overrides:
        both = shaped(file.get("displacement_correlation"), (sum(nodes),), "displacement_correlation")
        values["displacement_correlation"] = tuple(np.split(both, np.cumsum(nodes)[:-1]))
    if "reference" in file and "reference" not in overrides:
        values["reference"] = shaped(file.get("reference"), nodes, "reference")
    return values


def save_measurement(path: str | os.PathLike, measurement) -> None:
    """Write a `Measurement` to an HDF5 (.h5, .hdf5), NPZ or MATLAB v5 (.mat) file; see `Measurement.save`."""
    m, load = measurement, measurement.load
    fields = {
        "format": MEASUREMENT,
        "version": VERSION,
        **pack_geometry(m.geometry),
        "law": m.law.name,
        "poisson": m.law.poisson,
        "fixed": load.fixed,
        "fixed_displacement": load.displacement,
        "force": load.force,
        "open": load.open,
        "displacement": m.displacement,
        "force_std": m.force_std,
    }
    if m.noise_known:
        fields["displacement_std"] = m.displacement_std
    else:
        fields["displacement"] = np.where(np.isinf(m.displacement_std), np.nan, m.displacement)
    if load.total_force is not None:
        component, value, nodes = load.total_force
        fields |= {
            "total_force_component": int(component),
            "total_force_value": float(value),
            "total_force_nodes": np.asarray(nodes, dtype=bool),
        }
    if m.displacement_correlation is not None:
        fields["displacement_correlation"] = np.concatenate(m.displacement_correlation)
    if m.reference is not None:
        fields["reference"] = m.reference
    write_atomically(path, encode(suffix_kind(path, ("hdf5", "npz", "mat")), fields))
