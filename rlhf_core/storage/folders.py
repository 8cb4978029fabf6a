"""Replace a directory as a whole: readers find the old one or the new one, never half."""

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_core.storage.full_disk import writing
from rlhf_core.storage.locks import locked
from rlhf_core.storage.own_folders import immovable

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
"""Flag of Linux's renameat2 and of macOS's renamex_np (RENAME_SWAP): swap the two names."""
_NOT_SUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
_MOUNTED = (errno.EBUSY, errno.EXDEV)
"""What a file system answers where the directory is itself the place something is mounted at."""


@contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Hold the one right to replace ``target``; waits for whoever holds it.

    The right ends with the process, however it ends. What a killed holder left is cleared.

    Raises:
        StorageError: the disk is full, or the folder takes no files.
    """
    with locked(target.parent / f".{target.name}.lock"):
        _recover(target)
        yield


@contextmanager
def replacing_directory(target: Path) -> Iterator[Path]:
    """Give an empty directory to fill; on success it takes the place of ``target`` at once.

    Call it after ``require_replaceable``, and inside ``exclusive(target)`` where several may
    replace it. On an error ``target`` stays as it was.

    Raises:
        DataError: ``target`` is a mount point, which no file system lets be renamed.
    """
    if target.is_mount():  # said before hours of work, not after
        raise immovable(target, os.strerror(errno.EBUSY))
    with working_directory(target) as work:
        yield work
        put_in_place(work, target)


@contextmanager
def working_directory(target: Path) -> Iterator[Path]:
    """Give an empty directory beside ``target``; what is left there in the end is removed.

    Raises:
        StorageError: the disk takes no more of it; names the file.
    """
    work = target.parent / f".{target.name}.{os.getpid()}.tmp"
    with writing(target, work):
        try:
            shutil.rmtree(work, ignore_errors=True)  # of a killed process with this number
            work.mkdir(parents=True)
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def put_in_place(work: Path, target: Path) -> None:
    """Let a complete directory take the place of ``target`` at once.

    Raises:
        DataError: ``target`` is a mount point.
    """
    for path in (*sorted(work.rglob("*")), work):
        _sync(path)
    try:
        _replace(work, target)
    except OSError as error:
        if error.errno not in _MOUNTED:
            raise
        raise immovable(target, os.strerror(error.errno)) from error
    _sync(target.parent)


def _replace(work: Path, target: Path) -> None:
    if not target.exists():
        work.rename(target)
    elif not _exchange(work, target):
        replaced = _replaced(target)
        shutil.rmtree(replaced, ignore_errors=True)  # of a killed process: the target stands again
        target.rename(replaced)
        work.rename(target)
        shutil.rmtree(replaced)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    one, two = os.fsencode(first), os.fsencode(second)
    if sys.platform == "darwin":
        failed = libc.renamex_np(one, two, _RENAME_EXCHANGE)
    elif hasattr(libc, "renameat2"):
        failed = libc.renameat2(_AT_FDCWD, one, _AT_FDCWD, two, _RENAME_EXCHANGE)
    else:
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in _NOT_SUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))


def _replaced(target: Path) -> Path:
    return target.parent / f".{target.name}.old"


def _recover(target: Path) -> None:
    """Undo a replacement that was cut short; remove what killed processes left."""
    replaced = _replaced(target)
    if replaced.exists():
        if target.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(target)
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
