"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write ``data`` under a temporary name in the same folder, then rename it to ``path``.

    Raises
    ------
    OSError
        If the file cannot be written. The temporary file is then removed and an existing ``path`` is left as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # some file systems report a full disk only here
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
