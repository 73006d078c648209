"""The published critic at its own settings: ``python benchmarks/paper.py maps64.h5 paper64.safetensors``.

``slopes``: value and slope of the paper's critic on the line from the true map to the unregularised one and beyond.
``weights``: errors of the paper's descent (frozen gradient, from the unregularised map) over weights and step lengths,
and of L-BFGS over weights; "rule" is the automatic weight at the unregularised map. Validation maps of the data set.
With ``--figure FILE`` both are drawn.
"""

import argparse

import numpy as np
from side_by_side import print_table, save

import elastofast as ef
from elastofast.learning.dataset import Dataset
from elastofast.priors import Critic

PLACES = np.array([0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.5])  # on the line: 0 is the truth
FACTORS = (0.0, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the weight by the rule
PAPER_WEIGHT, STEPS = 10.0, (0.7, 1.5)  # the paper's lambda; step lengths, the first is the paper's


def main():
    """Run the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="data set of the size that the critic was trained on")
    parser.add_argument("weights", help="paper-critic, or critic, by elastofast train")
    parser.add_argument("--count", type=int, default=4, help="validation maps")
    parser.add_argument("--no-lbfgs", dest="lbfgs", action="store_false")
    parser.add_argument("--figure", help="PNG file to draw")
    options = parser.parse_args()
    critic = Critic.load(options.weights)
    with Dataset.open(options.data) as data:
        indices = data.indices("validation")[: options.count]
        cases = [
            (data.measurement(i), data.modulus(i).astype(float), data.unregularised(i).astype(float)) for i in indices
        ]
    tables = {"slopes": slopes(critic, cases), "weights": weights(critic, cases, options.lbfgs)}
    for table in tables.values():
        print_table([*table[0]], [[*row.values()] for row in table])
    save("paper", tables)
    if options.figure:
        draw(tables, options.figure)


def slopes(critic, cases):
    """Means over the maps of the critic above its value at the truth, and of its slopes in standardised log moduli."""
    rows = []
    for t in PLACES:
        value, along, norm = [], [], []
        for _, truth, noisy in cases:
            line = np.log(noisy / truth)
            length = np.linalg.norm(line) / critic.standard.scale
            x = truth * np.exp(t * line)
            (c, g), (at_truth, _) = critic(x), critic(truth)
            g = g * x * critic.standard.scale  # with respect to s
            value.append(c - at_truth)
            along.append((g * line).sum() / critic.standard.scale / length)
            norm.append(np.linalg.norm(g))
        rows.append(
            {
                "place": float(t),
                "value": round(float(np.mean(value)), 3),
                "slope along the line": round(float(np.mean(along)), 4),
                "norm of the slope": round(float(np.mean(norm)), 4),
            }
        )
    return rows


def weights(critic, cases, lbfgs):
    """Mean errors over weights, for each optimizer."""
    rows = []
    rules = [rule(critic, m, noisy) for m, _, noisy in cases]
    print("weight by the rule:", [f"{w:.3g}" for w in rules], flush=True)
    trials = [("descent", step, factor) for step in STEPS for factor in ("paper", *FACTORS)]
    trials += [("l-bfgs", None, factor) for factor in FACTORS[1:]] if lbfgs else []
    for optimizer, step, factor in trials:
        errors, chi2 = [], []
        for (m, truth, noisy), w in zip(cases, rules, strict=True):
            how = {"gradient": "frozen", "step": step} if optimizer == "descent" else {}
            weight = PAPER_WEIGHT if factor == "paper" else factor * w
            result = ef.reconstruct(m, prior=critic, weight=weight, optimizer=optimizer, start=noisy, **how)
            errors.append(ef.metrics.relative_l2(result.modulus, truth))
            chi2.append(result.chi2)
        name = f"lambda {PAPER_WEIGHT:g}" if factor == "paper" else f"rule x {factor:g}"
        rows.append(
            {
                "optimizer": optimizer,
                "step": step,
                "weight": name,
                "error": round(float(np.mean(errors)), 4),
                "worst": round(float(np.max(errors)), 4),
                "chi2": round(float(np.mean(chi2)), 3),
            }
        )
        print(rows[-1], flush=True)
    unregularised = [ef.metrics.relative_l2(noisy, truth) for _, truth, noisy in cases]
    tv = [ef.metrics.relative_l2(ef.reconstruct(m, prior="tv").modulus, truth) for m, truth, _ in cases]
    for name, errors in (("unregularised", unregularised), ("tv", tv)):
        rows.append(dict.fromkeys(rows[0]) | {"optimizer": name, "error": round(float(np.mean(errors)), 4)})
    return rows


def rule(critic, m, noisy):
    """Norm of the data gradient that noise alone causes over that of the critic's slope, at the unregularised map."""
    fidelity = ef.Fidelity(m)
    x = noisy.ravel()
    noise = x * fidelity.noise_gradient(x, fidelity.evaluate(x), np.random.default_rng(0), 1e-4)
    return float(np.linalg.norm(noise) / np.linalg.norm(noisy * critic(noisy)[1]))


def draw(tables, path):
    """Both tables as curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = [row["place"] for row in tables["slopes"]]
    for name in ("value", "norm of the slope", "slope along the line"):
        left.plot(places, [row[name] for row in tables["slopes"]], label=name)
    left.set(xlabel="0: true map, 1: unregularised map", yscale="symlog")
    left.legend()
    curves = {}
    for row in tables["weights"]:
        if row["weight"] and row["weight"].startswith("rule"):
            name = row["optimizer"] + (f", step {row['step']:g}" if row["step"] else "")
            curves.setdefault(name, []).append((float(row["weight"].split()[-1]), row["error"]))
    for name, points in curves.items():
        right.plot(*zip(*points, strict=True), "o-", label=name)
    for row in tables["weights"][-2:]:
        right.axhline(row["error"], linestyle=":", color="gray")
        right.text(FACTORS[1], row["error"], row["optimizer"], color="gray")
    right.set(xlabel="weight over that by the rule", ylabel="relative error", xscale="symlog", yscale="log")
    right.set_xscale("symlog", linthresh=FACTORS[1])
    right.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
