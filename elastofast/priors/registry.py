"""The priors that have a name: one table for `reconstruct`, the command line, and the comparison of methods.

A new learned prior is a network in `networks.py`, a class in `learned.py` and an entry here; see
docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .learned import Critic, LearnedPrior, PaperCritic, PlugAndPlay, PostProcessing
from .variation import Tikhonov, TotalVariation

__all__ = ["DEFAULT_LEARNED", "LEARNED", "NAMED", "TRAINABLE", "NamedPrior", "load"]


@dataclass(frozen=True)
class NamedPrior:
    """A name for `reconstruct(prior=...)` and what stands behind it.

    Attributes
    ----------
    name : str
    title : str
        For tables and figures.
    make : callable or None
        Makes the prior for a geometry; for priors that need no training.
    learned : type or None
        Class of a learned prior or of a post-processing step, which loads its network from a weights file.
    compared : bool
        Whether `elastofast compare` runs it if no methods are named.
    """

    name: str
    title: str
    make: Callable[[Any], Any] | None = None
    learned: type[LearnedPrior] | None = None
    compared: bool = True

    @property
    def network(self) -> str | None:
        """Kind of the network whose weights file is shipped, the name under which other weights are given."""
        return None if self.learned is None else self.learned.kind


# In the order of tables and figures: the last learned prior is the one that the others are compared with.
NAMED = {
    entry.name: entry
    for entry in (
        NamedPrior("none", "unregularised"),
        NamedPrior("tikhonov", "first-order Tikhonov", make=Tikhonov, compared=False),
        NamedPrior("tv", "total variation", make=TotalVariation),
        NamedPrior("unet", "UNet post-processing", learned=PostProcessing),
        NamedPrior("pnp", "plug-and-play DnCNN", learned=PlugAndPlay),
        NamedPrior("critic", "adversarial", learned=Critic),
    )
}
LEARNED = {name: entry for name, entry in NAMED.items() if entry.learned is not None}
# kinds of networks that `elastofast train` knows: keys of learning.recipes.RECIPES, which would import torch
TRAINABLE = (*(entry.learned.kind for entry in NAMED.values() if entry.learned is not None), PaperCritic.kind)
DEFAULT_LEARNED = (
    "critic"  # what prior="auto" takes where it can be used: least error on held-out maps (docs/comparison.md)
)


def load(name, path=None, device="cpu") -> LearnedPrior:
    """A learned prior by its name.

    Parameters
    ----------
    name : str
        A key of `LEARNED`.
    path : path-like, optional
        A weights file made by ``elastofast train``; the shipped one by default.
    device : str, optional
        Where the network works, "cpu" or "cuda".

    Raises
    ------
    ValueError
        If the name is not that of a learned prior, or the file is anything else than sound weights of the right kind.
    OSError
        If the file cannot be opened.
    ImportError
        If torch or safetensors is not installed.
    """
    entry = LEARNED.get(name)
    if entry is None or entry.learned is None:
        raise ValueError(f"only the priors {', '.join(LEARNED)} have weights, got {name!r}")
    return entry.learned.load(path, device)
