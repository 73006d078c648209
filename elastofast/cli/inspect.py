"""``elastofast inspect``: what a file of another program holds, and a sidecar to read it with."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import numpy as np

from .shared import check_suffix, set_option

HELP = (
    "say what a file holds (MATLAB, HDF5, NPZ, tables of text, NIfTI, PNG, TIFF) and propose a sidecar, by which "
    "elastofast reconstruct --with reads it"
)
EXAMPLE = "vic2d.csv -o vic2d.toml"

SHOWN = 40  # variables that are listed
LARGE = 2 * 10**7  # values of an array whose range is not shown, because reading it would take seconds


def add_options(option) -> None:
    """Add the options of the command."""
    option(
        "files",
        metavar="FILE",
        nargs="+",
        help="file of a measurement; several where its components, its mask or its quality are in files of their own",
    )
    option("-o", "--output", metavar="SIDECAR", help="write the sidecar to this .toml file (default: print it)")
    option("--with", dest="sidecar", metavar="SIDECAR", help="check a sidecar that is there: say what it makes of FILE")
    set_option(option, "values for the sidecar, such as noise.std=2e-4")
    option("--force", action="store_true", help="replace an existing sidecar")


def run(options) -> int:
    """Run the command; returns the exit status."""
    from ..io.recognise import propose

    if options.sidecar:
        return _check(options)
    if options.output:
        check_suffix(options.output, (".toml",))
        if os.path.exists(options.output) and not options.force:
            raise ValueError(f"{options.output} exists and may have been edited: give another name, or --force")
    proposal = propose(options.files)
    for file in proposal.files:
        _print_content(file)
    for note in proposal.notes:
        print(note)
    if proposal.sidecar is None:
        return 0
    sidecar = proposal.sidecar.changed(options.set)
    for warning in proposal.warnings:
        print(f"elastofast: warning: {warning}", file=sys.stderr)
    name = options.output or f"{Path(options.files[0]).stem}.toml"
    again = shlex.join(["elastofast", "reconstruct", options.files[0], "--with", name, "-o", "modulus.h5"])
    heading = [
        f"How elastofast reads {Path(options.files[0]).name}.",
        "Check every line that is marked GUESSED, state those that are marked TO BE STATED, and then run",
        f"  {again}",
    ]
    text = sidecar.text(heading)
    if options.output:
        from ..io import write_atomically

        write_atomically(options.output, text.encode())
        print(f"\nwrote {options.output}")
        _print_values(sidecar)
        unstated = sidecar.unstated()
        todo = (
            f"state {', '.join(unstated)} in {name} and check the guesses, then run" if unstated else "check it and run"
        )
        print(f"\n{todo}\n  {again}")
    else:
        print(f"\n{text}")
    return 0


def _check(options) -> int:
    """Say what a sidecar makes of a file."""
    from ..io.containers import read_container
    from ..io.foreign import foreign_arguments
    from ..io.layout import naming
    from ..io.sidecar import Sidecar
    from ..io.strain import MeanGradient
    from ..measurement import Measurement

    if len(options.files) > 1:
        raise ValueError("--with takes one FILE; further ones are named in the sidecar, files.more")
    file = read_container(options.files[0])
    with naming(file.path):
        values = foreign_arguments(file, Sidecar.read(options.sidecar).changed(options.set).frame(0))
        print(Measurement(**values))
    grid, std = values["geometry"], values["displacement_std"]
    measured = np.isfinite(std)
    height, width = ((n - 1) * h * 1e3 for n, h in zip(grid.shape, grid.spacing, strict=True))
    print(f"body        {height:.4g} mm high, {width:.4g} mm wide")
    u = np.where(measured, values["displacement"], np.nan)
    strains = MeanGradient.of(u, grid.spacing).strains
    for i, name in enumerate(("axial", "lateral")):
        if not measured[i].any():
            print(f"{name:<12}not measured")
            continue
        print(
            f"{name:<12}measured at {measured[i].mean():.1%} of the nodes, {np.nanmin(u[i]) * 1e6:.4g} to "
            f"{np.nanmax(u[i]) * 1e6:.4g} um, mean strain {strains[i]:.3%}, "
            f"noise {np.median(std[i][measured[i]]) * 1e6:.3g} um"
        )
    return 0


def _print_content(file) -> None:
    print(f"{file.path}: {file.kind}")
    fields = file.fields()
    for name in list(file.variables)[:SHOWN]:
        variable = file.variables[name]
        shape = " x ".join(map(str, variable.shape)) or "single"
        line = f"  {name:<23} {shape:<15} {variable.dtype!s:<8} {variable.unit:<5}"
        if name in fields and np.prod(variable.shape) <= LARGE:
            values = file.array(name)
            finite = values[np.isfinite(values)]
            line += f"{finite.min():.5g} to {finite.max():.5g}" if finite.size else "no numbers"
            line += f", {values.size - finite.size} missing" if finite.size < values.size else ""
        print(line.rstrip())
    if len(file.variables) > SHOWN:
        print(f"  and {len(file.variables) - SHOWN} more")
    for note in file.notes:
        print(f"  note: {note}")


def _print_values(sidecar) -> None:
    """The values that were found, with the reasons, as a table."""
    for key, value in sidecar.values.items():
        if reason := sidecar.reasons.get(key):
            print(f"  {key:<23} {value!s:<19} {reason}")
