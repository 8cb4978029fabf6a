"""Which shape a file has, what it would become, and the settings that read it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf_core.config.data import JoinConfig, SourceConfig
from rlhf_core.dataprep.files import listed
from rlhf_core.dataprep.rows import FileRows, RawRow, SetAside, comparison_problem
from rlhf_core.dataprep.sources import parse_rows, read_with_rows, rows_of
from rlhf_core.dataprep.sources.columns import find, is_there, renamed
from rlhf_core.dataprep.sources.guess import Guess, Table, guesses
from rlhf_core.dataprep.sources.shapes import DEMONSTRATION_SHAPES, SHAPES
from rlhf_core.dataprep.sources.tables import sheet_names
from rlhf_core.dataprep.sources.words import is_blank
from rlhf_core.errors import DataError
from rlhf_core.schema import Comparison, Record

_SAMPLE = 300
"""Rows that candidates are tried on."""
_VALUES = 20_000
"""Rows whose labels are looked at, for a rare one may be missing among the first."""
_EXAMPLES = 3


class LookRecord(Record):
    """What ``--json`` writes."""

    settings: dict[str, Any]
    """What belongs under ``data: preferences:``."""
    rows: int
    usable: int


@dataclass(slots=True)
class Found:
    """What a file is."""

    shape: str
    settings: dict[str, Any]
    """What belongs under ``data: preferences:``."""
    notes: list[str]
    """What the settings take for granted."""
    rows: int = 0
    usable: int = 0
    """Rows that a sound comparison comes of."""
    set_aside: Counter[str] = field(default_factory=Counter)
    """The other rows by reason."""
    unread: Counter[str] = field(default_factory=Counter)
    """Columns that nothing looks at, and the rows they hold something in."""
    num_comparisons: int = 0
    wins: Counter[str] = field(default_factory=Counter)
    """Votes by side."""
    examples: list[Comparison] = field(default_factory=list)

    def record(self) -> LookRecord:
        """Return what ``--json`` writes."""
        return LookRecord(settings=self.settings, rows=self.rows, usable=self.usable)


def look_at(path: Path, join: JoinConfig | None = None) -> Found:
    """Find out the shape of a file of comparisons.

    Args:
        path: file, folder, or dataset of the hub.
        join: a second file that completes it.

    Raises:
        DataError: the file cannot be read, its shape is not known, or only people can say what
            one of its columns means; names the columns.
    """
    base = {"path": str(path)} | ({"join": join.model_dump(mode="json")} if join else {})
    best: tuple[float, Guess] | None = None
    questions: list[str] = []
    columns: list[str] = []
    for place in _sheets(path):
        rows = list(islice(rows_of(SourceConfig(**base, **place), {}), _VALUES))
        sound = [row for row in rows if isinstance(row, RawRow)]
        columns = columns or list(dict.fromkeys(name for row in sound for name in row.value))
        for guess in _candidates(sound):
            guess.settings = {**base, **place, **guess.settings}
            if guess.question:
                questions.append(guess.question)
                continue
            usable = _try(guess, rows[:_SAMPLE])
            if usable > (best[0] if best else 0.0):
                best = usable, guess
    if best is None:
        raise DataError(_unknown(path, columns, questions))
    return _measure(best[1])


def _sheets(path: Path) -> list[dict[str, str]]:
    """Return what to add to the settings for each sheet of a workbook that has several."""
    if path.suffix.lower() != ".xlsx" or path.is_dir():
        return [{}]
    names = sheet_names(path)
    return [{"sheet": name} for name in names] if len(names) > 1 else [{}]


def _unknown(path: Path, columns: list[str], questions: Sequence[str]) -> str:
    if questions:
        return f"{path}: {questions[0]}"
    shown = listed(columns)
    for name, has, format_ in DEMONSTRATION_SHAPES:
        if set(has) <= set(columns):
            return (
                f"{path}: no comparisons but demonstrations ({name}); found the columns {shown};"
                f" read them by data.demonstrations: {{path: {path}, format: {format_}}}"
            )
    return (
        f"{path}: no shape that is known; found the columns {shown or 'none'}; map them with"
        " columns, see docs/data.md"
    )


def _candidates(rows: Sequence[RawRow]) -> list[Guess]:
    """Return the shapes whose columns most rows have, then what names and values suggest."""
    there = dict.fromkeys(name for row in rows for name in row.value)
    known = [
        Guess(shape.name, shape.settings(there), [shape.note] if shape.note else [])
        for shape in SHAPES
        if _share_with(rows[:_SAMPLE], shape.has) > 0.5
    ]
    return [*known, *guesses(_table(rows))]


def _share_with(rows: Sequence[RawRow], paths: Iterable[str]) -> float:
    having = sum(all(is_there(find(dict(row.value), path)) for path in paths) for row in rows)
    return having / len(rows) if rows else 0.0


def _table(rows: Sequence[RawRow]) -> Table:
    """Return the columns of rows, and the fields of those that are objects."""
    values: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.value.items():
            values.setdefault(name, [])
            if not is_blank(value):
                values[name].append(value)
            if isinstance(value, dict):
                for inner, part in value.items():
                    if not is_blank(part):
                        values.setdefault(f"{name}.{inner}", []).append(part)
    return Table(values)


def _try(guess: Guess, rows: Sequence[RawRow | SetAside]) -> float:
    """Return the share of some rows that come out usable under the settings of a guess."""
    source = SourceConfig(**guess.settings)
    files = {str(row.path): FileRows() for row in rows}
    usable = 0
    whole = False
    renaming = {} if source.format == "label_studio" else source.columns
    fresh = [renamed(row.fresh(), renaming) if isinstance(row, RawRow) else row for row in rows]
    for num_rows, item in parse_rows(source, fresh, files):
        whole = num_rows == 0 and whole
        if isinstance(item, Comparison) and comparison_problem(item) is None and not whole:
            usable, whole = usable + max(num_rows, 1), True
    return usable / len(rows) if rows else 0.0


def _measure(guess: Guess) -> Found:
    """Read the whole file under the settings, and say what comes out."""
    found = Found(guess.shape, guess.settings, guess.notes)
    files: dict[str, FileRows] = {}
    source = SourceConfig(**guess.settings)
    whole = False
    for num_rows, item in read_with_rows(source, files=files):
        whole = num_rows == 0 and whole
        problem = item.reason if isinstance(item, SetAside) else comparison_problem(item)
        if isinstance(item, Comparison) and problem is None:
            found.usable += 0 if whole else max(num_rows, 1)
            whole = True
            found.num_comparisons += 1
            found.wins.update(vote.choice for vote in item.votes)
            if len(found.examples) < _EXAMPLES:
                found.examples.append(item)
        elif num_rows and problem is not None:
            found.set_aside[problem] += num_rows
    found.rows = found.usable + found.set_aside.total()
    for counts in files.values():
        found.unread += counts.unread
    return found
