"""Command line: ``elastofast demo | simulate | dataset | reconstruct | compare | train | info``."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import itertools
import math
import os
import platform
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from typing import Any

from .backend.processors import processors
from .evaluation.methods import METHODS, WEIGHTS
from .evaluation.scenarios import SCENARIOS
from .inversion.optimizers import OPTIMIZERS
from .laws import LAWS, PlaneStress
from .phantoms import KINDS
from .priors.registry import DEFAULT_LEARNED, LEARNED, NAMED, TRAINABLE, load
from .progress import progress_bar
from .simulation import NOISES

INTERRUPTED = 130

# optional packages; name: what needs it
OPTIONAL = {
    "h5py": "HDF5 and MATLAB v7.3 files",
    "meshio": "Mesh.read",
    "numba": "the form on Mesh",
    "pyamg": "forward solves on large meshes",
    "matplotlib": "figures (demo, reconstruct --plot)",
    "scikit-image": "PSNR and SSIM",
    "torch": "learned priors",
    "safetensors": "learned priors",
    "tensorboard": "train --log",
    "pillow": "data sets from lesion masks",
}


def main(argv=None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : list of str, optional
        Arguments, ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        0; 2 after an error, which is reported in one line on stderr; 130 after Ctrl-C.
    """
    parser = _parser()
    try:
        options = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed the help or the error
        return int(stop.code or 0)
    try:
        return options.run(options)
    except KeyboardInterrupt as stop:
        print(f"elastofast: interrupted {stop}".rstrip(), file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError) as error:
        if options.debug:
            raise
        print(f"elastofast: error: {_one_line(error)}", file=sys.stderr)
        return 2


# demo ---------------------------------------------------------------------------------------------


def _demo_options(option):
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


def _demo(options) -> int:
    from .boundary import compression
    from .geometry import Grid
    from .inversion.reconstruct import reconstruct
    from .metrics import evaluate
    from .phantoms import lesion
    from .plots import plot_maps
    from .simulation import simulate

    _check_output(options.out, (".png", ".pdf", ".svg"))
    n = options.size
    grid = Grid((n, n), (40e-3 / max(n - 1, 1),) * 2)
    truth, mask = lesion(grid, seed=options.seed, kind="lobulated", size=(0.2, 0.3))
    load = compression(grid, pressure=100.0)
    m = simulate(grid, PlaneStress(0.495), load, truth, snr=options.snr, seed=options.seed)
    print(
        f"{n} x {n} nodes, 40 mm x 40 mm, plane stress, lobulated lesion {truth[mask].mean() / 1e3:.0f} kPa "
        f"in {truth[~mask].mean() / 1e3:.0f} kPa, {options.snr:g} dB, seed {options.seed}\n"
    )
    heads = ["prior   ", "gradient", *_TABLE, "  chi2", "  weight", "seconds"]
    maps = {}
    rows = [*itertools.product(("frozen", "exact"), ("none", "tikhonov", "tv")), ("exact", DEFAULT_LEARNED)]
    if importlib.util.find_spec("torch") is None:
        print('the learned prior is left out: pip install "elastofast[learn]"\n')
        rows.pop()
    print("  ".join(heads))
    for gradient, prior in rows:
        with _Bar(f"{prior}, {gradient}") as bar:
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


# simulate -----------------------------------------------------------------------------------------


def _simulate_options(option):
    option("-o", "--out", required=True, help="file to write: .h5, .npz or .mat (docs/files.md)")
    option("--size", type=int, nargs="+", default=[256], help="nodes: one number, or axial and lateral (default: 256)")
    option(
        "--spacing",
        type=float,
        nargs="+",
        help="node distance in metres: one number, or axial and lateral (default: such that the body is 40 mm wide)",
    )
    _measurement_options(option)
    option("--force-std", type=float, default=0.0, help="standard deviation of the force noise at each node in N/m")
    option("--seed", type=int, default=0, help="seed of the phantom and the noise")
    option("--phantom", choices=(*KINDS, "random"), default="lobulated", help="shape of the lesions")
    option("--lesions", type=int, default=1, help="number of lesions")
    option("--edge", type=float, default=0.0, help="width of the margin of a lesion in node distances; 0 is sharp")
    option("--texture", type=float, default=0.0, help="relative standard deviation of a smooth texture of the modulus")
    option("--pressure", type=float, default=100.0, group="load", help="pressure on the top in pascals")
    option("--strain", type=float, group="load", help="instead, move the top by this fraction of the height")


def _simulate(options) -> int:
    from .boundary import compression
    from .geometry import Grid
    from .phantoms import lesion
    from .simulation import simulate

    _check_output(options.out, (".h5", ".hdf5", ".npz", ".mat"))
    shape = _pair("size", options.size)
    grid = Grid(shape, _pair("spacing", options.spacing or [40e-3 / (max(shape[1], 2) - 1)]))
    modulus, _ = lesion(
        grid,
        seed=options.seed,
        kind=options.phantom,
        n_lesions=options.lesions,
        edge=options.edge,
        texture=options.texture,
    )
    how = {"strain": options.strain} if options.strain is not None else {"pressure": options.pressure}
    m = simulate(
        grid,
        LAWS[options.law](options.poisson),
        compression(grid, **how),
        modulus,
        snr=options.snr,
        noise=options.noise,
        seed=options.seed,
        force_std=options.force_std,
    )
    m.save(options.out)
    print(f"wrote {options.out}: {m!r}")
    return 0


# dataset ------------------------------------------------------------------------------------------


def _dataset_options(option):
    option("out", metavar="OUT", help="file to write: .h5 (docs/datasets.md)")
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
    _measurement_options(option)
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
    option("--jobs", type=int, help="number of processes (default: one for each processor)")
    option("--force", action="store_true", help="replace OUT, and discard an interrupted run with other options")
    option("--quiet", action="store_true", help="show no progress bar")


def _dataset(options) -> int:
    from .learning.dataset import Dataset, build_dataset

    _check_output(options.out, (".h5", ".hdf5"))
    settings = vars(options).copy()
    for name in ("out", "run", "debug", "quiet"):
        del settings[name]
    for name in ("shape", "extent"):
        settings[name] = _pair(name, settings[name])
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"elastofast: {message}", file=sys.stderr)
        build_dataset(options.out, **settings, progress=not options.quiet)
    with Dataset.open(options.out) as data:
        print(f"wrote {options.out}: {data!r}")
    return 0


# reconstruct --------------------------------------------------------------------------------------


def _reconstruct_options(option):
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


def _reconstruct(options) -> int:
    from .inversion.reconstruct import reconstruct
    from .io import save_modulus
    from .measurement import load_measurement

    _check_output(options.output, (".npz", ".h5", ".hdf5", ".mat", ".vtu"))
    if options.plot:
        _check_output(options.plot, (".png", ".pdf", ".svg"))
    overrides = {} if options.displacement_std is None else {"displacement_std": options.displacement_std}
    m = load_measurement(options.file, **overrides)
    print(m)
    settings = {name: getattr(options, name) for name in ("prior", "weight", "gradient", "optimizer")}
    if options.bounds:
        settings["bounds"] = tuple(options.bounds)
    prior = options.prior if options.weights is None else load(options.prior, options.weights)
    with _Bar(options.prior, hidden=options.quiet) as bar:
        result = reconstruct(m, progress=bar, **{**settings, "prior": prior})
    settings["optimizer"] = result.optimizer
    if options.prior == "auto":
        settings["prior"] = result.prior
    config = {"elastofast": _version("elastofast"), "file": str(options.file), **overrides, **settings}
    if options.weights:
        config["weights"] = str(options.weights)
    save_modulus(options.output, result, m.geometry, config=config)
    _print_result(result, m)
    print(f"wrote {options.output}")
    if options.plot:
        from .plots import plot_result

        plot_result(result, m, options.plot)
        print(f"wrote {options.plot}")
    return INTERRUPTED if result.status == "interrupted" else 0


def _print_result(result, m):
    from .metrics import evaluate

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


# compare ------------------------------------------------------------------------------------------


def _compare_options(option):
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
    option("--methods", nargs="+", help=f"some of {', '.join(METHODS)} (default: all of them)")
    for name in WEIGHTS:
        option(f"--{name}", metavar="FILE", help=f"weights of the network {name} (default: those of the package)")
    option("--jobs", type=int, default=1, help="processes of one thread each; above one, times are not comparable")
    option("--quiet", action="store_true", help="show no progress bar")


def _compare(options) -> int:
    from .evaluation.experiment import compare

    names = ("data", "size", "maps", "seed", "snr", "world", "methods", "jobs")
    settings = {name: getattr(options, name) for name in names}
    weights = {name: getattr(options, name) for name in WEIGHTS}
    done = compare(options.out, **settings, weights=weights, progress=not options.quiet)
    print(f"{done}\n\nwrote {os.path.join(options.out, 'report.html')}")
    if done.missing:
        print(f"stopped with {done.missing} reconstructions missing; the same command goes on from there")
        return INTERRUPTED
    return 0


# train --------------------------------------------------------------------------------------------


def _train_options(option):
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
    option("--resume", action="store_true", help="go on from the checkpoint beside --out if there is one")
    option("--validate-every", type=int, default=500, help="steps between validations")
    option("--checkpoint-every", type=float, default=300.0, help="seconds between checkpoints")
    option("--log", help="folder for TensorBoard")


def _train(options) -> int:
    _check_output(options.out, (".safetensors",))
    from .learning.recipes import recipe
    from .learning.training import train

    given = {name: getattr(options, name) for name in _RECIPE_OPTIONS if getattr(options, name) is not None}
    loop = ("seed", "count", "device", "amp", "init", "resume", "validate_every", "checkpoint_every", "log")
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
_RECIPE_OPTIONS = ("steps", "batch", "crop", "rate", "channels", "norm", "epochs", "direct", "reconstructions")


# info ---------------------------------------------------------------------------------------------


def _info(options) -> int:
    print(f"elastofast      {_version('elastofast') or 'not installed'}")
    print(f"python          {platform.python_version()} on {platform.platform()}")
    print(f"processors      {processors()}, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}")
    print("\ncore (elastofast._core)")
    try:
        build = importlib.import_module("elastofast._core").build_info()
    except ImportError as error:
        print(f"  missing: {_one_line(error)}; build it with: pip install .")
    else:
        for name, value in build.items():
            value = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            print(f"  {name.replace('_', ' '):<22}{value}")
    print("\nCUDA (elastofast._cuda)")
    try:
        cuda = importlib.import_module("elastofast._cuda")
    except ImportError as error:
        print(f"  absent: {_one_line(error)}; built where nvcc is on PATH, everything runs on the CPU without it")
    else:
        for name, value in cuda.build_info().items():
            print(f"  {name:<22}{value}")
        try:
            print(f"  {'devices':<22}{cuda.device_count()}")
        except RuntimeError as error:
            print(f"  {'devices':<22}none: {_one_line(error)}")
    print("\npackages")
    for name in ("numpy", "scipy", "tqdm"):
        print(f"  {name:<14}{_version(name) or 'MISSING: required'}")
    for name, use in OPTIONAL.items():
        print(f"  {name:<14}{_version(name) or f'missing, needed for {use}: pip install {name}'}")
    return 0


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# shared -------------------------------------------------------------------------------------------


class _Bar:
    """Progress bar of a reconstruction, which counts outer iterations."""

    def __init__(self, label, hidden=False):
        self.bar = progress_bar(label, "it", not hidden)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def __call__(self, entry):
        text = f"chi2 {entry['chi2']:.3f}, objective {entry['objective']:.5g}"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update()


def _one_line(error) -> str:
    text = " ".join(str(error).split())
    module = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    package = {"skimage": "scikit-image", "PIL": "pillow"}.get(module, module)
    if package in OPTIONAL:
        text = f"{package} is missing, needed for {OPTIONAL[package]}: pip install {package}"
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    return text or type(error).__name__


def _check_output(path, suffixes):
    """Raise an error before the work if the output cannot be written or needs a package that is not installed."""
    folder, name = os.path.split(path)
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in suffixes:
        raise ValueError(f"the output must end in one of {', '.join(suffixes)}, got {path!r}")
    for package, extra, kinds in (("matplotlib", "plot", (".png", ".pdf", ".svg")), ("h5py", "io", (".h5", ".hdf5"))):
        if suffix in kinds and importlib.util.find_spec(package) is None:
            raise ImportError(f'{suffix} files need {package}: pip install "elastofast[{extra}]"')
    if not os.path.isdir(folder or "."):
        raise ValueError(f"the folder of the output does not exist: {path!r}")


def _measurement_options(option):
    """What is simulated, the same wherever measurements are."""
    plane = [name for name, law in LAWS.items() if law.dim == 2]
    option("--law", choices=plane, default=PlaneStress.name, help="material law")
    option("--poisson", type=float, default=0.495, help="Poisson ratio")
    option("--snr", type=float, default=35.0, help="signal-to-noise ratio of the displacement in decibels")
    option("--noise", choices=NOISES, default="white", help="noise model")


def _pair(name, values):
    """Axial and lateral value of an option that takes two numbers, or one for both."""
    if len(values) > 2:
        raise ValueError(f"--{name} takes one or two numbers, got {len(values)}")
    return tuple(values if len(values) == 2 else values * 2)


def _weight(text):
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or auto, got {text!r}") from None


class _Parser(argparse.ArgumentParser):
    """Reports errors in one line, without the usage."""

    def error(self, message):
        self.exit(2, f"elastofast: error: {message} (see {self.prog} --help)\n")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Shows the example as it is written, and the default of each option that has one."""

    def _get_help_string(self, action):
        shown = isinstance(action.default, str | float | int) and not isinstance(action.default, bool)
        shown = shown and action.default != argparse.SUPPRESS
        return action.help + (" (default: %(default)s)" if shown else "")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="elastofast", description="Tissue stiffness maps from noisy ultrasound displacement fields.")
    version = f"elastofast {_version('elastofast') or '(not installed)'}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, (run, add_options, text, example) in _COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=text,
            description=textwrap.fill(f"{text[0].upper()}{text[1:]}.", 100),
            epilog=f"example:\n  elastofast {name} {example}".rstrip(),
            formatter_class=_Help,
        )
        sub.set_defaults(run=run)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        add_options(_adder(sub))
    return parser


def _adder(parser) -> Callable:
    """``add_argument`` of a parser, where options of one ``group`` exclude each other."""
    groups: dict[str, Any] = {}

    def option(*names, group=None, **settings):
        if group is not None and group not in groups:
            groups[group] = parser.add_mutually_exclusive_group()
        (parser if group is None else groups[group]).add_argument(*names, **settings)

    return option


# name: what runs it, what adds its options, what it does, an example of its arguments
_COMMANDS = {
    "demo": (
        _demo,
        _demo_options,
        "simulate the measurement of a breast lesion, reconstruct it with several priors, print a table of the errors "
        "and draw the maps",
        "--size 256 --out elastofast-demo.png",
    ),
    "simulate": (
        _simulate,
        _simulate_options,
        "write the simulated measurement of a lesion phantom to a file",
        "-o scan.h5 --size 256 --phantom spiculated --noise relative --snr 35",
    ),
    "dataset": (
        _dataset,
        _dataset_options,
        "make stiffness maps with their simulated measurements and unregularised reconstructions, to train and "
        "compare priors; a run that was interrupted goes on when called again",
        "breast.h5 --masks Dataset_BUSI_with_GT --shape 128 --snr 35",
    ),
    "reconstruct": (
        _reconstruct,
        _reconstruct_options,
        "reconstruct the modulus map of a measurement file",
        "scan.h5 -o modulus.h5 --prior tv --plot modulus.png",
    ),
    "compare": (
        _compare,
        _compare_options,
        "reconstruct held-out maps with several methods and write a report with errors, times and figures; a run that "
        "was interrupted goes on when called again",
        "report --data breast.h5 --snr 25 30 35 40 45",
    ),
    "train": (
        _train,
        _train_options,
        "train the network of a learned prior on a data set",
        "unet --data maps.h5 --out unet.safetensors --steps 10000",
    ),
    "info": (
        _info,
        lambda option: None,
        "show version, build, threads and packages, and what is missing and why",
        "",
    ),
}
