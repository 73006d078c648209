"""How well noise that nobody stated is estimated, and what that does to the map.

A disc of contrast 4; data from a grid twice as fine; noise that is independent, or blurred by a Gaussian over some
nodes, whose correlation length is twice its width. Usage: ``python benchmarks/noise_estimate.py [NODES] [DRAWS]``.
"""

import sys
import warnings

import numpy as np
from scipy.ndimage import gaussian_filter

import elastofast as ef

SIDE, RADIUS, LAW = 38.4e-3, 6e-3, ef.PlaneStress(0.495)
CASES = [(25, 0.0), (35, 0.0), (45, 0.0), (35, 0.75), (35, 1.5), (35, 2.5), (35, 5.0)]  # dB, width of the blur in nodes


def disc(grid):
    """The modulus in pascals."""
    distance = np.hypot(*(grid.points.T - SIDE / 2)).reshape(grid.shape)
    return np.where(distance < RADIUS, 4e4, 1e4)


def error(result, truth):
    """Relative error in the 2-norm."""
    return np.linalg.norm(result.modulus - truth) / np.linalg.norm(truth)


def main(nodes=65, draws=3):
    """Print a line for each case and draw."""
    grid, fine = (ef.Grid((n, n), (SIDE / (n - 1),) * 2) for n in (nodes, 2 * nodes - 1))
    truth, load, h = disc(grid), ef.compression(grid, pressure=100.0), grid.spacing[0]
    clean = ef.solve_forward(ef.ElasticForm(fine, LAW), disc(fine), ef.compression(fine, pressure=100.0))[:, ::2, ::2]
    print("  dB  blur  draw   std / true     length / true   error: estimated  stated")
    for snr, width in CASES:
        std = np.sqrt(np.mean(clean**2)) * 10 ** (-snr / 20)
        for draw in range(draws):
            noise = np.random.default_rng(draw).standard_normal(clean.shape)
            if width:
                noise = np.stack([gaussian_filter(field, width, mode="wrap") for field in noise])
            u = np.where(load.fixed, 0.0, clean + noise * std / noise.std())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = ef.reconstruct(ef.Measurement(grid, LAW, load, u), prior="tv")
            m = ef.Measurement(grid, LAW, load, u, std, displacement_correlation=2 * width * h or None)
            stated = ef.reconstruct(m, prior="tv")
            lengths = [c / (2 * width * h) if width else c for c in found.noise.correlation_length]
            print(
                f"{snr:4d}  {width:4.2f}  {draw:4d}   {' '.join(f'{s / std:5.3f}' for s in found.noise.std)}   "
                f"{' '.join(f'{c:5.3f}' for c in lengths)}       {error(found, truth):.3f}      "
                f"{error(stated, truth):.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
