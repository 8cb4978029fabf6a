"""Tables: delimited text in whichever dialect, and workbooks. Every cell of the first is text."""

import csv
import re
import zipfile
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rlhf_core.errors import DataError
from rlhf_core.storage.records import listed, not_utf8, read_raw_lines, read_text, require_file

_MAX_FIELD = 2**31 - 1
_DELIMITERS = (",", ";", "\t", "|")
_QUOTED = re.compile(r'"(?:[^"]|"")*"?')
_SEPARATOR_LINE = re.compile(r"sep=(.)\s*", re.IGNORECASE)
"""The first line by which Excel learns the delimiter."""


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
    quotes: bool = True
    """Of text: whether quotes around a cell are its writer's."""

    def of(self, path: Path) -> "Layout":
        """Return the layout of one file, its delimiter found out."""
        if self.delimiter is not None:
            return self
        if ".tsv" in (suffix.lower() for suffix in path.suffixes):
            return replace(self, delimiter="\t")
        header = next((line for line in read_text(path) if line.strip()), "")
        if separator := _SEPARATOR_LINE.fullmatch(header):
            return replace(self, delimiter=separator[1])
        counts = Counter(_QUOTED.sub("", header))
        # The first of equals: a comma where the header has one column.
        return replace(self, delimiter=max(_DELIMITERS, key=lambda sign: counts[sign]))


@dataclass(frozen=True, slots=True)
class Piece:
    """Some whole lines of delimited text, and what they are."""

    line: int
    """Number of the first of them."""
    text: str
    row: dict[str, Any] | Broken | None
    """None: the header, or a blank line."""


def read_delimited(path: Path, layout: Layout) -> Iterator[tuple[int, dict[str, Any] | Broken]]:
    """Yield the rows of delimited text with the lines they begin on; blank lines are none.

    Raises:
        DataError: the header cannot be read, or has one name for two columns.
    """
    for piece in delimited_pieces(path, layout):
        if piece.row is not None:
            yield piece.line, piece.row


def delimited_pieces(path: Path, layout: Layout) -> Iterator[Piece]:
    """Yield delimited text in pieces that together are all of it.

    A quote that is never closed takes the following rows into its field. Where most of those lines
    are rows by themselves, they are read as rows again, and only what is before them is broken.

    Raises:
        DataError: as ``read_delimited``.
    """
    csv.field_size_limit(_MAX_FIELD)
    records = _Records(path, layout.delimiter or ",", quotes=layout.quotes)
    header: list[str] = []
    while (record := records.read()) is not None:
        where, problem = f"{path}, line {record.line}", record.undecoded or record.problem
        if not header and problem:
            raise DataError(f"{where}: {record.undecoded or records.opening(record)}")
        if not record.cells and not problem:
            yield Piece(record.line, record.text, None)
        elif not header:
            separator = _SEPARATOR_LINE.fullmatch(record.text)
            header = [] if separator else _header(record.cells, where=where)
            records.spaced = any(cell[:1].isspace() for cell in record.cells)
            yield Piece(record.line, record.text, None)
        elif not problem and len(record.cells) == len(header) and records.is_in_step(record):
            records.spaced |= any(cell[:1].isspace() for cell in record.cells)
            yield Piece(record.line, record.text, dict(zip(header, record.cells, strict=True)))
        else:
            yield from _broken(record, records, len(header))


def _broken(record: "_Record", records: "_Records", num_columns: int) -> Iterator[Piece]:
    """Yield a record that is no row, or what is broken of it: the rest is read again."""
    kinds = [records.kind_of(line, num_columns) for line in record.lines]
    if (resumed := _first_row(kinds, record.is_cut)) is not None:
        records.go_back(len(record.lines) - resumed)
        text = "".join(record.lines[:resumed])
        yield Piece(record.line, text, Broken(text, records.opening(record)))
    elif record.is_cut:
        # Whether these are rows or one long text cannot be determined: each line counts as lost.
        why = f"{records.opening(record)}; what follows cannot be distinguished from text"
        for number, line in enumerate(record.lines, record.line):
            yield Piece(number, line, Broken(line, why) if line.strip() else None)
    else:
        why = "follows a broken row, and may be the rest of its text"
        if record.problem:
            why = f"broken CSV ({record.problem})"
        elif len(record.cells) != num_columns:
            why = _wrong_number(num_columns, len(record.cells))
        yield Piece(record.line, record.text, Broken(record.text, record.undecoded or why))


def _first_row(kinds: Sequence[str], is_cut: bool) -> int | None:
    """Return which line of a broken record is a row again; None if it is one long text.

    The line whose quote ends a text has that quote where no row has one.
    """
    inside = kinds[1:]
    if inside.count("row") > inside.count("text"):
        return 1 + inside.index("row")
    if inside[-1:] != ["row"] or is_cut:
        return None
    return len(kinds) - kinds[::-1].index("text") if "text" in inside else 1


@dataclass(frozen=True, slots=True)
class _Record:
    """What the reader took for one record."""

    line: int
    lines: list[str]
    cells: list[str]
    problem: str
    """What the reader said of it; empty where nothing."""
    undecoded: str
    """Why bytes of it are no text; empty where they are."""

    @property
    def text(self) -> str:
        return "".join(self.lines)

    @property
    def is_cut(self) -> bool:
        """Whether the file ended inside a quote."""
        return "unexpected end" in self.problem


class _Records:
    """Records of delimited text, and the way back to lines that were taken into one wrongly."""

    def __init__(self, path: Path, delimiter: str, *, quotes: bool) -> None:
        self._lines = map(_decoded, read_raw_lines(path))
        self._taken: list[tuple[str, str]] = []
        self._again: deque[tuple[str, str]] = deque()
        self._line = 1
        self._out_of_step, self._has_rows = False, False
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
        self._reader = csv.reader(self, delimiter=delimiter, quoting=quoting, strict=True)
        sign, quoted = re.escape(delimiter), r'"[^"]*(?:""[^"]*)*'
        self._opened = re.compile(rf'(?:\A|[\n{sign}]){quoted}(?P<closed>"|\Z)')
        self._after_text = f'"{delimiter}'
        self._fields, self._spaced_fields = (
            re.compile(
                rf'(?:(?:{quoted}"|{bare}){sign})*(?:{quoted}"|{bare}|(?P<open>{quoted}))\s*'
            )
            for bare in (rf'(?:[^"{sign}\s][^"{sign}\r\n]*)?', rf'[^"{sign}\r\n]*')
        )
        self.spaced = False
        """Whether cells of rows begin with white space, as what follows a comma in a text does."""

    def __iter__(self) -> "_Records":
        return self

    def __next__(self) -> str:
        self._taken.append(self._again.popleft() if self._again else next(self._lines))
        return self._taken[-1][0]

    def read(self) -> _Record | None:
        """Return the next record, None at the end."""
        first, cells, problem = self._line, [], ""
        self._taken = []
        try:
            found = next(self._reader, None)
            if found is None:
                return None
            cells = found
        except csv.Error as error:
            problem, self._out_of_step = str(error), True
        self._line += len(self._taken)
        undecoded = next((why for _, why in self._taken if why), "")
        return _Record(first, [line for line, _ in self._taken], cells, problem, undecoded)

    def go_back(self, count: int) -> None:
        """Read the last lines of the newest record, ``count`` of them, once more."""
        self._again.extendleft(reversed(self._taken[len(self._taken) - count :]))
        self._line -= count

    def kind_of(self, line: str, num_columns: int) -> Literal["row", "text", "blank"]:
        """Tell what a line inside a record is by itself.

        It is a row, or the first line of one, if a writer of CSV could have made it: no quote
        inside a bare field, and no bare field that begins with a space where no row before has
        such. Prose seldom is, and holds a quote only doubled.
        """
        if not line.strip():
            return "blank"
        found = (self._spaced_fields if self.spaced else self._fields).fullmatch(line)
        if found is None or line.startswith(self._after_text):
            return "text"
        if found["open"] is not None:
            return "row"
        [cells] = csv.reader([line], delimiter=self._reader.dialect.delimiter)
        return "row" if len(cells) == num_columns else "text"

    def is_in_step(self, record: _Record) -> bool:
        """Tell whether a record that has all its cells is a row, after a broken one too."""
        in_doubt = self._out_of_step and self._has_rows
        if in_doubt and self.kind_of(record.lines[0], len(record.cells)) != "row":
            return False
        self._out_of_step, self._has_rows = False, True
        return True

    def opening(self, record: _Record) -> str:
        """Say what is broken in a record, and on which line its open quote stands."""
        if len(record.lines) == 1 and not record.is_cut:
            return f"broken CSV ({record.problem})"
        places = [found for found in self._opened.finditer(record.text) if not found["closed"]]
        at = places[0].start() + 1 if places else 0
        line = record.line + record.text.count("\n", 0, at)
        return f"broken CSV (the quote that opens on line {line} is never closed)"


def _decoded(line: bytes) -> tuple[str, str]:
    """Return a line's text, and why its bytes are none."""
    try:
        return line.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        return line.decode("utf-8", errors="replace"), not_utf8(error)


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

    require_file(path)
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
