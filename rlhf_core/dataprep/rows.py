"""Rows on their way in: either a record, or set aside with the reason."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic_core import to_json

from rlhf_core.errors import DataError
from rlhf_core.schema import UNNAMED, Comparison, Conversation, annotator_name

__all__ = [
    "UNNAMED",
    "RawRow",
    "Reason",
    "SetAside",
    "annotator_name",
    "as_json",
    "comparison_problem",
    "prompt_problem",
]

Reason = Literal[
    "empty_prompt",
    "prompt_not_by_user",
    "empty_response",
    "identical_responses",
    "parts_before_last_turn",
    "malformed_transcript",
    "too_few_responses",
    "no_votes",
    "tie",
    "votes_pooled",
    "exact_duplicate",
    "conflicting_labels",
    "prompt_is_heldout",
    "near_duplicate",
    "prompt_near_heldout",
    "benchmark_contamination",
    "wrong_language",
    "personal_data",
    "too_long",
    "not_renderable",
]


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as the source has it."""

    path: Path
    source: str
    """Name of the file, without its endings."""
    line: int
    """1-based line, or row where the container has no lines."""
    value: dict[str, Any]

    @property
    def where(self) -> str:
        """Begin of a message about this row."""
        return f"{self.path}, line {self.line}"

    def require(self, *columns: str) -> None:
        """Refuse a row that lacks a column.

        Raises:
            DataError: names file, line and column.
        """
        for column in columns:
            if column not in self.value:
                raise DataError(
                    f"{self.where}: missing column {column!r}; found {', '.join(self.value)}"
                )

    def text(self, column: str) -> str:
        """Return a column that must be there and hold text."""
        self.require(column)
        value = self.value[column]
        if not isinstance(value, str):
            raise DataError(f"{self.where}: {column}: expected text, found {type(value).__name__}")
        return value


@dataclass(frozen=True, slots=True)
class SetAside:
    """A raw row that no later stage sees."""

    reason: Reason
    source: str
    line: int
    """1-based line (or row) of the source file."""
    row: str
    """The row as JSON, so that nothing is lost."""
    row_id: str = ""
    detail: str = ""

    @classmethod
    def of(cls, row: RawRow, reason: Reason, detail: str = "") -> "SetAside":
        """Set aside a row as the source has it."""
        return cls(reason, row.source, row.line, as_json(row.value), detail=detail)


def as_json(value: object) -> str:
    """Return any value of a source as JSON; bytes, which Parquet may hold, in base64."""
    return to_json(value, serialize_unknown=True, bytes_mode="base64").decode()


def prompt_problem(prompt: Conversation) -> Reason | None:
    """Return why a prompt cannot be answered, if so."""
    if not prompt or not prompt[-1].content.strip():
        return "empty_prompt"
    if prompt[-1].role != "user":
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
