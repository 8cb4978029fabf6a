"""Files to rows, whatever the container: each row knows its file and line."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_core.config.data import HUB
from rlhf_core.dataprep.keys import source_name
from rlhf_core.dataprep.sources.columns import renamed
from rlhf_core.dataprep.sources.json_arrays import begins_with_object, read_values
from rlhf_core.dataprep.sources.rows import Columns, FilteredRow, RawRow, as_json
from rlhf_core.dataprep.sources.tables import (
    Broken,
    Layout,
    read_delimited,
    read_workbook,
)
from rlhf_core.errors import DataError
from rlhf_core.storage.records import not_utf8, parse_object, read_raw_lines, require_file, shorten

_COMPRESSED = (".gz", ".zst")
_BATCH_ROWS = 1_000
_NO_LAYOUT = Layout()
_BESIDE_DATA = ("dataset_infos.json", "dataset_info.json", "state.json")
"""What ``datasets`` writes into the folder of a dataset."""

logger = logging.getLogger(__name__)

Numbered = Iterator[tuple[int, dict[str, Any] | Broken]]
"""Rows with their number, those that cannot be parsed among them."""


@dataclass(frozen=True, slots=True)
class _Container:
    """How one kind of file is read, and what its rows are counted by."""

    read: Callable[[Path, Layout], Numbered]
    unit: str = "line"
    is_table: bool = False
    is_packed: bool = False


def read_rows(
    path: Path,
    columns: Mapping[str, str] | None = None,
    layout: Layout = _NO_LAYOUT,
    names: Mapping[Path, str] | None = None,
) -> Iterator[RawRow | FilteredRow]:
    """Yield the rows of a file, or of all files of a folder in name order.

    Rows that are no rows, such as a line that is no JSON, come filtered out.

    Args:
        path: file or folder; the ending tells the container.
        columns: our name to the source's name, or to a path into it; the others keep theirs.
        layout: how a table is laid out, where that is not to be found out.
        names: what rows of a file say of where they come from, where files of other sources have
            its name as well; see ``file_names``.

    Raises:
        DataError: nothing there, an unknown ending, or a damaged file; names file and line.
    """
    files = source_files(path)
    for file in sorted(_passed_over(path)):
        logger.info("passed_over file=%s: %s", file, why_no_data(file))
    names = {**file_names(files), **(names or {})}
    for file in files:
        yield from _read_file(file, names[file], columns or {}, layout)


def _read_file(
    file: Path, name: str, columns: Mapping[str, str], layout: Layout
) -> Iterator[RawRow | FilteredRow]:
    container = _container(file)
    found = layout.of(file) if container.is_table and not container.is_packed else layout
    unit = "item" if file_is_array(file) else container.unit
    decimal_comma = container.is_table and found.delimiter == ";"
    for line, value in container.read(file, found):
        if isinstance(value, Broken):
            text = as_json(value.text)
            yield FilteredRow("broken_row", name, line, text, "", value.why, str(file), unit)
            continue
        row = RawRow(
            file,
            name,
            line,
            Columns(value),
            unit,
            is_table=container.is_table,
            decimal_comma=decimal_comma,
        )
        yield renamed(row, columns)


def source_files(path: Path) -> list[Path]:
    """Return the files behind a source's path, in name order.

    In a folder hidden files, lock files of an office, what libraries write beside a dataset, and
    empty ``.json`` files are no data.

    Raises:
        DataError: there are none, or what is named as one is a folder, a pipe or a device.
    """
    files = sorted(filter(is_named_as_data, path.iterdir())) if path.is_dir() else [path]
    for file in files:
        if file.exists() and not file.is_file():  # a pipe would be waited for, for ever
            kind = "a folder" if file.is_dir() else "no regular file"
            raise DataError(f"{file}: {kind}, named as data; rename it, or move it elsewhere")
    if not files:
        endings = ", ".join(_CONTAINERS)
        raise DataError(f"{path}: no data files in this folder; expected endings {endings}")
    return files


def file_names(files: Iterable[Path]) -> dict[Path, str]:
    """Return what the rows of each file say of where they come from; no two files say the same.

    That is the file's name without its endings; where files share it, the folders they lie in stand
    before it, as many as tell them apart, and where none does, the endings stay. Files that say
    the same even so (``wk1-votes.csv`` and ``wk1/votes.csv``) say where they lie below the folder
    that they share.
    """
    by_name: dict[str, set[Path]] = {}
    for file in files:
        by_name.setdefault(source_name(file), set()).add(file)
    found: dict[Path, str] = {}
    for name, sharing in by_name.items():
        alone = dict.fromkeys(sharing, name)
        beside = len({file.parent for file in sharing}) < len(sharing)
        for depth in range(max(len(file.parts) for file in sharing)):
            if len(set(alone.values())) == len(sharing):
                break
            alone = {
                file: "-".join((*_folders(file, depth), file.name if beside else name))
                for file in sharing
            }
        found |= alone
    apart: set[Path] = set()
    while not (repeated := _saying_the_same(found)) <= apart:
        apart |= repeated
        found |= _places(apart)
    return found


def _saying_the_same(names: Mapping[Path, str]) -> set[Path]:
    times = Counter(names.values())
    return {file for file, name in names.items() if times[name] > 1}


def _places(files: Iterable[Path]) -> dict[Path, str]:
    """Return where files lie below the folder that they share."""
    places = {file: file.absolute() for file in files}
    shared = os.path.commonpath([place.parent for place in places.values()])
    return {file: place.relative_to(shared).as_posix() for file, place in places.items()}


def _folders(file: Path, depth: int) -> tuple[str, ...]:
    return file.parts[:-1][-depth:] if depth else ()


def _passed_over(folder: Path) -> set[Path]:
    """Return the files of a folder that have an ending of data and are none."""
    if not folder.is_dir():
        return set()
    named = (file for file in folder.iterdir() if ending_of(file) in _CONTAINERS)
    return {file for file in named if why_no_data(file)}


def why_no_data(file: Path) -> str:
    """Return why a file that lies in a folder of data is none; empty where it is."""
    if file.name.startswith("."):
        return "hidden"
    if file.name.startswith("~$"):
        return "a lock of the program that has it open"
    if file.name in _BESIDE_DATA:
        return "describes a dataset"
    if file.suffix.lower() == ".json" and file.is_file() and not file.stat().st_size:
        return "empty"
    return ""


def is_data_file(path: Path) -> bool:
    """Tell whether a path is a file that ``read_rows`` reads where it is named.

    In a folder it may be passed over (``why_no_data``).
    """
    return ending_of(path) in _CONTAINERS and path.is_file()


def is_named_as_data(path: Path) -> bool:
    """Tell whether a file of a folder, here or still to be fetched, is read."""
    return ending_of(path) in _CONTAINERS and not why_no_data(path)


def is_hub(path: Path) -> bool:
    """Tell whether a path names a dataset of the hub."""
    return path.parts[:1] == (HUB,)


def _container(path: Path) -> _Container:
    container = _CONTAINERS.get(ending_of(path))
    if container is None:
        raise DataError(
            f"{path}: unknown ending; expected one of {', '.join(_CONTAINERS)},"
            " plain or with .gz or .zst"
        )
    if container.is_packed and path.suffix.lower() in _COMPRESSED:
        kind = ending_of(path)
        raise DataError(
            f"{path}: {'Parquet' if kind == '.parquet' else 'a workbook'} is compressed inside;"
            f" expected a plain {kind} file, unpack it first"
        )
    return container


def ending_of(path: Path) -> str:
    """Return what names a file's kind of container, such as ``.csv`` of ``rows.csv.gz``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    endings = [suffix for suffix in suffixes if suffix not in _COMPRESSED]
    return endings[-1] if endings else ""


def _read_lines(path: Path, _: Layout) -> Numbered:
    """Rows of a file with one JSON object a line; blank lines are none."""
    for number, line in enumerate(read_raw_lines(path), 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            yield number, Broken(line.decode("utf-8", errors="replace"), not_utf8(error))
            continue
        if text.strip():
            yield number, _parsed(text.rstrip("\r\n"))


def _read_array(path: Path, layout: Layout) -> Numbered:
    """Rows of a JSON array, as exports are; many files of that name have an object a line."""
    if not file_is_array(path):
        yield from _read_lines(path, layout)
        return
    for number, text in read_values(path):
        yield number, _parsed(text)


def file_is_array(path: Path) -> bool:
    """Tell whether a file is one JSON array."""
    return ending_of(path) == ".json" and not begins_with_object(path)


def _parsed(text: str) -> dict[str, Any] | Broken:
    try:
        return parse_object(text, where="")
    except DataError as error:
        return Broken(text, str(error).removeprefix(": "))


def _read_parquet(path: Path, _: Layout) -> Numbered:
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_file(path)
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                for row in _python_rows(batch):
                    number += 1
                    yield number, _with_texts(row)
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path}, after row {number}: damaged Parquet data ({first})") from error


_BEYOND_PYTHON = (ArithmeticError, LookupError, ValueError)
"""What Arrow raises at dates beyond the year 9999, unknown time zones and text that is none."""


def _python_rows(batch: Any) -> Iterator[dict[str, Any] | Broken]:
    """Yield the rows of an Arrow batch; one that Python cannot hold does not take others along."""
    try:
        yield from batch.to_pylist()
    except _BEYOND_PYTHON:
        for number in range(batch.num_rows):
            try:
                [row] = batch.slice(number, 1).to_pylist()
            except _BEYOND_PYTHON as error:
                row = _broken_cells(batch.slice(number, 1), error)
            yield row


def _broken_cells(row: Any, error: Exception) -> Broken:
    kept: dict[str, Any] = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        with suppress(*_BEYOND_PYTHON):
            kept[name] = column[0].as_py()
    lost = ", ".join(map(shorten, (name for name in row.schema.names if name not in kept)))
    why = (
        f"a value that Python cannot hold in column {lost} ({type(error).__name__}: {error}); leave"
        " the column out of the file"
    )
    return Broken(as_json(kept), " ".join(why.split()))


def _with_texts(row: dict[str, Any] | Broken) -> dict[str, Any] | Broken:
    """Return a row whose bytes that are text are text: some writers do not say so of columns."""
    if isinstance(row, Broken) or not any(isinstance(value, bytes) for value in row.values()):
        return row
    return {name: _decoded(value) for name, value in row.items()}


def _decoded(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


_CONTAINERS = {
    ".jsonl": _Container(_read_lines),
    ".ndjson": _Container(_read_lines),
    ".json": _Container(_read_array),
    ".parquet": _Container(_read_parquet, "row", is_packed=True),
    ".csv": _Container(read_delimited, is_table=True),
    ".tsv": _Container(read_delimited, is_table=True),
    ".xlsx": _Container(read_workbook, "row", is_table=True, is_packed=True),
}
