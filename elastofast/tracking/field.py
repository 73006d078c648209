"""What tracking gives: displacements, their noise, and where they can be trusted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..boundary import Boundary, compression
from ..geometry import Grid
from ..laws import Law
from ..measurement import Measurement

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Tracking"]


@dataclass(frozen=True, eq=False)
class Tracking:
    """A displacement field that was tracked from two frames.

    The displacement u says where the tissue of the reference frame is found in the deformed one: what is at X there is
    at X + u(X) here. Component 0 is axial, positive away from the transducer (with growing depth), component 1 lateral,
    positive with the number of the line. Exchanging the frames reverses all signs (and refers the field to the other
    frame).

    Attributes
    ----------
    grid : Grid
        The centres of the windows.
    displacement : numpy.ndarray, shape (2, *grid.shape)
        Metres; NaN where nothing was measured.
    displacement_std : numpy.ndarray, shape (2, *grid.shape)
        Standard deviation of its error in metres; infinite where nothing was measured.
    correlation_length : (float, float)
        How far errors are correlated along each axis, in metres: at a distance h, the correlation is about
        exp(-(h / length)^2). It is the overlap of windows that causes it.
    error_correlation : tuple of two numpy.ndarray
        The same in detail: the correlation along each axis at a distance of 0, 1, 2, ... nodes, zero beyond.
    correlation : numpy.ndarray, shape grid.shape
        Normalised cross-correlation of both frames in each window, 1 where they are equal; NaN where a window is empty.
    origin : (float, float)
        Position of the first node in the frame, in metres from the first sample of the first line.
    window : (float, float)
        Size of the windows in metres.
    kind : {"rf", "b-mode"}
        What the frames were taken for.
    """

    grid: Grid
    displacement: np.ndarray = field(repr=False)
    displacement_std: np.ndarray = field(repr=False)
    correlation_length: tuple[float, float]
    error_correlation: tuple[np.ndarray, np.ndarray] = field(repr=False)
    correlation: np.ndarray = field(repr=False)
    origin: tuple[float, float]
    window: tuple[float, float]
    kind: str

    @property
    def measured(self) -> np.ndarray:
        """Where the displacement was measured: bool, shape ``grid.shape``."""
        return np.isfinite(self.displacement_std).all(axis=0)

    def measurement(
        self,
        law: Law,
        load: Boundary | None = None,
        *,
        pressure: float | None = None,
        plate: bool = False,
        force_std: ArrayLike = 0.0,
    ) -> Measurement:
        """The measurement that `reconstruct` takes.

        Parameters
        ----------
        law : Law
            Material law, in two dimensions.
        load : Boundary, optional
            What is known about forces and supports. By default nothing is known at the edges: they are all open, and
            the modulus is determined up to a factor.
        pressure : float, optional
            Pressure on the top of the grid in pascals, which determines that factor. The other edges remain open, and
            so do lateral forces on the top.
        plate : bool, optional
            With a pressure: the grid is the whole body. Its bottom rests on a plate without friction and its sides are
            free, see `compression`. The displacement is taken relative to the bottom.
        force_std : float or array_like, optional
            See `Measurement`.

        Raises
        ------
        ValueError
            If a load is given together with a pressure, plate without a pressure, or the bottom was not measured.
        """
        if load is not None and (pressure is not None or plate):
            raise ValueError("give either load or pressure (and plate), not both")
        if plate and pressure is None:
            raise ValueError("plate goes with pressure (pascals): without a known force nothing is gained by it")
        u, std = self.displacement, self.displacement_std
        if plate:
            load = compression(self.grid, pressure=pressure)
            u = u - self._motion_of_bottom()[:, None, None]
        elif load is None:
            load = _open_edges(self.grid, pressure)
        return Measurement(self.grid, law, load, u, std, force_std, displacement_correlation=self.error_correlation)

    def _motion_of_bottom(self):
        """Mean displacement of the bottom row, of both components."""
        bottom = self.displacement[:, -1]
        if not self.measured[-1].any():
            raise ValueError("plate: nothing was measured on the bottom row of the grid")
        return np.nanmean(bottom, axis=1)


def _open_edges(grid, pressure) -> Boundary:
    """All edges open; with a pressure, the axial force on the top is known."""
    open_ = np.ones((2, *grid.shape), bool)
    open_[:, 1:-1, 1:-1] = False
    if pressure is None:
        return Boundary(open=open_)
    loaded = compression(grid, pressure=pressure)  # for its nodal forces, and its checks of the pressure
    force = np.zeros(open_.shape)
    force[0, 0, 1:-1] = loaded.force[0, 0, 1:-1]
    open_[0, 0, 1:-1] = False
    return Boundary(open=open_, force=force)
