"""What networks see of a modulus: standardised values, without unit and of the order of one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

__all__ = ["TISSUE", "Standard"]

TISSUE = 12.5e3  # Pa: background of the maps that the shipped networks were trained on


class Standard(NamedTuple):
    """Standardisation of a modulus x (pascals): s = log(x / reference) / scale, or s = (x - reference) / scale.

    All methods take NumPy arrays or torch tensors of any shape and return the same kind. A difference of s is one of
    log x over ``scale``.

    The defaults centre breast tissue: s is 0 at 12.5 kPa, about 3 in a lesion. The paper's own unit, 100 kPa, is
    ``Standard(0.0, 100e3, logarithmic=False)``.

    Attributes
    ----------
    reference : float
        Modulus in pascals at which s is 0.
    scale : float
        Difference of log x, or of x in pascals, that is a difference of 1 in s.
    logarithmic : bool
        Which of the two formulas holds.
    """

    reference: float = TISSUE
    scale: float = 0.5
    logarithmic: bool = True

    def apply(self, x) -> Any:
        """Standardised values of moduli in pascals."""
        if self.logarithmic:
            return _library(x).log(x / self.reference) / self.scale
        return (x - self.reference) / self.scale

    def apply_to_log(self, z) -> Any:
        """Standardised values of z = log x."""
        if self.logarithmic:
            return (z - np.log(self.reference)) / self.scale
        return self.apply(_library(z).exp(z))

    def invert(self, s) -> Any:
        """Moduli in pascals of standardised values."""
        if self.logarithmic:
            return self.reference * _library(s).exp(self.scale * s)
        return self.reference + self.scale * s


def _library(array):
    """NumPy or torch, whichever has the functions for an array."""
    if isinstance(array, np.ndarray | np.generic | float):
        return np
    import torch

    return torch
