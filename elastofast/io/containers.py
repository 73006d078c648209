"""Reading files of any kind into named variables: HDF5, MATLAB, NumPy, NIfTI, images and tables of text.

The kind of a file is recognised by its content. Nothing is ever unpickled. Large formats are read variable by variable,
when one is asked for.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .matlab import load_matlab
from .sizes import check_size
from .tables import read_table, stated_unit

__all__ = ["Container", "Variable", "read_container"]

# name of the variable in files whose only array has no name: matrices as text, NPY, NIfTI and image files
UNNAMED = "data"
TEXT_SUFFIXES = (".csv", ".txt", ".tsv", ".dat", ".asc")
CELLS = 1000  # largest number of cells of one MATLAB cell array that are listed, which is chosen, not studied


@dataclass
class Variable:
    """One variable of a file, whose values are read when they are asked for.

    Attributes
    ----------
    shape : tuple of int
        Of numbers; empty for text.
    dtype : numpy.dtype
    read : callable
        Returns the values as a numpy array.
    unit : str
        As the file states it; empty if it does not.
    spacing : tuple of float
        Distances along the axes in that unit, where the file states them (NIfTI); else empty.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    unit: str = ""
    spacing: tuple[float, ...] = ()

    @classmethod
    def of(cls, values: Any, unit: str = "") -> Variable:
        """A variable whose values are in memory already."""
        values = np.asarray(values)
        return cls(values.shape, values.dtype, lambda: values, unit)

    @property
    def is_field(self) -> bool:
        """Whether it is an array of real numbers or truth values with more than one entry."""
        return self.dtype.kind in "fiub" and prod(self.shape) > 1


@dataclass
class Container:
    """The variables of a file.

    Attributes
    ----------
    path : Path
    kind : str
        What sort of file it is, in words.
    variables : dict of str to Variable
    notes : list of str
        What a reader of the file should know: entries that are no numbers, variables that cannot be read.
    """

    path: Path
    kind: str
    variables: dict[str, Variable]
    notes: list[str] = field(default_factory=list)

    def __contains__(self, name):
        return name in self.variables

    def get(self, name: str) -> Any:
        """A Python object for text or a single number, an array for all else.

        Raises
        ------
        KeyError
            If there is no such variable.
        ValueError
            If it cannot be read.
        """
        return _plain(self._read(name))

    def array(self, name: str) -> np.ndarray:
        """The values of a variable as an array of numbers; errors as in `get`."""
        variable = self.variables[name]
        if variable.dtype.kind not in "fiub":
            raise DataError(f"{self.path}: {name} must hold real numbers, it is of type {variable.dtype}")
        return np.asarray(self._read(name))

    def _read(self, name):
        variable = self.variables[name]
        with _reading(self.path, self.kind):
            check_size(name, variable.shape, variable.dtype.itemsize, self.path.stat().st_size)
            return variable.read()

    def fields(self) -> dict[str, Variable]:
        """Those variables that are arrays of numbers."""
        return {name: v for name, v in self.variables.items() if v.is_field}


def read_container(path: str | os.PathLike) -> Container:
    """Find out what sort of file it is and what it holds.

    Raises
    ------
    OSError
        If the file is missing or cannot be opened.
    ValueError
        If the file is empty, damaged or of a kind that is not known.
    ImportError
        If the package is missing that reads this kind of file.
    """
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(520)
    if not head:
        raise DataError(f"{path}: the file is empty")
    kind, reader = _kind(path, head)
    with _reading(path, kind):
        variables, notes = reader(path)
    return Container(path, kind, variables, notes)


def _kind(path, head):
    """What sort of file it is, by its first bytes, and the function that reads it."""
    suffix = path.suffix.lower()
    if b"\x89HDF\r\n\x1a\n" in (head[:8], head[512:]):
        return "HDF5 or MATLAB v7.3", _read_hdf5
    if head.startswith(b"PK\x03\x04"):
        return "NPZ", _read_npz
    if head.startswith(b"\x93NUMPY"):
        return "NPY", _read_npy
    if head.startswith(b"MATLAB 5.0") or suffix == ".mat":
        return "MATLAB v5", _read_mat
    if head.startswith((b"\x89PNG", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "PNG or TIFF", _read_image
    if head[344:347] in (b"n+1", b"ni1") or head[4:7] == b"n+2" or path.name.lower().endswith((".nii", ".nii.gz")):
        return "NIfTI", _read_nifti
    try:
        table = read_table(path)
    except ValueError as error:
        if suffix in TEXT_SUFFIXES:
            raise DataError(f"{path}: {error}") from error
        table = None
    if table is None:
        raise DataError(
            f"{path}: not a file elastofast can read: expected HDF5 (.h5), NPZ (.npz), MATLAB (.mat), a table of "
            f"numbers (.csv, .txt), NIfTI, PNG or TIFF, it starts with {head[:8]!r}"
        )
    if table.columns is None:
        variables = {UNNAMED: Variable.of(table.values)}
        kind = "text, one matrix"
    else:
        columns = zip(table.columns, table.values.T, strict=True)
        variables = {name: Variable.of(column, stated_unit(name)) for name, column in columns}
        kind = "text, a table with named columns" if table.named else "text, a table of columns without names"
    return kind, lambda path: (variables, table.notes)


@contextmanager
def _reading(path, kind) -> Iterator[None]:
    """Errors of the readers with the name of the file."""
    try:
        yield
    except (ImportError, FileNotFoundError):
        raise
    except Exception as error:  # for damaged bytes the parsers raise nearly any exception
        raise DataError(f"{path}: cannot be read as a {kind} file, it is damaged or cut short: {error}") from error


def _plain(value):
    """A Python object for text or a scalar; an array as it is."""
    value = np.asarray(value)
    if value.size != 1:
        return value
    item = value.reshape(-1)[0]
    item = item.item() if isinstance(item, np.generic) else item
    return item.decode() if isinstance(item, bytes) else item


# HDF5 and MATLAB v7.3 -----------------------------------------------------------------------------


def _read_hdf5(path):
    import h5py

    variables: dict[str, Variable] = {}
    notes: list[str] = []

    def visit(name, data):
        # #refs# has the cells, which are named below; an empty dataset has no shape
        if name.startswith("#") or not isinstance(data, h5py.Dataset) or data.shape is None:
            return
        label = name.replace("/", ".") if "MATLAB_class" in data.attrs else name
        if data.external or data.is_virtual:  # a file from elsewhere must not make us read any other one
            notes.append(f"{label} is kept in another file, which is not read; save it in this one")
            return
        if h5py.check_ref_dtype(data.dtype) is not None:
            check_size(label, data.shape, data.dtype.itemsize, path.stat().st_size)
            cells = [data.file[reference] for reference in data[()].T.ravel()[:CELLS] if reference]
            for k, cell in enumerate(cells):
                if isinstance(cell, h5py.Dataset) and cell.shape is not None:
                    variables[f"{label}{{{k + 1}}}"] = Variable(
                        _hdf5_shape(cell), cell.dtype, partial(_hdf5_value, path, cell.name)
                    )
            return
        unit = data.attrs.get("units", data.attrs.get("unit", ""))
        unit = unit.decode() if isinstance(unit, bytes) else str(unit)
        variables[label] = Variable(_hdf5_shape(data), data.dtype, partial(_hdf5_value, path, name), unit)

    with h5py.File(path, "r") as file:
        for name, value in file.attrs.items():
            variables[name] = Variable.of(value)
        file.visititems(visit)
    return variables, notes


def _hdf5_shape(data):
    return data.shape[::-1] if "MATLAB_class" in data.attrs else data.shape


def _hdf5_value(path, name):
    import h5py

    with h5py.File(path, "r") as file:
        data = file[name]
        kind = data.attrs.get("MATLAB_class")
        if kind is None:
            return data.asstr()[()] if data.dtype.kind == "O" else data[()]
        if kind == b"char":
            return "".join(map(chr, data[()].ravel()))
        return data[()].T  # MATLAB stores arrays in column-major order


# NumPy --------------------------------------------------------------------------------------------


def _read_npz(path):
    variables = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            with archive.open(entry) as file:
                shape, dtype = _npy_header(file)
            name = entry.removesuffix(".npy")
            variables[name] = Variable(shape, dtype, partial(_npz_value, path, name))
    return variables, []


def _npz_value(path, name):
    with np.load(path, allow_pickle=False) as file:
        return file[name]


def _read_npy(path):
    with open(path, "rb") as file:
        shape, dtype = _npy_header(file)
    return {UNNAMED: Variable(shape, dtype, lambda: np.load(path, allow_pickle=False))}, []


def _npy_header(file):
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    return shape, dtype


# MATLAB v5 ----------------------------------------------------------------------------------------


def _read_mat(path):
    variables: dict[str, Variable] = {}
    notes: list[str] = []
    for name, value in load_matlab(path).items():
        if not name.startswith("__"):
            _mat_leaves(name, value, variables, notes)
    return variables, notes


def _mat_leaves(name, value, variables, notes):
    """Arrays of a variable, with those inside structures (``name.field``) and cells (``name{1}``) by their names."""
    from scipy.io.matlab import MatlabFunction, MatlabOpaque

    if isinstance(value, MatlabOpaque | MatlabFunction) or not isinstance(value, np.ndarray):
        notes.append(f"{name} is a MATLAB object (a table or a class), which cannot be read; save it as plain arrays")
    elif value.dtype.names:
        for k, entry in enumerate(value.ravel(order="F")[:CELLS]):
            label = name if value.size == 1 else f"{name}({k + 1})"
            for part in value.dtype.names:
                _mat_leaves(f"{label}.{part}", entry[part], variables, notes)
    elif value.dtype.kind == "O":
        for k, cell in enumerate(value.ravel(order="F")[:CELLS]):
            _mat_leaves(f"{name}{{{k + 1}}}", cell, variables, notes)
    else:
        variables[name] = Variable.of(value)


# images -------------------------------------------------------------------------------------------


def _read_nifti(path):
    import nibabel

    image: Any = nibabel.load(path)
    length, _ = image.header.get_xyzt_units()
    unit = {"mm": "mm", "meter": "m", "micron": "um"}.get(length, "")
    spacing = tuple(float(f"{h:.7g}") for h in image.header.get_zooms())  # they are in single precision
    values = Variable(image.shape, image.get_data_dtype(), lambda: np.asanyarray(image.dataobj), "", spacing)
    notes = [f"voxels of {' x '.join(f'{h:g}' for h in spacing)} {unit or '(no unit stated)'}"]
    values.unit = unit
    return {UNNAMED: values}, notes


def _read_image(path):
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        number = getattr(image, "n_frames", 1)
        check_size("its pages", (number, *image.size), len(image.getbands()), path.stat().st_size)
        pages = [np.asarray(page) for page in ImageSequence.Iterator(image)]
    return {UNNAMED: Variable.of(pages[0] if len(pages) == 1 else np.stack(pages))}, []
