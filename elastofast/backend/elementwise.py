"""Pointwise functions of several steps in one pass over memory: a fused kernel for CuPy arrays, blocks for NumPy's."""

from __future__ import annotations

from functools import cache, wraps
from math import prod

import numpy as np

from .device import library

__all__ = ["fused"]

# Values at a time on the processor (128 KiB of float64), so that intermediate results stay in its cache. Not studied.
BLOCK = 1 << 14


def fused(function):
    """Decorator of a pointwise function ``function(xp, *arguments)``, which is then called without ``xp``.

    Arguments are arrays, Python floats, or tuples of these. The function may use arithmetic, comparisons and
    in-place operations on them, and the elementwise functions of ``xp``; it returns an array of the shape to which the
    arguments broadcast, a tuple of such arrays of one dtype, or nothing. A number meets arrays only, never another
    number: CuPy would take their product, say, in half precision.
    """

    @cache
    def kernel(lengths):
        import cupy

        def flat(*values):
            rest = iter(values)
            return function(cupy, *(next(rest) if n is None else tuple(next(rest) for _ in range(n)) for n in lengths))

        return cupy.fuse(kernel_name=function.__name__)(flat)

    @wraps(function)
    def apply(*arguments):
        values = [v for a in arguments for v in (a if isinstance(a, tuple) else (a,))]
        if any(library(v) == "cupy" for v in values):
            return kernel(tuple(len(a) if isinstance(a, tuple) else None for a in arguments))(*values)
        shape = np.broadcast_shapes(*(v.shape for v in values if isinstance(v, np.ndarray)))
        return function(np, *arguments) if prod(shape) <= BLOCK else _in_blocks(function, arguments, shape)

    return apply


def _in_blocks(function, arguments, shape):
    """A function of NumPy arrays that broadcast to a shape, block by block along the last axis."""
    results = None
    step = max(1, BLOCK * shape[-1] // prod(shape))
    for start in range(0, shape[-1], step):
        part = slice(start, start + step)
        result = function(np, *(_cut(a, part, shape[-1]) for a in arguments))
        if result is None:
            continue
        several = result if isinstance(result, tuple) else (result,)
        if results is None:  # as one array, for which NumPy asks for large pages
            results = np.empty((len(several), *shape), several[0].dtype)
        for whole, block in zip(results, several, strict=True):
            whole[..., part] = block
    if results is None:
        return None
    return tuple(results) if isinstance(result, tuple) else results[0]


def _cut(value, part, length):
    if isinstance(value, tuple):
        return tuple(_cut(v, part, length) for v in value)
    return value[..., part] if isinstance(value, np.ndarray) and value.shape[-1] == length else value
