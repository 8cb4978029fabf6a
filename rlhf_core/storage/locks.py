"""The one lock between processes: a file that the kernel frees when its holder dies."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rlhf_core.storage.full_disk import writing

logger = logging.getLogger(__name__)

_ASKED_FOR = 0.2
"""Seconds after which a lock counts as held: who only asks whether it is, holds it for a moment."""


@contextmanager
def locked(path: Path, *, busy: Exception | None = None) -> Iterator[None]:
    """Hold the lock ``path`` until the block ends, or this process dies, however it dies.

    A ``flock`` on a file that stays: a build that locks the same name in another way, as earlier
    ones did, is kept out as well. A file system without ``flock`` is refused: a lock by existence
    would outlive a killed holder.

    Args:
        path: file of the lock; made, with its folder, where there is none.
        busy: raised at once where somebody else holds it; None waits.

    Raises:
        StorageError: the disk is full, or the folder takes no files.
    """
    lock = FileLock(path, fallback_to_soft=False)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path):
        try:
            lock.acquire(timeout=0 if busy is None else _ASKED_FOR)
        except Timeout as error:
            if busy is not None:
                raise busy from error
            logger.info("waiting_for_lock file=%s", path)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Return whether some process, this one included, holds the lock ``path``; none is made."""
    if not path.exists():
        return False
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    lock.release()
    return False
