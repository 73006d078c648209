"""Files that appear complete or not at all, and outputs that only one process at a time works on.

Both rest on locks of the operating system (flock), which end with the process that holds them, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["only_process", "sync_folder", "write_atomically"]


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write ``data`` under a temporary name in the same folder, then rename it to ``path``.

    When this returns, the file is on the disk under its name, also after a power cut. A kill leaves a hidden file
    ``.<name>.tmp`` at most, which the next write to the same path takes over. Processes that write to one path at once
    take turns.

    Raises
    ------
    OSError
        If the file cannot be written. The temporary file is then removed and an existing ``path`` is left as it was.
    """
    path = Path(path)
    try:
        file, temporary = _temporary(path)
        with file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # before the rename, or a power cut could leave the new name with no content
                os.replace(temporary, path)
            except BaseException:
                if _names(temporary, file.fileno()):
                    temporary.unlink()
                raise
        sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from error


def _temporary(path):
    """An empty file to write to and its name: one that all processes share, each in turn, or a name of its own."""
    shared = path.with_name(f".{path.name}.tmp")
    try:
        fd = _locked(shared, fcntl.LOCK_EX)
        os.ftruncate(fd, 0)  # what a killed process left
        return open(fd, "wb"), shared
    except OSError:  # no locks on this file system, or a file of another user, or a link
        own = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        return open(own, "xb"), own


def _locked(path, how) -> int:
    """A file descriptor of a file that nobody else has locked; makes the file if it is not there."""
    while True:
        # a link that somebody put there would let us write to any file
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, how)
            if _names(path, fd):  # not so if the one who had the lock renamed or removed the file
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _names(path, fd) -> bool:
    """Whether a path leads to the open file, and is its only name."""
    with suppress(FileNotFoundError):
        held = os.fstat(fd)
        if held.st_nlink > 1:
            raise OSError(errno.EMLINK, "has several names", str(path))
        return os.path.samestat(held, os.stat(path, follow_symlinks=False))
    return False


def sync_folder(path: str | os.PathLike) -> None:
    """Put the names in a folder on the disk; without that, a power cut may undo a rename."""
    with suppress(OSError):  # some network file systems cannot do that
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextmanager
def only_process(lock: str | os.PathLike, output: str | os.PathLike) -> Iterator[None]:
    """Keep other processes from working on an output meanwhile.

    Parameters
    ----------
    lock : path-like
        A file to lock, which is made, and removed at the end. One that a killed process left does not lock anything.
    output : path-like
        The output, for the message.

    Raises
    ------
    OSError
        BlockingIOError if another process is working on it, or another call in this one.
    """
    try:
        fd = _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = "another process is working on it: wait for it, or give another output"
        raise BlockingIOError(errno.EAGAIN, text, str(output)) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        yield  # a file system without locks, on which nothing can be promised
        return
    try:
        yield
    finally:
        with suppress(OSError):
            if _names(lock, fd):
                os.unlink(lock)
        os.close(fd)
