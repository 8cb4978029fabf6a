"""Files to rows, whatever the container: each row knows its file and line."""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import ijson

from rlhf_core.config.data import HUB
from rlhf_core.dataprep.files import read_blocks, read_objects, read_text, shorten
from rlhf_core.dataprep.keys import source_name
from rlhf_core.dataprep.rows import RawRow
from rlhf_core.errors import DataError

_COMPRESSED = (".gz", ".zst")
_BATCH_ROWS = 1_000
_BEGIN = 100
_MAX_FIELD = 2**31 - 1


def read_rows(path: Path, columns: Mapping[str, str] | None = None) -> Iterator[RawRow]:
    """Yield the rows of a file, or of all files of a folder in name order.

    Args:
        path: file or folder; the ending tells the container.
        columns: our name to the source's name. Where given, no other column is read.

    Raises:
        DataError: nothing there, an unknown ending, or a damaged file; names file and line.
    """
    for file in source_files(path):
        name = source_name(file)
        for line, value in _reader(file)(file):
            row = RawRow(file, name, line, value)
            yield _renamed(row, columns) if columns else row


def source_files(path: Path) -> list[Path]:
    """Return the files behind a source's path, in name order."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if _ending(file) in _READERS)
    if not files:
        endings = ", ".join(_READERS)
        raise DataError(f"{path}: no data files in this folder; expected endings {endings}")
    return files


def is_hub(path: Path) -> bool:
    """Tell whether a path names a dataset of the hub."""
    return path.parts[:1] == (HUB,)


def rename(rows: Iterable[RawRow], columns: Mapping[str, str]) -> Iterator[RawRow]:
    """Apply a column mapping to rows of any origin."""
    return (_renamed(row, columns) if columns else row for row in rows)


def _renamed(row: RawRow, columns: Mapping[str, str]) -> RawRow:
    row.require(*columns.values())
    value = {ours: row.value[theirs] for ours, theirs in columns.items()}
    return RawRow(row.path, row.source, row.line, value)


def _reader(path: Path) -> Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]:
    reader = _READERS.get(_ending(path))
    if reader is None:
        raise DataError(
            f"{path}: unknown ending; expected one of {', '.join(_READERS)},"
            " plain or with .gz or .zst"
        )
    if reader is _read_parquet and path.suffix.lower() in _COMPRESSED:
        raise DataError(
            f"{path}: Parquet is compressed inside; expected a plain .parquet file, unpack it first"
        )
    return reader


def _ending(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    endings = [suffix for suffix in suffixes if suffix not in _COMPRESSED]
    return endings[-1] if endings else ""


def _read_array(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSON array, as exports are: one value in the whole file, read piece by piece."""
    blocks = read_blocks(path)
    begin = next((block for block in blocks if block.strip()), b"")
    if not begin.lstrip().startswith(b"["):
        found = begin.lstrip()[:_BEGIN].decode(errors="replace")
        advice = "; if each line is an object, name the file .jsonl" if found[:1] == "{" else ""
        raise DataError(f"{path}: expected a list of objects, found {shorten(found)}{advice}")
    number = 0
    try:
        values = ijson.items(ijson.from_iter(chain([begin], blocks)), "item", use_float=True)
        for number, value in enumerate(values, 1):
            if not isinstance(value, dict):
                raise DataError(
                    f"{path}, item {number}: expected an object, found {type(value).__name__}"
                )
            yield number, value
    except ijson.JSONError as error:
        first = str(error).removeprefix("b'").splitlines()[0]
        raise DataError(
            f"{path}, after item {number}: broken JSON ({first}); expected a list of objects"
        ) from error


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path in the configuration")
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path}, after row {number}: damaged Parquet data ({first})") from error
    except (ArithmeticError, LookupError, ValueError) as error:  # Dates beyond the year 9999, say.
        raise DataError(
            f"{path}, after row {number}: a value that Python cannot hold"
            f" ({type(error).__name__}: {error}); leave its column out of the file"
        ) from error


def _read_table(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(_MAX_FIELD)
    reader = csv.reader(read_text(path), delimiter=delimiter, strict=True)
    header: list[str] = []
    end = 0
    try:
        for cells in reader:
            start, end = end + 1, reader.line_num
            if not cells:
                continue
            if not header:
                header = _header(cells, where=f"{path}, line {start}")
            elif len(cells) != len(header):
                raise DataError(
                    f"{path}, line {start}: expected {len(header)}"
                    " fields as in the header; quote fields that hold the delimiter or a line break"
                )
            else:
                yield start, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: broken CSV ({error})") from error


def _header(cells: list[str], *, where: str) -> list[str]:
    """Return the names of the columns; of two with one name, one would be lost."""
    twice = sorted(name for name, count in Counter(cells).items() if name and count > 1)
    if twice:
        raise DataError(f"{where}: columns with the same name: {', '.join(twice)}; rename them")
    return cells


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".jsonl": read_objects,
    ".ndjson": read_objects,
    ".json": _read_array,
    ".parquet": _read_parquet,
    ".csv": lambda path: _read_table(path, ","),
    ".tsv": lambda path: _read_table(path, "\t"),
}
