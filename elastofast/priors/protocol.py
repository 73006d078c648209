"""What an object has to offer to serve as a prior.

Moduli x are in pascals. The optimisers work with z = log x in arrays (B, N), one row for each measurement of a batch;
there is a row also for a single measurement. A prior offers an energy, a target or both, and with an energy perhaps its
linearisation:

* an *energy* R(x) with its gradient (`EnergyPrior`), which L-BFGS and the paper's projected gradient descent minimise;
* a *linearisation* of that energy in z (`LinearizablePrior`), which Gauss-Newton minimises;
* a *target*, the map that the prior takes for the truth behind a given one (`TargetPrior`): the result of a denoiser,
  or the end of a critic's steepest descent. Half-quadratic splitting draws the map towards it.

Any object with these methods is a prior; it need not inherit from anything. An optional method ``check(geometry)``
raises ValueError where the prior cannot be used on a geometry.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ..errors import PriorError

__all__ = [
    "EnergyPrior",
    "LinearizablePrior",
    "Linearization",
    "Prior",
    "SplittingSettings",
    "TargetPrior",
    "check_prior",
    "splitting_settings",
]  # fmt: skip


@runtime_checkable
class EnergyPrior(Protocol):
    """An explicit energy R(x)."""

    def __call__(self, x: Any) -> tuple[Any, Any]:
        """Value and gradient per pascal at moduli x (..., *node_shape); values (...), or a float for a single map."""
        ...


class Linearization(NamedTuple):
    """An energy about z = log x, shape (..., N): its value, gradient, and a positive semidefinite curvature."""

    value: np.ndarray  # in host memory, one number for each map
    gradient: Any  # (..., N)
    curvature: Callable[[Any], Any]  # maps fields (..., N) to fields (..., N)
    diagonal: Any  # (..., N), that of the curvature, or close to it: it preconditions conjugate gradients


@runtime_checkable
class LinearizablePrior(Protocol):
    """An energy that Gauss-Newton can minimise, with a primal-dual curvature where that is of use.

    A prior without a dual variable returns None from `start_dual` and `step_dual`.
    """

    def value(self, z: Any) -> np.ndarray:
        """R at z (..., N): one number for each map, in host memory."""
        ...

    def linearize(self, z: Any, dual: Any) -> Linearization:
        """The energy about z, with the curvature that belongs to a dual variable."""
        ...

    def start_dual(self) -> Any:
        """The dual variable of a constant map."""
        ...

    def step_dual(self, dual: Any, z: Any, dz: Any) -> Any:
        """The dual variable after a step dz from z."""
        ...


@runtime_checkable
class TargetPrior(Protocol):
    """A prior that names the plausible map next to a given one.

    It may have an attribute ``splitting``, the `SplittingSettings` that suit it.
    """

    def target(self, z: Any, shape: tuple[int, ...]) -> Any:
        """The plausible maps next to z (..., N) on a grid of a shape, in the same layout."""
        ...


Prior = EnergyPrior | TargetPrior


class SplittingSettings(NamedTuple):
    """How half-quadratic splitting weighs a prior with a target.

    The defaults are cautious values for an unknown prior. Those of the shipped priors are attributes of their classes;
    they were the best on validation maps at 25 to 45 dB (docs/comparison.md).

    Attributes
    ----------
    weight, growth : float
        The prior's weight in the last steps is ``weight * h**growth``, with h the mean curvature of the data term in
        log x. A growth of 1 suits a prior whose errors follow the noise, 0 one whose errors do not.
    unpenalised_weight : float
        Weight along the unpenalised directions (smooth shifts of boundaries, scalings of the contrast), in units of h.
    limiter_slack : float
        Largest amount, in log x, by which the map may leave the range of the target's values around a node once the
        unpenalised directions are in use.
    plausible, plausible_decay : float
        Largest root mean square of z - P(z), in log x, that right maps of the prior are left with:
        ``plausible * max(h, 1)**-plausible_decay``. ``prior="auto"`` takes a map that is farther from its target for
        one that the prior was not trained for.
    noise_inflation : float
        Factor on the variance of the displacement noise, for data that are to be trusted less than is stated.
    """

    weight: float = 100.0
    growth: float = 1.0
    unpenalised_weight: float = 3.0
    limiter_slack: float = np.inf
    plausible: float = np.inf
    plausible_decay: float = 0.0
    noise_inflation: float = 1.0


def splitting_settings(prior: TargetPrior) -> SplittingSettings:
    """The settings that a prior brings along, or the defaults."""
    return getattr(prior, "splitting", SplittingSettings())


def check_prior(prior: object, geometry) -> None:
    """Raise PriorError for an object that is no prior, ValueError for one that cannot be used on a geometry."""
    if isinstance(prior, type):
        raise PriorError(f"prior must be a name or an object, got the class {prior.__name__}: make one of it")
    if not isinstance(prior, EnergyPrior | TargetPrior):
        raise PriorError(
            "prior must be a name, a callable giving value and gradient, or an object with a target, "
            f"got {type(prior).__name__}"
        )
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(prior, torch.nn.Module) and not isinstance(prior, TargetPrior):
        raise PriorError(
            f"prior is a torch module ({type(prior).__name__}), which sees tensors: put it into an object whose method "
            "target(z, shape) gives the denoised maps of z = log x, see elastofast.priors.protocol"
        )
    check = getattr(prior, "check", None)
    if check is not None:
        check(geometry)
