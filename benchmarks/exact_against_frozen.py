"""Study (minutes, by hand): the exact gradient against the paper's frozen one on 20 phantoms.

python benchmarks/exact_against_frozen.py 65 20
"""

import json
import sys
from pathlib import Path

import numpy as np

import elastofast as ef
from elastofast.metrics import relative_l2


def main(nodes, count):
    """Reconstruct ``count`` random lesions on nodes x nodes with both gradients; print and store the errors."""
    grid = ef.Grid((nodes, nodes), (0.04 / (nodes - 1),) * 2)
    load = ef.compression(grid, pressure=100.0)
    rows = []
    for seed in range(count):
        x, _ = ef.lesion(grid, seed=seed, kind="random")
        m = ef.simulate(grid, ef.PlaneStress(0.495), load, x, snr=35.0, seed=seed)
        results = {kind: ef.reconstruct(m, prior="tv", gradient=kind) for kind in ("exact", "frozen")}
        row = {"seed": seed}
        for kind, r in results.items():
            row[kind] = relative_l2(r.modulus, x)
            row[f"{kind}_weight"], row[f"{kind}_chi2"], row[f"{kind}_status"] = r.weight, r.chi2, r.status
            row[f"{kind}_seconds"] = r.seconds
        rows.append(row)
        print(
            f"{seed:4d}  exact {row['exact']:.4f} ({row['exact_seconds']:.1f} s)"
            f"  frozen {row['frozen']:.4f} ({row['frozen_seconds']:.1f} s, {row['frozen_status']})",
            flush=True,
        )
    exact, frozen = (np.array([row[kind] for row in rows]) for kind in ("exact", "frozen"))
    print(
        f"{nodes} x {nodes}: mean error exact {exact.mean():.4f}, frozen {frozen.mean():.4f}, median exact "
        f"{np.median(exact):.4f}, frozen {np.median(frozen):.4f}; exact better in {(exact < frozen).sum()} of {count}"
    )
    out = Path(__file__).parent / "results" / f"exact_against_frozen_{nodes}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
