"""Folders from which an interrupted computation goes on: what was asked for, and every item that is finished.

Data sets, comparisons and batches of files consist of many items, each of which takes seconds to minutes. Every
finished item is written to a file of its own at once, so that whatever stops the work, even a kill, costs no more than
the items in the making. When all are there they are packed into one file, and the single files are removed.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .io.atomic import only_process, sync_folder, write_atomically

__all__ = ["ResumableFolder", "RowFile", "difference", "reserve"]

LOCK = ".lock"  # file in the folder that the process which works on it holds locked
SHOWN = 80  # characters of a value in a message; longer values are cut


class ResumableFolder:
    """The state of a computation on disk: its configuration, ``config.json``, and a file for each finished item.

    Parameters
    ----------
    path : path-like
        The folder, which `begin` makes if it is not there.
    items : str, optional
        Name of a folder inside for the items; by default they are beside the configuration.

    Attributes
    ----------
    path : pathlib.Path
    items : pathlib.Path
        Where the items are.
    """

    def __init__(self, path, items: str = ""):
        self.path = Path(path)
        self.items = self.path / items
        self._config = self.path / "config.json"
        self._begun = b""

    @contextmanager
    def begin(
        self, config: dict[str, Any], *, content: str, advice: str, indent: int | None = None, force: bool = False
    ) -> Iterator[None]:
        """Make the folder, or check that the one which is there belongs to this configuration; for a ``with`` statement
        around the work, during which no other process can begin.

        Parameters
        ----------
        config : dict
            What was asked for, as JSON can hold it.
        content, advice : str
            For the message if the folder belongs to another configuration: what it holds, and what to do.
        indent : int, optional
            Of the JSON file.
        force : bool, optional
            Whether to discard what belongs to another configuration.

        Raises
        ------
        ValueError
            If the folder belongs to another configuration, or its own is damaged.
        OSError
            If the folder cannot be made, or another process is working on it (BlockingIOError).
        """
        self.items.mkdir(parents=True, exist_ok=True)
        with only_process(self.path / LOCK, self.path):
            if other := self.difference(config):
                if not force:
                    raise ValueError(f"{self.path} holds {content} with {other}; {advice}")
                self.remove_items()
                self._config.unlink(missing_ok=True)  # which is not beside all items
            self.items.mkdir(parents=True, exist_ok=True)
            if not self._config.exists():
                write_atomically(self._config, json.dumps(config, indent=indent).encode())
            self._begun = self._config.read_bytes()
            yield
        with suppress(OSError):  # there is something in it unless all has been removed
            self.path.rmdir()

    def confirm(self) -> None:
        """Raise an error unless the folder is still the one that was begun: for copies of this object elsewhere.

        A worker asks before it adds an item. Its caller may be gone, and the folder begun again with other arguments.

        Raises
        ------
        FileNotFoundError
            If the folder is not there.
        RuntimeError
            If it was begun with another configuration meanwhile.
        """
        if self._config.read_bytes() != self._begun:
            raise RuntimeError(f"{self.path} was begun again with other arguments; this work is not needed any more")

    def difference(self, config: dict[str, Any]) -> str:
        """How the configuration of the folder differs from another one, in words; empty where there is no folder."""
        if not self._config.exists():
            return ""
        try:
            return difference(json.loads(self._config.read_bytes()), config)
        except ValueError as error:
            raise ValueError(f"{self._config}: damaged: {error}; delete the folder") from error

    def holds(self, name: str) -> bool:
        """Whether an item is finished: its file is there, and not cut short as a power cut might leave it."""
        path = self.items / name
        if path.suffix == ".npz":
            return zipfile.is_zipfile(path)  # by the list of contents, which is at the end
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False) is not None
        except (OSError, ValueError, EOFError):
            return False

    def add(self, name: str, item) -> None:
        """Keep a finished item: an array under a name that ends in .npy, a dict of arrays under one in .npz."""
        buffer = io.BytesIO()
        if isinstance(item, dict):
            np.savez(buffer, **item)
        else:
            np.save(buffer, item)
        write_atomically(self.items / name, buffer.getvalue())

    def read(self, name: str) -> Any:
        """The item as it was added; ValueError if its file is damaged."""
        path = self.items / name
        try:
            found = np.load(path, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            with found:
                return dict(found)
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path}: damaged: {error}; delete it and run again") from error

    @contextmanager
    def packing(self, target) -> Iterator[BinaryIO]:
        """An open file to write all items to, which appears under the name ``target`` once it is complete."""
        temporary = self.items / "packed.h5"
        try:
            with open(temporary, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            sync_folder(Path(target).parent)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OSError(error.errno, f"cannot write: {error.strerror or error}", str(target)) from error

    def remove_items(self) -> None:
        """Remove all that is in the folder of the items, the configuration last if it is in there."""
        with suppress(FileNotFoundError):
            for path in sorted(self.items.iterdir(), key=lambda path: path == self._config):
                if path.name != LOCK:
                    path.unlink()
        if self.items != self.path:
            with suppress(FileNotFoundError):
                self.items.rmdir()


def reserve(file: BinaryIO, size: int) -> None:
    """Reserve bytes on the disk for an HDF5 file that is open for writing, since HDF5 may crash on a full disk.

    What remains of them is cut off when HDF5 closes the file.

    Raises
    ------
    OSError
        If there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)


class RowFile:
    """A file of rows, one JSON object a line, to which a row is added for each finished item.

    A kill or a power cut while a row is written leaves a line cut short or of other bytes at the end, which is removed
    when the file is opened again.

    Parameters
    ----------
    path : path-like
        The file, which need not be there.

    Attributes
    ----------
    rows : list of dict
        All rows, in the order in which they were added.

    Raises
    ------
    ValueError
        If a line before the last one is damaged.
    """

    def __init__(self, path):
        self._path = Path(path)
        self.rows: list[dict[str, Any]] = []
        found = self._path.read_bytes() if self._path.exists() else b""
        *lines, last = found.split(b"\n")
        whole = len(found) - len(last)
        for number, line in enumerate(lines, 1):
            try:
                self.rows.append(dict(json.loads(line)))
            except (ValueError, TypeError) as error:
                if number < len(lines):
                    raise ValueError(
                        f"{self._path}: line {number} is damaged: {error}; delete the line and run again"
                    ) from error
                whole -= len(line) + 1
        if whole < len(found):
            write_atomically(self._path, found[:whole])

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, which is on the disk when this returns."""
        with open(self._path, "a") as file:
            file.write(json.dumps(row, default=float) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)


def difference(theirs, ours, name: str = "") -> str:
    """How two configurations differ, in words; empty if they do not.

    Parameters
    ----------
    theirs, ours : dict or other value that JSON can hold
        ``ours`` may still have tuples for lists.
    name : str, optional
        Of the value, where it is part of a larger one.
    """
    ours = json.loads(json.dumps(ours))
    if isinstance(theirs, dict) and isinstance(ours, dict):
        found = (difference(theirs.get(k), ours.get(k), f"{name}.{k}".strip(".")) for k in {**theirs, **ours})
        return ", ".join(filter(None, found))
    return "" if theirs == ours else f"{name} {_short(theirs)} in place of {_short(ours)}"


def _short(value) -> str:
    words = isinstance(value, list) and value and all(isinstance(item, str) for item in value)
    text = " ".join(value) if words else str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 20]}... ({len(value)})"
