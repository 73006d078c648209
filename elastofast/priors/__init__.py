"""Priors on the modulus: what makes a map plausible before anything is measured.

A prior is a callable: ``value, gradient = prior(x)`` for a modulus x (..., *node_shape) in pascals, the gradient per
pascal. One that can also `linearize` itself in z = log x is minimised by Gauss-Newton; any other by L-BFGS.
"""

from .variation import Linearization, Tikhonov, TotalVariation

__all__ = ["Linearization", "Tikhonov", "TotalVariation"]
