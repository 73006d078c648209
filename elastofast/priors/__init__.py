"""Priors on the modulus: what makes a map plausible before anything is measured.

A prior is a callable: ``value, gradient = prior(x)`` for a modulus x (..., *node_shape) in pascals, the gradient per
pascal. How it is minimised follows from what else it offers: one that can `linearize` itself in z = log x by
Gauss-Newton (with `value`, `start_dual` and `step_dual`, see `TotalVariation`), one that names a `target` by
half-quadratic splitting, any other by L-BFGS. All of these methods take z of shape (..., N), with a leading axis for
the members of a batch, which is there for a single measurement too; a `value` is one number for each, in host memory.
A UNet that only corrects a finished map is used on the unregularised one.
"""

from .learned import Critic, PlugAndPlay, PostProcessing
from .variation import Linearization, Tikhonov, TotalVariation

__all__ = ["Critic", "Linearization", "PlugAndPlay", "PostProcessing", "Tikhonov", "TotalVariation"]
