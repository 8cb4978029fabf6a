"""A disk that takes no more: reported in one line with the file, whichever library was writing."""

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_core.errors import RlhfError, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What the system answers to writing only."""
_EITHER = (errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
"""What it answers to reading as well."""
_NUMBER = re.compile(r"(?:\bos error|\[errno) (\d+)", re.IGNORECASE)
"""How libraries that raise an error of their own quote the system: Rust's, ``shutil``."""
_SQLITE = {
    "database or disk is full": errno.ENOSPC,
    "attempt to write a readonly database": errno.EROFS,
    "(sqlite3.OperationalError) disk I/O error": errno.EIO,
}
_WORDS = {os.strerror(number): number for number in _FULL} | _SQLITE


def refused_write(error: BaseException) -> OSError | None:
    """Return the system's refusal to write that lies behind an error of any library.

    Args:
        error: whatever was raised; what it was raised from is looked at as well.

    Returns:
        The refusal, with the file where it is known; None if the disk has nothing to do with it.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop(0)
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, StorageError) and found.refusal is not None:
            return found.refusal
        if (number := _number_of(found)) is not None:
            return OSError(number, os.strerror(number), *_file_of(found))
        waiting += [found.__cause__, found.__context__]
    return None


@contextmanager
def writing(target: Path, work: Path | None = None) -> Iterator[None]:
    """Say that ``target`` cannot be written, where the block fails because the disk takes no more.

    Args:
        target: file or folder that the block writes.
        work: where it is written under a temporary name; a file in it is named as it will be
            called.

    Raises:
        StorageError: names the file; other errors pass.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RlhfError) and not isinstance(error, StorageError):
            raise
        refusal = refused_write(error) or _refused_there(error, work or target)
        if refusal is None:
            raise
        path = error.path if isinstance(error, StorageError) else _path_of(refusal)
        raise StorageError.about(_named(path, target, work), refusal) from error


@contextmanager
def in_one_line(places: Iterable[Path]) -> Iterator[None]:
    """Say which file cannot be written where nobody nearer to the writing said so.

    Args:
        places: where it may have been, if the error does not name the file: of these, the one
            with the least room is named.

    Raises:
        StorageError: names the file or the place; other errors pass.
    """
    try:
        yield
    except Exception as error:
        explained = None if isinstance(error, RlhfError) else storage_error(error, places)
        if explained is None:
            raise
        raise explained from error


def storage_error(error: Exception, places: Iterable[Path]) -> StorageError | None:
    """Return what to say of an error that a disk is behind; None if none is.

    Args:
        error: whatever was raised.
        places: where it may have been, if the error does not name the file.
    """
    refusal = refused_write(error)
    if refusal is None:
        return None
    return StorageError.about(_path_of(refusal) or fullest(places), refusal)


def fullest(places: Iterable[Path]) -> Path:
    """Return the place whose disk has the least room."""
    return min(places, key=room_at)


def room_at(place: Path) -> int:
    """Return the free bytes of a place's disk; where it is not there yet, of the folder above."""
    real = place.absolute()
    there = next(path for path in (real, *real.parents) if path.exists())
    found = os.statvfs(there)
    return found.f_bavail * found.f_frsize


def _number_of(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _FULL else None
    text = str(error)
    quoted = [int(number) for number in _NUMBER.findall(text)]
    known = [number for words, number in _WORDS.items() if words in text]
    return next(iter((*(number for number in quoted if number in _FULL), *known)), None)


def _file_of(error: BaseException) -> tuple[str, ...]:
    """Return the file that was written, as an error says it: of a copy, the second of two."""
    if not isinstance(error, OSError):
        return ()
    if error.errno is None and error.args and isinstance(error.args[0], list):  # of a whole folder
        return (str(error.args[0][0][1]),)
    named = error.filename2 or error.filename
    return (os.fsdecode(named),) if isinstance(named, str | bytes) else ()


def _path_of(refusal: OSError) -> Path | None:
    return Path(refusal.filename) if refusal.filename else None


def _refused_there(error: Exception, folder: Path) -> OSError | None:
    """Return a refusal that may be one to read as well, if it is about what is written."""
    if not isinstance(error, OSError) or error.errno not in _EITHER:
        return None
    file = next(iter(_file_of(error)), None)
    return error if file is None or _is_below(Path(file), folder) else None


def _named(path: Path | None, target: Path, work: Path | None) -> Path:
    """Return what to name: the file if it is part of what is written, under its final name."""
    if path is None:
        return target
    if work is not None and _is_below(path, work):
        return target / path.absolute().relative_to(work.absolute())
    return path


def _is_below(path: Path, folder: Path) -> bool:
    return path.absolute().is_relative_to(folder.absolute())
