"""Linear maps between fields as the library's `LinearOperator`, for its iterative methods."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

from .device import Device

__all__ = ["field_operator"]


def field_operator(
    device: Device,
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    product: Callable[[Any], Any],
    transposed: Callable[[Any], Any] | None = None,
    dtype: Any = float,
    *,
    recipe: tuple[Callable[..., Any], tuple],
) -> Any:
    """A linear map as an operator of the device's library, between vectors that are flattened fields.

    Parameters
    ----------
    device : Device
    rows, columns : tuple of int
        Shapes of the fields that come out and go in.
    product : callable
        Takes fields (k, *columns) of one dtype and gives fields (k, *rows).
    transposed : callable, optional
        Takes fields (k, *rows) and gives fields (k, *columns); by default the map is symmetric.
    dtype : dtype
        Of the results. Vectors in are converted.
    recipe : (callable, tuple)
        A function and its arguments that make the same operator: what a pickle or a copy of it holds.

    Returns
    -------
    scipy.sparse.linalg.LinearOperator, or that of cupyx on a GPU
    """
    xp = device.xp

    def of_columns(function, shape):
        def matmat(matrix):
            if matrix.dtype.kind == "c":  # real maps of complex vectors
                return matmat(matrix.real) + 1j * matmat(matrix.imag)
            count = matrix.shape[1]
            fields = xp.ascontiguousarray(matrix.T, dtype=dtype).reshape(count, *shape)
            return function(fields).reshape(count, -1).T

        return matmat

    forth = of_columns(product, columns)
    back = forth if transposed is None else of_columns(transposed, rows)
    return _operator_class(device.linalg.LinearOperator)((prod(rows), prod(columns)), dtype, forth, back, recipe)


@cache
def _operator_class(base: Any) -> Any:
    """The subclass of a library's `LinearOperator` that pickles by a recipe."""

    class FieldOperator(base):
        def __init__(self, shape, dtype, forth, back, recipe):
            super().__init__(dtype, shape)
            self._matmat, self._rmatmat, self._recipe = forth, back, recipe

        def _matvec(self, v):
            return self._matmat(v.reshape(-1, 1))[:, 0]

        def _rmatvec(self, v):
            return self._rmatmat(v.reshape(-1, 1))[:, 0]

        def __reduce__(self):
            return self._recipe

    return FieldOperator
