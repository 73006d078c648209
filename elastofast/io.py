"""Files: measurements and modulus maps, to and from HDF5, NPZ and MATLAB; modulus maps to VTU.

The layout is one flat list of names, which is the same in all three formats and is described in docs/files.md. A file
is built in memory, written under a temporary name and then renamed, so that a full disk leaves no incomplete file
behind. Nothing is ever unpickled.
"""

from __future__ import annotations

import base64
import io
import json
import os
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from .backend.device import to_host
from .geometry import Grid, Mesh
from .laws import LAWS, PlaneStrain

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
    "law": ("", "'plane_stress', 'plane_strain' or 'solid'"),
    "poisson": ("1", "Poisson ratio"),
    "fixed": ("1", "1 where the displacement is known exactly"),
    "fixed_displacement": ("m", "that displacement, 0 elsewhere"),
    "force": ("N", "known nodal force (2-D: per metre of thickness)"),
    "open": ("1", "1 where the force is unknown"),
    "total_force_component": ("1", "component of the measured resultant force"),
    "total_force_value": ("N", "the measured resultant force (2-D: per metre of thickness)"),
    "total_force_nodes": ("1", "1 at the nodes that carry it"),
    "displacement": ("m", "displacement field, (d, nodes)"),
    "displacement_std": ("m", "standard deviation of its noise, inf where not measured"),
    "force_std": ("N", "standard deviation of the force noise"),
    "reference": ("Pa", "true modulus, for evaluation only"),
    "modulus": ("Pa", "reconstructed Young's modulus"),
    "relative": ("1", "1 if the modulus is known only up to a factor"),
    "chi2": ("1", "2 J / number of independent data, 1 when the fit explains the noise"),
    "weight": ("1", "prior weight"),
    "status": ("", "how the reconstruction ended"),
    "message": ("", "the same as advice"),
    "config": ("", "run configuration as JSON"),
}
AUTHORS = ("vertices", "triangles", "E", "uxy", "fxy")  # variables in the files of the paper's authors
AUTHORS_LAW = PlaneStrain(0.495)  # material law of those files, which do not state it
FLAT = 1e-9  # height above the lowest node over the height of the body, below which a node is on the bottom
VTK_QUAD, VTK_TRIANGLE, VTK_TETRA = 9, 5, 10  # cell types in VTK files
SUFFIXES = {".h5": "hdf5", ".hdf5": "hdf5", ".npz": "npz", ".mat": "mat", ".vtu": "vtu"}


@contextmanager
def measurement_arguments(path, overrides) -> Iterator[dict[str, Any]]:
    """Arguments of a `Measurement` from a file, see `load_measurement`.

    Errors about them that are raised in the body of the ``with`` statement are reported with the name of the file.
    """
    arguments = ("geometry", "law", "load", "displacement", "displacement_std", "force_std", "reference")
    for name in overrides:
        if name not in arguments:
            raise TypeError(f"load_measurement() has no argument {name!r}, expected one of {', '.join(arguments)}")
    path = Path(path)
    fields, names = _read(path)
    with _naming(path):
        if fields.get("format") == MEASUREMENT:
            values = _unpack_measurement(fields, overrides)
        elif "vertices" in fields:
            values = _unpack_authors(fields, overrides)
        else:
            raise ValueError(
                f"expected a '{MEASUREMENT}' file or the variables vertices, triangles, uxy, fxy and E; "
                f"it holds {_listing(fields.get('format'), names)}"
            )
        values.update(overrides)
        if values.get("displacement_std") is None:
            raise ValueError(
                "the file states no noise level; give the standard deviation of the displacement in metres, "
                f'for example load_measurement("{path.name}", displacement_std=1e-8)'
            )
        yield values


def save_measurement(path: str | os.PathLike, measurement) -> None:
    """Write a `Measurement` to an HDF5 (.h5, .hdf5), NPZ or MATLAB v5 (.mat) file; see `Measurement.save`."""
    m, load = measurement, measurement.load
    fields = {
        "format": MEASUREMENT,
        "version": VERSION,
        **_pack_geometry(m.geometry),
        "law": m.law.name,
        "poisson": m.law.poisson,
        "fixed": load.fixed,
        "fixed_displacement": load.displacement,
        "force": load.force,
        "open": load.open,
        "displacement": m.displacement,
        "displacement_std": m.displacement_std,
        "force_std": m.force_std,
    }
    if load.total_force is not None:
        component, value, nodes = load.total_force
        fields |= {
            "total_force_component": int(component),
            "total_force_value": float(value),
            "total_force_nodes": np.asarray(nodes, dtype=bool),
        }
    if m.reference is not None:
        fields["reference"] = m.reference
    write_atomically(path, _encode(path, fields, ("hdf5", "npz", "mat")))


def save_modulus(
    path: str | os.PathLike, result: Any, geometry: Grid | Mesh, config: dict[str, Any] | None = None
) -> None:
    """Write a modulus map to an HDF5 (.h5, .hdf5), NPZ, MATLAB v5 (.mat) or VTU file.

    Parameters
    ----------
    path : path-like
        The file, whose suffix chooses the format. An existing file is replaced once the new one is complete.
    result : Result or array_like, shape geometry.node_shape
        A modulus in pascals, or a reconstruction, whose displacement, chi2, weight, status and message are written too.
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
    modulus = np.asarray(to_host(getattr(result, "modulus", result)), dtype=np.float64)
    if modulus.shape != geometry.node_shape:
        raise ValueError(f"modulus must have the geometry's shape {geometry.node_shape}, got {modulus.shape}")
    fields = {"format": MODULUS, "version": VERSION, **_pack_geometry(geometry), "modulus": modulus}
    for name, kind in _RESULT:
        value = getattr(result, name, None)
        if value is not None:
            fields[name] = kind(value)
    if config is not None:
        fields["config"] = json.dumps(config, default=str)
    write_atomically(path, _encode(path, fields, ("hdf5", "npz", "mat", "vtu")))


_RESULT = (
    ("displacement", to_host),
    ("relative", int),
    ("chi2", float),
    ("weight", float),
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
        The rest of the file: ``displacement``, ``chi2``, ``weight``, ``status``, ``message``, ``relative`` and
        ``config``, where they are given.

    Raises
    ------
    OSError
        If the file is missing or cannot be opened.
    ValueError
        If the file is empty, damaged or not a modulus file.
    """
    path = Path(path)
    fields, names = _read(path)
    with _naming(path):
        if fields.get("format") != MODULUS:
            raise ValueError(f"expected a '{MODULUS}' file; it holds {_listing(fields.get('format'), names)}")
        geometry = _unpack_geometry(fields)
        modulus = _shaped(_need(fields, "modulus"), geometry.node_shape, "modulus")
        info = {name: fields[name] for name in ("chi2", "weight", "status", "message") if name in fields}
        if "displacement" in fields:
            shape = (geometry.dim, *geometry.node_shape)
            info["displacement"] = _shaped(fields["displacement"], shape, "displacement")
        info["relative"] = bool(fields.get("relative", False))
        if "config" in fields:
            info["config"] = json.loads(fields["config"])
        return modulus, geometry, info


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write ``data`` under a temporary name in the same folder, then rename it to ``path``.

    Raises
    ------
    OSError
        If the file cannot be written. The temporary file is then removed and an existing ``path`` is left as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # some file systems report a full disk only here
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


# own layout ---------------------------------------------------------------------------------------


@contextmanager
def _naming(path):
    """Put the name of a file in front of errors about its content."""
    try:
        yield
    except (TypeError, ValueError) as error:  # damaged fields have any type
        raise ValueError(f"{path}: {error}") from error


def _pack_geometry(geometry) -> dict:
    if isinstance(geometry, Grid):
        return {
            "geometry": "grid",
            "grid_shape": np.array(geometry.shape),
            "grid_spacing": np.array(geometry.spacing),
        }
    if isinstance(geometry, Mesh):
        return {"geometry": "mesh", "points": geometry.points, "cells": geometry.cells}
    raise TypeError(f"geometry must be a Grid or a Mesh, got {type(geometry).__name__}")


def _unpack_geometry(fields):
    version = _number(fields, "version")
    if version > VERSION:
        raise ValueError(f"the file has layout version {version:g}, this elastofast reads up to {VERSION}: update it")
    kind = str(_need(fields, "geometry"))
    if kind == "grid":
        shape, spacing = np.ravel(_need(fields, "grid_shape")), np.ravel(_need(fields, "grid_spacing"))
        return Grid(tuple(shape.tolist()), tuple(spacing.tolist()))
    if kind == "mesh":
        return Mesh(_need(fields, "points"), _integers(_need(fields, "cells"), "cells"))
    raise ValueError(f"geometry must be 'grid' or 'mesh', got {kind!r}")


def _unpack_measurement(fields, overrides) -> dict:
    from .boundary import Boundary

    geometry = overrides.get("geometry") or _unpack_geometry(fields)
    nodes, dofs = geometry.node_shape, (geometry.dim, *geometry.node_shape)
    values = {"geometry": geometry}
    if "law" not in overrides:
        law = str(_need(fields, "law"))
        if law not in LAWS:
            raise ValueError(f"law must be one of {', '.join(LAWS)}, got {law!r}")
        values["law"] = LAWS[law](_number(fields, "poisson"))
    if "load" not in overrides:
        masks = {name: _shaped(_need(fields, name), dofs, name) != 0 for name in ("fixed", "open")}
        total = None
        if "total_force_value" in fields:
            total = (
                int(_number(fields, "total_force_component")),
                _number(fields, "total_force_value"),
                _shaped(_need(fields, "total_force_nodes"), nodes, "total_force_nodes") != 0,
            )
        values["load"] = Boundary(
            fixed=masks["fixed"],
            displacement=_shaped(_need(fields, "fixed_displacement"), dofs, "fixed_displacement"),
            force=_shaped(_need(fields, "force"), dofs, "force"),
            open=masks["open"],
            total_force=total,
        )
    for name in ("displacement", "displacement_std", "force_std"):
        if name not in overrides:
            values[name] = _shaped(_need(fields, name), dofs, name)
    if "reference" in fields and "reference" not in overrides:
        values["reference"] = _shaped(fields["reference"], nodes, "reference")
    return values


def _unpack_authors(fields, overrides) -> dict:
    from .boundary import Boundary

    geometry = overrides.get("geometry")
    if geometry is None:
        points = _columns(_need(fields, "vertices"), 2, "vertices")
        geometry = Mesh(points, _columns(_integers(_need(fields, "triangles"), "triangles"), 3, "triangles"))
    n = geometry.n_nodes
    values = {"geometry": geometry, "law": AUTHORS_LAW}
    if "load" not in overrides:
        lateral, axial = geometry.points.T
        bottom = np.flatnonzero(axial <= axial.min() + FLAT * np.ptp(axial))
        pin = bottom[np.argmin(np.abs(lateral[bottom] - (lateral.min() + lateral.max()) / 2))]
        fixed = np.zeros((2, n), dtype=bool)
        fixed[1, bottom] = True
        fixed[0, pin] = True
        force = np.zeros((2, n))
        if "fxy" in fields:
            force = _interleaved(fields["fxy"], n, "fxy")
            force[fixed] = 0.0  # reactions
        values["load"] = Boundary(fixed=fixed, force=force)
    if "displacement" not in overrides:
        values["displacement"] = _interleaved(_need(fields, "uxy"), n, "uxy")
    if "E" in fields:
        values["reference"] = _shaped(fields["E"], (n,), "E")
    return values


def _need(fields, name):
    if name not in fields:
        raise ValueError(f"the file lacks {name!r} ({FIELDS[name][1] if name in FIELDS else 'required'})")
    return fields[name]


def _number(fields, name) -> float:
    value = _need(fields, name)
    if not isinstance(value, int | float):
        raise ValueError(f"{name} must be one number, got {value!r}")
    return value


def _listing(kind, names) -> str:
    if kind:
        return f"a {kind!r}"
    return f"the variables {', '.join(sorted(names)[:12])}" if names else "no variables"


def _shaped(array, shape, name):
    """The array in the shape that it must have; formats may add or drop axes of length one, as MATLAB does."""
    array = np.asarray(array)
    if [n for n in array.shape if n != 1] != [n for n in shape if n != 1]:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    return array.reshape(shape)


def _columns(array, n, name):
    """A table of n columns, of which MATLAB files may hold the transpose."""
    array = np.asarray(array)
    if array.ndim == 2 and array.shape[1] != n and array.shape[0] == n:
        array = array.T
    if array.ndim != 2 or array.shape[1] != n:
        raise ValueError(f"{name} must have {n} columns, got shape {array.shape}")
    return array


def _integers(array, name):
    array = np.asarray(array)
    whole = array.astype(np.int64) if np.isfinite(array).all() else None
    if whole is None or (whole != array).any():
        raise ValueError(f"{name} must hold whole numbers")
    return whole


def _interleaved(array, n, name):
    """Components first, shape (2, n), of values that are stored as x and y for each node."""
    array = np.asarray(array, dtype=np.float64)
    if array.size != 2 * n:
        raise ValueError(f"{name} must hold {2 * n} values, x and y for each of {n} nodes, got {array.size}")
    return np.ascontiguousarray(array.reshape(n, 2).T)


# containers ---------------------------------------------------------------------------------------


def _encode(path, fields, kinds) -> bytes:
    suffix = Path(path).suffix.lower()
    if SUFFIXES.get(suffix) not in kinds:
        known = ", ".join(s for s, kind in SUFFIXES.items() if kind in kinds)
        raise ValueError(f"path must end in one of {known}, got {str(path)!r}")
    return {"hdf5": _to_hdf5, "npz": _to_npz, "mat": _to_mat, "vtu": _to_vtu}[SUFFIXES[suffix]](fields)


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


def _to_vtu(fields) -> bytes:
    """A VTK XML unstructured grid (VTK file formats, XML)."""
    geometry = _unpack_geometry(fields)
    cells, cell_type = _vtk_cells(geometry)
    data = _vtk_array("modulus", fields["modulus"].ravel())
    if "displacement" in fields:
        data += _vtk_array("displacement", _vtk_vectors(fields["displacement"].reshape(geometry.dim, -1).T))
    topology = (
        _vtk_array("connectivity", cells.ravel())
        + _vtk_array("offsets", np.arange(1, len(cells) + 1) * cells.shape[1])
        + _vtk_array("types", np.full(len(cells), cell_type, np.uint8))
    )
    notes = {name: value for name, value in fields.items() if not isinstance(value, np.ndarray)}
    if "config" in notes:
        notes["config"] = json.loads(notes["config"])
    # two hyphens in a row would end an XML comment; in JSON they can only occur inside a string
    note = json.dumps(notes).replace("--", "-\\u002d")
    return (
        f'<?xml version="1.0"?>\n<!-- {note} -->\n'
        '<VTKFile type="UnstructuredGrid" version="1.0" byte_order="LittleEndian" header_type="UInt64" '
        'compressor="vtkZLibDataCompressor">\n<UnstructuredGrid>\n'
        f'<Piece NumberOfPoints="{geometry.n_nodes}" NumberOfCells="{len(cells)}">\n'
        f"<Points>\n{_vtk_array('Points', _vtk_vectors(geometry.points))}</Points>\n"
        f"<Cells>\n{topology}</Cells>\n"
        f'<PointData Scalars="modulus">\n{data}</PointData>\n'
        "</Piece>\n</UnstructuredGrid>\n</VTKFile>\n"
    ).encode()


def _vtk_cells(geometry):
    """Node numbers of the cells, those of a grid being quadrilaterals, and their VTK type."""
    if not isinstance(geometry, Grid):
        return geometry.cells, VTK_TRIANGLE if geometry.dim == 2 else VTK_TETRA
    numbers = np.arange(geometry.n_nodes).reshape(geometry.shape)
    corners = (numbers[:-1, :-1], numbers[1:, :-1], numbers[1:, 1:], numbers[:-1, 1:])
    return np.stack(corners, axis=-1).reshape(-1, 4), VTK_QUAD


def _vtk_vectors(a):
    """Points or vectors (N, d) with three components, which VTK always asks for."""
    return np.hstack([a, np.zeros((len(a), 3 - a.shape[1]))])


def _vtk_array(name, a) -> str:
    """XML element of an array, as one block of zlib in base64."""
    a = np.ascontiguousarray(a, dtype=a.dtype.newbyteorder("<"))
    packed = zlib.compress(a.tobytes(), 1)
    size = np.array([1, a.nbytes, a.nbytes, len(packed)], "<u8").tobytes()
    text = (base64.b64encode(size) + base64.b64encode(packed)).decode()
    kind = {"f": "Float", "i": "Int", "u": "UInt"}[a.dtype.kind] + str(8 * a.itemsize)
    width = f' NumberOfComponents="{a.shape[1]}"' if a.ndim == 2 else ""
    return f'<DataArray type="{kind}" Name="{name}"{width} format="binary">{text}</DataArray>\n'


def _read(path):
    """Those variables of a file that elastofast knows, and the names of all of them."""
    with open(path, "rb") as file:
        head = file.read(520)
    if not head:
        raise ValueError(f"{path}: the file is empty")
    if b"\x89HDF\r\n\x1a\n" in (head[:8], head[512:]):
        kind, reader = "HDF5 or MATLAB v7.3", _read_hdf5
    elif head.startswith(b"PK\x03\x04"):
        kind, reader = "NPZ", _read_npz
    elif head.startswith(b"MATLAB 5.0") or path.suffix.lower() == ".mat":
        kind, reader = "MATLAB v5", _read_mat
    else:
        raise ValueError(
            f"{path}: not a file elastofast can read: expected HDF5 (.h5), NPZ (.npz) or MATLAB (.mat), "
            f"it starts with {head[:8]!r}"
        )
    try:
        return reader(path)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # for damaged bytes the parsers raise nearly any exception
        raise ValueError(f"{path}: cannot be read as a {kind} file, it is damaged or cut short: {error}") from error


def _wanted(names):
    return [name for name in names if name in FIELDS or name in AUTHORS]


def _plain(value):
    """A Python object for text or a scalar; an array as it is."""
    value = np.asarray(value)
    if value.size != 1:
        return value
    item = value.reshape(-1)[0]
    item = item.item() if isinstance(item, np.generic) else item
    return item.decode() if isinstance(item, bytes) else item


def _read_hdf5(path):
    import h5py

    with h5py.File(path, "r") as file:
        fields = {name: _plain(file.attrs[name]) for name in _wanted(file.attrs)}
        for name in _wanted(file):
            if isinstance(file[name], h5py.Dataset):
                fields[name] = _hdf5_value(file[name])
        return fields, list(file)


def _hdf5_value(data):
    kind = data.attrs.get("MATLAB_class")
    if kind is None:
        return _plain(data.asstr()[()] if data.dtype.kind == "O" else data[()])
    if kind == b"char":
        return "".join(map(chr, data[()].ravel()))
    return _plain(data[()].T)  # MATLAB stores arrays in column-major order


def _read_npz(path):
    with np.load(path, allow_pickle=False) as file:
        return {name: _plain(file[name]) for name in _wanted(file.files)}, file.files


def _read_mat(path):
    from scipy.io import loadmat, whosmat

    names = [name for name, _, _ in whosmat(path)]
    variables = loadmat(path, variable_names=_wanted(names))
    return {name: _plain(variables[name]) for name in _wanted(names)}, names
