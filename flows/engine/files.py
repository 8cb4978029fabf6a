"""Text files that are either whole or not there, and where files are written."""

import tempfile
from pathlib import Path

from rlhf_core.storage.records import atomic_file


def places() -> tuple[Path, ...]:
    """Return where commands and stages write, the likeliest first."""
    here = ("runs", "data", "mlartifacts", "mlflow.db", ".rlhf", ".dvc/cache")
    return (*map(Path, here), Path(tempfile.gettempdir()))


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to a temporary name beside ``path``, sync it, then rename it.

    Raises:
        StorageError: the disk is full, or the folder takes no files.
    """
    with atomic_file(path) as stream:
        stream.write(text.encode())
