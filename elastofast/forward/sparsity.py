"""Sparsity patterns of the matrices K(x) and D(u), worked out once a body and shared by all matrices of a form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend.device import HOST, Device

__all__ = ["SparsityPattern", "contraction_pattern", "stiffness_pattern"]


@dataclass(frozen=True)
class SparsityPattern:
    """Compressed sparse rows (CSR) without values.

    Attributes
    ----------
    starts : array of int64
        Row starts as the kernels want them.
    indptr, indices : array of int32, or int64 where that is too small
        Row starts and columns as the matrices hold them. Read-only on the host, because all matrices share them.
    shape : (int, int)
    device : Device
        Where the arrays live.
    """

    starts: Any
    indptr: Any
    indices: Any
    shape: tuple[int, int]
    device: Device = HOST

    def to(self, device: Device) -> SparsityPattern:
        """A copy on a device."""
        starts, indptr, indices = map(device.upload, (self.starts, self.indptr, self.indices))
        return SparsityPattern(starts, indptr, indices, self.shape, device)

    def matrix(self, dtype: np.dtype, out: Any = None) -> Any:
        """A sparse matrix with this pattern whose values are yet to be written.

        Parameters
        ----------
        dtype : numpy.dtype
            Of the values.
        out : sparse matrix, optional
            An earlier result of this method, to be used again.

        Raises
        ------
        ValueError
            If ``out`` has another pattern or another dtype.
        """
        device = self.device
        if out is None:
            return device.csr(device.xp.empty(len(self.indices), dtype), self.indices, self.indptr, self.shape)
        same = isinstance(out, device.csr_type) and device.address(out.indices) == device.address(self.indices)
        if not same or out.dtype != dtype:
            raise ValueError("out must be a matrix that this form returned for arguments of the same dtype")
        return out


def stiffness_pattern(indptr: np.ndarray, nodes: np.ndarray, d: int) -> SparsityPattern:
    """The pattern of K: all components of a node are coupled with all those of its neighbours.

    Parameters
    ----------
    indptr, nodes : array of int64
        The neighbours of every node, itself included, in ascending order, as CSR.
    d : int
        Components of a displacement. Row and column numbers are component * N + node.
    """
    n, counts = len(indptr) - 1, np.diff(indptr)
    # A row lists the node's neighbours d times, once for each component, and the rows of all components are the same.
    place = np.arange(len(nodes)) + (d - 1) * np.repeat(indptr[:-1], counts)
    run = np.repeat(counts, counts)
    columns = np.empty(d * len(nodes), np.int64)
    for component in range(d):
        columns[place + component * run] = nodes + component * n
    return _pattern(d * indptr, columns, d, d * n)


def contraction_pattern(indptr: np.ndarray, nodes: np.ndarray, d: int) -> SparsityPattern:
    """The pattern of D: all components of the force at a node depend on the moduli of its neighbours.

    Parameters as of `stiffness_pattern`; row numbers are component * N + node, columns are nodes.
    """
    return _pattern(indptr, nodes, d, len(indptr) - 1)


def _pattern(indptr, columns, d, n_columns):
    """The pattern that repeats the given rows for each of d components."""
    starts = np.concatenate([component * indptr[-1] + indptr[:-1] for component in range(d)] + [[d * indptr[-1]]])
    dtype = np.int32 if starts[-1] <= np.iinfo(np.int32).max else np.int64
    shared = starts.astype(dtype), np.tile(columns.astype(dtype), d)
    for array in shared:
        array.setflags(write=False)
    return SparsityPattern(np.ascontiguousarray(starts, np.int64), *shared, (len(starts) - 1, n_columns))
