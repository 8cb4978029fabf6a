"""What a server keeps of its answers: a row when it answered, and one more with every rating.

{"id": ..., "index": 0, "prompt": [...], "completion": ..., "label": null, "rated": null, ...}
{"id": ..., "index": 0, "prompt": [...], "completion": ..., "label": true, "rated": 1764412800, ...}

The last row of an answer counts.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rlhf_core.dataprep.sources.rows import FilteredRow, RawRow

_KNOWN_BY = ("id", "index", "rated")
_BESIDE = ("created", "model", "rating", "comment", "finish_reason")

Place = tuple[Path, int]
"""File and line."""


def last_ratings(rows: Iterable[RawRow | FilteredRow]) -> Mapping[tuple[str, str], Place]:
    """Return where the last row of each answer stands; nothing for files of another kind."""
    last: dict[tuple[str, str], Place] = {}
    for row in rows:
        if isinstance(row, FilteredRow):
            continue
        answer = _answer(row)
        if answer is None:
            return {}
        last[answer] = (row.path, row.line)
    return last


def without_earlier(
    rows: Iterable[RawRow | FilteredRow], last: Mapping[tuple[str, str], Place]
) -> Iterator[RawRow | FilteredRow]:
    """Yield rows, those filtered out whose answer has a later one."""
    for row in rows:
        answer = None if isinstance(row, FilteredRow) or not last else _answer(row)
        if isinstance(row, FilteredRow) or answer is None:
            yield row
            continue
        row.value.read.update((*_KNOWN_BY, *_BESIDE))
        path, line = last[answer]
        if (path, line) == (row.path, row.line):
            # To learn from it would be to learn that answers end in the middle.
            is_cut = row.value.get("finish_reason") == "length"
            detail = "its answer came to the limit of tokens of its request"
            yield FilteredRow.of(row, "cut_short", detail) if is_cut else row
        else:
            detail = f"{path}, line {line} has it with a later rating"
            yield FilteredRow.of(row, "superseded", detail)


def _answer(row: RawRow) -> tuple[str, str] | None:
    """Return which answer a row is about; None where no server wrote it."""
    if not all(name in row.value for name in _KNOWN_BY):
        return None
    return str(row.value["id"]), str(row.value["index"])
