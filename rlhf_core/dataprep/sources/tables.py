"""Tables: delimited text in whichever dialect, and workbooks. Every cell of the first is text."""

import csv
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_core.dataprep.files import listed, read_text
from rlhf_core.errors import DataError

_MAX_FIELD = 2**31 - 1
_DELIMITERS = (",", ";", "\t", "|")
_QUOTED = re.compile(r'"(?:[^"]|"")*"?')
_SEPARATOR_LINE = re.compile(r"sep=(.)\s*", re.IGNORECASE)
"""The first line by which Excel is told the delimiter."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A piece of a file that is no row."""

    text: str
    why: str


@dataclass(frozen=True, slots=True)
class Layout:
    """How a table is laid out."""

    delimiter: str | None = None
    """Of text; None takes the one that the header has most of."""
    sheet: str | None = None
    """Of a workbook; None takes the first."""

    def of(self, path: Path) -> "Layout":
        """Return the layout of one file, its delimiter found out."""
        if self.delimiter is not None:
            return self
        if ".tsv" in (suffix.lower() for suffix in path.suffixes):
            return replace(self, delimiter="\t")
        header = next((line for line in read_text(path) if line.strip()), "")
        if told := _SEPARATOR_LINE.fullmatch(header):
            return replace(self, delimiter=told[1])
        counts = Counter(_QUOTED.sub("", header))
        # The first of equals: a comma where the header has one column.
        return replace(self, delimiter=max(_DELIMITERS, key=lambda sign: counts[sign]))


def read_delimited(path: Path, layout: Layout) -> Iterator[tuple[int, dict[str, Any] | Broken]]:
    """Yield the rows of delimited text with the lines they begin on; blank lines are none.

    Raises:
        DataError: two columns have one name, or a quote is never closed.
    """
    csv.field_size_limit(_MAX_FIELD)
    lines = _Remembering(read_text(path))
    reader = csv.reader(lines, delimiter=layout.delimiter or ",", strict=True)
    header: list[str] = []
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if "unexpected end" in str(error) or not header:
                raise DataError(f"{path}, line {start}: broken CSV ({error})") from error
            yield start, Broken(lines.take(), f"broken CSV ({error})")
            continue
        text = lines.take()
        if cells is None:
            return
        if not cells or (not header and _SEPARATOR_LINE.fullmatch(text)):
            continue
        if not header:
            header = _header(cells, where=f"{path}, line {start}")
        elif len(cells) != len(header):
            yield start, Broken(text, _wrong_number(len(header), len(cells)))
        else:
            yield start, dict(zip(header, cells, strict=True))


class _Remembering:
    """Lines as a reader takes them, and the text of those since last asked."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._taken: list[str] = []

    def __iter__(self) -> "_Remembering":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._taken.append(line)
        return line

    def take(self) -> str:
        text, self._taken = "".join(self._taken), []
        return text


def _wrong_number(wanted: int, found: int) -> str:
    return (
        f"expected {wanted} fields as in the header, found {found}; quote fields that hold the"
        " delimiter or a line break"
    )


def _header(cells: list[str], *, where: str) -> list[str]:
    """Return the names of the columns; of two with one name, one would be lost."""
    names = [cell.strip() for cell in cells]
    twice = sorted(name for name, count in Counter(names).items() if name and count > 1)
    if twice:
        raise DataError(f"{where}: columns with the same name: {listed(twice)}; rename them")
    return names


def read_workbook(path: Path, layout: Layout) -> Iterator[tuple[int, dict[str, Any] | Broken]]:
    """Yield the rows of one sheet; the first that is not blank names the columns.

    Raises:
        DataError: no workbook, no such sheet, or two columns have one name.
    """
    header: list[str] = []
    for number, cells in _sheet_rows(path, layout.sheet):
        if all(cell is None or cell == "" for cell in cells):
            continue
        if not header:
            texts = ["" if cell is None else str(cell) for cell in cells]
            header = _header(texts, where=f"{path}, row {number}")
            continue
        extra = [cell for cell in cells[len(header) :] if cell is not None]
        if extra:
            yield number, Broken(repr(cells), _wrong_number(len(header), len(cells)))
            continue
        padded = (*cells, *[None] * (len(header) - len(cells)))
        yield number, {name: cell for name, cell in zip(header, padded, strict=False) if name}


def sheet_names(path: Path) -> list[str]:
    """Return the names of a workbook's sheets."""
    workbook = _workbook(path)
    try:
        return [str(name) for name in workbook.sheetnames]
    finally:
        workbook.close()


def _sheet_rows(path: Path, sheet: str | None) -> Iterator[tuple[int, tuple[Any, ...]]]:
    workbook = _workbook(path)
    try:
        names = workbook.sheetnames
        if sheet is not None and sheet not in names:
            raise DataError(f"{path}: no sheet {sheet!r}; found {listed(names)}")
        rows = workbook[names[0] if sheet is None else sheet].iter_rows(values_only=True)
        yield from enumerate(rows, 1)
    except _BROKEN_WORKBOOK as error:
        raise DataError(f"{path}: damaged workbook ({error}); save it again") from error
    finally:
        workbook.close()


def _workbook(path: Path) -> Any:
    import openpyxl

    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path in the configuration")
    try:
        return openpyxl.load_workbook(path, read_only=True, data_only=True)
    except _BROKEN_WORKBOOK as error:
        raise DataError(f"{path}: not an Excel workbook ({error}); expected .xlsx") from error


_BROKEN_WORKBOOK = (
    zipfile.BadZipFile,
    OSError,
    SyntaxError,  # Of broken XML.
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    EOFError,
)
"""What openpyxl raises on files that are none of its own; ``DataError`` is a ``ValueError``."""
