"""Where the time of a reconstruction goes."""

from __future__ import annotations

import functools
import time

__all__ = ["Stopwatch"]


class Stopwatch:
    """Adds up the seconds spent inside callables that it wraps; a call within another one counts once."""

    def __init__(self):
        self.seconds = 0.0
        self._running = False

    def wrap(self, function):
        """``function``, timed."""

        @functools.wraps(function)
        def timed(*args, **kwargs):
            if self._running:
                return function(*args, **kwargs)
            self._running = True
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began
                self._running = False

        return timed

    def prior(self, prior):
        """A prior with the same methods, timed; None stays None."""
        return None if prior is None else _TimedPrior(prior, self)


class _TimedPrior:
    def __init__(self, prior, watch):
        self._call = watch.wrap(prior.__call__ if callable(prior) else prior.target)
        for name in ("value", "start_dual", "step_dual", "target"):
            if hasattr(prior, name):
                setattr(self, name, watch.wrap(getattr(prior, name)))
        if hasattr(prior, "linearize"):
            linearize = watch.wrap(prior.linearize)

            def timed(z, dual=None):
                model = linearize(z, dual)
                return model._replace(curvature=watch.wrap(model.curvature))

            self.linearize = timed

    def __call__(self, x):
        return self._call(x)
