"""How often the intervals of `elastofast.uncertainty` hold the truth: ``python benchmarks/uncertainty.py``.

Maps are drawn, measured many times with fresh noise, and reconstructed; intervals of 90 % are to hold the truth in nine
of ten draws. A line has the coverage of the contrast of the lesion, of its mean modulus, of the nodes away from edges
and of all nodes, the width of the intervals of the contrast over the error that the maps really have, and the cost in
reconstructions. The method has no constant that was chosen on maps; the rule for the bias was compared with others on
maps 0 to 8 of the training generator, and none of those is used here.
"""

import argparse
import time
from functools import cache

import numpy as np
from evidence import LAW, WIDTH, lesions, nested, square
from scipy.ndimage import gaussian_filter
from side_by_side import print_table, save

import elastofast as ef
from elastofast.metrics import region_masks
from elastofast.phantoms import retried

GUARD = 3  # layers of cells along edges that do not count as away from them
FIRST_MAP = 200  # the maps before it served for choices, here or elsewhere


def main():
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conditions", nargs="*", default=[*CONDITIONS], help="of: " + ", ".join(CONDITIONS))
    parser.add_argument("--prior", default="tv")
    parser.add_argument("--size", type=int, default=33, help="nodes along each axis")
    parser.add_argument("--maps", type=int, default=4, help="for each condition")
    parser.add_argument("--draws", type=int, default=50, help="of the noise, for each map")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    rows = [coverage(name, options) for name in options.conditions]
    print_table([*rows[0]], [[*row.values()] for row in rows])
    save("uncertainty", {f"{options.prior}, {options.size}": rows})


def coverage(name, options):
    """The line of a condition."""
    found = []
    for seed in range(FIRST_MAP, FIRST_MAP + options.maps):
        clean, truth, noise = CONDITIONS[name](options.size, seed)
        target, background = region_masks(truth, clean.geometry, guard=1)
        away = np.logical_or(*region_masks(truth, clean.geometry, guard=GUARD))
        for draw in range(options.draws):
            rng = np.random.default_rng([seed, draw])
            m = clean.derived(displacement=clean.displacement + noise(clean, rng))
            start = time.perf_counter()
            result = ef.reconstruct(m, options.prior)
            middle = time.perf_counter()
            sure = ef.uncertainty(result, m, options.repetitions, seed=rng)
            end = time.perf_counter()
            own = truth / np.exp(np.log(truth).mean()) if result.relative else truth
            weights = clean.geometry.node_weights.reshape(truth.shape)
            mean = np.average(own[target], weights=weights[target])
            ratio = mean / np.average(own[background], weights=weights[background])
            contrast, nodes = sure.contrast(target, background), sure.interval()
            inside = (nodes.low <= own) & (own <= nodes.high)
            found.append(
                [
                    contrast.low <= ratio <= contrast.high,
                    sure.mean(target).low <= mean <= sure.mean(target).high,
                    inside[away].mean(),
                    inside.mean(),
                    np.log(contrast.high / contrast.low) / 2,
                    abs(np.log(contrast.estimate / ratio)),
                    (end - middle) / (middle - start),
                ]
            )
        print(name, seed, len(found), np.round(np.mean(found, axis=0), 3), flush=True)
    means = np.mean(found, axis=0)
    return {
        "condition": name,
        "prior": options.prior,
        "maps x draws": f"{options.maps} x {options.draws}",
        "contrast": round(float(means[0]), 3),
        "mean of the lesion": round(float(means[1]), 3),
        "nodes away from edges": round(float(means[2]), 3),
        "all nodes": round(float(means[3]), 3),
        "half width of contrast (log)": round(float(means[4]), 4),
        "error of contrast (log)": round(float(means[5]), 4),
        "cost in reconstructions": round(float(np.median([row[6] for row in found])), 2),
    }


# conditions: a measurement without noise, the true modulus, and noise -----------------------------


def white(m, rng):
    """Independent noise of the stated level where something was measured."""
    std = np.where(np.isfinite(m.displacement_std), m.displacement_std, 0.0)
    return np.where(m.load.fixed, 0.0, std * rng.normal(size=std.shape))


def blurred(nodes):
    """Noise blurred over some nodes, made without the library's own covariance."""

    def noise(m, rng):
        margin = int(6 * nodes)
        size = [n + 2 * margin for n in m.geometry.shape]
        field = gaussian_filter(rng.normal(size=(2, *size)), (0, nodes, nodes))[:, margin:-margin, margin:-margin]
        return np.where(m.load.fixed, 0.0, m.displacement_std * field * 2 * np.sqrt(np.pi) * nodes)

    return noise


def noise_level(u, snr):
    """Standard deviation of the noise of a field."""
    return np.sqrt((u**2).mean()) * 10 ** (-snr / 20)


@cache
def pressed(make, size, seed, snr=35.0, law=LAW, strain=None, correlation=None, unseen=False):
    """A body under pressure, or under a strain by which the modulus is known only up to a factor."""
    truth, grid = make(size, seed), square(size)
    load = ef.compression(grid, strain=strain) if strain else ef.compression(grid, pressure=100.0)
    u = ef.solve_forward(ef.ElasticForm(grid, law), truth, load)
    std = np.full(u.shape, noise_level(u, snr))
    if unseen:
        std[1] = np.inf
    length = None if correlation is None else 2 * correlation * grid.spacing[0]
    return ef.Measurement(grid, law, load, u, std, displacement_correlation=length), truth


@cache
def cut_out(size, seed, snr=35.0):
    """The middle of a larger body, every edge open."""
    margin = size // 8
    body = ef.Grid((size + 2 * margin,) * 2, (WIDTH / (size - 1),) * 2)
    truth = retried(lambda: ef.lesion(body, seed=np.random.default_rng([seed, 1]), kind="random", size=(0.1, 0.28))[0])
    u = ef.solve_forward(ef.ElasticForm(body, LAW), truth, ef.compression(body, pressure=100.0))
    cut = slice(margin, margin + size)
    u, truth = u[:, cut, cut], truth[cut, cut]
    edges = np.ones(u.shape, bool)
    edges[:, 1:-1, 1:-1] = False
    return ef.Measurement(square(size), LAW, ef.Boundary(open=edges), u, noise_level(u, snr)), truth


@cache
def triangles(size, seed, snr=35.0):
    """The same body on a mesh of triangles."""
    grid = square(size)
    numbers = np.arange(grid.n_nodes).reshape(grid.shape)
    a, b, c, d = (s.ravel() for s in (numbers[:-1, :-1], numbers[1:, :-1], numbers[1:, 1:], numbers[:-1, 1:]))
    mesh = ef.Mesh(grid.points[:, ::-1], np.concatenate([np.c_[a, b, c], np.c_[a, c, d]]))
    truth = lesions(size, seed).ravel()
    load = ef.compression(mesh, pressure=100.0)
    u = ef.solve_forward(ef.ElasticForm(mesh, LAW), truth, load)
    return ef.Measurement(mesh, LAW, load, u, noise_level(u, snr)), truth


CONDITIONS = {
    "lesion": lambda size, seed: (*pressed(lesions, size, seed), white),
    "25 dB": lambda size, seed: (*pressed(lesions, size, seed, 25.0), white),
    "45 dB": lambda size, seed: (*pressed(lesions, size, seed, 45.0), white),
    "nested, 45 dB": lambda size, seed: (*pressed(nested, size, seed, 45.0), white),
    "plane strain": lambda size, seed: (*pressed(lesions, size, seed, law=ef.PlaneStrain(0.495)), white),
    "relative": lambda size, seed: (*pressed(lesions, size, seed, strain=0.01), white),
    "axial only": lambda size, seed: (*pressed(lesions, size, seed, unseen=True), white),
    "open edges": lambda size, seed: (*cut_out(size, seed), white),
    "correlated noise": lambda size, seed: (*pressed(lesions, size, seed, correlation=1.5), blurred(1.5)),
    "triangles": lambda size, seed: (*triangles(size, seed), white),
}


if __name__ == "__main__":
    main()
