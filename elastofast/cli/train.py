"""``elastofast train``: the network of a learned prior."""

from __future__ import annotations

import os

from ..priors.registry import TRAINABLE
from .shared import INTERRUPTED, check_output

HELP = "train the network of a learned prior on a data set"
EXAMPLE = "unet --data maps.h5 --out unet.safetensors --steps 10000"


def add_options(option) -> None:
    """Add the options of the command."""
    option("kind", choices=TRAINABLE, help=f"kind of network: {', '.join(TRAINABLE)}", metavar="kind")
    option("--data", required=True, help="data set made by elastofast dataset")
    option("-o", "--out", required=True, help="weights file to write: .safetensors")
    option(
        "--preset",
        choices=("paper",),
        help="for paper-critic: the 512 x 512 maps and the units of the paper; slow without a GPU",
    )
    recipe = "(default: that of the recipe, docs/training.md)"
    option("--steps", type=int, help=f"number of steps of the optimizer {recipe}")
    option(
        "--direct",
        type=float,
        help="for critic: share of the steps on the error F itself, not on the gradient of C^2 / 2 (default: 1)",
    )
    option(
        "--reconstructions",
        type=int,
        help="for critic and dncnn: number of maps that each validation reconstructs (default: 20)",
    )
    option(
        "--current", type=float, help="for critic: share of samples with errors of current reconstructions (default: 0)"
    )
    option("--reconstruct", help="for critic: data set whose measurements are reconstructed for this (default: --data)")
    option("--rounds", type=int, help="for critic: times that these reconstructions are made anew (default: 3)")
    option("--reconstructed", type=int, help="for critic: measurements reconstructed in a round (default: 150)")
    option("--regression", type=float, help="for critic: weight of the regression on errors (default: 1)")
    option(
        "--robust",
        type=float,
        help="for critic: relative squared error above which samples count less (default: 0, none)",
    )
    option("--wasserstein", type=float, help="for critic: weight of the adversarial loss (default: 0)")
    option("--epochs", type=int, help="for paper-critic: passes over the training maps, in place of --steps")
    option("--batch", type=int, help=f"maps in a step of each process {recipe}")
    option("--crop", type=int, help=f"side of the windows that the maps are cut to {recipe}")
    option("--rate", type=float, help=f"largest learning rate {recipe}")
    option("--channels", type=int, help=f"width of the network {recipe}")
    option("--norm", choices=("l1", "l2"), help=f"for unet and dncnn: norm of the error {recipe}")
    option("--count", type=int, help="use only this number of training maps")
    option("--seed", type=int, default=0, help="seed of the initial weights and the batches")
    option("--device", choices=("cpu", "cuda"), help="where to compute (default: cuda if there is a device)")
    option("--amp", action="store_true", help="compute in bfloat16; not for critics")
    option("--init", help="weights file to start from")
    option(
        "--blend", type=float, default=1.0, help="share of the trained weights in those kept, the rest being of --init"
    )
    option("--resume", action="store_true", help="go on from the checkpoint beside --out if there is one")
    option("--validate-every", type=int, default=500, help="steps between validations")
    option("--checkpoint-every", type=float, default=300.0, help="seconds between checkpoints")
    option("--log", help="folder for TensorBoard")


def run(options) -> int:
    """Run the command; returns the exit status."""
    check_output(options.out, (".safetensors",))
    from ..learning.recipes import recipe
    from ..learning.training import train

    given = {name: getattr(options, name) for name in _RECIPE_OPTIONS if getattr(options, name) is not None}
    loop = (
        "seed",
        "count",
        "device",
        "amp",
        "init",
        "reconstruct",
        "resume",
        "validate_every",
        "checkpoint_every",
        "log",
    )
    done = train(
        recipe(options.kind, preset=options.preset, **given),
        options.data,
        options.out,
        **{name: getattr(options, name) for name in loop},
    )
    if int(os.environ.get("RANK", 0)):  # under torchrun only the first process prints
        return 0
    if done["best"] is not None:
        figures = ", ".join(f"{name} {value:.5g}" for name, value in done["best"].items())
        print(f"wrote {options.out}: {figures}")
    if done["status"] == "interrupted":
        print(f"stopped after step {done['step']}; the same command with --resume goes on from there")
        return INTERRUPTED
    return 0


# options of `elastofast train` that are fields of recipes
_RECIPE_OPTIONS = (
    "steps", "batch", "crop", "rate", "channels", "norm", "epochs", "direct", "reconstructions", "current", "rounds",
    "reconstructed", "regression", "robust", "wasserstein",
)  # fmt: skip
