"""The exceptions of the package. Each is also one of Python's own, so that code which catches those goes on working.

Arguments of a wrong kind, such as a word that is no option or a shape that does not fit, raise Python's TypeError and
ValueError themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["DataError", "ElastofastError", "ModulusError", "PriorError", "SingularError", "SolveError", "refuse_masked"]


class ElastofastError(Exception):
    """The base of all exceptions of elastofast."""


class DataError(ElastofastError, ValueError):
    """What was measured, or the file that it comes from, cannot be used as it is."""


def refuse_masked(value: Any, name: str) -> None:
    """Raise DataError for an array with masked entries, whose mask NumPy would drop."""
    if np.ma.is_masked(value):
        raise DataError(
            f"{name} has masked entries, of which there is no value: fill them, for example by .filled(...)"
        )


class ModulusError(ElastofastError, ValueError):
    """A modulus that is not positive and finite at every node."""


class SolveError(ElastofastError, RuntimeError):
    """A linear solve that did not reach its tolerance: most often the modulus is too wild for it."""


class SingularError(SolveError, np.linalg.LinAlgError):
    """The body, or a part of it, can move without deforming, so that its stiffness matrix is singular."""


class PriorError(ElastofastError, TypeError, ValueError):
    """An object given as a prior that is none, or whose answers do not have the shapes that were asked for."""
