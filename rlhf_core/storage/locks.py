"""The one lock between processes: a file that the kernel frees when its holder dies."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rlhf_core.storage.full_disk import writing

logger = logging.getLogger(__name__)


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
            lock.acquire(blocking=False)
        except Timeout as error:
            if busy is not None:
                raise busy from error
            logger.info("waiting_for_lock file=%s", path)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def shared(path: Path, *, busy: Exception) -> Iterator[None]:
    """Hold the lock ``path`` beside others who share it, and keep ``locked`` out meanwhile.

    Args:
        path: file of the lock; its folder is there.
        busy: raised at once where somebody holds it alone.

    Raises:
        StorageError: the disk is full, or the folder takes no files.
    """
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise busy from error
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Return whether some process, this one included, holds the lock ``path`` or shares it."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
