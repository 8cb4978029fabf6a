"""Rows on their way in: either a record, or filtered out with the reason."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import to_json

from rlhf_core.errors import DataError
from rlhf_core.schema import UNNAMED, Comparison, Conversation, annotator_name
from rlhf_core.storage.records import describe, listed

__all__ = [
    "FAULTS",
    "UNNAMED",
    "Columns",
    "Fault",
    "FileRows",
    "FilteredRow",
    "RawRow",
    "Reason",
    "UnusableRow",
    "annotator_name",
    "as_json",
    "attempt",
    "comparison_problem",
    "prompt_problem",
]

Read = TypeVar("Read")
Fault = Literal[
    "broken_row",
    "missing_column",
    "unusable_message",
    "unusable_value",
    "reversed_scores",
    "conflicting_id",
]
"""Why a row cannot be read at all. A file that has nothing but such rows is an error."""
Reason = Literal[
    Fault,
    "unmatched",
    "deleted_message",
    "empty_prompt",
    "prompt_not_by_user",
    "empty_response",
    "identical_responses",
    "parts_before_last_turn",
    "malformed_transcript",
    "too_few_responses",
    "no_votes",
    "superseded",
    "cut_short",
    "tie",
    "votes_pooled",
    "exact_duplicate",
    "conflicting_labels",
    "prompt_is_heldout",
    "near_duplicate",
    "prompt_near_heldout",
    "prompt_trains_judge",
    "benchmark_contamination",
    "wrong_language",
    "personal_data",
    "too_long",
    "not_renderable",
]


class UnusableRow(DataError):
    """One row cannot be used: it is filtered out with the reason; the rest of its file is read."""

    def __init__(self, reason: Reason, detail: str) -> None:
        """Keep why; the row itself knows where."""
        super().__init__(detail)
        self.reason: Reason = reason
        self.detail = detail


class Columns(dict[str, Any]):
    """A row's columns; knows which of them were looked at."""

    def __init__(self, value: Mapping[str, Any], read: frozenset[str] = frozenset()) -> None:
        """Take the columns over; ``read`` names those that a mapping has looked into already."""
        super().__init__(value)
        self.read: set[str] = set(read)
        self.unread: dict[str, str] = {}
        """Columns that one may do without and whose cell cannot be read: what is wrong with it."""

    def __getitem__(self, column: str) -> Any:
        self.read.add(column)
        return super().__getitem__(column)

    def get(self, column: str, default: Any = None) -> Any:
        """Return a column, or ``default``; either way it was looked at."""
        self.read.add(column)
        return super().get(column, default)

    def copy_with(self, **changed: Any) -> "Columns":
        """Return the row with other values in some columns; what is read of one is of both."""
        copy = Columns({**self, **changed})
        copy.read, copy.unread = self.read, self.unread
        return copy

    def unused(self) -> list[str]:
        """Return the columns that hold something and were not looked at."""
        return [name for name, value in self.items() if name not in self.read and not _empty(value)]


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as the source has it, its columns under our names."""

    path: Path
    source: str
    """Name of the file, without its endings."""
    line: int
    """1-based line, or row where the container has no lines."""
    value: Columns
    unit: str = "line"
    """What ``line`` counts: line, item of an array, row of a table without lines."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Our name of a column to the source's, where they differ."""
    original: Mapping[str, Any] | None = None
    """The row before columns were renamed; None where none were."""
    is_table: bool = False
    """All cells are text, lists among them."""
    decimal_comma: bool = False
    """Numbers are written 1,5."""

    @property
    def where(self) -> str:
        """Begin of a message about this row."""
        return f"{self.path}, {self.unit} {self.line}"

    def fresh(self) -> "RawRow":
        """Return the row as if nothing had looked at it yet."""
        return replace(self, value=Columns(self.value))

    def require(self, *columns: str) -> None:
        """Refuse a row that lacks a column.

        Raises:
            UnusableRow: names the column, and what the source was to call it.
        """
        for column in columns:
            if column not in self.value:
                raise UnusableRow(
                    "missing_column", f"missing column {self.called(column)}; found {self.found()}"
                )

    def called(self, column: str) -> str:
        """Return a column's name as a message has it: the source's, where it has another."""
        theirs = self.names.get(column, column)
        return repr(theirs) if theirs == column else f"{theirs!r} (our {column})"

    def found(self) -> str:
        """Return the columns that the source has, for a message."""
        return listed(self.value if self.original is None else self.original)

    def text(self, column: str) -> str:
        """Return a column that must be there and hold text."""
        self.require(column)
        value = self.value[column]
        if not isinstance(value, str):
            found = type(value).__name__
            raise UnusableRow("unusable_value", f"{column}: expected text, found {found}")
        return value


@dataclass(frozen=True, slots=True)
class FilteredRow:
    """A raw row that no later stage sees."""

    reason: Reason
    source: str
    line: int
    """1-based line (or row) of the source file."""
    row: str
    """The row as JSON, so that nothing is lost."""
    row_id: str = ""
    detail: str = ""
    path: str = ""
    """Of its file; what is kept has the name alone."""
    unit: str = "line"
    """What ``line`` counts."""

    @classmethod
    def of(cls, row: RawRow, reason: Reason, detail: str = "") -> "FilteredRow":
        """Return a row as the source has it, with why it is filtered out."""
        whole = row.value if row.original is None else row.original
        return cls(
            reason, row.source, row.line, as_json(whole), "", detail, str(row.path), row.unit
        )

    @property
    def where(self) -> str:
        """Begin of a message about this row."""
        return f"{self.path}, {self.unit} {self.line}"

    def as_cells(self) -> dict[str, object]:
        """Return what is kept of it: ``_KEPT``."""
        return {name: getattr(self, name) for name in _KEPT}


_KEPT = ("reason", "source", "line", "row", "row_id", "detail")


def attempt(row: RawRow, read: Callable[[], Read]) -> Read | FilteredRow:
    """Return what ``read`` makes of a row, or the row filtered out with the reason.

    Args:
        row: what is read.
        read: raises where the row cannot be used.
    """
    try:
        return read()
    except UnusableRow as error:
        filtered = FilteredRow.of(row, error.reason, error.detail)
    except ValidationError as error:
        filtered = FilteredRow.of(row, "unusable_value", describe(error))
    except UnicodeEncodeError:
        filtered = FilteredRow.of(row, "unusable_value", "half of a surrogate pair in a text")
    row.value.read.update(row.value)  # Reading stopped: what it would have looked at is not known.
    return filtered


FAULTS: frozenset[str] = frozenset(get_args(Fault))


@dataclass(slots=True)
class FileRows:
    """What became of the rows of one file: those read, and of these what was filtered out."""

    rows: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    unused_columns: Counter[str] = field(default_factory=Counter)
    """Columns that hold something and that nothing looks at: rows they are in."""
    unread_cells: Counter[str] = field(default_factory=Counter)
    """Columns that a row does without where their cell cannot be read: rows of which that is so."""
    first_unread: dict[str, str] = field(default_factory=dict)
    """Of each of them, the first such row and what is wrong with its cell."""
    first_fault: str = ""

    @property
    def used(self) -> int:
        """Rows that a record was made of, or that helped to make one."""
        return self.rows - self.filtered.total()

    @property
    def num_faults(self) -> int:
        """Rows that could not be read at all."""
        return sum(count for reason, count in self.filtered.items() if reason in FAULTS)

    def note_filtered(self, row: FilteredRow) -> None:
        """Count a row that was filtered out."""
        self.filtered[row.reason] += 1
        if row.reason in FAULTS and not self.first_fault:
            self.first_fault = f"{row.where}: {row.detail}"

    def note_columns(self, row: RawRow) -> None:
        """Count the columns of a row that nothing looked at, and those it does without."""
        if unused := row.value.unused():
            self.unused_columns.update(unused)
        for name, why in row.value.unread.items():
            column = row.names.get(name, name)
            self.unread_cells[column] += 1
            self.first_unread.setdefault(column, f"{row.unit} {row.line}: {why}")

    def as_json(self) -> dict[str, Any]:
        """Return the file's part of the report."""
        return {
            "rows": self.rows,
            "used": self.used,
            "set_aside": dict(sorted(self.filtered.items())),
            "unread_columns": dict(sorted(self.unused_columns.items())),
            "unread_cells": dict(sorted(self.unread_cells.items())),
        }


def as_json(value: object) -> str:
    """Return any value of a source as JSON; bytes, which Parquet may hold, in base64."""
    return to_json(value, serialize_unknown=True, bytes_mode="base64").decode()


def _empty(value: object) -> bool:
    return value is None or value == "" or value == [] or value == {}


def prompt_problem(prompt: Conversation) -> Reason | None:
    """Return why a prompt cannot be answered, if so."""
    if not prompt or not prompt[-1].content.strip():
        return "empty_prompt"
    if prompt[-1].role not in ("user", "tool"):
        return "prompt_not_by_user"
    return None


def comparison_problem(item: Comparison) -> Reason | None:
    """Return why a single comparison is of no use, looking at nothing but itself."""
    if (problem := prompt_problem(item.prompt)) is not None:
        return problem
    if not item.response_a.strip() or not item.response_b.strip():
        return "empty_response"
    if item.response_a.strip() == item.response_b.strip():
        return "identical_responses"
    return None if item.votes else "no_votes"
