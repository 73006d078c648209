"""The variables of one or several files, by the names that a sidecar gives them."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import numpy as np

from ..errors import DataError
from .containers import Container, read_container

__all__ = ["Sources", "further_name"]


class Sources:
    """The variables of a file and of the further files that its sidecar names.

    Parameters
    ----------
    file : Container
    more : list of str, optional
        ``files.more`` of the sidecar.
    """

    def __init__(self, file: Container, more: list[str] | None = None):
        self.files = [file]
        for name in more or []:
            self.files.append(read_container(file.path.with_name(further_name(file.path, name))))

    def names(self) -> list[str]:
        """Names of all arrays."""
        first, *others = self.files
        return [*first.fields(), *(f"{k}:{name}" for k, file in enumerate(others, 2) for name in file.fields())]

    def select(self, text: str, key: str) -> np.ndarray:
        """The array that a sidecar names, with an index or without; singleton axes are dropped.

        Raises
        ------
        ValueError
            If there is no such array or the index does not fit; the message begins with ``key``.
        """
        found = self._find(text)
        index = ""
        if found is None and (match := re.fullmatch(r"(.*?)\s*\[([-\d\s,:.]+)\]", text)):
            found, index = self._find(match[1]), match[2]
        if found is None:
            names = self.names()
            close = difflib.get_close_matches(text, names, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise DataError(f"{key}: no variable {text!r}; there are {', '.join(names[:20]) or 'none'}{hint}")
        file, name = found
        values = file.array(name)
        if index:
            try:
                values = values[tuple(_index(part.strip()) for part in index.split(","))]
            except (IndexError, ValueError) as error:
                raise DataError(f"{key}: {text!r} does not fit the shape {values.shape} of {name!r}: {error}") from None
        return np.squeeze(values)

    def _find(self, text):
        first = self.files[0]
        if text in first.variables:
            return first, text
        if match := re.fullmatch(r"(\d+):(.*)", text):
            number, name = int(match[1]), match[2]
            if 1 <= number <= len(self.files) and name in self.files[number - 1].variables:
                return self.files[number - 1], name
        return None


def further_name(path: Path, text: str) -> str:
    """The name of a further file; ``"A -> B"`` is that of the first one with A replaced by B."""
    old, arrow, new = (part.strip() for part in text.partition("->"))
    if not arrow:
        return text
    if not old or old not in path.name:
        raise DataError(f"files.more: {text!r} does not fit: there is no {old!r} in the name {path.name}")
    return path.name.replace(old, new)


def _index(text):
    if text == "...":
        return Ellipsis
    if ":" in text:
        return slice(*(int(part) if part.strip() else None for part in text.split(":")))
    return int(text)
