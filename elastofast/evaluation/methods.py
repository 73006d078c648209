"""The methods that a comparison knows by name, and those of one's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from ..inversion.reconstruct import reconstruct
from ..learning.current import plain_map
from ..priors.learned import SHIPPED, Critic, LearnedPrior, PaperCritic, SquaredCritic
from ..priors.registry import NAMED

__all__ = ["METHODS", "WEIGHTS", "Method", "chosen_methods"]

# Beside the priors that have a name: the method of Mohammadi, Doyley and Cetin; the network of "critic" under their
# optimizer; and the same network as an explicit energy.
PAPER, CRITIC_PAPER, ENERGY = "paper", "critic-paper", "adversarial-energy"
PAPER_WEIGHT = 10.0  # lambda of the paper


def _titles() -> dict[str, str]:
    titles = {}
    for name, entry in NAMED.items():
        if name == Critic.name:
            titles[PAPER] = "the paper's critic, training and descent"
            titles[CRITIC_PAPER] = f"{entry.title}, paper's optimizer"
            titles[ENERGY] = f"{entry.title}, explicit energy"
        if entry.compared:
            titles[name] = entry.title
    return titles


# name: title, in the order of tables and figures; the last one that takes part is tested against all others
METHODS = _titles()
# the class of the network of each method that has one
NETWORKS: dict[str, type[LearnedPrior]] = {
    **{learned.name: learned for learned in SHIPPED},
    PAPER: PaperCritic,
    CRITIC_PAPER: Critic,
    ENERGY: Critic,
}
# kinds of networks for which other weights than the shipped ones can be given; the paper's critic has none
WEIGHTS = (*(learned.kind for learned in SHIPPED), PaperCritic.kind)


@dataclass(frozen=True)
class Method:
    """A named function from a `Measurement` to a `Result`, or one of `METHODS`, which loads its network when needed.

    Attributes
    ----------
    name : str
    function : callable or None
        None for one of `METHODS`.
    path : pathlib.Path or None
        Weights file in place of the shipped one.
    digest : str or None
        SHA-256 of the weights file, where the method has one.
    """

    name: str
    function: Callable | None = None
    path: Path | None = None
    digest: str | None = None

    @property
    def network(self) -> type[LearnedPrior] | None:
        """The class of its network, or None."""
        return None if self.function is not None else NETWORKS.get(self.name)

    def check(self, geometry) -> None:
        """Load the network, if there is one, to see that it can look at the maps."""
        if self.network is not None:
            _load(self.name, self.path).check(geometry)

    def __call__(self, measurement):
        """Reconstruct as a user would: nothing but the name, and thus automatic weights."""
        if self.function is not None:
            return self.function(measurement)
        prior = self.name if self.network is None else _load(self.name, self.path)
        if self.name not in (PAPER, CRITIC_PAPER, ENERGY):
            return reconstruct(measurement, prior=prior)
        if self.name == ENERGY:  # from the map of the splitting, with its weight
            start = plain_map(measurement, prior)
            energy = SquaredCritic(prior, measurement.geometry)
            result = reconstruct(measurement, prior=energy, weight=start.weight, start=start.modulus)
        else:
            start = reconstruct(measurement, prior="none")
            weight = PAPER_WEIGHT if self.name == PAPER else "auto"
            result = reconstruct(
                measurement, prior=prior, weight=weight, optimizer="descent", gradient="frozen", start=start.modulus
            )
        result.timing = {name: result.timing[name] + start.timing[name] for name in result.timing}
        return result


def chosen_methods(methods, weights) -> dict[str, Method]:
    """Check the arguments of `compare`, and find the weights of the methods.

    Parameters
    ----------
    methods : sequence of str or (str, callable), or None
        None takes all of `METHODS`, "paper" only with weights.
    weights : dict of str to pathlib.Path
        Weights files by kind of network.

    Raises
    ------
    ValueError
        If a name is unknown, taken or given twice.
    OSError
        If a weights file cannot be read.
    """
    if unknown := sorted(weights.keys() - set(WEIGHTS)):
        raise ValueError(f"weights must be given for {', '.join(WEIGHTS)}, got {unknown[0]!r}")
    chosen = {}
    if methods is None:
        methods = [name for name in METHODS if name != PAPER or PaperCritic.kind in weights]
    for given in methods:
        name, function = (given, None) if isinstance(given, str) else given
        if function is None and name not in METHODS:
            raise ValueError(f"methods must be among {', '.join(METHODS)}, or (name, function), got {name!r}")
        if function is not None and (name in METHODS or not callable(function)):
            raise ValueError(f"a method of your own needs a new name and a function, got ({name!r}, {function!r})")
        if not name.replace("-", "_").isidentifier() or name == "truth":
            raise ValueError(f"the name of a method must be of letters, digits and hyphens, not truth, got {name!r}")
        if name in chosen:
            raise ValueError(f"methods names {name!r} twice")
        method = Method(name, function)
        if (network := method.network) is not None:
            path = weights.get(network.kind)
            if path is None and not network.file:
                raise ValueError(
                    f"method {name!r} needs weights of its {network.kind}, which none come with: give a file"
                )
            shipped = files("elastofast") / "weights" / network.file
            method = Method(name, path=path, digest=hashlib.sha256((path or shipped).read_bytes()).hexdigest())
        chosen[name] = method
    if not chosen:
        raise ValueError("methods is empty: nothing to compare")
    return chosen


@lru_cache
def _load(name, path):
    return NETWORKS[name].load(path)
