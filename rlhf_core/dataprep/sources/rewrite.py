"""A data file without some of its rows, in the container it came in."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rlhf_core.dataprep.sources.containers import ending_of, file_is_array
from rlhf_core.dataprep.sources.json_arrays import read_values
from rlhf_core.dataprep.sources.tables import Layout, delimited_pieces
from rlhf_core.storage.records import atomic_file, read_blocks, read_raw_lines

Changes = Mapping[int, dict[str, Any] | None]
"""Number of a row, as ``RawRow.line`` has it, to what is left of it; None: nothing."""
_FRAME = 1 << 20


def rewrite_rows(path: Path, changes: Changes, layout: Layout) -> int:
    """Write a data file anew with some rows changed or left out; return how many rows it has.

    Text of rows that are not named stays byte for byte, and so do the values of Parquet files and
    workbooks.

    Args:
        path: of any kind that ``read_rows`` reads.
        changes: rows under the source's own names of columns.
        layout: of a table, as it was read.

    Raises:
        DataError: the file cannot be read.
        StorageError: it cannot be written.
    """
    if file_is_array(path):
        return _write_array(path, changes)
    return _WRITERS[ending_of(path)](path, changes, layout)


def _write_lines(path: Path, changes: Changes, _: Layout) -> int:
    def kept() -> Iterator[bytes]:
        for number, line in enumerate(read_raw_lines(path), 1):
            if number not in changes:
                yield line
            elif (row := changes[number]) is not None:
                yield _as_json(row).encode() + b"\n"

    return _write_text(path, kept())


def _write_array(path: Path, changes: Changes) -> int:
    begin, end = _around_array(path)
    rows = 0
    with _packed(path) as stream:
        stream.write(begin.encode())
        for number, text in read_values(path):
            row = changes.get(number)
            if number in changes and row is None:
                continue
            stream.write(b",\n" if rows else b"\n")
            stream.write((text if row is None else _as_json(row)).encode())
            rows += 1
        stream.write(f"\n{end}\n".encode())
    return rows


def _around_array(path: Path) -> tuple[str, str]:
    """Return what stands before and after the rows: their list may be under a key of an object."""
    if not next(read_blocks(path), b"").lstrip().startswith(b"{"):
        return "[", "]"
    whole: dict[str, Any] = json.loads(b"".join(read_blocks(path)))
    name = next(
        name
        for name, part in whole.items()
        if isinstance(part, list) and part and isinstance(part[0], dict)
    )
    del whole[name]
    inner = "".join(f"{json.dumps(key)}: {_as_json(part)}, " for key, part in whole.items())
    return f"{{{inner}{json.dumps(name)}: [", "]}"


def _write_delimited(path: Path, changes: Changes, layout: Layout) -> int:
    found = layout.of(path)
    rows = 0

    def kept() -> Iterator[bytes]:
        nonlocal rows
        for piece in delimited_pieces(path, found):
            row = changes.get(piece.line)
            if piece.row is not None and piece.line in changes and row is None:
                continue
            rows += piece.row is not None
            yield (piece.text if row is None else _as_cells(row, piece.text, found)).encode()

    _write_text(path, kept())
    return rows


def _as_cells(row: dict[str, Any], text: str, layout: Layout) -> str:
    made = io.StringIO()
    ending = "\r\n" if text.endswith("\r\n") else "\n"
    delimiter = layout.delimiter or ","
    if not layout.quotes:
        return delimiter.join("" if v is None else str(v) for v in row.values()) + ending
    csv.writer(made, delimiter=delimiter, lineterminator=ending).writerow(row.values())
    return made.getvalue()


def _write_text(path: Path, lines: Iterable[bytes]) -> int:
    rows = 0
    with _packed(path) as stream:
        for line in lines:
            rows += bool(line.strip())
            stream.write(line)
    return rows


def _write_parquet(path: Path, changes: Changes, _: Layout) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, first = 0, 1
    with pq.ParquetFile(path) as file, atomic_file(path) as stream:
        schema, groups = file.schema_arrow, file.metadata
        packing = groups.row_group(0).column(0).compression if groups.num_row_groups else "SNAPPY"
        with pq.ParquetWriter(stream, schema, compression=packing) as writer:
            for batch in file.iter_batches():
                left = pa.Table.from_batches(_parts(batch, changes, first), schema)
                writer.write_table(left)
                rows, first = rows + left.num_rows, first + batch.num_rows
    return rows


def _parts(batch: Any, changes: Changes, first: int) -> list[Any]:
    """Return an Arrow batch in pieces, between them the rows that changed."""
    import pyarrow as pa

    parts, at = [], 0
    for number in sorted(set(changes).intersection(range(first, first + batch.num_rows))):
        parts.append(batch.slice(at, number - first - at))
        if (row := changes[number]) is not None:
            parts.append(pa.RecordBatch.from_pylist([row], schema=batch.schema))
        at = number - first + 1
    return [*parts, batch.slice(at)]


def _write_workbook(path: Path, changes: Changes, layout: Layout) -> int:
    import openpyxl

    workbook = openpyxl.load_workbook(path)
    sheet = workbook[layout.sheet or workbook.sheetnames[0]]
    for number in sorted(changes, reverse=True):
        row = changes[number]
        if row is None:
            sheet.delete_rows(number)
            continue
        for column, value in enumerate(row.values(), 1):
            sheet.cell(number, column).value = value
    with atomic_file(path) as stream:
        workbook.save(stream)
    rows = sum(any(cell is not None for cell in row) for row in sheet.iter_rows(values_only=True))
    return max(rows - 1, 0)


_WRITERS: dict[str, Callable[[Path, Changes, Layout], int]] = {
    ".jsonl": _write_lines,
    ".ndjson": _write_lines,
    ".json": _write_lines,
    ".csv": _write_delimited,
    ".tsv": _write_delimited,
    ".parquet": _write_parquet,
    ".xlsx": _write_workbook,
}


@contextmanager
def _packed(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing, compressed as its ending says."""
    with atomic_file(path) as stream:
        if path.suffix.lower() == ".gz":
            with gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as packed:
                yield packed  # type: ignore[misc]
        elif path.suffix.lower() == ".zst":
            with io.BytesIO() as plain:
                yield plain
                _compress(plain.getbuffer(), stream)
        else:
            yield stream


def _compress(content: memoryview, stream: IO[bytes]) -> None:
    """Write zstd frames, one after another, which together are one file."""
    import pyarrow as pa

    for at in range(0, max(len(content), 1), _FRAME):
        stream.write(pa.compress(content[at : at + _FRAME], codec="zstd", asbytes=True))


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
