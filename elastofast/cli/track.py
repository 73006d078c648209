"""``elastofast track``: from ultrasound frames to a displacement field, and to a map."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ..laws import LAWS, PlaneStrain
from ..progress import progress_bar
from ..tracking.frames import AXES, KINDS, MATLAB_AXES, SOUND_SPEED
from . import reconstruct
from .shared import check_output, pair

HELP = (
    "track the displacement between two ultrasound frames and write it, with its noise, to a measurement file; with "
    "--reconstruct, go on to the modulus map"
)
EXAMPLE = (
    "before.mat after.mat -o field.h5 --sampling-frequency 40e6 --pitch 0.15e-3 --reconstruct map.h5 --plot map.png\n"
    "  elastofast track scan.tif -o field.h5 --spacing 0.1e-3 0.1e-3 --frame 0 5 --figure field.png"
)


def add_options(option) -> None:
    """Add the options of the command."""
    option(
        "frames",
        nargs="+",
        metavar="FILE",
        help="the frame before and the one after, or one file of a sequence: MATLAB, HDF5, NPZ, NPY, PNG or TIFF",
    )
    option("-o", "--out", required=True, help="measurement file to write: .h5, .npz or .mat (docs/files.md)")
    option("--sampling-frequency", type=float, help="of the scan lines in hertz; gives the axial spacing")
    option("--sound-speed", type=float, default=SOUND_SPEED, help="in metres per second")
    option("--pitch", type=float, help="distance between scan lines in metres")
    option(
        "--spacing",
        type=float,
        nargs=2,
        metavar=("AXIAL", "LATERAL"),
        help="instead of these: distances between samples and between lines in metres, for example of the pixels of an "
        "image",
    )
    option("--variable", nargs="+", metavar="NAME", help="variables that hold the frames, where a file has several")
    usual = f'"{AXES[2]}", "{AXES[3]}" and in MATLAB files "{MATLAB_AXES[3]}"'
    option("--axes", help=f"axes of the arrays, by z (axial), x (lateral) and t (frame) (default: {usual})")
    option(
        "--frame",
        type=int,
        nargs=2,
        metavar=("I", "J"),
        help="of a sequence, the frames to compare, from 0 (default: each with the first)",
    )
    option("--kind", choices=KINDS, help="what the frames hold (default: found out)")
    lengths = {"type": float, "nargs": "+"}
    option("--window", **lengths, help="size of the windows in metres, axial and lateral (default: by the speckle)")
    option("--step", **lengths, help="distance between nodes in metres (default: half of the window)")
    option("--search", **lengths, help="largest displacement in metres (default: 2.5 %% of the frame)")
    plane = [name for name, law in LAWS.items() if law.dim == 2]
    option("--law", choices=plane, default=PlaneStrain.name, help="material law")
    option("--poisson", type=float, default=0.495, help="Poisson ratio")
    option(
        "--pressure",
        type=float,
        help="pressure on the top of the field in pascals (default: unknown; the modulus is then relative)",
    )
    option(
        "--plate",
        action="store_true",
        help="with --pressure: the field is a whole body, whose bottom rests on a plate and whose sides are free "
        "(default: nothing is known at the other edges)",
    )
    option("--figure", help="figure of the displacement to write: .png, .pdf or .svg")
    option("--reconstruct", metavar="FILE", help="modulus map to write: .npz, .h5, .mat or .vtu")
    option("--prior", default="auto", help="with --reconstruct: see elastofast reconstruct --help")
    option("--plot", help="with --reconstruct: figure of the map to write")
    option("--quiet", action="store_true", help="show no progress bar")


def run(options) -> int:
    """Run the command; returns the exit status."""
    from ..tracking import track

    check_output(options.out, (".h5", ".hdf5", ".npz", ".mat"))
    if options.figure:
        check_output(options.figure, (".png", ".pdf", ".svg"))
    following = _reconstruction(options)
    settings = {
        name: pair(name, getattr(options, name))
        for name in ("window", "step", "search")
        if getattr(options, name) is not None
    }
    law = LAWS[options.law](options.poisson)
    spacing = _spacing(options)
    frames, names = _read(options)
    pairs = [options.frame] if options.frame else [(0, j) for j in range(1, len(frames))]
    if bad := [i for i in pairs[0] if not 0 <= i < len(frames)]:
        raise ValueError(f"--frame must name frames from 0 to {len(frames) - 1}, got {bad[0]}")
    if len(pairs) > 1 and (options.reconstruct or options.figure):
        raise ValueError(
            f"{len(frames)} frames give {len(pairs)} fields; choose two with --frame I J for --reconstruct and --figure"
        )
    with progress_bar("track", "pair", not options.quiet, total=len(pairs)) as bar:
        for i, j in pairs:
            tracking = track(frames[i], frames[j], spacing, kind=options.kind, **settings)
            path = options.out if len(pairs) == 1 else _numbered(options.out, j)
            tracking.measurement(law, pressure=options.pressure, plate=options.plate).save(path)
            bar.update()
            bar.write(f"{names[i]} -> {names[j]}\n{_summary(tracking)}\nwrote {path}")
    if options.figure:
        from ..plots import plot_tracking

        plot_tracking(tracking, options.figure)
        print(f"wrote {options.figure}")
    return reconstruct.run(following) if following else 0


def _reconstruction(options):
    """Options of ``elastofast reconstruct`` for the field, checked before the work; None where it is not wanted."""
    if not options.reconstruct:
        if options.plot:
            raise ValueError("--plot draws the map of --reconstruct FILE; for the displacement there is --figure")
        return None
    check_output(options.reconstruct, (".npz", ".h5", ".hdf5", ".mat", ".vtu"))
    arguments = [options.out, "-o", options.reconstruct, "--prior", options.prior]
    if options.plot:
        check_output(options.plot, (".png", ".pdf", ".svg"))
        arguments += ["--plot", options.plot]
    parser = argparse.ArgumentParser(prog="elastofast reconstruct", add_help=False, exit_on_error=False)
    reconstruct.add_options(lambda *names, group=None, **settings: parser.add_argument(*names, **settings))
    try:
        return parser.parse_args([*arguments, "--quiet"] if options.quiet else arguments)
    except argparse.ArgumentError as error:
        raise ValueError(f"--reconstruct: {error}") from None


def _spacing(options):
    from ..tracking import sample_spacing

    if options.spacing is not None:
        if options.sampling_frequency is not None or options.pitch is not None:
            raise ValueError("give either --spacing or --sampling-frequency and --pitch, not both")
        return options.spacing
    missing = [name for name in ("sampling_frequency", "pitch") if getattr(options, name) is None]
    if missing:
        names = " and ".join("--" + name.replace("_", "-") for name in missing)
        raise ValueError(
            f"{names} missing: give --sampling-frequency (hertz) and --pitch (metres between lines) for scan lines, or "
            "--spacing AXIAL LATERAL (metres) for images"
        )
    return sample_spacing(options.sampling_frequency, options.pitch, options.sound_speed)


def _read(options):
    """All frames of all files, and their names."""
    from ..tracking import read_frames

    read = [read_frames(path, options.variable, options.axes) for path in options.frames]
    frames, names = [frame for r in read for frame in r.data], [name for r in read for name in r.names]
    if len(frames) < 2:
        raise ValueError(f"two frames are needed, {names[0]} is one; name a second file")
    return frames, names


def _numbered(path, number):
    path = Path(path)
    return str(path.with_name(f"{path.stem}-{number:03d}{path.suffix}"))


def _summary(tracking) -> str:
    """What was measured, in words."""
    (n0, n1), spacing = tracking.grid.shape, (1e3 * h for h in tracking.grid.spacing)
    good = tracking.measured
    lines = [
        "field    {} x {} nodes, {:.3g} x {:.3g} mm apart, first at depth {:.3g} mm".format(
            n0, n1, *spacing, 1e3 * tracking.origin[0]
        ),
        "windows  {:.3g} x {:.3g} mm, {} frames".format(*(1e3 * w for w in tracking.window), tracking.kind.upper()),
        f"matched  median correlation {np.nanmedian(tracking.correlation):.3f}, {good.mean():.1%} of nodes measured",
    ]
    for name, u, std in zip(("axial", "lateral"), tracking.displacement, tracking.displacement_std, strict=True):
        low, high = 1e6 * u[good].min(), 1e6 * u[good].max()
        lines.append(f"{name:<9}{low:.4g} to {high:.4g} um, standard deviation {1e6 * np.median(std[good]):.3g} um")
    lines.append("errors   correlated over {:.2g} x {:.2g} mm".format(*(1e3 * x for x in tracking.correlation_length)))
    return "\n".join(lines)
