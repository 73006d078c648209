"""What the caller of `reconstruct` asked for, checked once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..geometry import Grid, Mesh
from ..misfit.fidelity import GRADIENTS
from ..priors import registry
from ..priors.learned import SMALLEST_NODES, LearnedPrior, PostProcessing
from ..priors.protocol import LinearizablePrior, SplittingSettings, TargetPrior, check_prior, splitting_settings
from .limits import Limits
from .optimizers import OPTIMIZERS
from .problem import Optimizer

__all__ = ["Options", "check_weight"]

DEFAULT_UNLEARNED = "tv"


@dataclass(frozen=True)
class Options:
    """The checked arguments of `reconstruct` that measurements on one geometry share.

    Attributes
    ----------
    geometry : Grid or Mesh
    prior_name : str
        Its name, or that of its class.
    prior : object or None
        The prior on the geometry; None for maximum likelihood.
    make_prior : callable or None
        Makes the prior for another geometry, where that takes more than using the same object.
    correction : PostProcessing or None
        What is done to the finished map.
    optimizer : Optimizer
    splitting : SplittingSettings or None
        How half-quadratic splitting weighs the prior; None for other optimisers.
    automatic : bool
        Whether the prior was chosen here.
    unlearned : Options or None
        What to do about maps that the data reject, see `fallback`; None where the caller decided about weight or steps.
    rehearsal : (Options, Options) or None
        For explicit energies with an automatic weight, see `energies`: the options of the unregularised map and of
        total variation.
    gradient : {"exact", "frozen"}
    limits : Limits
        Bounds on the modulus, and where it is known.
    max_iterations : int or None
    step_length : float
    progress : bool, callable or None
    """

    geometry: Grid | Mesh
    prior_name: str
    prior: Any
    make_prior: Callable[[Any], Any] | None
    correction: PostProcessing | None
    optimizer: Optimizer
    splitting: SplittingSettings | None
    automatic: bool
    unlearned: Options | None
    rehearsal: tuple[Options, Options] | None
    gradient: str
    limits: Limits
    max_iterations: int | None
    step_length: float
    progress: bool | Callable | None

    @classmethod
    def checked(
        cls,
        geometry,
        automatic_weight,
        open_edges,
        *,
        prior,
        gradient,
        optimizer,
        bounds,
        max_iterations,
        step,
        progress,
        load,
        known=None,
    ) -> Options:
        """The options for measurements on a geometry.

        Parameters
        ----------
        geometry : Grid or Mesh
        automatic_weight : bool
            Whether the prior's weight is to be found; "auto" takes a learned prior only then.
        open_edges : bool
            Whether some dofs are open; "auto" takes total variation then.
        prior, gradient, optimizer, bounds, max_iterations, step, progress
            Arguments of `reconstruct`.
        load : callable
            Loads a learned prior by its name.
        known : array_like or None
            Argument of `reconstruct`.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit; the message names it.
        """
        automatic_prior = isinstance(prior, str) and prior == "auto"
        if automatic_prior:
            learn = automatic_weight and optimizer is None and not open_edges
            prior = registry.DEFAULT_LEARNED if learn and _learned_is_usable(geometry, load) else DEFAULT_UNLEARNED
        name, prior, make, correction = _chosen_prior(prior, geometry, load)
        if not isinstance(gradient, str) or gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {', '.join(map(repr, GRADIENTS))}, got {gradient!r}")
        chosen = _chosen_optimizer(optimizer, prior, name)
        if chosen.needs_derivative and gradient == "frozen":
            raise ValueError(
                f"gradient 'frozen' is not the derivative of anything, which {chosen.name!r} needs; use 'exact'"
            )
        if max_iterations is not None and not (isinstance(max_iterations, int | np.integer) and max_iterations > 0):
            raise ValueError(f"max_iterations must be a positive whole number, got {max_iterations!r}")
        if not (isinstance(step, int | float | np.number) and 0 < step < np.inf):
            raise ValueError(f"step must be positive and finite, got {step!r}")
        if not (progress is None or isinstance(progress, bool) or callable(progress)):
            raise TypeError(f"progress must be True, False or a callable, got {progress!r}")
        splits = chosen.chooses_weight
        unlearned = rehearsal = None
        if automatic_weight and max_iterations is None:

            def other(prior) -> Options:
                return cls.checked(
                    geometry, True, open_edges, prior=prior, gradient=gradient, optimizer=None, bounds=bounds,
                    max_iterations=None, step=step, progress=progress, load=load, known=known,
                )  # fmt: skip

            unlearned = other(DEFAULT_UNLEARNED) if splits else None
            explicit = prior is not None and not splits and not isinstance(prior, LinearizablePrior)
            rehearsal = (other("none"), other(DEFAULT_UNLEARNED)) if explicit else None
        return cls(
            geometry=geometry,
            prior_name=name,
            prior=prior,
            make_prior=make,
            correction=correction,
            optimizer=chosen,
            splitting=splitting_settings(prior) if splits else None,
            automatic=automatic_prior,
            unlearned=unlearned,
            rehearsal=rehearsal,
            gradient=gradient,
            limits=Limits(geometry, bounds, known),
            max_iterations=None if max_iterations is None else int(max_iterations),
            step_length=float(step),
            progress=progress,
        )

    @classmethod
    def total_variation(cls, measurement, *, progress=None, max_iterations=None) -> Options:
        """Total variation and otherwise defaults, for maps that are made to learn about a measurement.

        Parameters
        ----------
        measurement : Measurement
        progress, max_iterations
            Arguments of `reconstruct`.
        """
        return cls.checked(
            measurement.geometry, True, bool(measurement.load.open.any()), prior=DEFAULT_UNLEARNED, gradient="exact",
            optimizer=None, bounds=None, max_iterations=max_iterations, step=0.7, progress=progress, load=None,
        )  # fmt: skip

    @property
    def coarsest_nodes(self) -> int | None:
        """Nodes along the shorter axis of the coarsest level; None where only the finest level is worked on.

        Maximum likelihood is one path of iterates from the homogeneous map. A prior that was made for one geometry
        cannot be moved to another.
        """
        movable = self.make_prior is not None or isinstance(self.prior, TargetPrior)
        return self.optimizer.coarsest_nodes if movable else None

    @property
    def note(self) -> str:
        """What the prior has to say about how it sees maps of the geometry."""
        return getattr(self.correction or self.prior, "note", "")

    def suits(self, geometry) -> bool:
        """Whether the prior can be used on the geometry of a coarse level."""
        if self.make_prior is not None or self.prior is None:  # made for whatever geometry
            return True
        try:
            check_prior(self.prior, geometry)
        except ValueError:
            return False
        return True

    def prior_on(self, geometry) -> Any:
        """The prior on the geometry of a level."""
        return self.prior if self.make_prior is None or geometry == self.geometry else self.make_prior(geometry)


def _chosen_prior(prior, geometry, load):
    """Name, prior on the geometry, how to make it for another, and what corrects the map."""
    name, make = type(prior).__name__, None
    if isinstance(prior, str):
        entry = registry.NAMED.get(prior)
        if entry is None:
            names = ", ".join(map(repr, ("auto", *registry.NAMED)))
            raise ValueError(f"prior must be one of {names} or an object, got {prior!r}")
        name, make = entry.name, entry.make
        if entry.learned is not None:
            prior = load(name)
        elif make is not None:
            return name, make(geometry), make, None
        else:
            return name, None, None, None
    if isinstance(prior, PostProcessing):  # corrects the maximum-likelihood map
        return name, None, None, prior.on(geometry)
    check_prior(prior, geometry)
    if isinstance(prior, TargetPrior):
        if not isinstance(geometry, Grid):
            raise ValueError(f"a prior with a target needs a measurement on a Grid, got {geometry!r}")
        if isinstance(prior, LearnedPrior):
            return name, prior.on(geometry), prior.on, None
    return name, prior, None, None


def _chosen_optimizer(optimizer, prior, prior_name) -> Optimizer:
    if optimizer is None:
        return next(each for each in OPTIMIZERS.values() if each.supports(prior))
    if not isinstance(optimizer, str) or optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(map(repr, OPTIMIZERS))}, got {optimizer!r}")
    if not OPTIMIZERS[optimizer].supports(prior):
        able = ", ".join(repr(each.name) for each in OPTIMIZERS.values() if each.supports(prior))
        raise ValueError(f"optimizer {optimizer!r} does not work with prior {prior_name!r}; these do: {able}")
    return OPTIMIZERS[optimizer]


def _learned_is_usable(geometry, load) -> bool:
    """Whether the default learned prior is installed and sees maps on a geometry."""
    if not isinstance(geometry, Grid):
        return False
    try:
        prior = load(registry.DEFAULT_LEARNED).on(geometry)
    except (ImportError, ValueError):
        return False
    return min(prior.seen_shape(geometry.shape)) >= SMALLEST_NODES


def check_weight(weight, optimizer: Optimizer) -> float:
    """A weight that the caller gave."""
    if not (isinstance(weight, int | float | np.number) and 0 <= weight < np.inf):
        raise ValueError(f"weight must be 'auto' or a finite number, zero or more, got {weight!r}")
    if optimizer.needs_weight and weight == 0:
        raise ValueError(f"weight must be positive for optimizer {optimizer.name!r}, got 0")
    return float(weight)
