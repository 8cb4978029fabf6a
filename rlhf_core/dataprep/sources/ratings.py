"""What a server keeps of its answers: a row when it answered, and one more with every rating.

{"id": ..., "index": 0, "prompt": [...], "completion": ..., "label": null, "rated": null, ...}
{"id": ..., "index": 0, "prompt": [...], "completion": ..., "label": true, "rated": 1764412800, ...}

The last row of an answer counts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_core.dataprep.sources.rows import FilteredRow, RawRow

KNOWN_BY = ("id", "index", "rated")
"""Columns by which a server's rows are known."""
_BESIDE = ("created", "model", "rating", "comment", "finish_reason")

Answer = tuple[str, str]
Place = tuple[Path, int]
"""File and line."""


@dataclass(slots=True)
class Ratings:
    """What a first look at the files of a server found; it may be adding to them."""

    last: dict[Answer, Place] = field(default_factory=dict)
    """Where the last row of each answer stands."""
    ends: dict[Path, int] = field(default_factory=dict)
    """Last line that was there."""


def last_ratings(rows: Iterable[RawRow | FilteredRow]) -> Ratings:
    """Look at files for the first time; rows that no server wrote may stand among its own."""
    found = Ratings()
    for row in rows:
        if isinstance(row, FilteredRow):
            continue
        answer = _answer(row)
        if answer is None:
            continue
        found.last[answer] = row.path, row.line
        found.ends[row.path] = row.line
    return found


def without_earlier(
    rows: Iterable[RawRow | FilteredRow], ratings: Ratings
) -> Iterator[RawRow | FilteredRow]:
    """Yield rows, those filtered out whose answer has a later one; none that came since."""
    for row in rows:
        answer = None if isinstance(row, FilteredRow) or not ratings.last else _answer(row)
        if isinstance(row, FilteredRow) or answer is None:
            yield row
            continue
        if row.line > ratings.ends.get(row.path, 0):
            continue
        row.value.read.update((*KNOWN_BY, *_BESIDE))
        path, line = ratings.last[answer]
        if (path, line) != (row.path, row.line):
            yield FilteredRow.of(row, "superseded", f"{path}, line {line} has it as it is now")
        elif row.value.get("finish_reason") == "length":
            # To learn from it would be to learn that answers end in the middle.
            yield FilteredRow.of(row, "cut_short", "its request's limit of tokens ended it")
        else:
            yield row


def _answer(row: RawRow) -> Answer | None:
    """Return which answer a row is about; None where no server wrote it."""
    if not all(name in row.value for name in KNOWN_BY):
        return None
    return str(row.value["id"]), str(row.value["index"])
