"""The demo with many seeds: how many of its maps end with another status than "converged", or do not explain the data.

Each seed is another lesion and another noise. The measurement and the methods are those of ``elastofast demo``.

Usage: ``python benchmarks/seeds.py [--seeds 100] [--size 256] [--priors tv critic ...]``. The exit status is 1 if there
is a bad map.
"""

import argparse
import sys
import time
from collections import Counter

import numpy as np

import elastofast as ef
from elastofast.cli.demo import methods, scan
from elastofast.result import CHI2_RANGE


def main():
    """Print a table with a row for each method, and every bad map."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=100, help="how many, counted from 0")
    parser.add_argument("--size", type=int, default=256, help="nodes along each side")
    parser.add_argument("--snr", type=float, default=35.0, help="decibels")
    parser.add_argument("--priors", nargs="+", help="only these (default: all of the demo, with both gradients)")
    options = parser.parse_args()
    rows = methods()
    if options.priors:
        rows = [(gradient, prior) for gradient, prior in rows if prior in options.priors and gradient == "exact"]
    statuses = {row: Counter() for row in rows}
    chi2, seconds = ({row: [] for row in rows} for _ in range(2))
    bad = 0
    for seed in range(options.seeds):
        m, _ = scan(options.size, seed, options.snr)
        for gradient, prior in rows:
            begun = time.process_time()
            result = ef.reconstruct(m, prior=prior, gradient=gradient)
            seconds[gradient, prior].append(time.process_time() - begun)
            statuses[gradient, prior][result.status] += 1
            chi2[gradient, prior].append(result.chi2)
            if result.status != "converged" or not CHI2_RANGE[0] < result.chi2 < CHI2_RANGE[1]:
                bad += 1
                print(f"seed {seed}, {prior}, {gradient}: {result!r}: {result.message}", file=sys.stderr, flush=True)
    print(f"{options.seeds} seeds, {options.size} x {options.size} nodes, {options.snr:g} dB\n")
    print("| prior | gradient | status | chi2, least to greatest | seconds, mean |\n|---|---|---|---|---|")
    for gradient, prior in rows:
        own = (gradient, prior)
        found = ", ".join(f"{count} {status}" for status, count in statuses[own].most_common())
        span = f"{min(chi2[own]):.3f} to {max(chi2[own]):.3f}"
        print(f"| {prior} | {gradient} | {found} | {span} | {np.mean(seconds[own]):.2f} |")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
