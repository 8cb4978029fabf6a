"""Files that are either whole or not there."""

import os
import tempfile
from pathlib import Path

from rlhf_core.errors import StorageError


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to a temporary name beside ``path``, sync it, then rename it.

    Raises:
        StorageError: the disk is full, or the folder takes no files.
    """
    try:
        _write(path, text)
    except OSError as error:
        raise StorageError.about(path, error) from error


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
