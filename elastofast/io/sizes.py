"""Bounds on what a file may ask for, checked before anything of that size is allocated."""

from __future__ import annotations

import os
from math import prod

from ..errors import DataError

__all__ = ["check_size", "largest"]

EXPANSION = 1100  # bytes that one byte of a file can stand for; deflate, which all the formats use, packs 1032 into one
SMALL = 2**26  # bytes, up to which an array is read whatever the size of its file, as it may be one repeated number


def largest(stored: int) -> int:
    """Bytes that a file of a size can hold at most, and that this machine has memory for."""
    return min(max(EXPANSION * stored, SMALL), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def check_size(name: str, shape: tuple[int, ...], itemsize: int, stored: int) -> None:
    """Refuse an array that a file claims to hold, but that cannot be in it or does not fit into memory.

    Parameters
    ----------
    name : str
    shape : tuple of int
    itemsize : int
        Bytes of a value.
    stored : int
        Bytes of the file.

    Raises
    ------
    ValueError
        If it is too large.
    """
    claimed = itemsize * prod(map(int, shape))
    if claimed > largest(stored):
        raise DataError(
            f"{name} of shape {tuple(map(int, shape))} would take {claimed / 2**30:.3g} GiB, which neither a file of "
            f"{stored} bytes nor this machine's memory can hold"
        )
