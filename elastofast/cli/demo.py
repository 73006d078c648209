"""``elastofast demo``: a whole reconstruction without a file of one's own."""

from __future__ import annotations

import importlib.util
import itertools
import math
import time

from ..laws import PlaneStress
from ..priors.registry import DEFAULT_LEARNED
from .shared import INTERRUPTED, ReconstructionBar, check_output

HELP = (
    "simulate the measurement of a breast lesion, reconstruct it with several priors, print a table of the errors "
    "and draw the maps"
)
EXAMPLE = "--size 256 --out elastofast-demo.png"


def add_options(option) -> None:
    """Add the options of the command."""
    option("--size", type=int, default=256, help="nodes along each side")
    option("--seed", type=int, default=1, help="seed of the phantom and the noise")
    option("--snr", type=float, default=35.0, help="signal-to-noise ratio of the displacement in decibels")
    option("--out", default="elastofast-demo.png", help="figure to write: .png, .pdf or .svg")


# heading: metric and its format
_TABLE = {
    "rel. error": ("relative_l2", ".4f"),
    "sym. RMS": ("symmetric_rms", ".4f"),
    " SSIM": ("ssim", ".3f"),
    "CNRe dB": ("cnre_db", ".1f"),
    " gCNR": ("gcnr", ".3f"),
    "contrast err.": ("contrast_ratio_error", ".3f"),
}


def scan(size, seed, snr):
    """The simulated measurement of a lesion, with the modulus as its reference, and the mask of the lesion."""
    from ..boundary import compression
    from ..geometry import Grid
    from ..phantoms import lesion
    from ..simulation import simulate

    grid = Grid((size, size), (40e-3 / max(size - 1, 1),) * 2)
    truth, mask = lesion(grid, seed=seed, kind="lobulated", size=(0.2, 0.3))
    load = compression(grid, pressure=100.0)
    return simulate(grid, PlaneStress(0.495), load, truth, snr=snr, seed=seed), mask


def methods() -> list[tuple[str, str]]:
    """Gradient and prior of each row of the table; the learned prior is left out where torch is missing."""
    rows = [*itertools.product(("frozen", "exact"), ("none", "tikhonov", "tv")), ("exact", DEFAULT_LEARNED)]
    return rows if importlib.util.find_spec("torch") else rows[:-1]


def run(options) -> int:
    """Run the command; returns the exit status."""
    from ..inversion.reconstruct import reconstruct
    from ..metrics import evaluate
    from ..plots import plot_maps

    check_output(options.out, (".png", ".pdf", ".svg"))
    n = options.size
    m, mask = scan(n, options.seed, options.snr)
    grid, truth = m.geometry, m.reference
    print(
        f"{n} x {n} nodes, 40 mm x 40 mm, plane stress, lobulated lesion {truth[mask].mean() / 1e3:.0f} kPa "
        f"in {truth[~mask].mean() / 1e3:.0f} kPa, {options.snr:g} dB, seed {options.seed}\n"
    )
    heads = ["prior   ", "gradient", *_TABLE, "  chi2", "  weight", "seconds"]
    maps = {}
    rows = methods()
    if rows[-1][1] != DEFAULT_LEARNED:
        print('the learned prior is left out: pip install "elastofast[learn]"\n')
    print("  ".join(heads))
    for gradient, prior in rows:
        with ReconstructionBar(f"{prior}, {gradient}") as bar:
            start = time.perf_counter()
            result = reconstruct(m, prior=prior, gradient=gradient, progress=bar)
            seconds = time.perf_counter() - start
        errors = evaluate(result.modulus, truth, grid, mask=mask)
        cells = [prior, gradient, *(format(errors[name], spec) for name, spec in _TABLE.values())]
        weight = "-" if math.isnan(result.weight) else f"{result.weight:.3g}"  # of an interrupted run
        cells += [f"{result.chi2:.3f}", weight, f"{seconds:.1f}"]
        # text is aligned to the left, numbers to the right
        row = (f"{c:{'<' if i < 2 else '>'}{len(h)}}" for i, (c, h) in enumerate(zip(cells, heads, strict=True)))
        print("  ".join(row), flush=True)
        maps[f"{prior}, {gradient}"] = result.modulus
        if result.status == "interrupted":
            break
    profiles = [name for name in maps if not name.startswith("none")]
    plot_maps(maps, grid, options.out, truth=truth, profiles=profiles or None)
    print(f"\nwrote {options.out}")
    return INTERRUPTED if result.status == "interrupted" else 0
