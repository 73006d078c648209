"""A prior whose calls are timed, and whose answers are checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.device import device_of, namespace, to_host
from ..backend.stopwatch import Stopwatch
from ..errors import PriorError
from .protocol import LinearizablePrior, TargetPrior, splitting_settings

__all__ = ["timed"]


def timed(prior: Any, watch: Stopwatch) -> Any:
    """The prior, with the seconds that its methods and its curvature take added to a stopwatch; None stays None.

    Energies and targets that are not of the agreed form raise `PriorError`.
    """
    return None if prior is None else _TimedPrior(prior, watch)


class _TimedPrior:
    """Offers what the prior offers. Always callable; without an energy the call raises what the prior itself raises."""

    def __init__(self, prior, watch):
        self._prior, self._watch = prior, watch
        if isinstance(prior, LinearizablePrior):
            self.value, self.start_dual, self.step_dual = map(
                watch.wrap, (prior.value, prior.start_dual, prior.step_dual)
            )
        if isinstance(prior, TargetPrior):
            self.target, self.splitting = self._target, splitting_settings(prior)

    def __call__(self, x):
        with self._watch:
            return _checked_energy(self._prior, self._prior(x), x)

    def _target(self, z, shape):
        with self._watch:
            return _checked_target(self._prior, self._prior.target(z, shape), z)

    def linearize(self, z, dual):
        """The prior's linearisation; its curvature is timed too."""
        with self._watch:
            model = self._prior.linearize(z, dual)
        return model._replace(curvature=self._watch.wrap(model.curvature))


def _checked_energy(prior, answer, x):
    """Value and gradient that a prior gives at moduli x."""
    if not (isinstance(answer, tuple | list) and len(answer) == 2):
        raise PriorError(
            f"prior {_name(prior)} must give its energy and the gradient, two values, but gave {_described(answer)}. A "
            "denoiser is a prior if it is the method target(z, shape) of an object, see elastofast.priors.protocol"
        )
    value, gradient = answer
    if np.size(to_host(gradient)) != x.size or np.size(to_host(value)) != 1:
        raise PriorError(
            f"prior {_name(prior)} must give one energy and a gradient of the shape {x.shape} of the modulus, but gave "
            f"{_described(value)} and {_described(gradient)}"
        )
    try:
        energy = float(np.ravel(to_host(value))[0])
    except (TypeError, ValueError):
        raise PriorError(f"prior {_name(prior)} must give a number as its energy, but gave {value!r}") from None
    # Far from the map an energy may overflow, and the step is not taken; a gradient beside a finite energy is used.
    if np.isfinite(energy) and not np.isfinite(to_host(gradient)).all():
        raise PriorError(f"prior {_name(prior)} gave a gradient with values that are NaN or infinite")
    return value, gradient


def _checked_target(prior, answer, z):
    """The target that a prior gives next to z, as an array of the same library."""
    xp = namespace(z)
    found = device_of(target=answer).asarray(answer)
    shape = np.shape(found)
    if shape not in (z.shape, z.shape[-1:]) and np.size(found) != z.size:
        raise PriorError(
            f"the target of prior {_name(prior)} must have the shape {z.shape} of the maps of log x, (maps, nodes), "
            f"but is {_described(answer)}"
        )
    found = xp.asarray(found)
    found = xp.broadcast_to(found, z.shape) if shape == z.shape[-1:] else found.reshape(z.shape)
    if not bool(xp.isfinite(found).all()):
        raise PriorError(f"the target of prior {_name(prior)} is not finite: its maps are of log x, x in pascals")
    return found


def _name(prior):
    return getattr(prior, "__name__", type(prior).__name__)


def _described(value):
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} of shape {tuple(shape)}"
