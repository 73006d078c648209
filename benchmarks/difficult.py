"""Measurements as people have them: what is right, and what comes out, as one table.

Each row is one instance of a kind of input with which reconstructions went wrong in published or private use: missing
and wrong values, wrong units, open edges, one component, correlated noise, supports and loads that are not as stated,
and tissue that no network was trained on. Displacements come from a grid twice as fine as that of the reconstruction.

Usage: ``python benchmarks/difficult.py [WORDS ...]``; with words, only the rows whose name contains one of them.
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

import elastofast as ef

N, SIDE = 65, 38.4e-3
GRID, FINE = (ef.Grid((n, n), (SIDE / (n - 1),) * 2) for n in (N, 2 * N - 1))
H = GRID.spacing[0]
LAW = ef.PlaneStress(0.495)
LOAD = ef.compression(GRID, pressure=100.0)
EDGES = np.ones((2, N, N), bool)
EDGES[:, 1:-1, 1:-1] = False


def disc(grid, inside=4e4, outside=1e4, radius=6e-3, centre=SIDE / 2):
    """A modulus in pascals."""
    distance = np.hypot(*(grid.points.T - centre)).reshape(grid.shape)
    return np.where(distance < radius, inside, outside)


def nested(grid):
    """A stiff disc in a softer one."""
    return np.where(disc(grid, 1, 0, 4e-3) > 0, 2e5, disc(grid, 2e4, 1e4, 13e-3))


def layers(grid):
    """Three layers, one above the other."""
    depth = grid.points[:, 0].reshape(grid.shape)
    return np.select([depth < 8e-3, depth < 20e-3], [2e4, 5e3], 3e4)


def displaced(modulus=disc, law=LAW, load=lambda grid: ef.compression(grid, pressure=100.0)):
    """The displacement of a body at the nodes of `GRID`, in metres."""
    return ef.solve_forward(ef.ElasticForm(FINE, law), modulus(FINE), load(FINE))[:, ::2, ::2]


def noise(u, snr=35.0, width=0.0, seed=0):
    """Noise for a displacement, and its standard deviation; blurred over ``width`` nodes."""
    fields = np.random.default_rng(seed).standard_normal(u.shape)
    if width:
        fields = np.stack([gaussian_filter(one, width, mode="wrap") for one in fields])
    std = float(np.sqrt(np.mean(u**2))) * 10 ** (-snr / 20)
    return fields * std / fields.std(), std


@dataclass
class Row:
    """A kind of input.

    Attributes
    ----------
    name : str
    right : str
        What should come out.
    truth : callable
        The modulus on a grid.
    actual, stated : dict
        Arguments of `displaced` and `measurement`.
    wrong : callable
        What happens to the displacement before noise is added.
    options : dict
        Of `reconstruct`.
    """

    name: str
    right: str
    truth: Callable = disc
    actual: dict[str, Any] = field(default_factory=dict)
    stated: dict[str, Any] = field(default_factory=dict)
    wrong: Callable = lambda u: u
    options: dict[str, Any] = field(default_factory=lambda: {"prior": "tv"})

    def make(self) -> ef.Measurement:
        """The measurement, with whatever is wrong about it."""
        return measurement(self.wrong(displaced(self.truth, **self.actual)), **self.stated)


def measurement(u, *, snr=35.0, law=LAW, load=LOAD, change=lambda u, std: (u, std), width=0.0, **options):
    """A noisy measurement; ``change`` does to displacement and standard deviations what went wrong."""
    e, std = noise(u, snr, width)
    noisy, std = change(np.where(load.fixed, load.displacement, u + e), np.full(u.shape, std))
    return ef.Measurement(GRID, law, load, noisy, std, **options)


def with_nan(share):
    """Some values are missing."""

    def change(u, std):
        lost = np.random.default_rng(1).random(u.shape) < share
        return np.where(lost, np.nan, u), np.where(lost, np.inf, std)

    return change


def masked(u, std):
    """A shadow is masked, with nonsense under the mask."""
    shadow = np.zeros(u.shape, bool)
    shadow[:, 20:, 40:48] = True
    return np.ma.masked_array(np.where(shadow, 1e-3, u), shadow), std


def hopped(u, std):
    """Two in a hundred values are wrong by 30 standard deviations."""
    hit = (np.random.default_rng(1).random(u.shape) < 0.02) & ~LOAD.fixed
    return u + 30 * std * hit, std


def drifted(u, std):
    """The whole body has moved and turned."""
    points = GRID.points.T.reshape(2, N, N)
    return u + 1e-3 + 5e-4 * np.stack([-points[1], points[0]]), std


def axial(u, std):
    """The lateral component was not measured."""
    return u, np.stack([std[0], np.full(std[1].shape, np.inf)])


def organ(u, std):
    """Only a disc of the image is tissue."""
    outside = np.broadcast_to(disc(GRID, 1, 0, 15e-3) == 0, u.shape)
    return np.where(outside, np.nan, u), np.where(outside, np.inf, std)


def not_inside(radius):
    """Open dofs outside of a disc, and on its rim."""
    return ef.Boundary(open=np.broadcast_to(disc(GRID, 1, 0, radius - 2 * H) == 0, (2, N, N)))


def bottom_open():
    """The pressure on the top is known, the bottom only measured."""
    open_, force = np.zeros((2, N, N), bool), np.zeros((2, N, N))
    open_[:, -1] = True
    force[0, 0] = 100.0 * H
    force[0, 0, [0, -1]] /= 2
    return ef.Boundary(open=open_, force=force)


def bonded(grid):
    """Plates that do not let the tissue slide."""
    n = grid.shape[0]
    fixed, u = np.zeros((2, n, n), bool), np.zeros((2, n, n))
    fixed[:, [0, -1]] = True
    u[0, 0] = 4e-4
    return ef.Boundary(fixed=fixed, displacement=u)


def contrast(inside, outside=1e4):
    """A disc of other moduli."""
    return lambda grid: disc(grid, inside, outside)


FREE, LESS = ef.Boundary(open=EDGES), LAW.poisson - 0.03
ROWS = [
    Row("as it should be", "error about .14"),
    Row("in pixels, taken for metres", "refused", wrong=lambda u: u / H),
    Row("in millimetres, taken for metres", "refused", wrong=lambda u: 1e3 * u),
    Row("upside down", "said", wrong=lambda u: u[:, ::-1]),
    Row("kPa taken for Pa", "wrong by 1000: no data tell", stated={"load": ef.compression(GRID, pressure=0.1)}),
    Row("Poisson ratio wrong by .03", "said", actual={"law": ef.PlaneStress(LESS)}),
    Row(
        "Poisson ratio wrong, plane strain",
        "said",
        actual={"law": ef.PlaneStrain(LESS)},
        stated={"law": ef.PlaneStrain(LAW.poisson)},
    ),
    Row(
        "bonded plates, stated frictionless",
        "said",
        actual={"load": bonded},
        stated={"load": ef.compression(GRID, strain=4e-4 / SIDE)},
    ),
    Row("a shadow, masked", "little change", stated={"change": masked}),
    Row("one NaN in 500", "no change", stated={"change": with_nan(0.002)}),
    Row("outliers, 2 % of 30 std", "no change", stated={"change": hopped}),
    Row("noise blurred over 2 nodes, not stated", "said", stated={"width": 2.0}),
    Row("noise blurred over 2 nodes, stated", "no change", stated={"width": 2.0, "displacement_correlation": 4 * H}),
    Row("noise ten times as large as stated", "said", stated={"change": lambda u, std: (u, std / 10)}),
    Row("noise a tenth of what is stated", "said", stated={"change": lambda u, std: (u, 10 * std)}),
    Row("noise not known", "no change", stated={"change": lambda u, std: (u, None)}),
    Row("60 dB", "better than 35 dB", stated={"snr": 60.0}),
    Row("axial only", "hardly worse", stated={"change": axial}),
    Row("all edges open", "hardly worse", stated={"load": FREE}),
    Row("all edges open, moved and turned", "the same", stated={"load": FREE, "change": drifted}),
    Row("all edges open, axial only", "at most 1.5 x", stated={"load": FREE, "change": axial}),
    Row("pressure known, bottom open, 25 dB", "at most 1.1 x fixed", stated={"load": bottom_open(), "snr": 25.0}),
    Row("bottom fixed, 25 dB", "", stated={"snr": 25.0}),
    Row("an organ, NaN outside", "chi2 about 1", stated={"load": not_inside(15e-3), "change": organ}),
    Row("layers", "error below .1", layers),
    Row("homogeneous, 25 dB", "no lesion", contrast(1e4), stated={"snr": 25.0}),
    Row("calcification 100 : 1, 45 dB", "a stiff disc", contrast(1e6), stated={"snr": 45.0}),
    Row("cyst 1 : 10, 45 dB", "a soft disc", contrast(1e3), stated={"snr": 45.0}),
    Row(
        "modulus of steel",
        "no change",
        contrast(8.4e11, 2.1e11),
        actual={"load": lambda grid: ef.compression(grid, pressure=1e9)},
        stated={"load": ef.compression(GRID, pressure=1e9)},
    ),
    Row("a disc in a disc, 45 dB, prior auto", "at most 1.05 x tv", nested, stated={"snr": 45.0}, options={}),
    Row("a disc in a disc, 45 dB, tv", "", nested, stated={"snr": 45.0}),
]


def outcome(row):
    """Status, chi2, error, and what the library says about a row."""
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            m = row.make()
            result = ef.reconstruct(m, **row.options)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        said = [str(one.message) for one in caught]
    truth = row.truth(GRID)
    scale = np.exp(np.log(truth / result.modulus).mean()) if result.relative else 1.0
    error = np.linalg.norm(scale * result.modulus - truth) / np.linalg.norm(truth)
    text = f"{result.prior}, {result.status}, chi2 {result.chi2:.2f}, error {error:.3f}."
    remark = result.message.partition(". ")[2]
    return " ".join([text, *([remark] if remark else []), *(f"WARNING: {one}" for one in said)])


def main(words):
    """Print the table in Markdown."""
    print("| what people have | right | what comes out |\n|---|---|---|")
    for row in ROWS:
        if not words or any(word in row.name for word in words):
            print(f"| {row.name} | {row.right} | {outcome(row)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
