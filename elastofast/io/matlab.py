"""MATLAB files of version 4 and 5, checked before SciPy reads them.

SciPy's reader is compiled and trusts the numbers in a file: a type that does not exist ends the process, and sizes that
do not fit take any amount of memory. So the structure of version 5 is walked through first. Layout: MathWorks, MAT-File
Format, chapter 1.
"""

from __future__ import annotations

import io
import struct
import zlib
from math import prod
from pathlib import Path
from typing import Any

from .sizes import largest

__all__ = ["load_matlab"]

HEADER = 128  # bytes of a file before its variables
# types of elements
INT8, INT32, UINT32, MATRIX, COMPRESSED, UTF8 = 1, 5, 6, 14, 15, 16
NUMBERS = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13}
LETTERS = {1, 2, 4, 16, 17, 18}
# classes of arrays; those from 6 to 15 are of numbers
CELL, STRUCT, OBJECT, CHAR, SPARSE, FUNCTION, OPAQUE = 1, 2, 3, 4, 5, 16, 17
COMPLEX = 0x0800  # flag of an array
AXES = 32  # of an array at most
DEEPEST = 50  # cells and structures inside each other; chosen far above what programs write


def load_matlab(path: Path) -> dict[str, Any]:
    """The variables of a file, as `scipy.io.loadmat` gives them.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import matfile_version

    data = path.read_bytes()
    if matfile_version(io.BytesIO(data))[0] == 1:
        data = _Version5(data).sound()
    return loadmat(io.BytesIO(data))


class _Version5:
    """A walk through the structure of a file or, by `inside`, of one compressed variable."""

    def __init__(self, data, order=""):
        self.data = data
        self.order = order or ("<" if data[126:128] == b"IM" else ">")

    def sound(self) -> bytes:
        """The file without compression; ValueError if its structure is not sound."""
        parts, position, room = [self.data[:HEADER]], HEADER, largest(len(self.data))
        while position < len(self.data):
            kind, start, stop, _ = self.element(position, len(self.data))
            part = self.data[position:stop]
            if kind == COMPRESSED:
                unpacker = zlib.decompressobj()
                part = unpacker.decompress(self.data[start:stop], room)
                if not unpacker.eof:
                    raise ValueError("a compressed variable is cut short, or too large for this machine's memory")
            variable = _Version5(part, self.order)
            if variable.matrix(0, len(part), 0) > len(part):
                raise ValueError("a variable is longer than its size says")
            parts.append(part)
            room, position = max(room - len(part), 1), stop
        return b"".join(parts)

    def element(self, position, end):
        """Type of an element, where its data begin and end, and where the next one begins."""
        if position + 8 > end:
            raise ValueError(f"cut short at byte {position}")
        kind, size = struct.unpack_from(f"{self.order}II", self.data, position)
        if kind >> 16:  # a small one, whose data follow at once
            kind, size, start, after = kind & 0xFFFF, kind >> 16, position + 4, position + 8
            if size > 4:
                raise ValueError(f"an element at byte {position} has the size {size}, its kind at most 4")
        else:
            start, after = position + 8, position + 8 + size + -size % 8
        if start + size > end:
            raise ValueError(f"an element at byte {position} has {size} bytes, there are {end - start}")
        return kind, start, start + size, after

    def expect(self, kinds, position, end):
        """Data and end of an element that must be of some type; the position of the next one."""
        kind, start, stop, after = self.element(position, end)
        if kind not in kinds:
            raise ValueError(f"an element at byte {position} is of type {kind}, expected {sorted(kinds)}")
        return self.data[start:stop], after

    def numbers(self, most, position, end):
        """Whole numbers of an element, and the position of the next one."""
        values, after = self.expect({INT32, UINT32}, position, end)
        if len(values) % 4 or len(values) > 4 * most:
            raise ValueError(f"an element at byte {position} has {len(values)} bytes")
        return struct.unpack(f"{self.order}{len(values) // 4}i", values), after

    def matrix(self, position, end, depth) -> int:
        """Check an array; the position after it."""
        kind, start, stop, _ = self.element(position, end)
        if kind != MATRIX:
            raise ValueError(f"an element at byte {position} is of type {kind}, not an array")
        if depth > DEEPEST:
            raise ValueError(f"cells and structures are nested more than {DEEPEST} deep")
        if start == stop:
            return stop
        flags, position = self.expect({UINT32}, start, stop)
        if len(flags) != 8:
            raise ValueError(f"an array at byte {start} has {len(flags)} bytes of flags, expected 8")
        (flags,) = struct.unpack_from(f"{self.order}I", flags)
        kind = flags & 0xFF
        if kind == OPAQUE:
            for _ in range(3):
                _, position = self.expect({INT8, UTF8}, position, stop)
            return self._end(self.matrix(position, stop, depth + 1), stop, depth)
        shape, position = self.numbers(AXES, position, stop)
        if len(shape) < 2 or min(shape) < 0:
            raise ValueError(f"an array at byte {start} has the shape {shape}")
        _, position = self.expect({INT8, UTF8}, position, stop)
        if kind in (CELL, STRUCT, OBJECT, FUNCTION):
            count = 1 if kind == FUNCTION else prod(shape)
            if kind == OBJECT:
                _, position = self.expect({INT8, UTF8}, position, stop)
            if kind in (STRUCT, OBJECT):
                (length,), position = self.numbers(1, position, stop)
                names, position = self.expect({INT8, UTF8}, position, stop)
                if length <= 0 or len(names) % length:
                    raise ValueError(f"a structure at byte {start} has names of {length} bytes in {len(names)}")
                if count > stop - position and not names:
                    raise ValueError(f"a structure at byte {start} without fields claims {count} entries")
                count *= len(names) // length
            if 8 * count > stop - position:
                raise ValueError(f"an array at byte {start} claims {count} entries in {stop - position} bytes")
            for _ in range(count):
                position = self.matrix(position, stop, depth + 1)
        elif kind == CHAR:
            _, position = self.expect(LETTERS, position, stop)
        elif kind == SPARSE or kind in range(6, 16):
            parts = (2 if flags & COMPLEX else 1) + (2 if kind == SPARSE else 0)
            for _ in range(parts):
                _, position = self.expect(NUMBERS, position, stop)
        else:
            raise ValueError(f"an array at byte {start} is of class {kind}, which does not exist")
        return self._end(position, stop, depth)

    def _end(self, position, stop, depth):
        """The end of an array, at which its last element must end: SciPy reads inner arrays one after the other."""
        if depth and position != stop:
            raise ValueError(f"an array ends at byte {stop}, its elements at byte {position}")
        return position
