"""``elastofast dataset``: maps and measurements to train and compare priors on."""

from __future__ import annotations

from ..phantoms import KINDS
from .shared import check_output, measurement_options, pair, worker_options

HELP = (
    "make stiffness maps with their simulated measurements and unregularised reconstructions, to train and "
    "compare priors; a run that was interrupted goes on when called again"
)
EXAMPLE = "breast.h5 --masks Dataset_BUSI_with_GT --shape 128 --snr 35"


def add_options(option) -> None:
    """Add the options of the command."""
    option("out", metavar="OUT", help="file to write: .h5 (docs/datasets.md)")
    option(
        "--world",
        choices=("lesions", "wide"),
        default="lesions",
        help="lesions: stiff lesions, all measured alike; wide: many kinds of tissue, law, load and noise",
    )
    option("--tissue", type=float, default=0.5, help="share of maps of the wide world with other tissue than lesions")
    option("--masks", metavar="FOLDER", help="folder of lesion masks (default: built-in shapes)")
    option("--layout", default="auto", help="layout of that folder: auto, busi, bus-bra, breast, udiat or plain")
    option("--count", type=int, help="number of training maps (default: 541; with masks all that are left)")
    held = "number of maps (1 or more) or share of all maps (below 1) for {} (default: 30; with masks 0.05)"
    option("--validation", type=float, help=held.format("validation"))
    option("--test", type=float, help=held.format("testing"))
    option("--shape", type=int, nargs="+", default=[128], help="nodes: one number, or axial and lateral (default: 128)")
    option(
        "--extent",
        type=float,
        nargs="+",
        default=[30e-3],
        help="size of the body in metres: one number, or axial and lateral (default: 0.03)",
    )
    measurement_options(option)
    option("--pressure", type=float, default=100.0, help="pressure on the top in pascals")

    def interval(name, low, high, text):
        bounds = {"type": float, "nargs": 2, "default": [low, high], "metavar": ("LO", "HI")}
        option(name, **bounds, help=f"{text} (default: {low:g} {high:g})")

    interval("--background", 10e3, 15e3, "range of the modulus outside lesions in pascals")
    interval("--lesion", 30e3, 80e3, "range of the modulus inside lesions in pascals")
    option("--kind", choices=(*KINDS, "random"), default="random", help="shape of built-in lesions")
    interval("--size", 0.05, 0.35, "range of the diameter of built-in lesions, as a fraction of the width of the body")
    option("--pairs", type=float, default=0.15, help="share of built-in maps with two lesions")
    option("--soft", type=float, default=0.25, help="share of maps whose lesions have soft margins")
    interval("--edge", 1.0, 3.0, "range of the width of soft margins in node distances")
    option("--texture", type=float, default=0.0, help="relative standard deviation of a smooth texture of the modulus")
    option(
        "--variation", type=float, default=0.0, help="relative standard deviation of a slow variation of the background"
    )
    option("--no-unregularised", dest="unregularised", action="store_false", help="leave out the unregularised maps")
    option(
        "--errors",
        type=int,
        default=2,
        help="draws of the error of a reconstruction for each map; critics are trained on them",
    )
    option("--seed", type=int, default=0, help="seed of the maps and the noise")
    worker_options(option, "number of processes (default: one for each processor)")
    option("--force", action="store_true", help="replace OUT, and discard an interrupted run with other options")
    option("--quiet", action="store_true", help="show no progress bar")


def run(options) -> int:
    """Run the command; returns the exit status."""
    from ..learning.dataset import Dataset, build_dataset

    check_output(options.out, (".h5", ".hdf5"))
    settings = vars(options).copy()
    for name in ("out", "run", "debug", "quiet"):
        del settings[name]
    for name in ("shape", "extent"):
        settings[name] = pair(name, settings[name])
    build_dataset(options.out, **settings, progress=not options.quiet)
    with Dataset.open(options.out) as data:
        print(f"wrote {options.out}: {data!r}")
    return 0
