"""What the caller knows of the modulus: bounds, for all nodes or for each, and regions where its values are known.

A known modulus is a pair of equal bounds, so that every optimiser keeps to it by what it does about bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from ..backend.device import namespace, to_host
from ..errors import refuse_masked
from ..geometry import Grid, Mesh
from ..result import BOUNDS_FACTOR
from .coarsen import at_nodes_of

__all__ = ["Limits"]


class Limits:
    """Bounds on z = log x on the nodes of a geometry and of its coarser copies.

    Parameters
    ----------
    geometry : Grid or Mesh
    bounds : pair of float or array_like of shape node_shape, or None
        The argument of `reconstruct`.
    known : array_like, shape node_shape, or None
        The argument of `reconstruct`.

    Attributes
    ----------
    known : numpy.ndarray, shape (N,), or None
        Pascals, NaN where the modulus is sought.
    given : bool
        Whether the caller gave bounds.

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit, or known values lie outside of the bounds; the message names it.
    """

    def __init__(self, geometry: Grid | Mesh, bounds: Any = None, known: Any = None) -> None:
        self._geometry = geometry
        self.known = None if known is None else _checked_known(known, geometry)
        self.given = bounds is not None
        self._bounds = _checked_bounds(bounds, geometry) if self.given else None
        if self.known is None or self._bounds is None:
            return
        low, high = (np.broadcast_to(np.exp(own), self.known.shape) for own in self._bounds)
        # the logarithm and back again may change the last digit
        outside = (self.known < low * (1 - 1e-12)) | (self.known > high * (1 + 1e-12))
        if outside.any():
            n = int(np.flatnonzero(outside)[0])
            raise ValueError(
                f"known is {self.known[n]:g} Pa at node {n}, outside of bounds ({low[n]:g}, {high[n]:g}); there are "
                f"{int(outside.sum())} such nodes. Give wider bounds"
            )

    def on(self, geometry: Grid | Mesh, middle: Any) -> tuple[Any, Any]:
        """Least and greatest z on a geometry.

        Parameters
        ----------
        geometry : Grid or Mesh
            The own one, or one that it was coarsened to.
        middle : array, shape (B, 1)
            The mean of the start, about which the default bounds are.

        Returns
        -------
        pair of float, or of arrays of shape (B, 1) or (B, N)
        """
        xp = namespace(middle)
        low, high = middle - np.log(BOUNDS_FACTOR), middle + np.log(BOUNDS_FACTOR)
        if self._bounds is not None:
            low, high = (own if np.ndim(own) == 0 else self._sampled(own, geometry, middle) for own in self._bounds)
        if self.known is None:
            return low, high
        known = self._sampled(np.log(self.known), geometry, middle)
        held = xp.isfinite(known)
        return xp.where(held, known, low), xp.where(held, known, high)

    def movable(self, geometry: Grid | Mesh, like: Any) -> Any:
        """1 where the modulus is sought and 0 where it is known, (1, N) where ``like`` lives; None if it is sought
        everywhere.
        """
        if self.known is None:
            return None
        return namespace(like).asarray(np.isnan(at_nodes_of(geometry, self.known, self._geometry))[None].astype(float))

    def exact(self, x: Any) -> Any:
        """Moduli (N,) with the known values to the last digit."""
        if self.known is None:
            return x
        xp = namespace(x)
        known = xp.asarray(self.known)
        return xp.where(xp.isfinite(known), known, x)

    def _sampled(self, field, geometry, like):
        """A field of the own nodes on those of another geometry, (B, N)."""
        xp = namespace(like)
        own = xp.asarray(at_nodes_of(geometry, field, self._geometry))
        return xp.zeros((len(like), own.size)) + own


def _checked_bounds(bounds, geometry):
    """Logarithms of both bounds, each a number or an array (N,)."""
    if isinstance(bounds, Mapping | Set):  # whose order, or values, would be lost
        raise TypeError(f"bounds must be a pair (low, high) in pascals, got a {type(bounds).__name__}: {bounds!r}")
    for own in bounds if isinstance(bounds, list | tuple) else ():
        refuse_masked(own, "bounds")
    try:
        low, high = (np.asarray(to_host(own), dtype=float) for own in bounds)
    except (TypeError, ValueError):
        raise ValueError(f"bounds must be two numbers (pascals) or arrays, got {bounds!r}") from None
    for own in (low, high):
        if own.shape not in ((), geometry.node_shape, (geometry.n_nodes,)):
            raise ValueError(
                f"bounds must be numbers or have one value per node, shape {geometry.node_shape}, got shape {own.shape}"
            )
    low, high = (own if own.ndim == 0 else own.ravel() for own in (low, high))
    if not ((0 < low) & (low < high) & (high < np.inf)).all():
        shown = repr(bounds) if low.ndim == high.ndim == 0 else "arrays that do not; hold nodes by known"
        raise ValueError(f"bounds must satisfy 0 < low < high (pascals), got {shown}")
    return np.log(low), np.log(high)


def _checked_known(known, geometry):
    """Known moduli (N,), NaN elsewhere."""
    known = np.ma.asarray(to_host(known))
    try:
        known = np.ma.filled(known.astype(float, casting="same_kind" if known.dtype.kind == "c" else "unsafe"), np.nan)
    except (TypeError, ValueError):
        raise TypeError(f"known must hold real numbers (pascals), got dtype {known.dtype}") from None
    if known.shape not in (geometry.node_shape, (geometry.n_nodes,)):
        raise ValueError(
            f"known must have one modulus per node (pascals), NaN where it is sought, shape {geometry.node_shape}, got "
            f"shape {known.shape}"
        )
    known = known.ravel()
    bad = ~(np.isnan(known) | ((known > 0) & (known < np.inf)))
    if bad.any():
        raise ValueError(
            f"known must be positive and finite (pascals), or NaN where the modulus is sought, got {known[bad][0]:g} "
            f"at node {int(np.flatnonzero(bad)[0])} ({int(bad.sum())} such values)"
        )
    count = int(np.isfinite(known).sum())
    if count in (0, known.size):
        raise ValueError(
            f"known has {count} values for {known.size} nodes: give the modulus of a region, and NaN where it is sought"
        )
    return known
