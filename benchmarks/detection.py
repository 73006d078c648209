"""How small a lesion is found, and how often one is seen where there is none: ``python benchmarks/detection.py``.

Homogeneous maps for the false alarms, and maps with one small lesion of the training generator, of any shape and of
3 to 15 % of the width of 30 mm. Both are found as in `elastofast.metrics.detections`: regions of seven nodes or more
that are 1.5 times stiffer or softer than the median of the map. The critic's map is that with its default weight,
whatever the data say about it. The seeds serve for nothing else.
"""

import argparse

import numpy as np
from evidence import by_method, measured, square
from side_by_side import print_table, save

import elastofast as ef
from elastofast.evaluation.results import detected_from
from elastofast.metrics import detections, lesion_diameter
from elastofast.phantoms import retried

SIZES = (0.03, 0.15)  # diameters of the lesions over the width
FIRST_MAP = 3000


def main():
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--snr", type=float, nargs="*", default=[25.0, 30.0, 35.0])
    parser.add_argument("--maps", type=int, default=50, help="without a lesion, for each noise level")
    parser.add_argument("--lesions", type=int, default=50, help="maps with a lesion, for each noise level")
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    rows = []
    for snr in options.snr:
        alarms = shown(snr, options.size, options.maps, 0)[0]
        false, diameters, found = shown(snr, options.size, options.lesions, 1)
        for k, method in enumerate(("tv", "critic, not judged", "auto")):
            rows.append(
                {
                    "SNR (dB)": snr,
                    "method": method,
                    "maps without a lesion": options.maps,
                    "with a false alarm": int((alarms[:, k] > 0).sum()),
                    "false alarms": int(alarms[:, k].sum()),
                    "maps with a lesion": options.lesions,
                    "found": round(float(found[:, k].mean()), 3),
                    "90 % found from (mm)": round(1e3 * detected_from(diameters, found[:, k]), 2),
                    "false alarms beside it": int(false[:, k].sum()),
                }
            )
    print_table([*rows[0]], [[*row.values()] for row in rows])
    save("detection", {f"{options.size}": rows})


def shown(snr, size, count, lesions):
    """False alarms (maps, methods), diameters (maps,) and shares of the lesions found (maps, methods)."""
    found, alarms, diameters = [], [], []
    for seed in range(FIRST_MAP, FIRST_MAP + count):
        m, mask = one(snr, size, seed, lesions)
        pairs = [detections(result.modulus, mask) for result in by_method(m)]
        found.append([share for share, _ in pairs])
        alarms.append([number for _, number in pairs])
        diameters.append(lesion_diameter(mask, m.geometry) if lesions else np.nan)
        print(f"{snr:g} dB", lesions, seed, f"{1e3 * diameters[-1]:.2f} mm", *pairs, flush=True)
    return np.array(alarms), np.array(diameters), np.array(found)


def one(snr, size, seed, lesions):
    """A measurement and the mask of the lesion."""
    options = {"kind": "random", "n_lesions": lesions, "size": SIZES}
    rng = np.random.default_rng([seed, 8])
    truth, mask = retried(lambda: ef.lesion(square(size), seed=rng, **options))
    return measured(truth, snr, seed), mask


if __name__ == "__main__":
    main()
