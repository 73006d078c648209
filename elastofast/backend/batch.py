"""Inner products of fields and other single numbers, one for each member of a batch."""

from __future__ import annotations

from math import prod

import numpy as np

from .device import device_of, namespace, to_host

__all__ = ["column", "dots", "numbers"]


def dots(a, b, axes=1):
    """Sums of products over the last axes of fields of one shape, kept as axes of length one: a number for each member.

    On the processor without BLAS, whose threads would go on spinning beside those of the kernels; on a device by a
    kernel of our own, because a library's sum over the last axes takes one block of threads for each member.
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


def numbers(values) -> np.ndarray:
    """What `dots` gives, or anything of one number for each of a batch, as a host array (B,)."""
    return np.asarray(to_host(values)).reshape(-1)


def column(values, field):
    """Numbers (B,) of the host so that they broadcast against fields (B, ...) like the given one, and live there."""
    return namespace(field).asarray(values).reshape(-1, *[1] * (field.ndim - 1))
