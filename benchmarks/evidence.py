"""Whether ``prior="auto"`` chooses right, and the numbers that its choice rests on: ``python benchmarks/evidence.py``.

``conditions``: mean errors of total variation, of the critic whatever the data say, and of "auto", by condition, with
the number of maps in which "auto" is better than total variation and the p-value of Wilcoxon's signed-rank test. A line
is printed for each map as it comes. The conditions beyond the training generator (level sets and folds by
`elastofast.evaluation.other_tissue`; nested discs, fibres, layers, a gland with a folded boundary) serve for testing
alone. ``numbers``: what the thresholds in `elastofast.inversion.evidence` and `fallback` were chosen
on, from measurements of the training generator alone.
"""

import argparse
from functools import cache

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import wilcoxon
from side_by_side import print_table, save

import elastofast as ef
from elastofast.evaluation.other_tissue import folds, level_sets
from elastofast.inversion.evidence import poisson_cause, residual
from elastofast.learning.current import plain_map
from elastofast.phantoms import retried
from elastofast.priors import registry

WIDTH = 30e-3
LAW = ef.PlaneStress(0.495)
load_prior = cache(registry.load)


def main():
    """Run the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conditions", nargs="*", default=[*CONDITIONS], help="of: " + ", ".join(CONDITIONS))
    parser.add_argument("--maps", type=int, default=6, help="for each condition; 0: no such table")
    parser.add_argument("--numbers", type=int, default=0, help="validation maps for the thresholds")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=100, help="of the first map; those below 100 are validation maps")
    options = parser.parse_args()
    tables = {}
    if options.maps:
        tables["conditions"] = [
            condition(name, options.size, range(options.seed, options.seed + options.maps))
            for name in options.conditions
        ]
        print_table([*tables["conditions"][0]], [[*row.values()] for row in tables["conditions"]])
    if options.numbers:
        tables["numbers"] = numbers(options.size, options.numbers)
        print_table([*tables["numbers"][0]], [[*row.values()] for row in tables["numbers"]])
    save("evidence", tables)


def condition(name, size, seeds):
    """Mean errors under a condition; one line for each map as it comes."""
    errors, chosen, shown = [], [], 0
    for seed in seeds:
        m = CONDITIONS[name](size, seed)
        tv, critic, auto = by_method(m)
        errors.append([error(result, m) for result in (tv, critic, auto)])
        chosen.append(auto.prior)
        shown += auto.chi2 > 1.3 and auto.status == "converged" and repr(auto.prior) not in auto.message
        print(name, seed, *(f"{one:.4f}" for one in errors[-1]), auto.prior, auto.fallback, auto.message, flush=True)
    tv, _, auto = errors = np.array(errors).T
    ratios = auto / tv
    return {
        "condition": name,
        "maps": len(tv),
        **dict(zip(("tv", "critic, not judged", "auto"), errors.mean(axis=1).round(4).tolist(), strict=True)),
        "auto / tv": round(float(ratios.mean()), 3),
        "largest": round(float(ratios.max()), 3),
        "better": int((auto < tv).sum()),
        "p": float(wilcoxon(auto, tv).pvalue) if (auto != tv).any() else 1.0,
        "auto took the critic": chosen.count("critic"),
        "unexplained without a word": shown,
    }


def by_method(m):
    """The results of total variation, of the critic whatever the data say about its map, and of "auto".

    Runs that "auto" has made itself are not made again.
    """
    auto = ef.reconstruct(m, "auto")
    tv = auto if auto.prior == "tv" and auto.fallback in ("", "prior") else ef.reconstruct(m, "tv")
    critic = auto if auto.prior == "critic" and not auto.fallback else plain_map(m, load_prior("critic"))
    return tv, critic, auto


def error(result, m):
    """Relative error; a relative map has the geometric mean one, and so has the truth then."""
    truth = m.reference / np.exp(np.log(m.reference).mean()) if result.relative else m.reference
    return ef.metrics.relative_l2(result.modulus, truth)


def numbers(size, count):
    """For maps of the training generator, 25 to 45 dB: the distance from the target, the noise level that the residual
    shows, and the shares of a misfit that another Poisson ratio explains, with the right and a wrong one.
    """
    rows = []
    for name in ("25 dB", "30 dB", "35 dB", "40 dB", "45 dB", "two lesions", "contrast 20:1", "Poisson -0.03"):
        found = []
        for seed in range(count):
            m = CONDITIONS[name](size, seed)
            result = plain_map(m, load_prior("critic"))
            z = np.log(result.modulus).reshape(1, -1)
            away = z - load_prior("critic").target(z, m.geometry.shape)
            cause, left = poisson_cause(m, result.modulus), residual(m, result.displacement)
            found.append(
                (np.sqrt((away**2).mean()), left.level, left.probability, np.nan if cause is None else cause.share)
            )
        distance, level, probability, share = np.array(found).T
        rows.append(
            {
                "condition": name,
                "maps": count,
                "distance, median": round(float(np.median(distance)), 5),
                "distance, 95 %": round(float(np.quantile(distance, 0.95)), 5),
                "noise level": f"{level.min():.3f} to {level.max():.3f}",
                "rejected": int((probability < 1e-3).sum()),
                "share of Poisson": f"{np.nanmin(share):.2f} to {np.nanmax(share):.2f}"
                if np.isfinite(share).any()
                else "-",
            }
        )
    return rows


# conditions ---------------------------------------------------------------------------------------


def square(size):
    """The grid of the training generator, or one of its width with other nodes."""
    return ef.Grid((size, size), (WIDTH / (size - 1),) * 2)


def lesions(nodes, seed, **options):
    """A map of the training generator."""
    options = {"kind": "random"} | options
    rng = np.random.default_rng([seed, 1])
    return retried(lambda: ef.lesion(square(nodes), seed=rng, **options)[0])


def measured(truth, snr=35.0, seed=0, law=LAW, true_law=None, blur=0.0):
    """A body under pressure; the noise may be blurred over some nodes, unknown to the methods."""
    grid = square(len(truth))
    load = ef.compression(grid, pressure=100.0)
    u = ef.solve_forward(ef.ElasticForm(grid, true_law or law), truth, load)
    std = np.sqrt((u**2).mean()) * 10 ** (-snr / 20)
    noise = np.random.default_rng([seed, 2]).normal(size=u.shape)
    if blur:
        noise = gaussian_filter(noise, (0, blur, blur), mode="wrap")
        noise /= np.sqrt((noise**2).mean(axis=(1, 2), keepdims=True))
    return ef.Measurement(grid, law, load, u + std * noise, std, reference=truth)


def other(make):
    """Maps of one of the generators in `elastofast.evaluation.other_tissue`."""
    return lambda size, seed: make(square(size), np.random.default_rng([seed, 7]))[0]


def axial_only(m):
    """The measurement without its lateral component."""
    std = m.displacement_std.copy()
    std[1] = np.inf
    return ef.Measurement(m.geometry, m.law, m.load, m.displacement, std, reference=m.reference)


def long_pixels(size, seed, aspect, axis=1):
    """Every so many rows or columns of a measurement on square pixels."""
    m = of(lesions)(size, seed)
    keep = [slice(None)] * 2
    keep[axis] = slice(None, None, aspect)
    truth, u = m.reference[tuple(keep)], m.displacement[:, *keep]
    grid = ef.Grid(truth.shape, tuple(h * aspect if k == axis else h for k, h in enumerate(m.geometry.spacing)))
    load = ef.compression(grid, pressure=100.0)
    held = np.argwhere(load.fixed[1])[0]  # the node that does not move laterally
    u = u - np.array([0.0, u[1, *held]])[:, None, None]
    return ef.Measurement(grid, LAW, load, u, float(m.displacement_std.min()), reference=truth)


def region(size, seed):
    """The middle of a larger body, every edge open."""
    margin = size // 8
    body = ef.Grid((size + 2 * margin,) * 2, (WIDTH / (size - 1),) * 2)
    truth = retried(lambda: ef.lesion(body, seed=np.random.default_rng([seed, 1]), kind="random", size=(0.1, 0.28))[0])
    u = ef.solve_forward(ef.ElasticForm(body, LAW), truth, ef.compression(body, pressure=100.0))
    cut = slice(margin, margin + size)
    u, truth = u[:, cut, cut], truth[cut, cut]
    std = np.sqrt((u**2).mean()) * 10 ** (-35 / 20)
    edges = np.ones(u.shape, bool)
    edges[:, 1:-1, 1:-1] = False
    noisy = u + std * np.random.default_rng([seed, 2]).normal(size=u.shape)
    return ef.Measurement(square(size), LAW, ef.Boundary(open=edges), noisy, std, reference=truth)


def axes(size):
    """Coordinates from 0 to 1."""
    return np.indices((size, size)) / (size - 1)


def disc(size, middle, radius):
    """Nodes of a disc, in units of the width."""
    return sum((a - c) ** 2 for a, c in zip(axes(size), middle, strict=True)) < radius**2


def nested(size, seed):
    """A disc 20:1 inside a disc 2:1."""
    rng = np.random.default_rng([seed, 3])
    middle = rng.uniform(0.35, 0.65, 2)
    outer, inner = rng.uniform(0.25, 0.35), rng.uniform(0.06, 0.12)
    within = disc(size, middle + rng.uniform(-0.12, 0.12, 2), inner)
    return 1e4 * np.where(within, 20.0, np.where(disc(size, middle, outer), 2.0, 1.0))


def fibres(size, seed, lesion=None):
    """Folds of a smooth random field, 1:2, with a stiff disc in them or not."""
    rng = np.random.default_rng([seed, 4])
    folds = gaussian_filter(rng.normal(size=(size, size)), rng.uniform(2.5, 4.0) * size / 128) > 0
    x = np.where(folds, 2.0, 1.0)
    if lesion is not None:
        x[disc(size, rng.uniform(0.3, 0.7, 2), rng.uniform(0.08, 0.15))] = lesion
    return 1e4 * x


def layers(size, seed):
    """Skin, fat, gland and muscle with wavy boundaries."""
    rng = np.random.default_rng([seed, 5])
    y, x = axes(size)
    y = y + 0.03 * np.sin(5 * x + rng.uniform(0, 2 * np.pi))
    depths, moduli = (
        np.sort(rng.uniform((0.07, 0.25, 0.6), (0.13, 0.45, 0.85))),
        rng.uniform((4, 0.8, 2, 1.2), (6, 1.2, 3, 1.8)),
    )
    return 1e4 * moduli[np.searchsorted(depths, y)]


def gland(size, seed):
    """A gland 3:1 with a folded boundary, and a disc 20:1 in it."""
    rng = np.random.default_rng([seed, 6])
    y, x = axes(size) - 0.5
    angle, one, other = np.arctan2(y, x), *rng.uniform(0, 2 * np.pi, 2)
    edge = 0.33 + 0.06 * np.sin(9 * angle + one) + 0.03 * np.sin(17 * angle + other)
    return 1e4 * np.where(disc(size, rng.uniform(0.4, 0.6, 2), 0.07), 20.0, np.where(np.hypot(x, y) < edge, 3.0, 1.0))


def of(make, snr=35.0, **options):
    """A condition: maps by a function, measured in a way."""
    return lambda size, seed: measured(make(size, seed), snr, seed, **options)


def with_options(**options):
    """Maps of the training generator with other options."""
    return lambda nodes, seed: lesions(nodes, seed, **options)


CONDITIONS = {
    **{f"{snr} dB": of(lesions, snr) for snr in (25, 30, 35, 40, 45)},
    "plane strain": of(lesions, law=ef.PlaneStrain(0.495)),
    "texture 10 %": of(with_options(texture=0.1)),
    "two lesions": of(with_options(n_lesions=2, size=(0.08, 0.3))),
    "contrast 20:1": of(with_options(lesion=(200e3, 300e3))),
    "no lesion": of(with_options(n_lesions=0)),
    "Poisson -0.03": of(lesions, true_law=ef.PlaneStress(0.465)),
    "correlated noise": of(lesions, blur=1.5),
    "open edges": region,
    **{
        f"pixels {aspect} : 1": lambda size, seed, aspect=aspect: long_pixels(size, seed, aspect)
        for aspect in (2, 3, 4)
    },
    "pixels 1 : 2": lambda size, seed: long_pixels(size, seed, 2, axis=0),
    "axial only": lambda size, seed: axial_only(of(lesions)(size, seed)),
    "axial only, open edges": lambda size, seed: axial_only(region(size, seed)),
    "level sets": of(other(level_sets)),
    "folds": of(other(folds)),
    **{f"nested, {snr} dB": of(nested, snr) for snr in (35, 45, 55)},
    "fibres, 35 dB": of(fibres),
    "fibres, disc 5:1, 35 dB": of(lambda size, seed: fibres(size, seed, 5.0)),
    "fibres, disc 20:1, 45 dB": of(lambda size, seed: fibres(size, seed, 20.0), 45.0),
    "layers, 45 dB": of(layers, 45.0),
    "gland, 45 dB": of(gland, 45.0),
    "gland, 60 dB": of(gland, 60.0),
    "gland, plane strain, 35 dB": of(gland, law=ef.PlaneStrain(0.495)),
}


if __name__ == "__main__":
    main()
