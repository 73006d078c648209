"""What several commands share: options, checks, the progress bar, and errors in one line."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os

from ..laws import LAWS, PlaneStress
from ..progress import progress_bar
from ..simulation import NOISES

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it
BROKEN_PIPE = 141  # exit status when nobody reads the output any more
FAILED = 1  # exit status of a reconstruction whose solves fail; the best map so far is written

# optional packages; name: what needs it
OPTIONAL = {
    "h5py": "HDF5 and MATLAB v7.3 files",
    "meshio": "Mesh.read",
    "numba": "the form on Mesh",
    "matplotlib": "figures (demo, reconstruct --plot and --html)",
    "scikit-image": "PSNR and SSIM",
    "torch": "learned priors",
    "safetensors": "learned priors",
    "tensorboard": "train --log",
    "pillow": "data sets from lesion masks, PNG and TIFF files",
    "nibabel": "NIfTI files",
    "distributed": "work on a Dask cluster (--scheduler)",
}


class ReconstructionBar:
    """Progress bar of a reconstruction, which counts outer iterations."""

    def __init__(self, label, hidden=False):
        self.bar = progress_bar(label, "it", not hidden)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def __call__(self, entry):
        """Show one entry of the history; the argument ``progress`` of `reconstruct`."""
        text = f"chi2 {entry['chi2']:.3f}, objective {entry['objective']:.5g}"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update()


def version(package) -> str | None:
    """Version of an installed package, None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def digest(path) -> str:
    """SHA-256 of a file, by which it is known again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def one_line(error) -> str:
    """The message of an error in one line, which says what to install where a package is missing."""
    text = " ".join(str(error).split())
    module = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    package = {"skimage": "scikit-image", "PIL": "pillow"}.get(module, module)
    if package in OPTIONAL:
        text = f"{package} is missing, needed for {OPTIONAL[package]}: pip install {package}"
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    return text or type(error).__name__


def check_suffix(path, suffixes) -> str:
    """The suffix of an output file; ValueError if it is none of those."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in suffixes:
        raise ValueError(f"the output must end in one of {', '.join(suffixes)}, got {path!r}")
    return suffix


def check_output(path, suffixes) -> None:
    """Raise an error before the work if the output cannot be written or needs a package that is not installed."""
    suffix = check_suffix(path, suffixes)
    for package, extra, kinds in (
        ("matplotlib", "plot", (".png", ".pdf", ".svg", ".html", ".htm")),
        ("h5py", "io", (".h5", ".hdf5")),
    ):
        if suffix in kinds and importlib.util.find_spec(package) is None:
            raise ImportError(f'{suffix} files need {package}: pip install "elastofast[{extra}]"')
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise ValueError(f"the folder of the output does not exist: {path!r}")


def set_option(option, help_text: str) -> None:
    """Add ``--set``: single values of a sidecar."""
    option("--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help=help_text)


def measurement_options(option) -> None:
    """Options of what is simulated, the same wherever measurements are."""
    plane = [name for name, law in LAWS.items() if law.dim == 2]
    option("--law", choices=plane, default=PlaneStress.name, help="material law")
    option("--poisson", type=float, default=0.495, help="Poisson ratio")
    option("--snr", type=float, default=35.0, help="signal-to-noise ratio of the displacement in decibels")
    option("--noise", choices=NOISES, default="white", help="noise model")


def worker_options(option, jobs: str) -> None:
    """Options of who does the work: ``--jobs``, whose help text is given, or ``--scheduler``."""
    option("--jobs", type=_number, group="workers", metavar="N", help=jobs)
    option(
        "--scheduler",
        metavar="ADDRESS",
        group="workers",
        help="address of a Dask scheduler, such as tcp://10.0.0.1:8786: its workers do the work, on as many machines "
        "as they are on (docs/howto/many.md)",
    )


def _number(text) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, got {text!r}")
    return int(text)


def pair(name, values) -> tuple:
    """Axial and lateral value of an option that takes two numbers, or one for both."""
    if len(values) > 2:
        raise ValueError(f"--{name} takes one or two numbers, got {len(values)}")
    return tuple(values if len(values) == 2 else values * 2)
