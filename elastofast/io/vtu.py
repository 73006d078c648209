"""Modulus maps as VTK files."""

from __future__ import annotations

import base64
import json
import zlib

import numpy as np

from ..geometry import Grid
from .layout import unpack_geometry

__all__ = ["to_vtu"]

VTK_QUAD, VTK_TRIANGLE, VTK_TETRA, VTK_HEXAHEDRON = 9, 5, 10, 12  # cell types in VTK files


def to_vtu(fields) -> bytes:
    """A VTK XML unstructured grid (VTK file formats, XML)."""
    geometry = unpack_geometry(fields)
    cells, cell_type = _vtk_cells(geometry)
    data = _vtk_array("modulus", fields["modulus"].ravel())
    if "log_modulus_std" in fields:
        data += _vtk_array("log_modulus_std", fields["log_modulus_std"].ravel())
    if "displacement" in fields:
        frames = fields["displacement"].reshape(-1, geometry.dim, geometry.n_nodes)
        for k, field in enumerate(frames):
            data += _vtk_array("displacement" + (f"_{k}" if len(frames) > 1 else ""), _vtk_vectors(field.T))
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
    """Node numbers of the cells, those of a grid being quadrilaterals or hexahedra, and their VTK type."""
    if not isinstance(geometry, Grid):
        return geometry.cells, VTK_TRIANGLE if geometry.dim == 2 else VTK_TETRA
    numbers = np.arange(geometry.n_nodes).reshape(geometry.shape)
    low, high = slice(None, -1), slice(1, None)
    around = (low, low), (high, low), (high, high), (low, high)
    if geometry.dim == 2:
        return np.stack([numbers[place] for place in around], axis=-1).reshape(-1, 4), VTK_QUAD
    corners = [numbers[(*place, layer)] for layer in (low, high) for place in around]
    return np.stack(corners, axis=-1).reshape(-1, 8), VTK_HEXAHEDRON


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
