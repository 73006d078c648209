"""The results of a comparison: rows, means over common maps, paired tests, and their tables as text."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["COLUMNS", "FOUND", "METRICS", "SECONDS", "TESTED", "Comparison", "detected_from", "number", "spread"]

# column: (heading, name in metrics.evaluate, format, whether larger is better)
METRICS = {
    "relative_error": ("rel. error", "relative_l2", ".4f", False),
    "ssim": ("SSIM", "ssim", ".3f", True),
    "psnr": ("PSNR dB", "psnr", ".2f", True),
    "cnre_db": ("CNRe dB", "cnre_db", ".1f", True),
    "gcnr": ("gCNR", "gcnr", ".3f", True),
    "contrast_ratio_error": ("contrast err.", "contrast_ratio_error", ".3f", False),
    "dice": ("Dice", "dice", ".3f", True),
    "position_error": ("position err.", "position_error", ".3f", False),
    "found": ("found", "found", ".2f", True),
    "false_alarms": ("false alarms", "false_alarms", ".2f", False),
}
TESTED = ("relative_error", "ssim", "contrast_ratio_error", "dice")  # the metrics of the paired tests
FOUND = 0.9  # share of the lesions from a diameter on that have to be found for this diameter to count as detected
SECONDS = {"seconds": "seconds", "seconds_data": "data term", "seconds_prior": "prior", "seconds_rest": "the rest"}
COLUMNS = (
    "condition", "snr", "world", "map", "index", "method", "diameter", *METRICS, "chi2", "status", "weight",
    *SECONDS, "jobs", "message",
)  # fmt: skip


@dataclass
class Comparison:
    """The results of `compare`.

    Attributes
    ----------
    out : pathlib.Path
        The folder of the comparison.
    config : dict
        What was compared.
    rows : list of dict
        One for each run, with the names in `COLUMNS`; values that are not defined are None.
    missing : int
        Number of runs that were not made because of Ctrl-C.
    command : str
        The command line for the same comparison, without methods that are functions of the caller.
    """

    out: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]] = field(repr=False)
    missing: int
    command: str

    def common(self, condition) -> list[int]:
        """Numbers of the test maps that every method reconstructed under a condition."""
        given: dict[int, int] = {}
        for row in self.rows:
            if row["condition"] == condition and row["relative_error"] is not None:
                given[row["map"]] = given.get(row["map"], 0) + 1
        return sorted(k for k, count in given.items() if count == len(self.config["methods"]))

    def values(self, condition, method, column) -> np.ndarray:
        """Values of one column for the common maps of a condition; NaN where they are not defined."""
        common = set(self.common(condition))
        picked = (r for r in self.rows if r["condition"] == condition and r["method"] == method and r["map"] in common)
        return np.array([r.get(column) for r in sorted(picked, key=lambda r: r["map"])], dtype=np.float64)

    def summary(self) -> list[dict[str, Any]]:
        """Mean and standard deviation of every metric, mean seconds and counts, for each condition and method.

        Means are over the ``maps`` test maps that every method reconstructed. ``failed`` counts the runs without a map,
        ``unconverged`` those with a map that did not converge. ``best`` lists the metrics in which the mean of the
        method is the best one.
        """
        table = []
        for condition in self.config["conditions"]:
            block = [self._line(condition, method) for method in self.config["methods"]]
            for column, (*_, larger) in METRICS.items():
                means = np.array([line[column] for line in block]) * (1 if larger else -1)
                for line in itertools.compress(block, np.isclose(means, np.fmax.reduce(means), rtol=1e-9)):
                    line["best"].append(column)
            table += block
        return table

    def _line(self, condition, method):
        rows = [r for r in self.rows if r["condition"] == condition and r["method"] == method]
        line: dict[str, Any] = {
            "condition": condition,
            "method": method,
            "maps": len(self.common(condition)),
            "failed": sum(r["relative_error"] is None for r in rows),
            "unconverged": sum(r["relative_error"] is not None and r["status"] != "converged" for r in rows),
            "best": [],
        }
        for column in (*METRICS, *SECONDS):
            v = self.values(condition, method, column)
            v = v[np.isfinite(v)]
            line[column] = float(v.mean()) if len(v) else math.nan
            line[f"{column}_std"] = float(v.std(ddof=1)) if len(v) > 1 else math.nan
        return line

    def detection(self) -> list[dict[str, Any]]:
        """How small a lesion every method finds, and how often it sees one where there is none.

        ``diameter`` is the least diameter in metres from which on at least the share `FOUND` of the lesions are found,
        infinite if there is none; ``false_alarms`` the mean number for each map. Maps with several lesions count with
        the share of them that is found, and the diameter of a circle as large as all together.
        """
        table = []
        for condition, method in itertools.product(self.config["conditions"], self.config["methods"]):
            diameter, found, alarms = (
                self.values(condition, method, column) for column in ("diameter", "found", "false_alarms")
            )
            some = np.isfinite(diameter) & np.isfinite(found)
            table.append(
                {
                    "condition": condition,
                    "method": method,
                    "maps": len(diameter),
                    "diameter": detected_from(diameter[some], found[some]),
                    "found": float(found[some].mean()) if some.any() else math.nan,
                    "false_alarms": float(alarms.mean()) if np.isfinite(alarms).any() else math.nan,
                }
            )
        return table

    def tests(self, metrics=("relative_error",)) -> list[dict[str, Any]]:
        """The last method against each other one: Wilcoxon's signed-rank test, two-sided.

        ``difference`` is the mean over the common maps of the ratio of the last method's value to the other's, minus
        one, and ``wins`` is the number of maps for which the last method is better.

        Parameters
        ----------
        metrics : sequence of str
            Names in `METRICS`; maps for which one of the values is not defined do not count.
        """
        from scipy.stats import wilcoxon

        *others, last = self.config["methods"]
        table = []
        for condition, metric, other in itertools.product(self.config["conditions"], metrics, others):
            a, b = (self.values(condition, method, metric) for method in (last, other))
            a, b = (values[np.isfinite(a) & np.isfinite(b)] for values in (a, b))
            better = a > b if METRICS[metric][3] else a < b
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = a / b - 1
            table.append(
                {
                    "condition": condition,
                    "metric": metric,
                    "method": last,
                    "against": other,
                    "maps": len(a),
                    "difference": float(np.mean(ratio)) if len(a) else math.nan,
                    "wins": int(better.sum()),
                    "p": float(wilcoxon(a, b).pvalue) if (a != b).any() else 1.0 if len(a) else math.nan,
                }
            )
        return table

    def parallel(self) -> bool:
        """Whether times were measured while other runs shared the machine."""
        return any(row["jobs"] != 1 for row in self.rows)  # None on a cluster

    def __str__(self):
        heads = ["method", *(head for head, *_ in METRICS.values()), *SECONDS.values(), "failed", "unconv."]
        text = []
        for condition, block in itertools.groupby(self.summary(), key=lambda line: line["condition"]):
            lines = [heads]
            for line in block:
                cells = [line["method"]]
                for column, (_, _, spec, _) in METRICS.items():
                    mark = "*" if column in line["best"] else " "
                    cells.append(spread(line, column, spec) + mark)
                cells += [number(line[name], ".2f") for name in SECONDS]
                lines.append([*cells, str(line["failed"]), str(line["unconverged"])])
            title = f"{condition}: {len(self.common(condition))} maps, mean ± standard deviation, * best"
            text += [title, *_aligned(lines), ""]
        detected = [["condition", "method", "90 % found from", "found", "false alarms"]]
        for line in self.detection():
            diameter = f"{1e3 * line['diameter']:.1f} mm" if np.isfinite(line["diameter"]) else "-"
            shares = number(line["found"], ".0%"), number(line["false_alarms"], ".2f")
            detected.append([line["condition"], line["method"], diameter, *shares])
        text += ["detection of lesions", *_aligned(detected), ""]
        tests = [["condition", "metric", "of", "against", "difference", "better", "p"]]
        for test in self.tests(TESTED):
            wins, metric = f"{test['wins']} of {test['maps']}", METRICS[test["metric"]][0]
            cells = [
                test["condition"],
                metric,
                test["method"],
                test["against"],
                number(test["difference"], "+.1%"),
                wins,
            ]
            tests.append([*cells, number(test["p"], ".2g")])
        if len(tests) > 1:
            text += ["paired, Wilcoxon signed rank", *_aligned(tests), ""]
        if self.parallel():
            text.append("seconds were measured with several jobs at a time")
        return "\n".join(text).rstrip()


def detected_from(diameters: np.ndarray, found: np.ndarray) -> float:
    """The least diameter from which on at least the share `FOUND` of lesions are found.

    Parameters
    ----------
    diameters, found : numpy.ndarray, shape (n,)
        Of each map, the diameter and the share found of its lesions.

    Returns
    -------
    float
        Infinite if there is none, NaN without maps.
    """
    if not len(diameters):
        return math.nan
    order = np.argsort(-diameters)
    share = np.cumsum(found[order]) / np.arange(1, len(order) + 1)
    return float(diameters[order][share >= FOUND].min(initial=math.inf))


def number(value, spec) -> str:
    """A number for a table, or a dash if it is not defined."""
    return format(value, spec) if np.isfinite(value) else "-"


def spread(line, column, spec) -> str:
    """Mean and standard deviation of a line of `Comparison.summary`."""
    mean, std = line[column], line[f"{column}_std"]
    return number(mean, spec) + (f" ± {std:{spec}}" if np.isfinite(std) else "")


def _aligned(lines):
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(f"{c:{'<' if i == 0 else '>'}{w}}" for i, (c, w) in enumerate(zip(line, widths, strict=True)))
