"""Text files that are either whole or not there."""

from pathlib import Path

from rlhf_core.dataprep.files import atomic_file


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to a temporary name beside ``path``, sync it, then rename it.

    Raises:
        StorageError: the disk is full, or the folder takes no files.
    """
    with atomic_file(path) as stream:
        stream.write(text.encode())
