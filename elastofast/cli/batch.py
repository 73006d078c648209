"""Many measurement files reconstructed, with one table of all."""

from __future__ import annotations

import csv
import io
import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..backend.tasks import check_workers, worked_on
from ..io import load_modulus, write_atomically
from ..io.sources import further_name
from ..progress import progress_bar
from ..resumable import ResumableFolder, RowFile
from ..thumbnail import picture
from .shared import FAILED, INTERRUPTED, check_output, digest, one_line

__all__ = ["files_of", "reconstruct_all"]

TABLE_EVERY = 10  # seconds between the times that the table of what is there so far is written
# what is taken from a folder
SUFFIXES = (".h5", ".hdf5", ".npz", ".npy", ".mat", ".csv", ".txt", ".tsv", ".dat", ".nii", ".nii.gz", ".tif", ".tiff")
COLUMNS = (
    *("file", "status", "chi2", "prior", "weight", "relative", "nodes", "spacing_mm"),
    *("modulus_5", "modulus_median", "modulus_95", "seconds", "output", "message"),
)
# what the reading, the reconstruction or the writing of one file may raise
ERRORS = (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)
# of the printed table: column, heading, format
SHOWN = (
    ("name", "file", "<28"),
    ("status", "status", "<14"),
    ("chi2", "chi2", ">7.3f"),
    ("weight", "weight", ">10.3g"),
    ("modulus_5", "5 %", ">10.4g"),
    ("modulus_median", "median", ">10.4g"),
    ("modulus_95", "95 % of the moduli", ">18.4g"),
    ("seconds", "seconds", ">8.1f"),
)


def reconstruct_all(work, options) -> int:
    """Reconstruct all files of a command; returns the exit status.

    Every map is written as soon as it is there, and then its row; whatever stops the work, the same command goes on
    from there. A file that cannot be read or reconstructed has a row that says why, and the next call tries it again.
    """
    out = Path(options.output)
    figure = "." + options.plot.lower().rpartition(".")[2] if options.plot else None
    check_workers(options.jobs, options.scheduler)
    paths = files_of(options.files, work.sidecar)
    outputs = dict(zip(paths, _names(paths), strict=True))
    check_output(str(out.parent / f"x.{options.format}"), (f".{options.format}",))
    if figure:
        check_output(str(out.parent / f"x{figure}"), (".png", ".pdf", ".svg"))
    if options.html:
        check_output(options.html, (".html", ".htm"))
    folder = ResumableFolder(out)
    config = {**work.config(), "format": options.format, "plot": figure}
    with folder.begin(config, content="reconstructions", advice="give another folder or its options", indent=1):
        done, stopped = _reconstruct(work, paths, outputs, folder, figure, options)
    finished = [done[path] for path in paths if path in done]
    _print_table(finished)
    print(f"\nwrote {out / 'summary.csv'}")
    if options.html:
        from ..report import write_overview

        write_overview(options.html, finished, {row["file"]: _picture(out, row) for row in finished})
        print(f"wrote {options.html}")
    failed = [row for row in finished if row["status"] == "error"]
    for row in failed:
        print(f"elastofast: error: {row['message']}", file=sys.stderr)
    if stopped:
        print(f"stopped with {len(paths) - len(finished)} files missing; the same command goes on from there")
        return INTERRUPTED
    if failed:
        return 2
    return FAILED if any(row["status"] == "failed" for row in finished) else 0


def _reconstruct(work, paths, outputs, folder, figure, options) -> tuple[dict[Path, dict[str, Any]], bool]:
    """Reconstruct the files that are not done yet; the rows of all that are, and whether Ctrl-C left some undone."""
    out = folder.path
    lines = RowFile(out / "results.jsonl")
    rows = {row["file"]: row for row in lines.rows}
    done = {path: row for path in paths if (row := rows.get(str(path))) and _is_done(path, row, out)}
    missing = [(path, f"{outputs[path]}.{options.format}") for path in paths if path not in done]
    needed = dict.fromkeys((*(path.parent for path in paths), *filter(None, (work.known, work.weights))))
    how = {
        "processes": 0 if options.jobs in (None, 1) else options.jobs,
        "scheduler": options.scheduler,
        "files": (*needed,),
    }
    stopped, written = False, time.monotonic()
    try:
        with (
            progress_bar("reconstructing", "file", not options.quiet, len(paths), len(done)) as bar,
            closing(worked_on(partial(_one, work, folder, figure), missing, **how)) as results,
        ):
            for path, row in results:
                lines.add(row)
                done[path] = row
                bar.update()
                if time.monotonic() - written > TABLE_EVERY:
                    _write_table(out / "summary.csv", [done[p] for p in paths if p in done])
                    written = time.monotonic()
    except KeyboardInterrupt:
        stopped = True
    _write_table(out / "summary.csv", [done[path] for path in paths if path in done])
    return done, stopped


def _is_done(path, row, out) -> bool:
    """Whether a file was reconstructed as it is now, and what was written is still there as it was."""
    if row["status"] == "error" or row["sha256"] != digest(path):
        return False
    written = row.get("written", {row["output"]: None})  # rows from before there were checksums have only a name
    return all((out / name).exists() and sha in (None, digest(out / name)) for name, sha in written.items())


def _one(work, folder, figure, task) -> tuple[Path, dict[str, Any]]:
    """Reconstruct a file and write its map, ``task`` being both names; the file and its row of the table."""
    path, name = task
    with warnings.catch_warnings(record=True) as caught:
        row = _row(work, folder, figure, path, name)
    for warning in caught:
        warnings.warn(f"{path}: {warning.message}", warning.category, stacklevel=1)
    return path, row


def _row(work, folder, figure, path, name) -> dict[str, Any]:
    row: dict[str, Any] = {**dict.fromkeys(COLUMNS), "file": str(path), "output": name}
    try:
        row["sha256"] = digest(path)
        m = work.load(path)
        result = work(m, None)
    except ERRORS as error:
        return _failed(row, error)
    if result.status == "interrupted":
        raise KeyboardInterrupt
    folder.confirm()
    files = [folder.path / name] + ([(folder.path / name).with_suffix(figure)] if figure else [])
    try:
        work.save([path], m, result, files[0], files[1] if figure else None)
    except ERRORS as error:
        return _failed(row, error)
    low, median, high = np.quantile(np.asarray(result.modulus), [0.05, 0.5, 0.95])
    return row | {
        "status": result.status,
        "message": result.message,
        "chi2": result.chi2,
        "prior": result.prior,
        "weight": result.weight,
        "relative": result.relative,
        "nodes": " x ".join(map(str, m.geometry.node_shape)),
        "spacing_mm": " x ".join(f"{1e3 * h:.6g}" for h in getattr(m.geometry, "spacing", ())),
        "modulus_5": float(low),
        "modulus_median": float(median),
        "modulus_95": float(high),
        "seconds": result.seconds,
        "written": {file.name: digest(file) for file in files},
    }


def _picture(out, row) -> str:
    """A small picture of the map in a row, as HTML; nothing for a row without a map that can be read."""
    if row["output"] is None or row["output"].endswith(".vtu"):
        return ""
    modulus, geometry, _ = load_modulus(out / row["output"])
    return picture(modulus, geometry)


def _failed(row, error) -> dict[str, Any]:
    return row | {"output": None, "status": "error", "message": one_line(error)}


def files_of(given, sidecar) -> list[Path]:
    """All files of a command, those in folders included, without those that belong to another one."""
    paths: list[Path] = []
    for text in given:
        path = Path(text)
        inside = (
            sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")) if path.is_dir() else []
        )
        taken = [p for p in inside if p.name.lower().endswith(SUFFIXES)]
        if path.is_dir() and not taken:
            raise ValueError(f"{path}: the folder has no files with one of the suffixes {', '.join(SUFFIXES)}")
        paths += taken or [path]
    paths = list(dict.fromkeys(paths))
    beside = set()
    for path in paths:
        for more in sidecar["files.more"] if sidecar else ():
            old = more.partition("->")[0].strip()
            if "->" not in more or old in path.name:
                beside.add(path.with_name(further_name(path, more)))
    return [path for path in paths if path not in beside]


def _names(paths) -> list[str]:
    """Names of the maps, without their suffix: as short as they can be without two being equal."""
    ways: tuple[Callable[[Path], str], ...] = (
        lambda path: path.name.partition(".")[0],
        lambda path: path.name.replace(".", "_"),
        lambda path: f"{path.parent.name}_{path.name.replace('.', '_')}",
        lambda path: "_".join(path.parts).replace(".", "_").strip("_/"),
    )
    for way in ways:
        names = [way(path) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _write_table(path, rows) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def _print_table(rows) -> None:
    def width(spec):
        return spec.partition(".")[0]

    print("  ".join(format(heading, width(spec)) for _, heading, spec in SHOWN))
    for row in rows:
        cells = {**row, "name": os.path.basename(row["file"])}
        print(
            "  ".join(
                format("-", width(spec)) if cells[name] is None else format(cells[name], spec)
                for name, _, spec in SHOWN
            )
        )
