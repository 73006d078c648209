"""``elastofast simulate``: a simulated measurement as a file."""

from __future__ import annotations

from ..laws import LAWS
from ..phantoms import KINDS
from .shared import check_output, measurement_options, pair

HELP = "write the simulated measurement of a lesion phantom to a file"
EXAMPLE = "-o scan.h5 --size 256 --phantom spiculated --noise relative --snr 35"


def add_options(option) -> None:
    """Add the options of the command."""
    option("-o", "--out", required=True, help="file to write: .h5, .npz or .mat (docs/files.md)")
    option("--size", type=int, nargs="+", default=[256], help="nodes: one number, or axial and lateral (default: 256)")
    option(
        "--spacing",
        type=float,
        nargs="+",
        help="node distance in metres: one number, or axial and lateral (default: such that the body is 40 mm wide)",
    )
    measurement_options(option)
    option("--force-std", type=float, default=0.0, help="standard deviation of the force noise at each node in N/m")
    option("--seed", type=int, default=0, help="seed of the phantom and the noise")
    option("--phantom", choices=(*KINDS, "random"), default="lobulated", help="shape of the lesions")
    option("--lesions", type=int, default=1, help="number of lesions")
    option("--edge", type=float, default=0.0, help="width of the margin of a lesion in node distances; 0 is sharp")
    option("--texture", type=float, default=0.0, help="relative standard deviation of a smooth texture of the modulus")
    option("--pressure", type=float, default=100.0, group="load", help="pressure on the top in pascals")
    option("--strain", type=float, group="load", help="instead, move the top by this fraction of the height")


def run(options) -> int:
    """Run the command; returns the exit status."""
    from ..boundary import compression
    from ..geometry import Grid
    from ..phantoms import lesion
    from ..simulation import simulate

    check_output(options.out, (".h5", ".hdf5", ".npz", ".mat"))
    shape = pair("size", options.size)
    grid = Grid(shape, pair("spacing", options.spacing or [40e-3 / (max(shape[1], 2) - 1)]))
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
