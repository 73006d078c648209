"""Differences of node fields: along the axes of a grid by slices, in the cells of a mesh by a sparse matrix.

Both operators map nodes (..., N) to a `Field` of one d-vector a cell. Pointwise work is done in place on its ``parts``,
the components as views, so that it can be fused. ``scales`` times ``changes`` is the gradient, the change
over one cell's length: whoever takes many products puts the scales into the factors between them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from itertools import combinations
from math import prod
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array, diags_array, vstack

from ..backend.device import namespace
from ..backend.elementwise import fused
from ..geometry import Grid

__all__ = ["Field", "GridDifferences", "MeshDifferences", "difference_operator", "dot"]


def difference_operator(geometry):
    """The operator of a Grid or a Mesh."""
    return GridDifferences(geometry) if isinstance(geometry, Grid) else MeshDifferences(geometry)


class Field(NamedTuple):
    """Vectors of the cells (..., d, front + cells), the front zero, and views of them, made once for many products."""

    array: Any
    parts: tuple  # components (..., cells)
    targets: tuple = ()  # on a grid: of each component what differences are written to
    shifted: tuple = ()  # and the component of the node before along its axis


class _Differences(ABC):
    """What both operators share.

    ``volumes`` and ``size`` are those of the cells, one number on a grid. ``squares`` and ``products`` are those of the
    scales of each axis and of two axes.
    """

    def __init__(self, cells, scales, volumes, size, front=0):
        self.cells, self.scales, self.volumes, self.size, self._front = cells, scales, volumes, size, front
        self.squares = tuple(scale**2 for scale in scales)
        self.products = tuple(a * b for a, b in combinations(scales, 2))

    def parts(self, array):
        """Components of a field's array, each (..., cells)."""
        return tuple(array[..., axis, self._front :] for axis in range(len(self.scales)))

    @abstractmethod
    def changes(self, z, out=None) -> Field:
        """Field of differences of z (..., N); ``out`` is an earlier field that is no longer needed."""

    @abstractmethod
    def back(self, field) -> Any:
        """Transpose of `changes`, (..., N)."""

    def gradient(self, z):
        """Field of the change of z (..., N) over one cell's length."""
        field = self.changes(z)
        self._scale(field)
        return field

    def gradient_back(self, field):
        """Transpose of `gradient`; the field is no longer the same afterwards."""
        self._scale(field)
        return self.back(field)

    def _scale(self, field):
        for part, scale in zip(field.parts, self.scales, strict=True):
            if scale != 1:  # square cells need no scaling
                part *= scale


class GridDifferences(_Differences):
    """Forward differences along each axis of a grid, zero on the axis's last line.

    Unlike differences at cell centres they see a checkerboard. The "cells" are the nodes, in their flat order: the node
    before one along an axis lies a fixed stride in front of it. Before an axis's first line that is a node of its last
    line or of the front, both zero, so that the transpose is a sum of shifted components.
    """

    def __init__(self, grid):
        d, size = grid.dim, prod(grid.spacing) ** (1 / grid.dim)
        self._strides = [prod(grid.shape[axis + 1 :]) for axis in range(d)]
        scales = tuple(size / h for h in grid.spacing)
        super().__init__(grid.n_nodes, scales, prod(grid.spacing), size, front=self._strides[0])
        self._shape = grid.shape
        self._before, self._after = (
            [(..., *(cut if k == axis else slice(None) for k in range(d))) for axis in range(d)]
            for cut in (slice(None, -1), slice(1, None))
        )

    def on(self, device):
        """The operator for arrays of another device: the same."""
        return self

    def changes(self, z, out=None):
        """Field of differences of z (..., N); ``out`` is an earlier field that is no longer needed."""
        xp, shape = namespace(z), (*z.shape[:-1], *self._shape)
        out = out or self._field(xp.zeros((*z.shape[:-1], len(self._shape), self._front + self.cells)), shape)
        z = z.reshape(shape)
        for target, before, after in zip(out.targets, self._before, self._after, strict=True):
            xp.subtract(z[after], z[before], out=target)
        return out

    def _field(self, array, shape):
        parts = self.parts(array)
        targets = tuple(part.reshape(shape)[before] for part, before in zip(parts, self._before, strict=True))
        starts = (self._front - stride for stride in self._strides)
        shifted = tuple(array[..., axis, start : start + self.cells] for axis, start in enumerate(starts))
        return Field(array, parts, targets, shifted)

    def back(self, field):
        """Transpose of `changes`, (..., N), for fields that are zero where those of `changes` are."""
        return _backward(field.parts, field.shifted)

    def diagonal(self, coefficients):
        """Diagonal (..., N) of changes^T diag(coefficients) changes, for d coefficients (..., cells)."""
        total = np.zeros_like(coefficients[0]).reshape(*coefficients[0].shape[:-1], *self._shape)
        for each, before, after in zip(coefficients, self._before, self._after, strict=True):
            each = each.reshape(total.shape)[before]
            total[before] += each
            total[after] += each
        return total.reshape(coefficients[0].shape)


class MeshDifferences(_Differences):
    """Gradient in each cell of a mesh times the cell's size."""

    def __init__(self, mesh):
        size = mesh.cell_volumes ** (1 / mesh.dim)
        super().__init__(len(mesh.cells), (1.0,) * mesh.dim, mesh.cell_volumes, size)
        operator = csr_array(diags_array(np.tile(size, mesh.dim)) @ _gradient(mesh))
        transpose = csr_array(operator.T)
        self._matrices = operator, transpose, csr_array(transpose.power(2))

    def on(self, device):
        """The operator for arrays of another device: its matrices copied there."""
        copied = copy(self)
        copied._matrices = tuple(map(device.matrix, self._matrices))
        return copied

    def changes(self, z, out=None):
        """Field of differences of z (..., N); ``out`` is not used."""
        array = _product(self._matrices[0], z).reshape(*z.shape[:-1], len(self.scales), -1)
        return Field(array, self.parts(array))

    def back(self, field):
        """Transpose of `changes`, (..., N)."""
        return _product(self._matrices[1], field.array.reshape(*field.array.shape[:-2], -1))

    def diagonal(self, coefficients):
        """Diagonal (..., N) of changes^T diag(coefficients) changes, for d coefficients (..., cells)."""
        return _product(self._matrices[2], namespace(coefficients[0]).concatenate(coefficients, axis=-1))


def dot(a, b):
    """Sum of the products of components, in fused functions too."""
    (x, y), *others = zip(a, b, strict=True)
    total = x * y
    for x, y in others:
        total += x * y
    return total


@fused
def _backward(xp, here, before):
    total = before[0] - here[0]
    for b, h in zip(before[1:], here[1:], strict=True):
        total += b
        total -= h
    return total


def _product(matrix, fields):
    """Sparse matrix times each of some fields (..., n)."""
    lead = fields.shape[:-1]
    if prod(lead) == 1:
        return (matrix @ fields.reshape(-1)).reshape(*lead, -1)
    return namespace(fields).ascontiguousarray((matrix @ fields.reshape(-1, fields.shape[-1]).T).T).reshape(*lead, -1)


def _gradient(mesh):
    """Sparse gradient operator (d * cells, N), per metre."""
    edges = mesh.points[mesh.cells[:, 1:]] - mesh.points[mesh.cells[:, :1]]
    slopes = np.linalg.inv(edges).transpose(0, 2, 1)  # (M, node 1..d, axis)
    slopes = np.concatenate([-slopes.sum(axis=1, keepdims=True), slopes], axis=1)
    m, k = mesh.cells.shape
    rows = np.repeat(np.arange(m), k)
    parts = [
        csr_array((slopes[:, :, i].ravel(), (rows, mesh.cells.ravel())), shape=(m, mesh.n_nodes))
        for i in range(mesh.dim)
    ]
    return csr_array(vstack(parts))
