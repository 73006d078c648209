"""A prior whose calls are timed."""

from __future__ import annotations

from typing import Any

from ..backend.stopwatch import Stopwatch
from .protocol import LinearizablePrior, TargetPrior, splitting_settings

__all__ = ["timed"]


def timed(prior: Any, watch: Stopwatch) -> Any:
    """The prior, with the seconds that its methods and its curvature take added to a stopwatch; None stays None."""
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
            self.target, self.splitting = watch.wrap(prior.target), splitting_settings(prior)

    def __call__(self, x):
        with self._watch:
            return self._prior(x)

    def linearize(self, z, dual):
        """The prior's linearisation; its curvature is timed too."""
        with self._watch:
            model = self._prior.linearize(z, dual)
        return model._replace(curvature=self._watch.wrap(model.curvature))
