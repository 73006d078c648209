"""Accuracy and time of tracking on simulated speckle, from frames to a map: the figures of docs/tracking.md.

    python benchmarks/tracking.py            # all rows, about a minute
    python benchmarks/tracking.py --seeds 5  # means over five pairs of frames

A body of 40 mm x 40 mm with an inclusion four times as stiff is compressed by 1 %; frames have 2078 samples at 40 MHz
on 256 lines, the pulse 5 MHz. Errors are those of nodes two or more from the edge of the grid and a window or more from
the boundary of the inclusion; "all" includes that boundary.
"""

import argparse
import time

import numpy as np
from scipy import signal
from scipy.interpolate import RegularGridInterpolator

import elastofast as ef
from elastofast.tracking import Scanner, simulate_frames

SCANNER = Scanner()
SIDE, RADIUS, STIFF, SOFT = 40e-3, 5e-3, 40e3, 10e3
BODY = ef.Grid((161, 161), (SIDE / 160, SIDE / 160))
LAW = ef.PlaneStress(0.495)
CASES = (  # snr in decibels, share of new echoes, brightness instead of radio frequency
    (30.0, 0.0, False),
    (20.0, 0.0, False),
    (20.0, 0.02, False),
    (20.0, 0.05, False),
    (10.0, 0.2, False),
    (20.0, 0.05, True),
)


def half_distance(error, axis, spacing):
    """Where the empirical correlation of an error is one half, in millimetres."""
    e = np.moveaxis(error - error.mean(), axis, 0)
    values = np.array([(e[: len(e) - k] * e[k:]).mean() for k in range(8)]) / (e**2).mean()
    k = int(np.argmax(values < 0.5))
    return 1e3 * spacing * np.interp(0.5, values[[k, k - 1]], [k, k - 1])


def brightness(frame):
    """Eight bits of logarithmic brightness over 60 dB."""
    envelope = np.abs(signal.hilbert(frame, axis=0))
    return np.clip(255 * (1 + np.log10(envelope / envelope.max()) / 3), 0, 255).astype(np.uint8)


def contrast(tracking):
    """Contrast of the inclusion in a map with all edges open, nodes half a window apart; its status and seconds."""
    start = time.perf_counter()
    result = ef.reconstruct(tracking.measurement(LAW), prior="tv")
    away = np.hypot(*(tracking.grid.points + tracking.origin - SIDE / 2).T).reshape(tracking.grid.shape)
    inside, around = away < RADIUS - 1e-3, (away > RADIUS + 1.5e-3) & (away < 2.4 * RADIUS)
    return result.modulus[inside].mean() / result.modulus[around].mean(), result.status, time.perf_counter() - start


def row(motion, u, snr, new, bright, seed):
    """Figures of one pair of frames."""
    a, b = simulate_frames(SCANNER, (BODY, u), snr=snr, decorrelation=new, seed=seed)
    if bright:
        a, b = brightness(a), brightness(b)
    start = time.perf_counter()
    tracking = ef.track(a, b, SCANNER.spacing, step=0.5e-3)
    seconds = time.perf_counter() - start
    points = tracking.grid.points + tracking.origin
    true = np.stack([part(points).reshape(tracking.grid.shape) for part in motion])
    inner = np.s_[:, 2:-2, 2:-2]
    error, std = (tracking.displacement - true)[inner], tracking.displacement_std[inner]
    away = np.hypot(*(points - SIDE / 2).T).reshape(tracking.grid.shape)[inner[1:]] - RADIUS
    good = tracking.measured[inner[1:]]
    everywhere = [1e6 * np.sqrt((e[good] ** 2).mean()) for e in error]
    good &= np.abs(away) > max(tracking.window)
    rms = np.array([np.sqrt((e[good] ** 2).mean()) for e in error])
    bound = SCANNER.bound(tracking.window, snr=snr, decorrelation=new)
    stated = [np.sqrt(((e / s)[good] ** 2).mean()) for e, s in zip(error, std, strict=True)]
    lengths = [
        np.mean([half_distance(z, axis, tracking.grid.spacing[axis]) for z in np.nan_to_num(error / std)])
        for axis in range(2)
    ]
    predicted = 1e3 * np.array(tracking.correlation_length) * np.sqrt(np.log(2))
    found, status, spent = contrast(ef.track(a, b, SCANNER.spacing))
    return [*(1e6 * rms), *everywhere, *(rms / bound), *stated, *(predicted / lengths), found, seconds, spent], status


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    seeds = range(parser.parse_args().seeds)
    modulus, _ = ef.inclusion(BODY, (SIDE / 2, SIDE / 2), RADIUS, modulus=STIFF, background=SOFT)
    u = ef.solve_forward(ef.ElasticForm(BODY, LAW), modulus, ef.compression(BODY, strain=0.01))
    axes = [h * np.arange(n) for n, h in zip(BODY.shape, BODY.spacing, strict=True)]
    motion = [RegularGridInterpolator(axes, c) for c in u]
    print(
        "kind    snr dB  new   error um: axial lateral   all            / bound      / stated     length stated/found  "
        "contrast   s  s map"
    )
    for snr, new, bright in CASES:
        rows, statuses = zip(*(row(motion, u, snr, new, bright, seed) for seed in seeds), strict=True)
        mean = np.mean(rows, axis=0)
        pairs = "  ".join(f"{mean[i]:8.3f} {mean[i + 1]:6.2f}" for i in range(0, 10, 2))
        print(
            f"{'B-mode' if bright else 'RF':<8}{snr:5.0f}{new:7.2f}  {pairs}  {mean[10]:12.2f} of {STIFF / SOFT:.0f}"
            f"  {mean[11]:4.1f} {mean[12]:5.1f}  {' '.join(sorted(set(statuses)))}",
            flush=True,
        )


if __name__ == "__main__":
    main()
