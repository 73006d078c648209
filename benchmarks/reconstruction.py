"""Reconstruction with total variation: ``OMP_NUM_THREADS=2 python benchmarks/reconstruction.py``.

Time, memory and error with the automatic weight, the error over fixed weights around it (the truth judges,
it never chooses), and the exact against the frozen gradient over several phantoms.
"""

import argparse
import resource
import time

import numpy as np
from side_by_side import print_table, save

import elastofast as ef


def main():
    """Run the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--snr", type=float, default=35.0)
    parser.add_argument("--law", choices=("PlaneStress", "PlaneStrain"), default="PlaneStress")
    parser.add_argument("--factors", type=float, nargs="*", default=[0.25, 0.5, 2, 4], help="of the weight")
    parser.add_argument("--phantoms", type=int, default=0, help="number of phantoms, exact against frozen")
    parser.add_argument("--phantom-size", type=int, default=65)
    options = parser.parse_args()
    m, mask = measurement(options.size, options.law, options.snr, seed=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    auto, row = run(m, mask, prior="tv")
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    row = {"weight": f"auto: {auto.weight:.3g}", **row}
    others = [
        {"weight": f"{factor:g} x auto", **run(m, mask, prior="tv", weight=factor * auto.weight)[1]}
        for factor in options.factors
    ]
    tables = {"weights": [row, *others], "peak MB": peak, "grid": options.size, "law": options.law}
    print(f"{options.size} x {options.size} nodes, {options.law}, {options.snr:g} dB")
    print_table([*row], [[*r.values()] for r in tables["weights"]])
    print(f"\npeak memory of the first: {peak:.0f} MB more than before")
    if options.phantoms:
        rows = [phantom(seed, options) for seed in range(options.phantoms)]
        print_table([*rows[0]], [[*r.values()] for r in rows])
        exact, frozen = (np.array([r[f"{g} error"] for r in rows]) for g in ("exact", "frozen"))
        print(f"\nmean {exact.mean():.4f} exact, {frozen.mean():.4f} frozen")
        print(f"exact better in {(exact < frozen).sum()} of {len(rows)}")
        tables["phantoms"] = rows
    save("reconstruction", tables)


def measurement(n, law, snr, seed):
    """A lesion phantom in a 40 mm square under 100 Pa, as `elastofast demo` makes it."""
    grid = ef.Grid((n, n), (40e-3 / (n - 1),) * 2)
    truth, mask = ef.lesion(grid, seed=seed, kind="random", size=(0.2, 0.3))
    load = ef.compression(grid, pressure=100.0)
    return ef.simulate(grid, getattr(ef, law)(0.495), load, truth, snr=snr, seed=seed), mask


def run(m, mask, **how):
    """One reconstruction and what to say about it."""
    start = time.perf_counter()
    result = ef.reconstruct(m, **how)
    seconds = time.perf_counter() - start
    e = ef.metrics.evaluate(result.modulus, m.reference, m.geometry, mask=mask)
    return result, {
        "seconds": seconds,
        "status": result.status,
        "chi2": result.chi2,
        "error": e["relative_l2"],
        "contrast error": e["contrast_ratio_error"],
        "SSIM": e["ssim"],
    }


def phantom(seed, options):
    """Exact against frozen, both with total variation and the automatic weight."""
    m, mask = measurement(options.phantom_size, options.law, options.snr, seed)
    row = {"phantom": seed}
    for gradient in ("exact", "frozen"):
        _, one = run(m, mask, prior="tv", gradient=gradient)
        row |= {f"{gradient} error": one["error"], f"{gradient} seconds": one["seconds"]}
    return row


if __name__ == "__main__":
    main()
