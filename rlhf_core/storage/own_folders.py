"""Whose a folder is: nothing is replaced or removed but what this product made."""

import errno
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhf_core.errors import DataError, StorageError

RUNS = "the folder of the runs"
"""The one thing spared that a folder to be replaced may lie in."""


@dataclass(frozen=True)
class OwnFolder:
    """How a folder that this product made is distinguished from everybody else's."""

    what: str
    """What it is, for messages."""
    is_ours: Callable[[Path], bool]
    """Whether a folder that is not empty carries our manifest."""
    names: Collection[str] | None = None
    """All that we ever write into it; anything else in it is somebody's. None: not asked."""


def require_replaceable(
    target: Path, own: OwnFolder, spared: Mapping[str, Path] | None = None
) -> None:
    """Refuse to put a folder where something stands that is not ours to replace.

    Every place where the product replaces or removes a folder whose name is not its own asks here,
    before any work.

    Args:
        target: what is to be replaced; it need not exist.
        own: what may be replaced: it, or an empty folder.
        spared: files and folders that must not lie in the target, by what they are; nor may the
            target lie in one of them that is read (an input's folder would hold its own output).

    Raises:
        DataError: it is a file, a link or a mount point, holds the working directory, something
            spared, or anything that we did not write; says what.
    """
    try:
        problem = _why_spared(target, spared or {}) or _why_not_ours(target, own)
        is_mount = target.is_mount()
    except OSError as error:
        raise StorageError.about(target, error) from error
    if problem:
        raise DataError(
            f"{target}: {problem}; it would be replaced by {own.what}, so name another folder"
        )
    if is_mount:
        raise immovable(target, os.strerror(errno.EBUSY))


def _why_not_ours(target: Path, own: OwnFolder) -> str | None:
    if target.is_symlink():
        return "is a link"
    real = target.resolve()
    above = next(path for path in (real, *real.parents) if path.exists())
    if not above.is_dir():
        return "is a file" if above == real else f"{above} is a file"
    here = Path.cwd().resolve()
    if real in (here, *here.parents):
        return "is or holds the working directory"
    found = sorted(path.name for path in real.iterdir()) if above == real else []
    if found and not own.is_ours(target):
        return f"holds {found[0]!r} and no manifest of ours"
    foreign = [] if own.names is None else [name for name in found if name not in own.names]
    return f"holds {foreign[0]!r}, which is not ours" if foreign else None


def _why_spared(target: Path, spared: Mapping[str, Path]) -> str | None:
    real = target.resolve()
    for what, path in spared.items():
        other = path.resolve()
        if real in (other, *other.parents):
            return f"is or holds {what} ({path})"
        if other.is_dir() and other in real.parents and what != RUNS:
            return f"lies in {what} ({path})"
    return None


def immovable(target: Path, reason: str) -> DataError:
    """Say that a folder cannot be renamed, and what to mount instead."""
    return DataError(
        f"{target}: cannot be replaced as a whole ({reason}): it is a mount point, or lies on"
        f" another file system than {target.parent}; mount {target.parent} instead"
    )
