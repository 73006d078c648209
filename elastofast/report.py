"""The report of a reconstruction, and that of many files: one web page each that needs nothing beside it."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .io import write_atomically
from .metrics import evaluate
from .page import figure, page, table, versions
from .plots import plot_displacement, plot_result
from .plots.style import encoded

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from .joint import JointMeasurement
    from .measurement import Measurement
    from .result import Result

__all__ = ["facts", "write_overview", "write_report"]

# columns of the history: key, heading, format
HISTORY = (
    ("iteration", "iteration", "d"),
    ("shape", "nodes", ""),
    ("objective", "objective", ".6g"),
    ("data", "data term", ".6g"),
    ("prior", "prior", ".6g"),
    ("chi2", "chi2", ".4f"),
    ("step", "step", ".3g"),
    ("seconds", "seconds", ".2f"),
)
ERRORS = "Errors against the reference in the file"


def facts(result: Result) -> dict[str, str]:
    """What there is to say about a result in a line each: name and text."""
    found = {
        "prior": result.prior,
        "status": f"{result.status}: {result.message}",
        "chi2": f"{result.chi2:.4f}",
    }
    if result.frame_chi2:
        found["frames"] = f"{', '.join(f'{own:.4f}' for own in result.frame_chi2)} (chi2)"
    found["weight"] = f"{result.weight:.4g}"
    if result.poisson_interval:
        low, high = result.poisson_interval
        found["poisson"] = f"{result.poisson:.4f} (95 % interval {low:.4f} to {high:.4f})"
    found["seconds"] = f"{result.seconds:.2f}"
    if result.noise is not None:
        each = result.noise if isinstance(result.noise, list) else [result.noise]
        found["noise"] = f"estimated: {'; '.join('stated' if own is None else str(own) for own in each)}"
    if result.std is not None:
        middle, high = np.quantile(result.std, (0.5, 0.95))
        found["std"] = f"of log modulus: {middle:.3f} (median over the nodes), {high:.3f} (95 %)"
    if result.relative:
        found["modulus"] = "relative: known only up to a factor, because no force is known"
    return found


def write_report(
    path: str | os.PathLike,
    result: Result,
    measurement: Measurement | JointMeasurement,
    *,
    title: str = "Reconstruction",
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write one web page about a reconstruction: pictures, settings, noise, status and advice, history.

    The page needs no other file and no network. Pictures are drawn of plane bodies only.

    Parameters
    ----------
    path : path-like
        The page to write; it appears complete or not at all.
    result : Result
        From `reconstruct`; with `Result.uncertainty` the page says how sure the map is.
    measurement : Measurement or JointMeasurement
        What it was reconstructed from; its ``reference`` is compared with where there is one.
    title : str
        Heading of the page.
    settings : dict, optional
        What the reader needs to repeat it, such as the arguments of `reconstruct`; an entry "command" is shown first.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    OSError
        If the page cannot be written.
    """
    settings = dict(settings or {})
    known = facts(result)
    shown = {name: text for name, text in known.items() if name != "status"}
    shown |= {"gradient": result.gradient, "optimizer": result.optimizer, "range": _range(result)}
    if result.held:
        shown["on bounds"] = f"{result.held:.1%} of the nodes"
    if result.fallback:
        shown["fallback"] = result.fallback
    if result.rejected is not None:
        shown["left out"] = f"{int(result.rejected.sum())} displacements as outliers"
    note = ' class="note"'
    calm = result.status == "converged" and not result.fallback
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p{'' if calm else note}><b>{result.status}.</b> {escape(result.message)}</p>",
        table("", [], shown.items(), kind="facts"),
        *_pictures(result, measurement),
        _errors(result, measurement),
        table("Measurement", [], [["what", str(measurement)], *_noise(measurement)], kind="facts"),
        _tried(result),
        _history(result),
        "<section><h2>To repeat it</h2>",
        f"<pre>{escape(str(settings.pop('command')))}</pre>" if "command" in settings else "",
        f"<pre>{escape(json.dumps(settings, indent=1, default=str))}</pre>" if settings else "",
        f"<pre>{escape(json.dumps(versions(), indent=1))}</pre></section>",
    ]
    write_atomically(path, page(f"elastofast: {title}", body))


def write_overview(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]], pictures: Mapping[str, str]) -> None:
    """Write one web page about many files: a line for each, with a small picture of its map.

    Parameters
    ----------
    path : path-like
        The page to write.
    rows : iterable of dict
        The rows of the table that `elastofast reconstruct` writes for several files.
    pictures : dict of str to str
        For each file's name the HTML of its picture, empty for none.
    """
    rows = list(rows)

    def number(row, name, spec):
        return "-" if row.get(name) is None else format(row[name], spec)

    def modulus(row, name):
        if row.get("relative"):
            return number(row, name, ".3g")
        return "-" if row.get(name) is None else f"{row[name] / 1e3:.3g} kPa"

    lines = [
        [
            Path(row["file"]).name,
            (pictures.get(row["file"], ""), "html"),
            (row["status"], "" if row["status"] == "converged" else "best"),
            number(row, "chi2", ".3f"),
            row["prior"] or "-",
            number(row, "weight", ".3g"),
            row["nodes"] or "-",
            *(modulus(row, f"modulus_{part}") for part in ("5", "median", "95")),
            number(row, "seconds", ".1f"),
            (row["message"] or "", "text"),
        ]
        for row in rows
    ]
    folders = ", ".join(sorted({str(Path(row["file"]).parent) for row in rows}))
    heads = ("file", "map", "status", "chi2", "prior", "weight", "nodes", "5 %", "median", "95 %", "seconds")
    body = [
        "<h1>Reconstructions</h1>",
        f"<p>{len(lines)} files in {escape(folders)}. The moduli are percentiles over the nodes of a map; those of "
        "relative maps have no unit. Colours go from the least to the greatest modulus of each map.</p>",
        table("", [*heads, "message"], lines),
        f"<pre>{escape(json.dumps(versions(), indent=1))}</pre>",
    ]
    write_atomically(path, page("elastofast: reconstructions", body))


def _range(result) -> str:
    low, middle, high = np.quantile(np.asarray(result.modulus), (0.05, 0.5, 0.95))
    if result.relative:
        return f"{low:.3g} / {middle:.3g} / {high:.3g} of the geometric mean (5 %, median, 95 % of the nodes)"
    return f"{low / 1e3:.3g} / {middle / 1e3:.3g} / {high / 1e3:.3g} kPa (5 %, median, 95 % of the nodes)"


def _pictures(result, measurement):
    """The figures of a plane body."""
    if measurement.geometry.dim != 2:
        yield '<p class="note">Pictures are drawn of plane bodies only.</p>'
        return
    text = "Modulus, what the fit leaves of the displacement, cross-section and convergence"
    if result.std is not None:
        text = text.replace("Modulus,", "Modulus, how sure it is,")
    if measurement.reference is not None:
        text += "; the outline is that of the lesion in the reference"
    figures = {
        text: plot_result(result, measurement, contour=measurement.reference is not None),
        "Measured displacement, and the one that belongs to the map": plot_displacement(result, measurement),
    }
    for name, drawing in figures.items():
        yield figure(name, encoded(drawing), f"{name}; the numbers are in the tables")


def _errors(result, measurement) -> str:
    if measurement.reference is None:
        return ""
    errors = evaluate(result.modulus, measurement.reference, measurement.geometry, relative=result.relative)
    return table(ERRORS, [], ([name.replace("_", " "), f"{value:.5g}"] for name, value in errors.items()), kind="facts")


def _noise(measurement):
    """The stated noise of each frame: the median of the standard deviations of each component."""
    for k, m in enumerate(measurement.frames):
        name = "stated noise" if len(measurement.frames) == 1 else f"stated noise, frame {k}"
        if not m.noise_known:
            yield [name, "none: it was estimated"]
            continue
        std = np.asarray(m.displacement_std)
        each = (own[np.isfinite(own)] for own in std.reshape(len(std), -1))
        levels = (f"{1e6 * np.median(own):.3g} µm" if own.size else "not measured" for own in each)
        yield [name, ", ".join(f"component {i}: {level}" for i, level in enumerate(levels))]


def _tried(result) -> str:
    """The maps that were compared before this one was taken."""
    if len(result.comparison) < 2:
        return ""
    heads = [*result.comparison[0]]
    lines = ([_text(entry.get(name)) for name in heads] for entry in result.comparison)
    return table("Maps that were tried", heads, lines)


def _text(value) -> str:
    if isinstance(value, int | float | np.floating):
        return f"{value:.4g}"
    if isinstance(value, tuple | list | np.ndarray):
        return ", ".join(map(_text, value))
    return str(value)


def _history(result) -> str:
    def cell(entry, name, spec):
        value = entry.get(name)
        if name == "shape":
            return " x ".join(map(str, value))
        return "-" if value is None else format(value, spec)

    lines = ([cell(entry, name, spec) for name, _, spec in HISTORY] for entry in result.history)
    steps = table("", [heading for _, heading, _ in HISTORY], lines)
    return f"<details><summary>History: {len(result.history)} steps</summary>{steps}</details>"
