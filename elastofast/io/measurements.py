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
    number_or_map,
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
# fields that may have a leading axis of frames
PER_FRAME = (
    "fixed", "fixed_displacement", "force", "open", "displacement", "displacement_std", "force_std",
    "displacement_correlation", "total_force_component", "total_force_value", "total_force_nodes", "total_force_std",
)  # fmt: skip


@contextmanager
def measurement_arguments(path, sidecar, overrides) -> Iterator[list[dict[str, Any]]]:
    """Arguments of a `Measurement` for each of the frames in a file, see `load_frames`.

    Errors about them that are raised in the body of the ``with`` statement are reported with the name of the file.
    """
    for name in overrides:
        if name not in ARGUMENTS:
            raise TypeError(f"load_measurement() has no argument {name!r}, expected one of {', '.join(ARGUMENTS)}")
    file = read_container(path)
    with naming(file.path):
        if sidecar is not None:
            frames = _with_sidecar(file, sidecar, overrides)
        elif "format" in file and file.get("format") == MEASUREMENT:
            frames = _unpack(file, overrides)
        elif "vertices" in file:
            frames = [unpack_comp_elast(file, overrides)]
        else:
            raise DataError(
                f"expected a '{MEASUREMENT}' file or the variables vertices, triangles, uxy, fxy and E; "
                f"it holds {listing(file)}. To read it anyway, state what they are in a sidecar, which "
                f'"elastofast inspect {file.path.name} -o {file.path.stem}.toml" proposes'
            )
        yield [
            values | {name: value for name, value in overrides.items() if sidecar is None or name not in values}
            for values in frames
        ]


def _with_sidecar(file, sidecar, overrides) -> list[dict[str, Any]]:
    """Arguments from a file of another program; the overrides are taken into account."""
    if not isinstance(sidecar, Sidecar):
        sidecar = Sidecar.of(sidecar) if isinstance(sidecar, Mapping) else Sidecar.read(sidecar)
    own = sorted({"geometry", "displacement"} & set(overrides))
    if own:
        raise DataError(f"{own[0]} and sidecar cannot be given together: the sidecar says where it is in the file")
    if np.ndim(overrides.get("displacement_std", 0.0)):
        raise DataError("displacement_std must be one number beside a sidecar; name a variable in noise.variable")
    return [foreign_arguments(file, sidecar.frame(k), overrides) for k in range(max(sidecar["files.frames"], 1))]


def _unpack(file, overrides) -> list[dict[str, Any]]:
    """Arguments of a `Measurement` for each frame from a file in our own layout.

    A file of several frames has a leading axis of frames in the displacement, and in what differs between them.
    """
    geometry = overrides.get("geometry") or unpack_geometry(file)
    size = geometry.dim * geometry.n_nodes
    count = 1 if "displacement" in overrides else max(np.size(need(file, "displacement")) // size, 1)
    return [_unpack_frame(_Frame(file, geometry, k, count), geometry, overrides) for k in range(count)]


class _Frame:
    """One of the frames in a file: fields with a leading axis of frames have the values of this one."""

    def __init__(self, file, geometry, number, count):
        self._file, self._number, self._count = file, number, count
        self._sizes = dict.fromkeys(PER_FRAME, geometry.dim * geometry.n_nodes)  # of a field of one frame
        self._sizes |= {"displacement_correlation": sum(geometry.node_shape), "total_force_nodes": geometry.n_nodes}
        self._sizes |= dict.fromkeys(("total_force_component", "total_force_value", "total_force_std"), 1)

    def __contains__(self, name):
        return name in self._file

    def get(self, name):
        """The value of a field."""
        value = self._file.get(name)
        if self._count == 1 or name not in PER_FRAME or np.size(value) != self._count * self._sizes[name]:
            return value
        if self._sizes[name] == 1:
            return np.ravel(value)[self._number].item()
        return value[self._number]


def _unpack_frame(file, geometry, overrides) -> dict[str, Any]:
    """Arguments of a `Measurement` from one frame."""
    nodes, dofs = geometry.node_shape, (geometry.dim, *geometry.node_shape)
    values = {"geometry": geometry}
    if "law" not in overrides:
        law = str(need(file, "law"))
        if law not in LAWS:
            raise DataError(f"law must be one of {', '.join(LAWS)}, got {law!r}")
        values["law"] = LAWS[law](number_or_map(file, "poisson", nodes))
    if "load" not in overrides:
        masks = {name: shaped(need(file, name), dofs, name) != 0 for name in ("fixed", "open")}
        total = None
        if "total_force_value" in file:
            total = (
                int(number(file, "total_force_component")),
                number(file, "total_force_value"),
                shaped(need(file, "total_force_nodes"), nodes, "total_force_nodes") != 0,
                number(file, "total_force_std") if "total_force_std" in file else 0.0,
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
    """Write a `Measurement` or a `JointMeasurement` to an HDF5 (.h5, .hdf5), NPZ or MATLAB v5 (.mat) file; see
    `Measurement.save`.
    """
    frames = [_fields(m) for m in measurement.frames]
    fields = frames[0]
    if len(frames) > 1:
        names = set().union(*frames)
        lacking = sorted(name for name in names - {"reference"} if any(name not in own for own in frames))
        if lacking:
            raise ValueError(f"some frames have {lacking[0]} and others have not: save each frame to a file of its own")
        fields |= {name: np.stack([own[name] for own in frames]) for name in PER_FRAME if name in fields}
        if measurement.reference is not None:
            fields["reference"] = measurement.reference
    write_atomically(path, encode(suffix_kind(path, ("hdf5", "npz", "mat")), fields))


def _fields(m) -> dict[str, Any]:
    """The fields of a file with one measurement."""
    load = m.load
    fields = {
        "format": MEASUREMENT,
        "version": VERSION,
        **pack_geometry(m.geometry),
        "law": m.law.name,
        "poisson": np.reshape(m.law.poisson, m.geometry.node_shape) if m.law.is_map else m.law.poisson,
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
        component, value, nodes, std = load.total_force
        fields |= {
            "total_force_component": int(component),
            "total_force_value": float(value),
            "total_force_nodes": np.asarray(nodes, dtype=bool),
            "total_force_std": float(std),
        }
    if m.displacement_correlation is not None:
        fields["displacement_correlation"] = np.concatenate(m.displacement_correlation)
    if m.reference is not None:
        fields["reference"] = m.reference
    return fields
