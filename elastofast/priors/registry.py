"""The priors that have a name: one table for `reconstruct`, the command line, and the comparison of methods.

Learned priors are listed in `learned.SHIPPED`; see docs/architecture.md for how to add one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .learned import SHIPPED, Critic, LearnedPrior, PaperCritic
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


# In the order of tables and figures.
NAMED = {
    entry.name: entry
    for entry in (
        NamedPrior("none", "unregularised"),
        NamedPrior("tikhonov", "first-order Tikhonov", make=Tikhonov, compared=False),
        NamedPrior("tv", "total variation", make=TotalVariation),
        *(NamedPrior(learned.name, learned.title, learned=learned) for learned in SHIPPED),
    )
}
LEARNED = {name: entry for name, entry in NAMED.items() if entry.learned is not None}
# Kinds of networks that `elastofast train` knows: the keys of `learning.recipes.RECIPES`, which would import torch.
TRAINABLE = (*(learned.kind for learned in SHIPPED), PaperCritic.kind)
# What prior="auto" takes where it can be used: the least error on held-out maps (docs/comparison.md).
DEFAULT_LEARNED = Critic.name


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
