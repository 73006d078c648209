"""The report of a comparison: figures, tables as CSV, and one self-contained HTML page."""

from __future__ import annotations

import csv
import io
import itertools
import json
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from ..io import write_atomically
from ..metrics import relative_l2
from ..page import figure, page, table, versions
from ..plots import style
from .methods import METHODS
from .results import COLUMNS, FOUND, METRICS, SECONDS, TESTED, number, spread
from .scenarios import SCENARIOS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CASES = 3  # maps in the figures of the first condition; one in those of the others
CASE_PANEL = 1.6  # inches, width of a map in `plot_cases`
GOLDEN = 0.618  # golden ratio: the fractional parts of its multiples spread evenly over (0, 1)


def write_report(comparison, geometry, read) -> None:
    """Write results.csv, summary.csv, the figures and report.html into the comparison's folder.

    Parameters
    ----------
    comparison : Comparison
    geometry : Grid
    read : callable
        ``read(condition, k, method)`` returns map k of a method or of "truth" in pascals; None or NaN if there is none.
    """
    out = comparison.out
    _write_csv(out / "results.csv", COLUMNS, comparison.rows)
    summary = comparison.summary()
    _write_csv(out / "summary.csv", [*summary[0]], [line | {"best": " ".join(line["best"])} for line in summary])
    figures: dict[str, list[tuple[str, bytes]]] = {}
    for number_, condition in enumerate(comparison.config["conditions"]):
        figures[condition] = []
        cases = _cases(comparison, condition, CASES if number_ == 0 else 1)
        if not cases:
            continue
        which = "least, median and greatest error" if len(cases) > 1 else "median error"
        which = f"{'cases' if len(cases) > 1 else 'case'} of {which} with {comparison.config['methods'][-1]}"
        drawn = [(k, {m: read(condition, k, m) for m in ("truth", *comparison.config["methods"])}) for k in cases]
        for name, drawing, text in (
            ("maps", plot_cases(drawn, geometry), f"Modulus maps, {which}"),
            ("profiles", plot_profiles(drawn, geometry), f"Modulus along a lateral line through the lesion, {which}"),
            ("errors", plot_errors(comparison, condition), "Relative error of every map, and its quartiles"),
        ):
            png = style.encoded(drawing)
            write_atomically(out / f"{name}-{condition}.png", png)
            figures[condition].append((text, png))
    write_atomically(out / "report.html", _page(comparison, summary, figures, geometry))


def _write_csv(path, columns, rows):
    buffer = io.StringIO()
    lines = csv.DictWriter(buffer, columns, lineterminator="\n")
    lines.writeheader()
    lines.writerows(rows)
    write_atomically(path, buffer.getvalue().encode())


def _cases(comparison, condition, count):
    """Maps to draw: the one for which the last method has its median error, or its least, median and greatest error."""
    common = comparison.common(condition)
    order = np.argsort(comparison.values(condition, comparison.config["methods"][-1], "relative_error"), kind="stable")
    places = [0, len(order) // 2, -1] if count > 1 and len(order) >= count else [len(order) // 2] if common else []
    return [common[order[place]] for place in places]


# figures ------------------------------------------------------------------------------------------


def plot_cases(cases, geometry) -> Figure:
    """Maps side by side on one colour scale, one row for each case, with the relative error below each map.

    Parameters
    ----------
    cases : list of (int, dict of str to numpy.ndarray)
        Number of each case and its maps in pascals, "truth" first.
    geometry : Grid

    Returns
    -------
    matplotlib.figure.Figure
    """
    names = [*cases[0][1]]
    limits = 0.0, style.LIMIT * max(float(maps["truth"].max()) for _, maps in cases) / 1e3
    tall = geometry.shape[0] * geometry.spacing[0] / (geometry.shape[1] * geometry.spacing[1])
    height = (CASE_PANEL * tall + 0.35) * len(cases) + 0.3
    with style.styled_figure(CASE_PANEL * len(names) + 0.9, height) as figure:
        panels = figure.subplots(len(cases), len(names), squeeze=False)
        for (k, maps), row in zip(cases, panels, strict=True):
            for axes, (name, field) in zip(row, maps.items(), strict=True):
                image = style.paint(axes, field / 1e3, geometry, limits)
                error = f"{relative_l2(field, maps['truth']):.3f}" if name != "truth" else "relative error:"
                axes.set(xticks=[], yticks=[], xlabel=error, ylabel=f"map {k}" if name == "truth" else "")
        for axes, name in zip(panels[0], names, strict=True):
            axes.set_title(name)
        fields = [field / 1e3 for _, maps in cases for field in maps.values()]
        style.add_colorbar(figure, image, panels.ravel().tolist(), fields, limits, fraction=0.03, pad=0.015)
    return figure


def plot_profiles(cases, geometry) -> Figure:
    """Modulus of every method along a lateral line through the centre of the lesion; arguments as for `plot_cases`."""
    with style.styled_figure(8.5, 2.3 * len(cases) + 0.6) as figure:
        panels = figure.subplots(len(cases), 1, squeeze=False)[:, 0]
        for axes, (k, maps) in zip(panels, cases, strict=True):
            depth = style.lesion_depth(maps["truth"], geometry)
            colors = {"truth": "black"} | dict(zip([*maps][1:], itertools.cycle(style.COLORS)))
            for name, field in maps.items():
                width = 2.0 if name == "truth" else 1.2
                axes.plot(*style.lateral_profile(field, geometry, depth), color=colors[name], lw=width, label=name)
            axes.set(ylabel="modulus (kPa)", ylim=(0, 1.25 * maps["truth"].max() / 1e3))
            axes.set_title(f"map {k}, {depth * 1e3:.1f} mm deep", loc="left")
            axes.margins(x=0)
            axes.grid(alpha=0.25, lw=0.5)
        axes.set_xlabel("lateral (mm)")
        panels[0].legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def plot_errors(comparison, condition) -> Figure:
    """Relative errors of each method under a condition, for all common maps: quartiles and single values."""
    methods = comparison.config["methods"]
    errors = [comparison.values(condition, method, "relative_error") for method in methods]
    with style.styled_figure(max(4.0, 1.15 * len(methods) + 1), 3.0) as figure:
        axes = figure.subplots()
        axes.boxplot(errors, widths=0.5, showfliers=False, medianprops={"color": "black"})
        for place, values in enumerate(errors, 1):
            offsets = 0.3 * (np.modf(np.arange(len(values)) * GOLDEN)[0] - 0.5)  # so that points do not overlap
            color = style.COLORS[(place - 1) % len(style.COLORS)]
            axes.plot(place + offsets, values, "o", ms=3.5, mew=0, alpha=0.7, color=color)
        axes.set_xticks(range(1, len(methods) + 1), methods)
        axes.set(ylabel="relative error", ylim=(0, None))
        axes.grid(alpha=0.25, lw=0.5, axis="y")
    return figure


# page ---------------------------------------------------------------------------------------------


def _page(comparison, summary, figures, geometry) -> bytes:
    config = comparison.config
    shape = " x ".join(map(str, geometry.shape))
    body = [
        "<h1>Modulus maps by several methods</h1>",
        f"<p>{len(config['maps'])} held-out maps of {shape} nodes, {escape(config['data']['law'].replace('_', ' '))}. "
        "Figures are means ± standard deviations over those maps for which every method gave a map; best in bold.</p>",
    ]
    if comparison.missing:
        body.append(
            f'<p class="note">Incomplete: {comparison.missing} reconstructions are missing. The command at the end of '
            "this page goes on with them.</p>"
        )
    if comparison.parallel():
        body.append('<p class="note">Seconds were measured with several jobs at a time: compare them with care.</p>')
    if len(config["conditions"]) > 1:
        body.append(_overview(config, summary))
    tests, detection = comparison.tests(TESTED), comparison.detection()
    for condition in config["conditions"]:
        block = [line for line in summary if line["condition"] == condition]
        body.append(f'<section><h2 id="{escape(condition)}">{escape(condition)}</h2>')
        body.append(f"<p>Test maps {escape(SCENARIOS[condition.partition('dB-')[2]])}.</p>")
        body.append(_results_table(block))
        body.append(_detection_table([line for line in detection if line["condition"] == condition]))
        body.append(_seconds_table(block))
        body.append(_tests_table([test for test in tests if test["condition"] == condition]))
        body.append(_failures(comparison, condition))
        for text, png in figures[condition]:
            body.append(figure(text, png, f"{text}; {condition}; numbers in the tables above"))
        body.append("</section>")
    body += [
        "<section><h2>Methods</h2><ul>",
        *(f"<li><b>{escape(name)}</b>: {escape(METHODS.get(name, 'own function'))}</li>" for name in config["methods"]),
        "</ul></section><section><h2>To repeat it</h2>",
        f"<pre>{escape(comparison.command)}</pre><pre>{escape(json.dumps(versions(), indent=1))}</pre>",
        f"<details><summary>Configuration</summary><pre>{escape(json.dumps(config, indent=1))}</pre></details>",
        "</section>",
    ]
    return page("elastofast compare", body)


def _overview(config, summary) -> str:
    by_place = {(line["condition"], line["method"]): line for line in summary}
    spec = METRICS["relative_error"][2]

    def cell(condition, method):
        line = by_place[condition, method]
        return spread(line, "relative_error", spec), "best" if "relative_error" in line["best"] else ""

    lines = ([c, *(cell(c, method) for method in config["methods"])] for c in config["conditions"])
    return table("Relative error under every condition", ["condition", *config["methods"]], lines)


def _results_table(block) -> str:
    heads = ["method", *(head for head, *_ in METRICS.values()), "no map", "not converged"]
    lines = []
    for line in block:
        cells = [
            (spread(line, column, spec), "best" if column in line["best"] else "")
            for column, (_, _, spec, _) in METRICS.items()
        ]
        lines.append([line["method"], *cells, str(line["failed"]), str(line["unconverged"])])
    return table(f"Errors over {block[0]['maps']} maps", heads, lines)


def _seconds_table(block) -> str:
    lines = ([line["method"], *(spread(line, name, ".2f") for name in SECONDS)] for line in block)
    return table("Seconds a map", ["method", *("total", *[*SECONDS.values()][1:])], lines)


def _detection_table(block) -> str:
    lines = []
    for line in block:
        diameter = f"{1e3 * line['diameter']:.1f} mm" if np.isfinite(line["diameter"]) else "-"
        lines.append([line["method"], diameter, number(line["found"], ".0%"), number(line["false_alarms"], ".2f")])
    heads = ["method", f"{FOUND:.0%} found from a diameter of", "found of all", "false alarms a map"]
    return table("Detection of lesions", heads, lines)


def _tests_table(tests) -> str:
    if not tests:
        return ""
    lines = (
        [
            METRICS[t["metric"]][0],
            t["against"],
            number(t["difference"], "+.1%"),
            f"{t['wins']} of {t['maps']}",
            number(t["p"], ".2g"),
        ]
        for t in tests
    )
    caption = f"{tests[0]['method']} against the others, paired (Wilcoxon signed rank, two-sided)"
    return table(caption, ["metric", "against", "mean difference", "better on", "p"], lines)


def _failures(comparison, condition) -> str:
    bad = [r for r in comparison.rows if r["condition"] == condition and r["status"] != "converged"]
    if not bad:
        return ""
    lines = ([r["method"], str(r["map"]), r["status"], (r["message"] or "", "text")] for r in bad)
    listed = table("", ["method", "map", "status", "message"], lines)
    return f"<details><summary>{len(bad)} runs failed or did not converge</summary>{listed}</details>"
