"""Numba's compiler, which keeps what it compiled where it can."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numba

__all__ = ["njit"]


def njit(**options: Any) -> Callable[[Callable], Any]:
    """`numba.njit(**options)`; what cannot be kept on the disk is compiled anew in each process, with a warning."""

    def compiled(function):
        try:
            return numba.njit(**options)(function)
        except RuntimeError as error:  # neither the package's folder nor the user's can be written
            if not options.get("cache") or "cannot cache" not in str(error):
                raise
            _warn()
            return numba.njit(**options | {"cache": False})(function)

    return compiled


@cache  # once
def _warn():
    warnings.warn(
        "Numba finds no folder to keep compiled functions in, so that work on meshes begins with some seconds of "
        "compilation in every process: set NUMBA_CACHE_DIR to a folder that can be written",
        stacklevel=4,
    )
