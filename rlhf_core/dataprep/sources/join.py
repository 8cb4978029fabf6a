"""Votes in one file, texts in another: rows of both with one id make one row."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from rlhf_core.config.data import JoinConfig, word_of
from rlhf_core.dataprep.sources.rows import Columns, FileRows, FilteredRow, RawRow
from rlhf_core.errors import DataError


def joined(
    rows: Iterable[RawRow | FilteredRow],
    others: Iterable[RawRow | FilteredRow],
    join: JoinConfig,
    files: dict[str, FileRows],
) -> Iterator[RawRow | FilteredRow]:
    """Yield the rows of the first file, each with the columns of its partners in the second.

    A row with several partners, as texts with the votes on them, comes out once for each, as the
    row of its partner. Columns that both have are the first file's. Rows without a partner are
    filtered out, of whichever file.

    Args:
        rows: of the first file.
        others: of the second; all of them are held in memory.
        join: what both have.
        files: receives what became of the file whose rows only complete those of the other.

    Raises:
        DataError: no row of one file has a partner in the other, or both have several rows of
            one id.
    """
    first, second = (join.on, join.on) if isinstance(join.on, str) else join.on
    left, right = _by_id(rows, first), _by_id(others, second)
    yield from (row for side in (left, right) for row in side.broken)
    common = set(left.rows) & set(right.rows)
    if not common:
        raise DataError(_nothing_in_common(join, left, right))
    many = [side for side in (left, right) if any(len(side.rows[key]) > 1 for key in common)]
    if len(many) == 2:
        key = next(key for key in left.rows if key in common and len(left.rows[key]) > 1)
        raise DataError(
            f"{join.path}: data.preferences.join: both files have several rows of one id (first"
            f" {first} {key!r}); expected one row an id in one of them"
        )
    votes, texts = (right, left) if many == [right] else (left, right)
    for key, several in votes.rows.items():
        for row in several:
            if key not in common:
                yield FilteredRow.of(row, "unmatched", f"no row of this id in {texts.name}")
                continue
            partner = texts.rows[key][0]
            other, own = (partner, row) if votes is right else (row, partner)
            yield replace(
                row, value=Columns({**own.value, **other.value}, frozenset({first, second}))
            )
    yield from _completing(texts, common, votes.name, files)


class _Side:
    """One file's rows by id."""

    def __init__(self) -> None:
        self.rows: dict[str, list[RawRow]] = {}
        self.broken: list[FilteredRow] = []
        self.name = ""
        self.columns = ""


def _by_id(rows: Iterable[RawRow | FilteredRow], column: str) -> _Side:
    side = _Side()
    for row in rows:
        side.name = side.name or str(row.path)
        if isinstance(row, FilteredRow):
            side.broken.append(row)
            continue
        side.columns = side.columns or row.found()
        if dict.get(row.value, column) is None:
            detail = f"missing column {column!r}; found {row.found()}"
            side.broken.append(FilteredRow.of(row, "missing_column", detail))
            continue
        side.rows.setdefault(word_of(row.value[column]), []).append(row)
    return side


def _completing(
    texts: _Side, common: set[str], other: str, files: dict[str, FileRows]
) -> Iterator[FilteredRow]:
    """Count the rows that completed others, and filter out those that had none to complete."""
    for key, (row, *more) in texts.rows.items():
        kept = [row, *more]
        counts = files.setdefault(str(row.path), FileRows())
        if key in common:
            counts.rows += len(kept)
        else:
            yield from (
                FilteredRow.of(row, "unmatched", f"no row of this id in {other}") for row in kept
            )


def _nothing_in_common(join: JoinConfig, left: _Side, right: _Side) -> str:
    return (
        f"{join.path}: data.preferences.join.on: no id is in both files; {left.name or 'the first'}"
        f" has the columns {left.columns or 'none'}; {right.name or join.path} has"
        f" {right.columns or 'none'}"
    )


def join_files(join: JoinConfig | None) -> list[Path]:
    """Return the files that a join reads."""
    return [] if join is None else [join.path]
