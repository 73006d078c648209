"""Priors on the modulus: what makes a map plausible before anything is measured.

A prior is a callable: ``value, gradient = prior(x)`` for a modulus x (..., *node_shape) in pascals, the gradient per
pascal. What else it offers decides by which optimiser it is used; `EnergyPrior`, `LinearizablePrior` and `TargetPrior`
say what each of them asks for. `NAMED` lists the priors that `reconstruct` knows by name. `PostProcessing` is no
prior: it corrects the unregularised map.
"""

from .learned import Critic, PaperCritic, PlugAndPlay, PostProcessing, SquaredCritic
from .protocol import EnergyPrior, LinearizablePrior, Linearization, SplittingSettings, TargetPrior
from .registry import NAMED, load
from .variation import Tikhonov, TotalVariation

__all__ = [
    "NAMED",
    "Critic",
    "EnergyPrior",
    "LinearizablePrior",
    "Linearization",
    "PaperCritic",
    "PlugAndPlay",
    "PostProcessing",
    "SplittingSettings",
    "SquaredCritic",
    "TargetPrior",
    "Tikhonov",
    "TotalVariation",
    "load",
]  # fmt: skip
