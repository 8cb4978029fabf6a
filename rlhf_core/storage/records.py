"""Files of records, one JSON object a line: read strictly, plain or compressed; written whole."""

import gzip
import hashlib
import io
import json
import os
import stat
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from rlhf_core.errors import DataError, StorageError
from rlhf_core.schema import DatasetRef, Record

AnyRecord = TypeVar("AnyRecord", bound=Record)
AnyModel = TypeVar("AnyModel", bound=BaseModel)
Row = TypeVar("Row")

ROWS_AT_ONCE = 512
"""Whose texts are looked at together: that is cheaper than one by one, and takes little memory."""
_BOM = b"\xef\xbb\xbf"
_BLOCK = 1 << 20
WRITTEN_AT_ONCE = 1 << 18
"""Bytes that are gathered before the system is asked to write: it takes its time every time."""
_SHOWN = 600
"""Characters that a message shows of a list, of all columns of a row, say."""
_BROKEN_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    return _digest(path, "sha256")


def md5_of(path: Path) -> str:
    """Return the md5 of a file's bytes: the key DVC stores the file under."""
    return _digest(path, "md5")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield ``(line number from 1, text)`` of every line that is not blank.

    ``.gz`` and ``.zst`` files are decompressed as they are read. A byte order mark is dropped.

    Raises:
        DataError: the file is missing, not UTF-8, or its compression is damaged; names the line.
    """
    for number, line in enumerate(read_text(path), 1):
        if line.strip():
            yield number, line.rstrip("\r\n")


def read_text(path: Path) -> Iterator[str]:
    """Yield every line with its line break; otherwise like ``read_lines``."""
    for number, line in enumerate(read_raw_lines(path), 1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, line {number}: {not_utf8(error)}") from error


def not_utf8(error: UnicodeDecodeError) -> str:
    """Say in a message where text is no UTF-8."""
    return (
        f"not UTF-8 ({error.reason} at byte {error.start}); expected UTF-8 text; convert the file"
        " first"
    )


def read_raw_lines(path: Path) -> Iterator[bytes]:
    """Yield the bytes of every line with its line break, without a byte order mark.

    Raises:
        DataError: the file is missing, or its compression is damaged; names the line.
    """
    number = 0
    try:
        with _open_bytes(path) as stream:
            for number, line in enumerate(stream, 1):
                yield line.removeprefix(_BOM) if number == 1 else line
    except _BROKEN_GZIP as error:
        raise DataError(
            f"{path}, after line {number}: damaged gzip data ({error}); copy the file again"
        ) from error


def read_blocks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file in blocks, decompressed and without a byte order mark.

    Raises:
        DataError: the file is missing, or its compression is damaged.
    """
    try:
        with _open_bytes(path) as stream:
            block = stream.read(_BLOCK).removeprefix(_BOM)
            while block:
                yield block
                block = stream.read(_BLOCK)
    except _BROKEN_GZIP as error:
        raise DataError(f"{path}: damaged gzip data ({error}); copy the file again") from error


def parse_object(text: str, *, where: str) -> dict[str, Any]:
    """Parse one JSON object; ``where`` begins the message if it is none, or has a key twice."""
    try:
        value = from_json(text)
    except ValueError as error:
        raise DataError(f"{where}: broken JSON ({error}); expected one JSON object") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(value).__name__}")
    if not _is_all_of(text, value) and (key := _key_twice(text)) is not None:
        raise DataError(f"{where}: the key {shorten(key)} is duplicated; leave one of them")
    return value


def _is_all_of(text: str, value: dict[str, Any]) -> bool:
    """Tell, where that is quick, that nothing which valid JSON says was left out of its value.

    A colon stands behind each key, and besides only in texts. Where the value written anew has as
    many, no key was there twice. An escaped colon is none that the text has.
    """
    return "\\u003" not in text and text.count(":") == to_json(value).count(b":")


def _key_twice(text: str) -> str | None:
    """Return a key that an object of valid JSON has twice; parsers keep the last one silently."""
    twice: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        if len(pairs) > 1 and len({key for key, _ in pairs}) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice.append(next(key for key, count in counts.items() if count > 1))

    # Numbers stay text: Python limits their length.
    json.loads(text, object_pairs_hook=look, parse_int=str, parse_float=str)
    return twice[0] if twice else None


def read_record(path: Path, kind: type[AnyModel]) -> AnyModel:
    """Return the one record that a file holds.

    Raises:
        DataError: it holds something else, or is no file.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise DataError(f"{path}: not a {kind.__name__}: {describe(error)}") from error


def read_records(source: DatasetRef | Path, kind: type[AnyRecord]) -> list[AnyRecord]:
    """Read a prepared file whole. A reference's row count is verified."""
    return list(iterate_records(source, kind))


def iterate_records(source: DatasetRef | Path, kind: type[AnyRecord]) -> Iterator[AnyRecord]:
    """Yield the records of a prepared file one by one.

    Raises:
        DataError: a line is not such a record, or a reference promises another number of rows.
    """
    path = source.path if isinstance(source, DatasetRef) else source
    num_rows = 0
    for number, text in read_lines(path):
        try:
            yield kind.model_validate_json(text)
        except ValidationError as error:
            raise DataError(
                f"{path}, line {number}: not a {kind.__name__}: {describe(error)}"
            ) from error
        num_rows += 1
    if isinstance(source, DatasetRef) and num_rows != source.num_rows:
        raise DataError(
            f"{path}: expected {source.num_rows} rows, found {num_rows}; prepare the data again"
        )


def iterate_fields(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each line of a file of our own records, and its fields as JSON has them.

    Raises:
        DataError: a line is no JSON; names it.
    """
    for number, line in enumerate(read_raw_lines(path), 1):
        try:
            fields: dict[str, Any] = from_json(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: broken JSON ({error})") from error
        yield line, fields


def batched(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield lists of ``ROWS_AT_ONCE`` rows, the last one shorter."""
    rest = iter(rows)
    while batch := list(islice(rest, ROWS_AT_ONCE)):
        yield batch


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write one record a line; the file appears complete or not at all. Returns the row count."""
    num_rows = 0
    with atomic_file(path) as stream:
        for record in records:
            stream.write(json_line(record))
            num_rows += 1
    return num_rows


def write_record(path: Path, record: BaseModel) -> None:
    """Write a file of one record, for programs and people.

    Raises:
        StorageError: as ``write_text``.
    """
    write_text(path, record.model_dump_json(indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file that is either whole or not there.

    Raises:
        StorageError: the disk is full, or the folder takes no files.
    """
    with atomic_file(path) as stream:
        stream.write(text.encode())


def json_line(record: Record) -> bytes:
    """Return a record as a line of a file: its JSON and a line break."""
    return _writer(type(record)).dump_json(record) + b"\n"


@cache
def _writer(kind: type[Record]) -> TypeAdapter[Record]:
    return TypeAdapter(kind)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary neighbour of ``path`` for writing; sync and rename it on success.

    Raises:
        StorageError: the disk is full, or the folder takes no files.
    """
    writer = f"{os.getpid()}-{threading.get_ident()}"
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb", buffering=WRITTEN_AT_ONCE) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if _is_about(error, temporary):
            raise StorageError.about(path, error) from error
        raise


def keep_private(path: Path, *, folder: bool = False) -> None:
    """Make a file or folder readable by its owner alone, and make it where there is none.

    What belongs to somebody else is left to them.

    Raises:
        OSError: it cannot be made.
    """
    if folder:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    found = path.stat()
    if found.st_uid == os.geteuid() and found.st_mode & 0o077:
        path.chmod(found.st_mode & 0o700)


def _is_about(error: OSError, temporary: Path) -> bool:
    """Return whether writing failed, and not what the writer read meanwhile.

    The system names the file where it is opened or renamed, and no file where bytes are written.
    """
    named = error.filename
    if named is None:
        return error.errno is not None
    return Path(named) in (temporary, *temporary.parents)


def describe(error: ValidationError) -> str:
    """Return what a validation found wrong, in one line."""
    problems = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "missing":
            problems.append(f"missing column {place!r}")
        elif problem["type"] == "extra_forbidden":
            problems.append(f"unknown column {shorten(place)}")
        else:
            problems.append(f"{place}: {problem['msg']}, found {shorten(problem['input'])}")
    return listed(problems, "; ")


def listed(names: Iterable[str], separator: str = ", ") -> str:
    """Return all of them for a message, cut where a broken file has a book of them."""
    text = separator.join(names)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def shorten(value: object) -> str:
    """Return how a value is written in code, cut to what fits into a message."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits.
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def require_file(path: Path, hint: str = "check the path") -> None:
    """Refuse what is no file that can be read as often as it is needed.

    Args:
        path: what somebody named.
        hint: what to do where nothing is there.

    Raises:
        DataError: says what it is.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path}: no such file; {hint}") from error
    except (OSError, ValueError) as error:  # too long a name, a folder that nobody may enter, NUL
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}; {hint}") from error
    if stat.S_ISDIR(mode):
        raise DataError(f"{path}: a folder; expected a file")
    if not stat.S_ISREG(mode):
        raise DataError(
            f"{path}: no regular file but a pipe or a device, which can be read once; write it to "
            "a file and name that"
        )


@contextmanager
def _open_bytes(path: Path) -> Iterator[IO[bytes]]:
    require_file(path)
    if path.suffix.lower() == ".gz":
        with gzip.open(path, "rb") as stream:
            yield stream  # type: ignore[misc]
    elif path.suffix.lower() == ".zst":
        with _open_zstd(path) as stream:
            yield stream
    else:
        with path.open("rb", buffering=_BLOCK) as stream:
            yield stream


@contextmanager
def _open_zstd(path: Path) -> Iterator[IO[bytes]]:
    """Arrow's reader, because zstandard's own ends a truncated stream without an error."""
    import pyarrow as pa

    try:
        with pa.input_stream(path, compression="zstd") as stream:
            yield io.BufferedReader(stream, _BLOCK)
    except OSError as error:
        raise DataError(f"{path}: damaged zstd data ({error}); copy the file again") from error


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
