"""Tables of numbers in text files, as spreadsheets and image-correlation programs write them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import DataError

__all__ = ["NAMELESS", "Table", "read_table", "stated_unit"]

NAMELESS = "column {}"  # names of columns without a heading, counted from 1

MISSING = {"", "nan", "na", "n/a", "null", "none", "-", "--", "inf", "-inf", "#n/a", "missing"}  # in lower case
# what separates columns (None: white space) and the decimal sign, the most telling first
STYLES = ((";", ","), (";", "."), ("\t", "."), ("\t", ","), (",", "."), (None, "."), (None, ","))
SAMPLE = 200  # lines by which the style is recognised; the head of a file is much shorter
COORDINATES_FILL = 0.5  # share of the nodes of a grid that rows without a heading must fill to be taken for coordinates


@dataclass
class Table:
    """The numbers of a text file.

    Attributes
    ----------
    values : numpy.ndarray of float, shape (rows, columns)
        NaN where an entry is missing.
    columns : list of str or None
        The name of each column; None if the file is one matrix.
    named : bool
        Whether the names are in the file.
    notes : list of str
    """

    values: np.ndarray
    columns: list[str] | None
    named: bool
    notes: list[str] = field(default_factory=list)


def read_table(path: Path) -> Table:
    """Read a text file with one row of numbers a line, below any number of lines of text.

    Columns are separated by semicolons, tabs, commas or white space, decimals by points or commas; which of them is
    found out. The last line of text above the numbers holds the names of the columns if it has as many entries.

    Raises
    ------
    ValueError
        If there are no rows of numbers, or a row has another number of columns than the others.
    """
    lines = [(k + 1, line) for k, line in enumerate(_text(path).splitlines()) if line.strip()]
    separator, decimal, width = _style([line for _, line in lines])
    start = next(
        k
        for k, (_, line) in enumerate(lines)
        if _numbers(_split(line, separator), decimal) is not None and len(_split(line, separator)) == width
    )
    rows: list[list[float]] = []
    strange: Counter[tuple[int, str]] = Counter()
    for number, line in lines[start:]:
        entries = _split(line, separator)
        if len(entries) != width:
            raise DataError(
                f"line {number} has {len(entries)} columns where the lines above have {width}: "
                f"{'the file is cut short' if number == lines[-1][0] else 'damaged or another table'}"
            )
        row = []
        for column, entry in enumerate(entries):
            value = _number(entry, decimal)
            if value is None:
                strange[column, entry] += 1
                value = np.nan
            row.append(value)
        rows.append(row)
    values = np.array(rows)
    if width > 1 and not any(_split(line, separator)[-1] for _, line in lines[start:]):
        values, width = values[:, :-1], width - 1  # every line ends with a separator
    names = _names(lines[:start], separator, width)
    if names is None and not _starts_with_coordinates(values):
        return Table(values, None, False, _strange_notes(strange, None))
    columns = names or [NAMELESS.format(k + 1) for k in range(width)]
    notes = _strange_notes(strange, columns)
    held = np.isfinite(values).any(axis=0)
    if not held.all():
        empty = [columns[k] for k in np.flatnonzero(~held)]
        notes.append(f"without any number: {', '.join(empty)}")
        values, columns = values[:, held], [column for column, h in zip(columns, held, strict=True) if h]
    return Table(values, columns, names is not None, notes)


def stated_unit(name: str) -> str:
    """The unit that ends the name of a column, in brackets or after an underscore; empty if there is none.

    Examples
    --------
    >>> stated_unit("u [mm]"), stated_unit("x_px"), stated_unit("sigma")
    ('mm', 'px', '')
    """
    found = re.search(r"[\[(<]\s*([a-zµμ]+)(?:\s*/\s*frame)?\s*[\])>]", name, re.IGNORECASE)
    found = found or re.search(r"[_ ](mm|um|µm|μm|nm|px|pix|pixels?)$", name, re.IGNORECASE)
    found = found or re.search(r"[_ ](m)$", name)
    return found.group(1) if found else ""


def _text(path) -> str:
    data = Path(path).read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    if b"\0" in data:
        raise DataError("no text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _style(lines):
    """Separator, decimal sign and number of columns by which the most entries of the lines are numbers."""
    step = max(1, len(lines) // SAMPLE)
    sample = lines[:SAMPLE] + lines[SAMPLE::step]
    best, chosen = 0, None
    for separator, decimal in STYLES:
        split = [entries for line in sample if _numbers(entries := _split(line, separator), decimal) is not None]
        if not split:
            continue
        width = Counter(map(len, split)).most_common(1)[0][0]
        good = [_number(entry, decimal) is not None for line in split if len(line) == width for entry in line]
        score = 2 * sum(good) - len(good)  # numbers, less what is none
        if score > best:
            best, chosen = score, (separator, decimal, width)
    if chosen is None:
        raise DataError("the text has no rows of numbers")
    return chosen


def _split(line, separator) -> list[str]:
    if separator is None:
        return line.split()
    return [entry.strip().strip('"').strip() for entry in line.rstrip("\r\n").split(separator)]


def _number(entry, decimal) -> float | None:
    """The number, NaN for a sign of a missing one, None for other text."""
    if entry.lower() in MISSING:
        return np.nan
    if decimal == ",":
        if "." in entry:
            return None
        entry = entry.replace(",", ".")
    try:
        return float(entry)
    except ValueError:
        return None


def _numbers(entries, decimal) -> list[float | None] | None:
    """The entries of a line as numbers, None unless at least half of them are, or all are signs of missing ones."""
    values = [_number(entry, decimal) for entry in entries]
    real = sum(value is not None and np.isfinite(value) for value in values)
    missing = all(value is not None for value in values) and any(entry for entry in entries)
    return values if real >= max(1, len(values) / 2) or missing else None


def _names(head, separator, width) -> list[str] | None:
    """Names of the columns, from the last line above the numbers that has as many entries."""
    for _, line in reversed(head):
        line = line.strip().lstrip("#%/!").strip()
        for other in (separator, ",", ";", "\t", None):
            names = _split(line, other)
            if len(names) == width + 1 and not names[-1]:
                names.pop()
            if len(names) == width and all(names) and len(set(names)) == width:
                return names
    return None


def _starts_with_coordinates(values) -> bool:
    """Whether the first two of a few columns are coordinates of a grid: each pair once, and most pairs there are."""
    rows, width = values.shape
    if not 3 <= width <= 8 or rows <= width:
        return False
    pair = values[:, :2]
    if not np.isfinite(pair).all() or len(np.unique(pair, axis=0)) < rows:
        return False
    x, y = (len(np.unique(column)) for column in pair.T)
    return min(x, y) > 1 and rows >= COORDINATES_FILL * x * y


def _strange_notes(strange, columns) -> list[str]:
    """What was written where a number was expected, by column."""
    by_column: dict[int, Counter[str]] = {}
    for (column, entry), count in strange.items():
        by_column.setdefault(column, Counter())[entry] += count
    notes = []
    for column, entries in sorted(by_column.items()):
        name = columns[column] if columns else NAMELESS.format(column + 1)
        example = entries.most_common(1)[0][0]
        notes.append(f"{sum(entries.values())} entries of {name} are no numbers, such as {example!r}: read as missing")
    return notes
