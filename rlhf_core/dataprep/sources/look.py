"""Which shape a file has, what it would become, and the settings that read it.

A file is one of comparisons where it can be, else of labelled responses, of demonstrations, or of
prompts.
"""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from rlhf_core.config.data import (
    DemonstrationsConfig,
    JoinConfig,
    SourceConfig,
    UnpairedConfig,
)
from rlhf_core.dataprep.keys import Key
from rlhf_core.dataprep.ledger import enter
from rlhf_core.dataprep.sources import (
    parse_rows,
    read_demonstrations,
    read_prompts,
    read_unpaired,
    read_with_rows,
    rows_of,
)
from rlhf_core.dataprep.sources.choices import is_blank
from rlhf_core.dataprep.sources.columns import find, is_there, renamed
from rlhf_core.dataprep.sources.containers import ending_of, is_hub, read_rows
from rlhf_core.dataprep.sources.doubts import doubt, doubts_of_demonstrations
from rlhf_core.dataprep.sources.guess import guesses, has_responses
from rlhf_core.dataprep.sources.observed import Guess, Table
from rlhf_core.dataprep.sources.rows import (
    FileRows,
    FilteredRow,
    RawRow,
    Reason,
    comparison_problem,
    prompt_problem,
)
from rlhf_core.dataprep.sources.shapes import DEMONSTRATION_SHAPES, SHAPES
from rlhf_core.dataprep.sources.tables import Layout, sheet_names
from rlhf_core.errors import DataError
from rlhf_core.schema import Comparison, Demonstration, Prompt, Record, UnpairedExample
from rlhf_core.storage.records import listed

_SAMPLE = 300
"""Rows that candidates are tried on."""
_VALUES = 20_000
"""Rows whose labels are looked at, for a rare one may be missing among the first."""
_EXAMPLES = 3
_LABEL_WORDS = 3
"""Words of a label or a name at most; what has more is text."""
_QUOTES_ARE_TEXT = "double quotes are taken for text; cells that begin with one do not end with one"
_NEUTRAL = frozenset(("deleted_message", "empty_response", "identical_responses", "no_votes"))
"""Reasons that say nothing against a guess. Broken rows speak against the layout of the table."""


Section = Literal["preferences", "unpaired", "demonstrations", "prompts"]


_ADD_OPTIONS = {"--column": "columns", "--choice": "choices", "--strength": "strengths"}
_NO_OPTION = ("annotators", "join", "delimiter", "sheet")
"""Settings that `rlhf data add` takes by ``--set`` alone."""


class LookRecord(Record):
    """What ``--json`` writes."""

    settings: dict[str, Any]
    """What belongs under ``data: preferences:``."""
    rows: int
    usable: int


class OtherLookRecord(LookRecord):
    """What ``--json`` writes of a file without comparisons."""

    section: Section
    """Of ``data:``, where the settings belong."""


@dataclass(slots=True)
class Found:
    """What a file is."""

    shape: str
    settings: dict[str, Any]
    """What belongs under ``data:`` and the name of the section."""
    notes: list[str]
    """What the settings take for granted."""
    section: Section = "preferences"
    rows: int = 0
    usable: int = 0
    """Rows that a sound comparison comes of."""
    filtered: Counter[str] = field(default_factory=Counter)
    """The other rows by reason."""
    first_filtered: dict[str, str] = field(default_factory=dict)
    """Of each reason, the first row and what is wrong with it."""
    num_undecided: int = 0
    """Comparisons on which nobody prefers either response."""
    reused_ids: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Ids of several comparisons, with the lines of two; a file with one is refused."""
    unused_columns: Counter[str] = field(default_factory=Counter)
    """Columns that nothing looks at, and the rows they hold something in."""
    unread_cells: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Columns that votes do without where a cell cannot be read: in how many rows, the first."""
    num_comparisons: int = 0
    wins: Counter[str] = field(default_factory=Counter)
    """Votes by side."""
    labels: Counter[bool] = field(default_factory=Counter)
    """Labels of responses that are no pairs."""
    examples: list[Comparison | UnpairedExample | Demonstration | Prompt] = field(
        default_factory=list
    )

    def record(self) -> LookRecord:
        """Return what ``--json`` writes."""
        if self.section == "preferences":
            return LookRecord(settings=self.settings, rows=self.rows, usable=self.usable)
        return OtherLookRecord(
            settings=self.settings, rows=self.rows, usable=self.usable, section=self.section
        )

    def note_filtered(self, reason: Reason, num_rows: int, item: Record | FilteredRow) -> None:
        """Count rows of which nothing comes, and keep where the first of them is."""
        self.filtered[reason] += num_rows
        if reason not in self.first_filtered:
            detail = item.detail if isinstance(item, FilteredRow) else ""
            unit = item.unit if isinstance(item, FilteredRow) else "line"
            line = getattr(item, "line", None)
            where = "" if line is None else f"{unit} {line}"
            self.first_filtered[reason] = ": ".join(part for part in (where, detail) if part)

    def add_options(self) -> str:
        """Return what `rlhf data add` needs for a file like this, a space before each."""
        format_ = self.settings.get("format", "canonical")
        words = [] if format_ == "canonical" else ["--format", format_]
        for option, key in _ADD_OPTIONS.items():
            for name, value in self.settings.get(key, {}).items():
                words += [option, f"{name}={value}"]
        words += [] if self.settings.get("quotes", True) else ["--no-quotes"]
        for key in _NO_OPTION:
            if value := self.settings.get(key):
                words += ["--set", f"{key}={json.dumps(value, ensure_ascii=False)}"]
        return "".join(f" {shlex.quote(word)}" for word in words)


def look_at(path: Path, join: JoinConfig | None = None) -> Found:
    """Find out the shape of a file of comparisons, of demonstrations or of prompts.

    Args:
        path: file, folder, or dataset of the hub (comparisons alone).
        join: a second file that completes it.

    Raises:
        DataError: the file cannot be read, its shape is not known, or only people can say what
            one of its columns means; names the columns.
    """
    base = {"path": str(path)} | ({"join": join.model_dump(mode="json")} if join else {})
    best: tuple[float, Guess] | None = None
    questions: list[str] = []
    columns: list[str] = []
    tables: list[Table] = []
    for place in _layouts(path):
        rows = list(islice(rows_of(SourceConfig(**base, **place), {}), _VALUES))
        sound = [row for row in rows if isinstance(row, RawRow)]
        columns = columns or list(dict.fromkeys(name for row in sound for name in row.value))
        tables.append(_table(sound))
        for guess in _candidates(sound, tables[-1]):
            doubt(guess, sound, tables[-1])
            guess.settings = {**base, **place, **guess.settings}
            guess.notes += [_QUOTES_ARE_TEXT] if "quotes" in place else []
            if guess.question:
                questions.append(guess.question)
                continue
            fits = _try(guess, rows[:_SAMPLE])
            if fits > (best[0] if best else 0.0):
                best = fits, guess
    if best is not None:
        return _measure(best[1])
    found = None
    if not (questions or join or is_hub(path) or any(has_responses(table) for table in tables)):
        found = _without_comparisons(path)
    if found is None:
        raise DataError(_unknown(path, columns, questions))
    return found


def _layouts(path: Path) -> list[dict[str, Any]]:
    """Return what to add to the settings for each way in which a table may be laid out."""
    if path.is_dir():
        return [{}]
    if ending_of(path) == ".xlsx":
        names = sheet_names(path)
        return [{"sheet": name} for name in names] if len(names) > 1 else [{}]
    is_delimited = ending_of(path) in (".csv", ".tsv")
    return [{"quotes": False}, {}] if is_delimited and _quotes_are_text(path) else [{}]


def _quotes_are_text(path: Path) -> bool:
    """Tell whether quotes break rows, and stand at the begin of cells more than around them.

    Where more rows are broken without quotes, they keep delimiters and lines inside cells.
    """
    num_broken = _num_broken(islice(read_rows(path), _SAMPLE))
    rows = list(islice(read_rows(path, layout=Layout(quotes=False)), _SAMPLE)) if num_broken else []
    if _num_broken(rows) >= num_broken:
        return False
    cells = [cell for row in rows if isinstance(row, RawRow) for cell in row.value.values()]
    begun = [cell for cell in cells if cell.startswith('"')]
    return len([cell for cell in begun if cell.endswith('"')]) < len(begun) / 2


def _num_broken(rows: Iterable[RawRow | FilteredRow]) -> int:
    return sum(isinstance(row, FilteredRow) for row in rows)


def _unknown(path: Path, columns: list[str], questions: Sequence[str]) -> str:
    if questions:
        return f"{path}: {questions[0]}"
    if not columns:
        return f"{path}: holds no row that could be read; expected one comparison a line or row"
    return (
        f"{path}: no shape that is known; found the columns {listed(columns)}; map them with"
        " columns, see docs/data.md"
    )


def _without_comparisons(path: Path) -> Found | None:
    """Return what a file of labelled responses, demonstrations or prompts is; None where none."""
    if _first_rows_have(path, ["label"]):
        found = Found("labelled responses", {"path": str(path)}, [], section="unpaired")
        labelled: dict[str, FileRows] = {}
        rows = read_unpaired([UnpairedConfig(path=path)], labelled)
        if (counted := _count(found, rows, labelled)) is not None:
            return counted
    for name, has, format_, columns in DEMONSTRATION_SHAPES:
        source = DemonstrationsConfig(path=path, format=format_, columns=dict(columns))
        if _first_rows_have(path, has):
            settings = source.model_dump(mode="json", exclude_defaults=True) | {"format": format_}
            found = Found(name, settings, [], section="demonstrations")
            files: dict[str, FileRows] = {}
            if (counted := _count(found, read_demonstrations(source, files), files)) is not None:
                counted.notes += doubts_of_demonstrations(_first_rows(path), found.unused_columns)
                return counted
    found, files = Found("prompts", {"path": str(path)}, [], section="prompts"), {}
    counted = _count(found, read_prompts(path, files), files)
    # A column that may hold answers is a shape that is not known.
    return None if counted is None or _answers(path, counted.unused_columns) else counted


def _answers(path: Path, columns: Iterable[str]) -> bool:
    rows = _first_rows(path)
    values = [row.value.get(name) for name in columns if name != "tools" for row in rows]
    return any(isinstance(v, list | dict) or len(str(v).split()) > _LABEL_WORDS for v in values)


def _first_rows_have(path: Path, columns: Sequence[str]) -> bool:
    return _share_with(_first_rows(path), columns) > 0.5


def _first_rows(path: Path) -> list[RawRow]:
    return [row for row in islice(read_rows(path), _SAMPLE) if isinstance(row, RawRow)]


def _count(
    found: Found,
    items: Iterable[tuple[int, Demonstration | Prompt | UnpairedExample | FilteredRow]],
    files: dict[str, FileRows],
) -> Found | None:
    """Count what comes of a file; None where nothing does."""
    try:
        for _, item in items:
            found.rows += 1
            problem = item.reason if isinstance(item, FilteredRow) else prompt_problem(item.prompt)
            if isinstance(item, Demonstration | UnpairedExample) and problem is None:
                problem = None if item.response.strip() else "empty_response"
            if problem is not None:
                found.note_filtered(problem, 1, item)
            elif not isinstance(item, FilteredRow):
                found.usable += 1
                found.labels.update([item.label] if isinstance(item, UnpairedExample) else [])
                found.examples += [item][: _EXAMPLES - len(found.examples)]
    except DataError:  # Nothing in it can be used.
        return None
    for counts in files.values():
        found.unused_columns += counts.unused_columns
    return found if found.usable else None


def _candidates(rows: Sequence[RawRow], table: Table) -> list[Guess]:
    """Return the shapes whose columns most rows have, then what names and values suggest."""
    there = dict.fromkeys(name for row in rows for name in row.value)
    known = [
        Guess(shape.name, shape.settings(there), [shape.note] if shape.note else [])
        for shape in SHAPES
        if _share_with(rows[:_SAMPLE], shape.has) > 0.5
    ]
    return [*known, *guesses(table)]


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


def _try(guess: Guess, rows: Sequence[RawRow | FilteredRow]) -> float:
    """Return the share of some rows that come out as the settings of a guess expect.

    Rows that say nothing against the guess count as well, where any row can be used: nobody voted
    yet, say. Else a guess that makes votes of anything would do better than the right one.
    """
    source = SourceConfig(**guess.settings)
    files = {str(row.path): FileRows() for row in rows}
    renaming = {} if source.format == "label_studio" else source.columns
    fresh = [renamed(row.fresh(), renaming) if isinstance(row, RawRow) else row for row in rows]
    usable = neutral = 0
    for num_rows, items in _by_rows(parse_rows(source, fresh, files)):
        problems = [_problem(item) for item in items]
        usable += num_rows * (None in problems)
        neutral += num_rows * (None not in problems and problems[0] in _NEUTRAL)
    return (usable + neutral) / len(rows) if usable else 0.0


def _by_rows(
    items: Iterable[tuple[int, Comparison | FilteredRow]],
) -> Iterator[tuple[int, list[Comparison | FilteredRow]]]:
    """Yield a number of rows with all that came of them."""
    together: list[Comparison | FilteredRow] = []
    size = 0
    for num_rows, item in items:
        if num_rows and together:
            yield size, together
            together = []
        size = num_rows or size
        together.append(item)
    if together:
        yield size, together


def _problem(item: Comparison | FilteredRow) -> Reason | None:
    return item.reason if isinstance(item, FilteredRow) else comparison_problem(item)


def _measure(guess: Guess) -> Found:
    """Read the whole file under the settings, and say what comes out."""
    found = Found(guess.shape, guess.settings, guess.notes)
    files: dict[str, FileRows] = {}
    seen: dict[str, tuple[int, Key]] = {}
    source = SourceConfig(**guess.settings)
    for num_rows, items in _by_rows(read_with_rows(source, files=files)):
        sound = [i for i in items if isinstance(i, Comparison) and _problem(i) is None]
        if not sound and (problem := _problem(items[0])) is not None:
            found.note_filtered(problem, num_rows, items[0])
        for item in items:
            if isinstance(item, Comparison):
                entry = enter(item)
                line, pair = seen.setdefault(item.comparison_id, (entry.line, entry.pair))
                if pair != entry.pair:
                    found.reused_ids.setdefault(item.comparison_id, (line, entry.line))
        found.num_undecided += sum(all(v.choice == "tie" for v in i.votes) for i in sound)
        found.usable += num_rows if sound else 0
        found.num_comparisons += len(sound)
        found.wins.update(vote.choice for item in sound for vote in item.votes)
        found.examples += sound[: _EXAMPLES - len(found.examples)]
    found.rows = found.usable + found.filtered.total()
    for counts in files.values():
        found.unused_columns += counts.unused_columns
        for column, first in counts.first_unread.items():
            num_before, first = found.unread_cells.get(column, (0, first))
            found.unread_cells[column] = num_before + counts.unread_cells[column], first
    return found
