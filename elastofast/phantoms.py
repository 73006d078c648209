"""Stiffness phantoms: breast-lesion-like maps and plain inclusions, on grids and meshes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from .geometry import Grid, Mesh

Range = tuple[float, float]
Seed = int | np.random.Generator

KINDS = ("oval", "lobulated", "spiculated")

# The shapes of lesions imitate the margin descriptors of the ACR BI-RADS lexicon for ultrasound. The numbers here and
# in `_margin` are plausible ones; no study repeats the choice.
TEXTURE_LENGTH, VARIATION_LENGTH = 0.04, 0.2  # correlation lengths of the smooth fields, as fractions of the width
LARGEST = 0.8  # of the diameter of a lesion, as a fraction of the width: larger ones reach the sides
SMALLEST = 3  # of the diameter of a lesion, in node distances
CLEARANCE = 1.1  # distances of a lesion from the sides and from other lesions, over what touching would mean
PLACES = 200  # places that are tried for a lesion
ATTEMPTS = 100  # whole phantoms that are tried by `retried`
WAVES = 256  # plane waves in a smooth field
ANGLES = np.linspace(0, 2 * np.pi, 720, endpoint=False)  # at which a margin is described

# What `tissue` draws, uniformly (contrasts: their logarithms). Breast, thyroid and liver have stiff lesions of 2 to 10
# times the background; cysts, fat and calcifications are the extremes. The shares are plausible ones, not studied.
TISSUE: dict[str, Range] = {
    "contrast": (1.5, 8.0),  # of most lesions, stiffer than what surrounds them
    "extreme": (8.0, 100.0),  # of stiff ones
    "soft": (0.05, 0.67),  # of soft ones
    "size": (0.06, 0.4),  # diameter of a lesion over the shorter side
    "inner": (0.3, 0.6),  # diameter of a lesion inside another, over that of the other
    "edge": (2.0, 6.0),  # width of soft edges in node distances
    "layers": (1.0, 3.0),  # ratio of the moduli of layers and fibres
    "fibres": (4.0, 14.0),  # bands over the longer side
    "variation": (0.01, 0.2),  # relative standard deviation of the slow variation
    "texture": (0.01, 0.2),  # relative standard deviation of the texture
}
PATTERNS = (0.6, 0.2, 0.2)  # shares of even backgrounds, layers and fibres
CONTRASTS = (0.6, 0.2, 0.2)  # shares of usual, extreme and soft lesions
EDGES = (0.4, 0.3, 0.3)  # shares of sharp edges, edges one node wide, and soft ones
LESIONS = (0.15, 0.5, 0.25, 0.1)  # shares of maps with 0, 1, 2 and 3 lesions that do not touch
NESTED = 0.25  # share of lesions that contain another
VARIED, TEXTURED = 0.3, 0.3  # shares of maps with a slow variation and with a texture


class NoRoomError(ValueError):
    """The lesions do not fit into the body."""


Made = TypeVar("Made")


def retried(make: Callable[[], Made]) -> Made:
    """What ``make()`` returns, called again where random lesions happen not to fit into the body.

    Raises
    ------
    NoRoomError
        If none of `ATTEMPTS` calls succeeds.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return make()
        except NoRoomError:  # large lesions side by side, or a long one
            continue
    return make()


def lesion(
    geometry: Grid | Mesh,
    *,
    seed: Seed = 0,
    kind: str = "lobulated",
    background: Range = (10e3, 15e3),
    lesion: Range = (30e3, 80e3),
    n_lesions: int = 1,
    size: Range = (0.05, 0.35),
    edge: float = 0.0,
    texture: float = 0.0,
    variation: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Homogeneous background with stiff lesions of random position, size, shape and stiffness.

    The default moduli are those of the breast data of Mohammadi, Doyley and Cetin (10-15 and 30-80 kPa).

    Parameters
    ----------
    geometry : Grid or Mesh
        Two-dimensional. Lateral is axis 1 of a `Grid` and coordinate 0 of a `Mesh`.
    seed : int or numpy.random.Generator, optional
        The same seed gives the same phantom.
    kind : {"oval", "lobulated", "spiculated", "random"}, optional
        Smooth ellipse, ellipse with a few bulges, or a core with many narrow spikes (the margin descriptors
        of the ACR BI-RADS lexicon for ultrasound); "random" draws one of them for each lesion.
    background, lesion : (float, float), optional
        Ranges of Young's modulus in pascals, from which each value is drawn uniformly.
    n_lesions : int, optional
        How many lesions; they do not touch one another.
    size : (float, float), optional
        Range of the diameter of a lesion (of the circle of equal area), as a fraction of the lateral width of the
        body; a lesion is at least three node distances wide.
    edge : float, optional
        Width of the transition at the margin in node distances; 0 is a sharp edge.
    texture : float, optional
        Relative standard deviation of a smooth log-normal variation over the whole map, 0 for none.
    variation : float, optional
        Relative standard deviation of a slower variation of the background alone.

    Returns
    -------
    modulus : numpy.ndarray, shape geometry.node_shape
        Young's modulus in pascals.
    lesion_mask : numpy.ndarray of bool, shape geometry.node_shape
        Nodes inside a lesion's nominal margin.

    Raises
    ------
    ValueError
        If an argument is out of range or the lesions do not fit into the body (`NoRoomError`).
    """
    lateral, axial = _axes(geometry)
    _check_values(background, lesion, edge, texture, variation)
    _check_lesions(geometry, kind, size, n_lesions)

    rng = np.random.default_rng(seed)
    points = np.stack([geometry.points[:, lateral], geometry.points[:, axial]])
    low, high = points.min(axis=1), points.max(axis=1)
    step = np.sqrt(geometry.node_weights.mean())
    outside = rng.uniform(*background)
    inside, share = np.zeros((2, geometry.n_nodes))
    mask = np.zeros(geometry.n_nodes, dtype=bool)
    placed: list[tuple[np.ndarray, float]] = []
    for _ in range(int(n_lesions)):
        radius = 0.5 * max(rng.uniform(*size) * (high[0] - low[0]), SMALLEST * step)
        margin = _margin(rng, KINDS[rng.integers(len(KINDS))] if kind == "random" else kind) * radius
        center = _place(rng, margin.max(), low, high, placed)
        depth = _depth(points, center, margin)
        blend = _blend(depth, edge * step)
        inside += blend * rng.uniform(*lesion)
        share += blend
        mask |= depth > 0
        placed.append((center, margin.max()))
    modulus = inside + (1 - share) * outside * _log_normal(rng, geometry, variation, VARIATION_LENGTH)
    modulus *= _log_normal(rng, geometry, texture, TEXTURE_LENGTH)
    return modulus.reshape(geometry.node_shape), mask.reshape(geometry.node_shape)


def tissue(
    geometry: Grid | Mesh, *, seed: Seed = 0, background: Range = (10e3, 15e3), **ranges: Range
) -> tuple[np.ndarray, np.ndarray]:
    """A map of many kinds of tissue: layers or fibres, slow variation, texture, and up to three lesions or none.

    Lesions are stiffer or softer than what surrounds them, may contain another lesion, and have sharp edges, edges one
    node wide (as area-weighting makes them) or soft ones.

    Parameters
    ----------
    geometry : Grid or Mesh
        Two-dimensional.
    seed : int or numpy.random.Generator, optional
        The same seed gives the same map.
    background : (float, float), optional
        Range of the mean modulus of the background in pascals.
    **ranges : (float, float), optional
        Other ranges than those of `TISSUE`, by its names.

    Returns
    -------
    modulus : numpy.ndarray, shape geometry.node_shape
        Young's modulus in pascals.
    lesion_mask : numpy.ndarray of bool, shape geometry.node_shape
        Nodes inside a lesion's nominal margin.

    Raises
    ------
    ValueError
        If a range is unknown or out of range.
    """
    if unknown := ranges.keys() - TISSUE.keys():
        raise ValueError(f"ranges must be among {', '.join(TISSUE)}, got {sorted(unknown)[0]!r}")
    _check_range("background", background, "pascals")
    drawn: dict[str, Any] = TISSUE | ranges
    for name, pair in drawn.items():
        _check_range(name, pair, "see TISSUE")
    rng = np.random.default_rng(seed)
    return retried(lambda: _tissue(geometry, rng, background, drawn))


def _tissue(geometry, rng, background, ranges):
    """See `tissue`."""
    lateral, axial = _axes(geometry)
    points = np.stack([geometry.points[:, lateral], geometry.points[:, axial]])
    low, high = points.min(axis=1), points.max(axis=1)
    step, width = np.sqrt(geometry.node_weights.mean()), min(high - low)
    pattern = rng.choice([_even, _layers, _fibres], p=PATTERNS)
    modulus = rng.uniform(*background) * pattern(points, rng, ranges)
    if rng.random() < VARIED:
        modulus = modulus * _log_normal(rng, geometry, rng.uniform(*ranges["variation"]), VARIATION_LENGTH)
    mask = np.zeros(geometry.n_nodes, dtype=bool)
    placed: list[tuple[np.ndarray, float]] = []

    def add(radius, center=None):
        margin = _margin(rng, KINDS[rng.integers(len(KINDS))]) * radius
        center = _place(rng, margin.max(), low, high, placed) if center is None else center
        placed.append((center, margin.max()))
        depth = _depth(points, center, margin)
        at = np.argmin(((points - center[:, None]) ** 2).sum(axis=0))
        edge = rng.choice([0.0, 1.0, rng.uniform(*ranges["edge"])], p=EDGES)
        blend = _blend(depth, edge * step)
        mask[depth > 0] = True
        return center, (1 - blend) * modulus + blend * modulus[at] * _contrast(rng, ranges)

    for _ in range(rng.choice(len(LESIONS), p=LESIONS)):
        radius = 0.5 * max(rng.uniform(*ranges["size"]) * width, SMALLEST * step)
        center, modulus = add(radius)
        inner = radius * rng.uniform(*ranges["inner"])
        if rng.random() < NESTED and inner > SMALLEST * step / 2:
            turn = rng.uniform(0, 2 * np.pi)
            _, modulus = add(inner, center + 0.3 * radius * np.array([np.cos(turn), np.sin(turn)]))
    if rng.random() < TEXTURED:
        modulus = modulus * _log_normal(rng, geometry, rng.uniform(*ranges["texture"]), TEXTURE_LENGTH)
    return modulus.reshape(geometry.node_shape), mask.reshape(geometry.node_shape)


def _contrast(rng, ranges):
    """Modulus of a lesion over that of what surrounds it."""
    return np.exp(rng.uniform(*np.log(ranges[rng.choice(["contrast", "extreme", "soft"], p=CONTRASTS)])))


def _even(points, rng, ranges):
    """No pattern."""
    return np.ones(points.shape[1])


def _layers(points, rng, ranges):
    """Two to five layers with wavy boundaries across the axial direction, as skin, fat, gland and muscle have them."""
    x, y = (points - points.min(axis=1)[:, None]) / np.ptp(points, axis=1)[:, None]
    count = int(rng.integers(2, 6))
    waves = rng.integers(1, 5, 2)
    lift = sum(rng.uniform(0, 0.03) * np.sin(np.pi * k * x + rng.uniform(0, 2 * np.pi)) for k in waves)
    depths = np.sort(rng.uniform(0.05, 0.95, count - 1))
    values = np.exp(rng.uniform(-0.5, 0.5, count) * np.log(ranges["layers"][1]))
    return values[np.searchsorted(depths, y + lift)]


def _fibres(points, rng, ranges):
    """Bands of two moduli that run across the body in one direction, bent by slow waves."""
    x, y = (points - points.min(axis=1)[:, None]) / np.ptp(points, axis=1).max()
    turn = rng.uniform(0, np.pi)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    for _ in range(2):
        across = across + rng.uniform(0, 0.06) * np.sin(rng.uniform(3, 12) * along + rng.uniform(0, 2 * np.pi))
    wave = np.sin(2 * np.pi * rng.uniform(*ranges["fibres"]) * across) - rng.uniform(-0.6, 0.6)
    ratio = np.exp(rng.uniform(0.2, 1.0) * np.log(ranges["layers"][1]))
    return np.where(wave > 0, np.sqrt(ratio), 1 / np.sqrt(ratio))


def from_mask(
    grid: Grid,
    mask: np.ndarray,
    *,
    seed: Seed = 0,
    background: Range = (10e3, 15e3),
    lesion: Range = (30e3, 80e3),
    edge: float = 0.0,
    texture: float = 0.0,
    variation: float = 0.0,
) -> np.ndarray:
    """Modulus map of a given lesion mask, in which every connected piece has a modulus of its own.

    Parameters
    ----------
    grid : Grid
    mask : numpy.ndarray of bool, shape grid.shape
        Lesion nodes.
    seed, background, lesion, edge, texture, variation
        As for `lesion`.

    Returns
    -------
    modulus : numpy.ndarray, shape grid.shape
        Young's modulus in pascals.

    Raises
    ------
    ValueError
        If an argument is out of range or of the wrong shape.
    """
    from scipy.ndimage import distance_transform_edt, label

    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != grid.shape:
        raise ValueError(f"mask must be bool of shape {grid.shape}, got {mask.dtype} of shape {mask.shape}")
    _check_values(background, lesion, edge, texture, variation)
    rng = np.random.default_rng(seed)
    step = np.sqrt(np.prod(grid.spacing))
    outside = rng.uniform(*background)
    inside, share = np.zeros((2, *grid.shape))
    labels, count = label(mask, structure=np.ones((3, 3)))
    for k in range(1, count + 1):
        piece = labels == k
        # distances to the nearest node on the other side of the margin, which is half a node distance before that node
        near, far = (distance_transform_edt(side, sampling=grid.spacing) for side in (piece, ~piece))
        blend = _blend(np.where(piece, near - step / 2, step / 2 - far), edge * step)
        inside += blend * rng.uniform(*lesion)
        share += blend
    varied, textured = (
        _log_normal(rng, grid, std, length).reshape(grid.shape)
        for std, length in ((variation, VARIATION_LENGTH), (texture, TEXTURE_LENGTH))
    )
    return (inside + (1 - share) * outside * varied) * textured


def inclusion(
    geometry: Grid | Mesh, center: ArrayLike, radius: float, modulus: float, background: float
) -> tuple[np.ndarray, np.ndarray]:
    """Circular (spherical) inclusion in a homogeneous body.

    Parameters
    ----------
    geometry : Grid or Mesh
    center : array_like of float, shape (d,)
        Its centre in metres, in the order of the geometry's coordinates.
    radius : float
        Metres.
    modulus, background : float
        Young's modulus inside and outside, pascals.

    Returns
    -------
    modulus : numpy.ndarray, shape geometry.node_shape
        Pascals.
    mask : numpy.ndarray of bool, shape geometry.node_shape
        Nodes inside.

    Raises
    ------
    ValueError
        If an argument is out of range or the inclusion holds no node.
    """
    _axes(geometry)
    center = np.asarray(center, dtype=np.float64)
    if center.shape != (geometry.dim,) or not np.isfinite(center).all():
        raise ValueError(f"center must hold {geometry.dim} finite coordinates (metres), got {center}")
    for name, value in (("radius", radius), ("modulus", modulus), ("background", background)):
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    mask = np.linalg.norm(geometry.points - center, axis=1) <= radius
    if not mask.any():
        raise ValueError(f"the inclusion at center {center} with radius {radius} m holds no node of the geometry")
    mask = mask.reshape(geometry.node_shape)
    return np.where(mask, float(modulus), float(background)), mask


def _axes(geometry) -> tuple[int, int]:
    """Numbers of the lateral and the axial coordinate."""
    if not isinstance(geometry, Grid | Mesh):
        raise TypeError(f"geometry must be a Grid or a Mesh, got {type(geometry).__name__}")
    return (1 if geometry.axial == 0 else 0), geometry.axial


def _check_values(background, lesion, edge, texture, variation):
    for name, pair in (("background", background), ("lesion", lesion)):
        _check_range(name, pair, "pascals")
    for name, value in (("edge", edge), ("texture", texture), ("variation", variation)):
        if not (np.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be zero or more and finite, got {value}")


def _check_range(name, pair, unit):
    pair = np.asarray(pair, dtype=np.float64)
    if pair.shape != (2,) or not np.isfinite(pair).all() or not 0 < pair[0] <= pair[1]:
        raise ValueError(f"{name} must be a pair (low, high) with 0 < low <= high ({unit}), got {pair.tolist()}")


def _check_lesions(geometry, kind, size, n_lesions):
    if geometry.dim != 2:
        raise ValueError(f"geometry must be two-dimensional, got {geometry.dim} dimensions")
    if kind not in (*KINDS, "random"):
        raise ValueError(f"kind must be one of {', '.join(KINDS)} or random, got {kind!r}")
    _check_range("size", size, "fractions of the width")
    if size[1] > LARGEST:
        raise ValueError(f"size must not exceed {LARGEST} of the width, got {size}")
    if n_lesions != int(n_lesions) or n_lesions < 0:
        raise ValueError(f"n_lesions must be a whole number, zero or more, got {n_lesions}")


def _margin(rng, kind) -> np.ndarray:
    """Distance of the margin from the centre at `ANGLES`, scaled such that it encloses the area pi."""
    # an ellipse that is wider than tall and tilted by up to pi / 8
    aspect = rng.uniform(1.0, 1.25 if kind == "spiculated" else 1.6)
    t = ANGLES - rng.uniform(-np.pi / 8, np.pi / 8)
    r = 1 / np.hypot(np.cos(t) / aspect, np.sin(t))
    if kind == "lobulated":  # bulges of 2 to 5 periods, together 15 to 25 % of the radius high
        bulges = sum(rng.uniform(0.3, 1.0) / k * np.cos(k * (ANGLES - rng.uniform(0, 2 * np.pi))) for k in (2, 3, 4, 5))
        r *= 1 + rng.uniform(0.15, 0.25) * bulges / np.abs(bulges).max()
    elif kind == "spiculated":  # 9 to 15 spikes, 25 to 70 % of the tilted ellipse's minor radius long
        count = int(rng.integers(9, 16))
        for k in range(count):
            at = 2 * np.pi * (k + rng.uniform(-0.3, 0.3)) / count
            away = np.angle(np.exp(1j * (ANGLES - at)))
            r += rng.uniform(0.25, 0.7) * np.exp(-np.abs(away) / rng.uniform(0.06, 0.12))
    return r / np.sqrt(np.mean(r**2))


def _place(rng, reach, low, high, placed) -> np.ndarray:
    """Centre of a lesion that reaches so far, inside the body and away from the others."""
    low, high = low + CLEARANCE * reach, high - CLEARANCE * reach
    if (low <= high).all():
        for _ in range(PLACES):
            center = rng.uniform(low, high)
            if all(np.hypot(*(center - c)) > CLEARANCE * (reach + r) for c, r in placed):
                return center
    raise NoRoomError(f"lesion number {len(placed) + 1} does not fit into the body; use a smaller size or n_lesions")


def _depth(points, center, margin) -> np.ndarray:
    """Distance of each point from the margin along the radius, in metres, negative outside."""
    x, y = points - center[:, None]
    return np.interp(np.arctan2(y, x), ANGLES, margin, period=2 * np.pi) - np.hypot(x, y)


def _blend(inside, width) -> np.ndarray:
    """Share of the lesion in the modulus at a depth inside the margin: a step, smoothed over a width (metres)."""
    if width == 0:
        return (inside > 0).astype(float)
    t = np.clip(0.5 + inside / width, 0, 1)
    return t * t * (3 - 2 * t)


def _log_normal(rng, geometry, std, length) -> np.ndarray:
    """Smooth random factor with mean 1 and a relative standard deviation, shape (N,).

    ``length`` is the correlation length of the logarithm as a fraction of the lateral width.
    """
    if std == 0:
        return np.ones(geometry.n_nodes)
    sigma = np.sqrt(np.log1p(std**2))  # standard deviation of the logarithm
    width = np.ptp(geometry.points[:, _axes(geometry)[0]])
    return np.exp(sigma * _smooth_field(rng, geometry, length * width) - sigma**2 / 2)


def _smooth_field(rng, geometry, length) -> np.ndarray:
    """Gaussian field of zero mean, unit variance and correlation exp(-r^2 / (2 length^2)), shape (N,).

    It is a sum of plane waves of random direction and phase (Rahimi and Recht, NIPS 2007), which can be evaluated at
    any points. On a grid each wave is a product of two factors, so the sum is a matrix product.
    """
    k = rng.normal(0, 1 / length, (WAVES, 2))
    phase = rng.uniform(0, 2 * np.pi, WAVES)
    if isinstance(geometry, Grid):
        axes = [h * np.arange(n) for n, h in zip(geometry.shape, geometry.spacing, strict=True)]
        down, across = (
            np.exp(1j * (np.outer(axes[0], k[:, 0]) + phase)),
            np.exp(1j * np.outer(k[:, 1], axes[1])),
        )
        field = (down.real @ across.real - down.imag @ across.imag).ravel()
    else:
        field = sum(np.cos(geometry.points @ kn + p) for kn, p in zip(k, phase, strict=True))
    return np.sqrt(2 / WAVES) * field
