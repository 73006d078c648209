"""Simulated measurements of a body of known modulus: forward solution plus noise of a stated level."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from .backend.device import to_host

if TYPE_CHECKING:
    from .boundary import Boundary
    from .geometry import Grid, Mesh
    from .laws import Law
    from .measurement import Measurement

NOISES = ("white", "relative")
LATERAL_NOISE = 1.7  # relative noise of the other components over that of the axial one, as in the comp-elast data


def simulate(
    geometry: Grid | Mesh,
    law: Law,
    load: Boundary,
    modulus: ArrayLike,
    snr: float = 35.0,
    noise: str = "white",
    seed: int | np.random.Generator = 0,
    force_std: ArrayLike = 0.0,
) -> Measurement:
    """Simulate the measurement of a body of known modulus.

    Parameters
    ----------
    geometry : Grid or Mesh
    law : Law
    load : Boundary
    modulus : array_like of float, shape geometry.node_shape
        Young's modulus in pascals, which becomes the ``reference`` of the measurement.
    snr : float, optional
        Signal-to-noise ratio of the displacement in decibels, see `add_noise`.
    noise : {"white", "relative"}, optional
        Noise model, see `add_noise`.
    seed : int or numpy.random.Generator, optional
        The same seed gives the same noise.
    force_std : float or array_like of shape (d, *geometry.node_shape), optional
        Standard deviation of the difference between the true and the stated force on loaded dofs, in newtons (2-D: per
        metre of thickness).

    Returns
    -------
    Measurement
        Its ``displacement_std`` is the true standard deviation of the noise.

    Raises
    ------
    ValueError
        If the modulus is not positive or an argument is out of range.

    Examples
    --------
    >>> import elastofast as ef
    >>> grid = ef.Grid(shape=(33, 33), spacing=(1e-3, 1e-3))
    >>> load = ef.compression(grid, pressure=100.0)
    >>> x, mask = ef.inclusion(grid, (16e-3, 16e-3), 5e-3, modulus=50e3, background=10e3)
    >>> m = ef.simulate(grid, ef.PlaneStress(0.495), load, x, snr=35.0)  # doctest: +SKIP
    """
    from .boundary import Boundary
    from .forward.form import ElasticForm
    from .forward.solve import solve_forward
    from .measurement import Measurement

    rng = np.random.default_rng(seed)
    applied = load
    if np.any(force_std):
        error = rng.normal(size=load.force.shape) * np.asarray(force_std)
        applied = Boundary(
            fixed=load.fixed,
            displacement=load.displacement,
            force=np.where(load.loaded, load.force - error, 0.0),
            open=load.open,
        )
    u = solve_forward(ElasticForm(geometry, law), modulus, applied)
    noisy, std = add_noise(u, snr, noise, seed=rng, axial=geometry.axial, fixed=load.fixed)
    return Measurement(geometry, law, load, noisy, std, force_std=force_std, reference=modulus)


def add_noise(
    displacement: ArrayLike,
    snr: float = 35.0,
    noise: str = "white",
    *,
    seed: int | np.random.Generator = 0,
    axial: int = 0,
    fixed: ArrayLike | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Add noise to a displacement field at a stated signal-to-noise ratio.

    The ratio is ``snr = 10 log10(||u||^2 / E||n||^2)``, where the norms are over all components and nodes together.

    Parameters
    ----------
    displacement : numpy.ndarray, shape (d, ...)
        Clean displacement u in metres.
    snr : float, optional
        Decibels.
    noise : {"white", "relative"}, optional
        "white": all components and nodes have the same standard deviation. "relative": the noise of the comp-elast data
        (Mohammadi, Doyley and Cetin), N(0, (c |u|)^2) + N(0, (c range u)^2) for the axial component u, and with 1.7 c
        for each other component, its own values and its own range; c follows from the ratio.
    seed : int or numpy.random.Generator, optional
    axial : int, optional
        Which component is axial.
    fixed : numpy.ndarray of bool, shape of displacement, optional
        Dofs whose displacement is known exactly, so that no noise is added.

    Returns
    -------
    noisy : numpy.ndarray, shape of displacement
    std : numpy.ndarray, shape of displacement
        The standard deviation of the noise in metres; on fixed dofs the one that it would have had.

    Raises
    ------
    ValueError
        If the ratio is not finite, the model is unknown, or the field is zero.
    """
    if noise not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)}, got {noise!r}")
    if not np.isfinite(snr):
        raise ValueError(f"snr must be finite (decibels), got {snr}")
    u = np.asarray(to_host(displacement), dtype=np.float64)
    free = np.ones(u.shape, dtype=bool) if fixed is None else ~np.asarray(fixed)
    std = np.ones(u.shape)
    if noise == "relative":
        for i, component in enumerate(u):
            std[i] = np.hypot(component, np.ptp(component)) * (1.0 if i == axial else LATERAL_NOISE)
    energy = np.sum(std[free] ** 2)
    signal = np.sum(u**2)
    if not (signal > 0 and energy > 0):
        raise ValueError("displacement is zero, so no noise level follows from a signal-to-noise ratio")
    std *= np.sqrt(signal / energy) * 10 ** (-snr / 20)
    if not (std[free] > 0).all():
        raise ValueError(
            "relative noise needs displacement in every component, one is zero everywhere; use noise='white'"
        )
    n = np.random.default_rng(seed).normal(size=u.shape) * std
    return u + np.where(free, n, 0.0), std
