"""Two generators of tissue for tests alone. They share no code with `phantoms`, from which networks are trained."""

from __future__ import annotations

import numpy as np

from ..geometry import Grid

__all__ = ["folds", "level_sets"]

Map = tuple[np.ndarray, np.ndarray]

# Chosen such that maps look like tissue; nothing was tuned on them.
LENGTHS = (0.06, 0.12)  # range of the length over which level sets change, over the shorter side
SHARES = (0.04, 0.2)  # range of the share of the area above the level
CONTRASTS = (2.0, 10.0)  # range of the modulus of lesions over the background's, log-uniform
HALO = 0.5  # share of maps in which a lower level encloses the lesions in tissue between the two moduli
LAYERS = ((3.0, 0.8), (0.6, 0.2), (1.0, 0.2), (1.5, 0.3))  # skin, fat, gland, muscle: median modulus, log-std
DEPTHS = (0.1, 0.35, 0.75)  # mean depths of the boundaries between them
FOLDS = (0.03, 0.08)  # range of the size of the folds


def level_sets(grid: Grid, seed: np.random.Generator, background: tuple[float, float] = (10e3, 15e3)) -> Map:
    """Lesions where a smooth Gaussian random field exceeds a level.

    The field is white noise filtered by Fourier transforms, with a spectrum of which the length is drawn, and falls off
    towards the sides.

    Parameters
    ----------
    grid : Grid
        Two-dimensional.
    seed : numpy.random.Generator
    background : (float, float), optional
        Range of the modulus of the background in pascals.

    Returns
    -------
    modulus, mask : numpy.ndarray, shape grid.shape
        Young's modulus in pascals, and True inside the lesions.
    """
    size = [n * h for n, h in zip(grid.shape, grid.spacing, strict=True)]
    length = seed.uniform(*LENGTHS) * min(size)
    k = np.meshgrid(
        *(2 * np.pi * np.fft.fftfreq(n, h) for n, h in zip(grid.shape, grid.spacing, strict=True)), indexing="ij"
    )
    spectrum = np.exp(-0.25 * (k[0] ** 2 + k[1] ** 2) * length**2)
    field = np.fft.ifft2(np.fft.fft2(seed.standard_normal(grid.shape)) * spectrum).real
    field = (field - field.mean()) / field.std()
    down, across = (np.sin(np.pi * (np.arange(n) + 0.5) / n) for n in grid.shape)
    field = field + 2.0 * np.sqrt(np.outer(down, across))
    share = seed.uniform(*SHARES)
    high = np.quantile(field, 1 - share)
    mask = field > high
    contrast = float(np.exp(seed.uniform(*np.log(CONTRASTS))))
    modulus = np.where(mask, contrast, 1.0)
    if seed.random() < HALO:
        modulus = np.where(~mask & (field > np.quantile(field, 1 - 2 * share)), np.sqrt(contrast), modulus)
    return seed.uniform(*background) * modulus, mask


def folds(grid: Grid, seed: np.random.Generator, background: tuple[float, float] = (10e3, 15e3)) -> Map:
    """Layers of skin, fat, gland and muscle whose boundaries are folded, with a stiff mass in the gland.

    Both coordinates are displaced by waves along the other one, one after the other, so that boundaries may overhang.

    Parameters
    ----------
    grid : Grid
        Two-dimensional.
    seed : numpy.random.Generator
    background : (float, float), optional
        Range of the modulus of the gland in pascals.

    Returns
    -------
    modulus, mask : numpy.ndarray, shape grid.shape
        Young's modulus in pascals, and True inside the mass.
    """
    y, x = np.indices(grid.shape) / (np.array(grid.shape)[:, None, None] - 1.0)
    mass_y, mass_x = y, x
    for frequency in (2, 5, 9):
        y = y + seed.uniform(*FOLDS) / np.sqrt(frequency) * np.sin(2 * np.pi * (frequency / 2 * x + seed.random()))
        x = x + seed.uniform(*FOLDS) / np.sqrt(frequency) * np.sin(2 * np.pi * (frequency / 2 * y + seed.random()))
    moduli = np.array([median * np.exp(std * seed.standard_normal()) for median, std in LAYERS])
    modulus = moduli[np.digitize(y, DEPTHS)] / moduli[2]
    place, radii, power = seed.uniform(0.4, 0.65, 2), seed.uniform(0.06, 0.16, 2), seed.uniform(1.6, 4.0)
    mask = np.abs((mass_y - place[0]) / radii[0]) ** power + np.abs((mass_x - place[1]) / radii[1]) ** power < 1
    modulus[mask] = np.exp(seed.uniform(*np.log(CONTRASTS)))
    return seed.uniform(*background) * modulus, mask
