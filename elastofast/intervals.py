"""How sure a map is, from draws of its error: standard deviations of nodes, intervals of regions and contrasts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtrit

from .backend.device import to_host
from .geometry import Grid, Mesh

__all__ = ["Interval", "Uncertainty"]

# Share of the logarithm of a contrast that reconstructions of data simulated from the map lose, above which there is a
# warning: the map may have lost most of the true contrast already, and how much can no longer be told. Of eight lesions
# of the training generator at 25 dB (33 x 33 nodes) it names the three, of 6 to 8 nodes, that no interval reached.
LOST_SHARE = 0.5


class Interval(NamedTuple):
    """Where a quantity lies with a stated probability.

    Attributes
    ----------
    low, high : float or numpy.ndarray
        The interval. It allows for the estimated bias, so that it need not be centred on the estimate.
    estimate : float or numpy.ndarray
        What the map says.
    """

    low: Any
    estimate: Any
    high: Any


@dataclass(frozen=True)
class Uncertainty:
    """What is known about the error of a map.

    Attributes
    ----------
    modulus : numpy.ndarray, shape node_shape
        The map, in pascals or relative.
    errors : numpy.ndarray, shape (repetitions, *node_shape)
        Draws of its error: the logarithm of reconstructions of data that were simulated from the map, less that of the
        map.
    again : numpy.ndarray, shape (repetitions, *node_shape)
        The same one generation on: reconstructions of data that were simulated from these reconstructions, with the
        same noise, less these.
    geometry : Grid or Mesh
    relative : bool
        Whether the modulus is known only up to a factor; all maps then have the geometric mean one.
    """

    modulus: np.ndarray = field(repr=False)
    errors: np.ndarray = field(repr=False)
    again: np.ndarray = field(repr=False)
    geometry: Grid | Mesh
    relative: bool = False

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of log modulus about the map at each node, its bias included; shape node_shape.

        About the relative error of the modulus where it is small.
        """
        return np.hypot(*bias_and_spread(self.errors))

    def interval(self, level: float = 0.9) -> Interval:
        """Interval of the modulus at each node by itself.

        Noise dominates at a single node, so that these intervals are about the map: they reach as many times `std` to
        both sides, in log modulus, as a normal distribution asks for.
        """
        reach = np.exp(ndtri(0.5 + _checked_level(level) / 2) * self.std)
        return Interval(self.modulus / reach, self.modulus, self.modulus * reach)

    def mean(self, mask: ArrayLike, level: float = 0.9) -> Interval:
        """Interval of the mean modulus of a region.

        Parameters
        ----------
        mask : array_like of bool, shape node_shape
        level : float
            Probability that the interval holds the truth.

        Raises
        ------
        ValueError
            If the mask does not fit or marks no node.
        """
        weights = self._weights(mask, "mask")
        return self._interval(lambda x: _means(x, weights), level)[0]

    def contrast(self, target: ArrayLike, background: ArrayLike, level: float = 0.9) -> Interval:
        """Interval of the ratio of the mean moduli of two regions, for instance a lesion and what is around it.

        Parameters
        ----------
        target, background : array_like of bool, shape node_shape
            Without common nodes. Nodes at the boundary of a lesion belong in neither: what is uncertain there is which
            side they lie on.
        level : float
            Probability that the interval holds the truth.

        Raises
        ------
        ValueError
            If a mask does not fit or marks no node, or if both overlap.

        Warns
        -----
        UserWarning
            If the map has lost so much of the contrast that nobody can tell how much.
        """
        one, other = self._weights(target, "target"), self._weights(background, "background")
        if (one * other).any():
            raise ValueError("target and background must not overlap")
        found, bias = self._interval(lambda x: _means(x, one) / _means(x, other), level)
        if abs(bias) > LOST_SHARE * abs(np.log(found.estimate)):
            warnings.warn(
                f"reconstructions of data simulated from the map change the logarithm of this contrast, "
                f"{np.log(found.estimate):.2g}, by {bias:.2g}: the region is hardly resolved, and the map may have "
                "lost more of the true contrast than the interval allows for",
                stacklevel=2,
            )
        return found

    def draws(self, count: int, seed: int | np.random.Generator = 0) -> np.ndarray:
        """Random maps that might be the true one, shape (count, *node_shape), in the unit of the map.

        Log modulus is normal about the map less its estimated bias, with the standard deviation of the errors at each
        node and their correlation between nodes.

        Parameters
        ----------
        count : int
        seed : int or numpy.random.Generator
        """
        if not (isinstance(count, int | np.integer) and count > 0):
            raise ValueError(f"count must be a positive whole number, got {count!r}")
        bias, spread = bias_and_spread(self.errors)
        deviations = self.errors - self.errors.mean(axis=0)
        own = np.sqrt((deviations**2).sum(axis=0))
        deviations = np.divide(deviations, own, out=np.zeros_like(deviations), where=own > 0)
        mixing = np.random.default_rng(seed).standard_normal((count, len(deviations)))
        return self.modulus * np.exp(spread * np.tensordot(mixing, deviations, axes=1) - bias)

    def _interval(self, statistic: Callable[[np.ndarray], np.ndarray], level: float) -> tuple[Interval, float]:
        """Interval of a positive statistic of a map, and the bias of its logarithm; ``statistic`` takes maps
        (..., *node_shape).
        """
        estimate = float(statistic(self.modulus))
        once = np.log(statistic(self.modulus * np.exp(self.errors)) / estimate)
        twice = np.log(statistic(self.modulus * np.exp(self.errors + self.again)) / estimate)
        errors = extrapolated(once, twice - once)
        bias, spread = (float(one) for one in bias_and_spread(errors, errors - once))
        reach = float(stdtrit(len(once) - 1, 0.5 + _checked_level(level) / 2)) * spread
        return Interval(*(float(estimate * np.exp(shift)) for shift in (-bias - reach, 0.0, -bias + reach))), bias

    def _weights(self, mask, name) -> np.ndarray:
        """The share of each node in the mean over a mask."""
        mask = np.asarray(to_host(mask))
        if mask.dtype != bool or mask.shape != self.modulus.shape or not mask.any():
            raise ValueError(
                f"{name} must be a mask of bool of shape {self.modulus.shape} that marks a node at least, got "
                f"{mask.dtype} of shape {mask.shape} with {np.count_nonzero(mask)}"
            )
        weights = mask * self.geometry.node_weights.reshape(mask.shape)
        return weights / weights.sum()


def _means(x, weights):
    """Weighted means of maps (..., *node_shape)."""
    return (x * weights).sum(axis=tuple(range(-weights.ndim, 0)))


def extrapolated(errors, again):
    """Errors of the next generation back: where the truth lies, from those at the map and at reconstructions of it.

    The bias at the map is not the bias at the truth: of what the prior has taken off already, it takes no more. What
    changes from the map to its reconstruction, in the same noise, changes about as much from the truth to the map.
    """
    return 2 * errors - again


def bias_and_spread(errors, corrections=None):
    """The bias of an estimate, and the standard deviation that is left when it has been taken off.

    Let b and s be the mean and the standard deviation of n draws of the error (n, ...), made where the estimate is the
    truth. The estimate carries noise itself, and a reconstruction of it loses some of that, so that b is the bias and a
    random part, whose variance is s^2 at most. Of such a sum, the share k = 1 - s^2 / b^2, where that is positive, is
    the best guess of the bias (empirical Bayes; Efron and Morris, J. Am. Stat. Assoc. 68, 1973), whose variance is then
    k s^2. The estimate's noise, this variance, and that of the mean of n draws add up.

    Where the errors were extrapolated, ``corrections`` (n, ...) are what that added to them. How far an extrapolation
    is off nobody knows; the bias is taken to be uncertain by its last correction.
    """
    count, b, variance = len(errors), errors.mean(axis=0), errors.var(axis=0, ddof=1)
    share = np.maximum(1 - np.divide(variance, b**2, out=np.ones_like(b), where=b != 0), 0.0)
    variance = variance * (1 + share + 1 / count)
    if corrections is not None:
        variance = variance + (share * corrections.mean(axis=0)) ** 2
    return share * b, np.sqrt(variance)


def _checked_level(level) -> float:
    if not (isinstance(level, int | float | np.number) and 0 < level < 1):
        raise ValueError(f"level must be a probability between 0 and 1, got {level!r}")
    return float(level)
