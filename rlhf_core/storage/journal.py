"""Records kept one by one as they come, so that a kill loses none that was asked for."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from rlhf_core.errors import DataError, StorageError
from rlhf_core.schema import Record
from rlhf_core.storage.records import AnyRecord, describe

Keep = Callable[[Record], None]
"""Adds a record, and returns when the disk has it."""


def read_journal(path: Path, kind: type[AnyRecord]) -> list[AnyRecord]:
    """Return the records of a journal. A last line that is not whole is none yet.

    Raises:
        DataError: a line is not such a record.
    """
    if not path.is_file():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    lines = whole.splitlines()
    return [_record(line, kind, f"{path}, line {n}") for n, line in enumerate(lines, 1)]


@contextmanager
def appending(path: Path) -> Iterator[Keep]:
    """Open a journal for more records; what a killed writer left of a line gives way.

    One at a time: the caller holds a lock.

    Raises:
        StorageError: the disk is full, or the folder takes no files.
    """
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("ab+")
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)

    def keep(record: Record) -> None:
        with _named(path):
            stream.write(record.model_dump_json().encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    try:
        yield keep
    finally:
        with suppress(OSError):  # what the disk did not take, keep has reported
            stream.close()


def _record(line: bytes, kind: type[AnyRecord], where: str) -> AnyRecord:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        raise DataError(f"{where}: not a {kind.__name__}: {describe(error)}") from error


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError.about(path, error) from error
