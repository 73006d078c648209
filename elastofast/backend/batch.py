"""Inner products and other numbers that belong to a member of a batch."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from .device import device_of, namespace, to_host

__all__ = ["column", "dots", "numbers"]


def dots(a: Any, b: Any, axes: int = 1) -> Any:
    """Inner products of two batches of fields: one number for each member.

    On the processor BLAS is avoided, because its idle threads would compete with those of the kernels. On a device a
    kernel of our own does the work, because the library's sum over the last axes gives each member one block of threads
    only.

    Parameters
    ----------
    a, b : arrays of one shape
    axes : int
        Number of trailing axes to sum over.

    Returns
    -------
    array
        The summed axes are kept with length one, so that the result broadcasts against the fields.
    """
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape, got {a.shape} and {b.shape}")
    lead = a.shape[: a.ndim - axes]
    if isinstance(a, np.ndarray):
        return np.einsum("...i,...i->...", a.reshape(*lead, -1), b.reshape(*lead, -1)).reshape(*lead, *[1] * axes)
    device = device_of(a=a).native
    xp, at, batch, n = device.xp, device.address, prod(lead), prod(a.shape[a.ndim - axes :])
    memory = xp.empty(batch + device.kernels.sum_room(n, batch))
    a, b = xp.ascontiguousarray(a, xp.float64), xp.ascontiguousarray(b, xp.float64)
    device.kernels.dots(device.queue(), batch, n, at(a), at(b), at(memory[batch:]), at(memory))
    return memory[:batch].reshape(lead + (1,) * axes)


def numbers(values: Any) -> np.ndarray:
    """One number for each member, in any shape such as that of the results of `dots`, as a host array (B,)."""
    return np.asarray(to_host(values)).reshape(-1)


def column(values: Any, field: Any) -> Any:
    """Host numbers (B,) where the field (B, ...) lives, in a shape (B, 1, ...) that broadcasts against it."""
    return namespace(field).asarray(values).reshape(-1, *[1] * (field.ndim - 1))
