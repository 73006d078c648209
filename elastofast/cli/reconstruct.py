"""``elastofast reconstruct``: from a measurement file to a map."""

from __future__ import annotations

import argparse

from ..inversion.optimizers import OPTIMIZERS
from ..priors.registry import DEFAULT_LEARNED, LEARNED, NAMED, load
from .shared import FAILED, INTERRUPTED, ReconstructionBar, check_output, version

HELP = "reconstruct the modulus map of a measurement file"
EXAMPLE = "scan.h5 -o modulus.h5 --prior tv --plot modulus.png"


def add_options(option) -> None:
    """Add the options of the command."""
    option("file", metavar="FILE", help="measurement: HDF5, NPZ or MATLAB (docs/files.md)")
    option("-o", "--output", required=True, help="file to write: .npz, .h5, .mat or .vtu")
    option(
        "--prior",
        choices=("auto", *NAMED),
        default="auto",
        help=f"regularisation, of which {', '.join(LEARNED)} are learned; auto is {DEFAULT_LEARNED} where that can be "
        "used, else tv",
    )
    option("--weights", metavar="FILE", help="weights of a learned prior, made by elastofast train (default: shipped)")
    option(
        "--weight",
        type=_weight,
        default="auto",
        help="weight of the prior, a number or auto: chosen from the data and their noise",
    )
    option(
        "--gradient",
        choices=("exact", "frozen"),
        default="exact",
        help="gradient of the data term; frozen is that of the paper, which is biased",
    )
    option(
        "--optimizer",
        choices=tuple(OPTIMIZERS),
        help="descent is the projected gradient descent of the paper (default: the one that suits the prior)",
    )
    option("--bounds", type=float, nargs=2, metavar=("LO", "HI"), help="least and greatest modulus in pascals")
    option("--displacement-std", type=float, help="displacement noise in metres, in place of that in the file")
    option("--plot", help="figure to write: .png, .pdf or .svg")
    option("--quiet", action="store_true", help="show no progress bar")


def run(options) -> int:
    """Run the command; returns the exit status."""
    from ..inversion.reconstruct import reconstruct
    from ..io import save_modulus
    from ..measurement import load_measurement

    check_output(options.output, (".npz", ".h5", ".hdf5", ".mat", ".vtu"))
    if options.plot:
        check_output(options.plot, (".png", ".pdf", ".svg"))
    overrides = {} if options.displacement_std is None else {"displacement_std": options.displacement_std}
    m = load_measurement(options.file, **overrides)
    print(m)
    settings = {name: getattr(options, name) for name in ("prior", "weight", "gradient", "optimizer")}
    if options.bounds:
        settings["bounds"] = tuple(options.bounds)
    prior = options.prior if options.weights is None else load(options.prior, options.weights)
    with ReconstructionBar(options.prior, hidden=options.quiet) as bar:
        result = reconstruct(m, progress=bar, **{**settings, "prior": prior})
    settings["optimizer"] = result.optimizer
    if options.prior == "auto":
        settings["prior"] = result.prior
    config = {"elastofast": version("elastofast"), "file": str(options.file), **overrides, **settings}
    if options.weights:
        config["weights"] = str(options.weights)
    save_modulus(options.output, result, m.geometry, config=config)
    _print_result(result, m)
    print(f"wrote {options.output}")
    if options.plot:
        from ..plots import plot_result

        plot_result(result, m, options.plot)
        print(f"wrote {options.plot}")
    return {"interrupted": INTERRUPTED, "failed": FAILED}.get(result.status, 0)


def _print_result(result, m):
    from ..metrics import evaluate

    print(f"prior    {result.prior}")
    print(f"status   {result.status}: {result.message}")
    print(f"chi2     {result.chi2:.4f}")
    print(f"weight   {result.weight:.4g}")
    print(f"seconds  {result.seconds:.2f}")
    if result.relative:
        print("modulus  relative: known only up to a factor, because no force is known")
    if m.reference is not None:
        print("against the reference in the file:")
        errors = evaluate(result.modulus, m.reference, m.geometry, relative=result.relative)
        for name, value in errors.items():
            print(f"  {name:<21}{value:.5g}")


def _weight(text):
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or auto, got {text!r}") from None
