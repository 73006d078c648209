"""``elastofast compare``: several methods on the same held-out maps."""

from __future__ import annotations

import os

from ..evaluation.methods import METHODS, WEIGHTS
from ..evaluation.scenarios import SCENARIOS
from .shared import INTERRUPTED, worker_options

HELP = (
    "reconstruct held-out maps with several methods and write a report with errors, times and figures; a run that "
    "was interrupted goes on when called again"
)
EXAMPLE = "report --data breast.h5 --snr 25 30 35 40 45"


def add_options(option) -> None:
    """Add the options of the command."""
    option("out", metavar="OUT", help="folder to write (docs/comparison.md)")
    option("--data", metavar="FILE", help="data set whose test maps are used (default: built-in maps)")
    option("--size", type=int, choices=(64, 128, 256, 512), help="nodes a side of built-in maps (default: 128)")
    option("--maps", type=int, help="number of maps (default: 30; with --data all test maps)")
    option("--seed", type=int, default=0, help="seed of built-in maps and of everything that is simulated anew")
    option(
        "--snr",
        type=float,
        nargs="+",
        help="signal-to-noise ratios in decibels (default: that of the data set; 35 for built-in maps)",
    )
    option(
        "--world",
        nargs="+",
        default=["clean"],
        help=f"scenarios of the measurement: {', '.join(SCENARIOS)} (default: clean)",
    )
    option("--methods", nargs="+", help=f"some of {', '.join(METHODS)} (default: all, paper only with weights)")
    for name in WEIGHTS:
        otherwise = "none" if name == "paper-critic" else "those of the package"
        option(f"--{name}", metavar="FILE", help=f"weights of the network {name} (default: {otherwise})")
    worker_options(option, "processes of one thread each; above one, times are not comparable (default: 1)")
    option("--quiet", action="store_true", help="show no progress bar")


def run(options) -> int:
    """Run the command; returns the exit status."""
    from ..evaluation.experiment import compare

    names = ("data", "size", "maps", "seed", "snr", "world", "methods", "jobs", "scheduler")
    settings = {name: getattr(options, name) for name in names}
    weights = {name: getattr(options, name.replace("-", "_")) for name in WEIGHTS}
    done = compare(options.out, **settings, weights=weights, progress=not options.quiet)
    print(f"{done}\n\nwrote {os.path.join(options.out, 'report.html')}")
    if done.missing:
        print(f"stopped with {done.missing} reconstructions missing; the same command goes on from there")
        return INTERRUPTED
    return 0
