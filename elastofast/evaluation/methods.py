"""The methods that a comparison knows by name, and those of one's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from ..inversion.reconstruct import reconstruct
from ..priors.registry import LEARNED, NAMED, NamedPrior, load

__all__ = ["METHODS", "WEIGHTS", "Method", "chosen_methods"]

CRITIC, PAPER = "critic", "critic-paper"  # PAPER: the network of CRITIC in the paper's optimizer


def _titles() -> dict[str, str]:
    titles = {}
    for name, entry in NAMED.items():
        if name == CRITIC:
            titles[PAPER] = f"{entry.title}, paper's optimizer"
        if entry.compared:
            titles[name] = entry.title
    return titles


# name: title, in the order of tables and figures; the last one that takes part is tested against all others
METHODS = _titles()
# kinds of networks for which other weights than the shipped ones can be given
WEIGHTS = tuple(entry.network for entry in LEARNED.values() if entry.network is not None)


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
    def learned(self) -> NamedPrior | None:
        """The `NamedPrior` of its network, or None."""
        return None if self.function is not None else LEARNED.get(CRITIC if self.name == PAPER else self.name)

    def check(self, geometry) -> None:
        """Load the network, if there is one, to see that it can look at the maps."""
        if self.learned is not None:
            _load(self.learned.name, self.path).check(geometry)

    def __call__(self, measurement):
        """Reconstruct as a user would: nothing but the name, and thus automatic weights."""
        if self.function is not None:
            return self.function(measurement)
        prior = self.name if self.learned is None else _load(self.learned.name, self.path)
        if self.name != PAPER:
            return reconstruct(measurement, prior=prior)
        start = reconstruct(measurement, prior="none")
        result = reconstruct(measurement, prior=prior, optimizer="descent", gradient="frozen", start=start.modulus)
        result.timing = {name: result.timing[name] + start.timing[name] for name in result.timing}
        return result


def chosen_methods(methods, weights) -> dict[str, Method]:
    """Check the arguments of `compare`, and find the weights of the methods.

    Parameters
    ----------
    methods : sequence of str or (str, callable), or None
        None takes all of `METHODS`.
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
    for given in METHODS if methods is None else methods:
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
        if (entry := method.learned) is not None and entry.learned is not None:
            path = weights.get(entry.learned.kind)
            shipped = files("elastofast") / "weights" / entry.learned.file
            method = Method(name, path=path, digest=hashlib.sha256((path or shipped).read_bytes()).hexdigest())
        chosen[name] = method
    if not chosen:
        raise ValueError("methods is empty: nothing to compare")
    return chosen


@lru_cache
def _load(name, path):
    return load(name, path)
