"""Reconstruction with the learned priors beside `elastofast compare`: ``python benchmarks/learned.py maps.h5``.

Whether the map depends on the start (test maps of a data set; homogeneous as by default, the unregularised map, and a
random one), and a map of 512 x 512 nodes, which the networks have never seen.
"""

import argparse
import time

import numpy as np
from reconstruction import measurement
from side_by_side import print_table, save

import elastofast as ef
from elastofast.learning.dataset import Dataset


def main():
    """Run the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="data set by elastofast dataset; its test maps are used")
    parser.add_argument("--count", type=int, default=6, help="of test maps for the starts")
    parser.add_argument("--size", type=int, default=512, help="0: no large maps")
    parser.add_argument("--large", type=int, default=2, help="number of large maps")
    parser.add_argument("--priors", nargs="*", default=["tv", "unet", "pnp", "critic"])
    options = parser.parse_args()
    tables = {"starts": starts(options.data, options.count)}
    print_table([*tables["starts"][0]], [[*row.values()] for row in tables["starts"]])
    if options.size:
        tables["large"] = large(options.size, options.large, options.priors)
        print_table([*tables["large"][0]], [[*row.values()] for row in tables["large"]])
    save("learned", tables)


def starts(path, count):
    """Distance between the critic's maps from different starts, relative to the first."""
    rows = []
    with Dataset.open(path) as data:
        for i in data.indices("test")[:count]:
            m, truth = data.measurement(i), data.modulus(i).astype(float)
            rough = np.random.default_rng(int(i)).uniform(np.log(5e3), np.log(50e3), truth.shape)
            begun = {
                "homogeneous": None,
                "unregularised": data.unregularised(i).astype(float),
                "random": np.exp(rough),
            }
            maps = {name: ef.reconstruct(m, prior="critic", start=start).modulus for name, start in begun.items()}
            first = maps["homogeneous"]
            row = {"map": int(i)}
            for name, x in maps.items():
                row[f"{name}: error"] = ef.metrics.relative_l2(x, truth)
                if name != "homogeneous":
                    row[f"{name}: away"] = ef.metrics.relative_l2(x, first)
            rows.append(row)
    return rows


def large(size, count, priors):
    """Built-in lesions on a large grid, at the pixel size that the networks were trained at or any other."""
    rows = []
    for seed in range(1, count + 1):
        m, mask = measurement(size, "PlaneStress", 35.0, seed)
        for prior in priors:
            begun = time.perf_counter()
            result = ef.reconstruct(m, prior=prior)
            seconds = time.perf_counter() - begun
            found = ef.metrics.evaluate(result.modulus, m.reference, m.geometry, mask)
            wanted = {name: found[name] for name in ("relative_l2", "ssim", "contrast_ratio_error") if name in found}
            rows.append({"seed": seed, "prior": prior, **wanted, "status": result.status, "seconds": seconds})
    return rows


if __name__ == "__main__":
    main()
