"""``elastofast reconstruct``: from measurement files to maps."""

from __future__ import annotations

import argparse
import os
import shlex
from functools import lru_cache
from typing import Any

import numpy as np

from ..inversion.optimizers import OPTIMIZERS
from ..inversion.uncertainty import REPETITIONS, uncertainty
from ..io.sidecar import ESTIMATE
from ..priors.registry import DEFAULT_LEARNED, LEARNED, NAMED, load
from ..result import made_by
from .batch import files_of, reconstruct_all
from .repeat import asked_for, compare, take_over
from .shared import (
    FAILED,
    INTERRUPTED,
    ReconstructionBar,
    check_output,
    digest,
    set_option,
    version,
    worker_options,
)

HELP = (
    "reconstruct the modulus map of a measurement file, or those of several files or a folder, with a table of all; a "
    "batch that was interrupted goes on when called again"
)
EXAMPLE = (
    "scan.h5 -o modulus.h5 --prior tv --html report.html --uncertainty\n"
    "  elastofast reconstruct --joint pressed.h5 sheared.h5 -o modulus.h5 --prior tv\n"
    "  elastofast reconstruct --config modulus.h5 -o again.h5\n"
    "  elastofast reconstruct vic2d.csv --with vic2d.toml --set noise.std=2e-4 -o modulus.h5\n"
    "  elastofast reconstruct scans/ --with scans.toml -o maps --format npz"
)

FIGURES = (".png", ".pdf", ".svg")
PAGES = (".html", ".htm")


def add_options(option) -> None:
    """Add the options of the command."""
    option(
        "files",
        metavar="FILE",
        nargs="*",
        help="measurement in elastofast's own layout, or with a sidecar in any other (docs/files.md); several files or "
        "a folder are reconstructed each by itself",
    )
    option(
        "--joint",
        action="store_true",
        help="the files, or the frames in a file, are measurements of one body, such as a compression sequence or "
        "several loads: one map that explains them all",
    )
    option(
        "-o",
        "--output",
        required=True,
        help="file to write: .npz, .h5, .mat or .vtu; for several files the folder of the maps and of summary.csv",
    )
    option(
        "--with",
        dest="sidecar",
        metavar="SIDECAR",
        help="TOML file that says what is in FILE and in which units, as elastofast inspect proposes it, or a map that "
        "was reconstructed with one",
    )
    set_option(option, "values in place of those in the sidecar, such as noise.std=2e-4 units.displacement=mm")
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
    option(
        "--known",
        metavar="FILE",
        help="modulus file with the modulus where it is known, such as that of a gel pad, and NaN where it is sought",
    )
    option(
        "--poisson",
        choices=("stated", "estimate"),
        default="stated",
        help="estimate finds one Poisson ratio from the data, beginning with the one in the file",
    )
    option("--bounds", type=float, nargs=2, metavar=("LO", "HI"), help="least and greatest modulus in pascals")
    option(
        "--displacement-std",
        type=_level,
        metavar="STD",
        help="displacement noise in metres, in place of that in the file; estimate finds it from the displacement",
    )
    option(
        "--uncertainty",
        type=int,
        nargs="?",
        const=REPETITIONS,
        metavar="N",
        help="also say how sure the map is: the standard deviation of log modulus at each node, from reconstructions "
        f"of 2 N measurements that are simulated from the map (default: {REPETITIONS}); it is written with the map and "
        "drawn by --plot",
    )
    option(
        "--config",
        metavar="MAP",
        help="modulus file whose map is to be made again: with its settings, from its input, which must not have "
        "changed; FILE says where that is now",
    )
    option("--plot", help="figure to write: .png, .pdf or .svg; for several files only that suffix, such as png")
    option(
        "--html",
        metavar="FILE",
        help="web page to write, complete in one file: pictures, settings, noise, status and advice, history; for "
        "several files one page with a table and small pictures of all maps",
    )
    option("--format", choices=("h5", "npz", "mat", "vtu"), default="h5", help="for several files: format of the maps")
    worker_options(option, "for several files: processes of one thread each (default: 1, with all threads)")
    option("--quiet", action="store_true", help="show no progress bar")


def run(options) -> int:
    """Run the command; returns the exit status."""
    if options.config:
        take_over(options)
    elif not options.files:
        raise ValueError("give at least one FILE, or --config")
    work = Work(options)
    if not options.joint and (len(options.files) > 1 or os.path.isdir(options.files[0])):
        return reconstruct_all(work, options)
    for name in ("jobs", "scheduler"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} is for several files, each of which has a map of its own")
    check_output(options.output, (".npz", ".h5", ".hdf5", ".mat", ".vtu"))
    if options.plot:
        check_output(options.plot, FIGURES)
    if options.html:
        check_output(options.html, PAGES)
    if options.uncertainty is not None and options.joint:
        raise ValueError("--uncertainty is for one measurement: leave it or --joint out")
    paths = files_of(options.files, work.sidecar) if options.joint else options.files
    m = work.load_joint(paths) if options.joint else work.load(paths[0])
    if options.plot and m.geometry.dim != 2:
        raise ValueError("--plot draws plane bodies only: leave it out, and write a .vtu file to see a volume")
    print(m)
    with ReconstructionBar(options.prior, hidden=options.quiet) as bar:
        result = work(m, bar)
    repeated = compare(options.config, result) if options.config else ""
    config = work.save(paths, m, result, options.output, options.plot)
    if options.html:
        from ..report import write_report

        title = ", ".join(os.path.basename(path) for path in paths)
        write_report(options.html, result, m, title=title, settings=config)
    _print_result(result, m)
    if options.config:
        print(f"map      {repeated}")
    print(f"wrote {options.output}")
    for more in filter(None, (options.plot, options.html)):
        print(f"wrote {more}")
    return {"interrupted": INTERRUPTED, "failed": FAILED}.get(result.status, 0)


class Work:
    """What is done to each file, and the settings by which it can be done again."""

    def __init__(self, options):
        from ..io.sidecar import Sidecar

        self.sidecar = None
        if options.sidecar or options.set:
            self.sidecar = Sidecar.read(options.sidecar) if options.sidecar else Sidecar.of({}, "the command")
            self.sidecar = self.sidecar.changed(options.set)
        std = options.displacement_std
        self.overrides = {} if std is None else {"displacement_std": None if std == ESTIMATE else std}
        if self.sidecar:
            self.sidecar.require(self.overrides)
        self.settings: dict[str, Any] = {
            name: getattr(options, name) for name in ("prior", "weight", "gradient", "optimizer", "poisson")
        }
        if options.bounds:
            self.settings["bounds"] = tuple(options.bounds)
        self.repetitions = options.uncertainty
        self.asked = asked_for(options)
        self.joint = options.joint
        self.known = options.known
        self.weights = options.weights
        _ = self.prior  # wrong weights are told before the work

    @property
    def prior(self):
        """The name of the prior, or the prior itself with weights of one's own, which each process reads once."""
        return self.settings["prior"] if self.weights is None else _loaded(self.settings["prior"], self.weights)

    def load(self, path):
        """The measurement in a file."""
        from ..measurement import load_measurement

        return load_measurement(path, self.sidecar, **self.overrides)

    def load_joint(self, paths):
        """All frames in some files as one joint measurement."""
        from ..joint import JointMeasurement
        from ..measurement import load_frames

        return JointMeasurement([m for path in paths for m in load_frames(path, self.sidecar, **self.overrides)])

    def __call__(self, m, progress):
        """The reconstruction of a measurement."""
        from ..inversion.reconstruct import reconstruct

        known = None if self.known is None else self._known_on(m.geometry)
        result = reconstruct(m, progress=progress, known=known, **{**self.settings, "prior": self.prior})
        if self.repetitions is not None and result.status not in ("interrupted", "failed"):
            given: Any = None if self.weights is None else self.prior
            try:
                result.uncertainty = uncertainty(result, m, self.repetitions, prior=given, progress=progress)
            except KeyboardInterrupt:  # the map itself is not lost
                result.status = "interrupted"
                result.message = "Interrupted before it was known how sure the map is; the map is complete."
        return result

    def _known_on(self, geometry):
        """The known moduli in their file, which must be on the geometry of the measurement."""
        from ..io import load_modulus

        known, own, _ = load_modulus(self.known)
        if own.node_shape != geometry.node_shape or not np.allclose(own.points, geometry.points, atol=0):
            raise ValueError(f"--known: {self.known} is on {own!r}, but the measurement on {geometry!r}")
        return known

    def config(self) -> dict[str, Any]:
        """All settings, which are the same for every file."""
        config = {"elastofast": version("elastofast"), **self.overrides, **self.settings}
        if "displacement_std" in self.overrides and self.overrides["displacement_std"] is None:
            config["displacement_std"] = ESTIMATE
        if self.repetitions is not None:
            config["uncertainty"] = self.repetitions
        if self.weights:
            config["weights"] = str(self.weights)
        if self.known:
            config["known"] = str(self.known)
        if self.sidecar:
            config["sidecar"] = self.sidecar.sections()
        return config

    def save(self, paths, m, result, output, plot) -> dict[str, Any]:
        """Write the map of some files with all that is needed to run it again, and the figure if one is asked for;
        returns what is needed to run it again.
        """
        from ..io import save_modulus

        files, digests = [str(path) for path in paths], [digest(path) for path in paths]
        config = {**made_by(), **self.config(), **self.asked, "optimizer": result.optimizer}
        config["checksum"] = result.checksum
        config |= {"files": files, "sha256": digests} if self.joint else {"file": files[0], "sha256": digests[0]}
        if self.settings["prior"] == "auto":
            config["prior"] = result.prior
        config["command"] = self._command(files, output, config)
        save_modulus(output, result, m.geometry, config=config)
        if plot:
            from ..plots import plot_result

            plot_result(result, m, plot)
        return config

    def _command(self, files, output, config) -> str:
        """The command that makes the same map: the sidecar is read from the map itself."""
        words = ["elastofast", "reconstruct", *(["--joint"] if self.joint else []), *files, "-o", str(output)]
        if self.sidecar and not str(output).endswith(".vtu"):
            words += ["--with", str(output)]
        names = "prior weights weight gradient optimizer poisson displacement_std uncertainty known"
        for name in names.split():
            if config.get(name) is not None:
                words += [f"--{name.replace('_', '-')}", str(config[name])]
        if "bounds" in config:
            words += ["--bounds", *map(str, config["bounds"])]
        return shlex.join(words)


@lru_cache(1)
def _loaded(prior, weights):
    return load(prior, weights)


def _print_result(result, m):
    from ..metrics import evaluate
    from ..report import facts

    for name, text in facts(result).items():
        print(f"{name:<9}{text}")
    if m.reference is not None:
        print("against the reference in the file:")
        errors = evaluate(result.modulus, m.reference, m.geometry, relative=result.relative)
        for name, value in errors.items():
            print(f"  {name:<21}{value:.5g}")


def _level(text):
    try:
        return text if text == ESTIMATE else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or {ESTIMATE}, got {text!r}") from None


def _weight(text):
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or auto, got {text!r}") from None
