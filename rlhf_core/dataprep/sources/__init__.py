"""Readers: containers give rows, formats give records; each knows the line it stands on."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from rlhf_core.config.data import DemonstrationsConfig, SourceConfig, UnpairedConfig
from rlhf_core.dataprep.sources import (
    canonical,
    chats,
    flat,
    hh,
    label_studio,
    pairs,
    ranked,
    ratings,
    trees,
)
from rlhf_core.dataprep.sources.columns import renamed
from rlhf_core.dataprep.sources.containers import file_names, is_hub, read_rows, source_files
from rlhf_core.dataprep.sources.hub import read_hub_rows
from rlhf_core.dataprep.sources.join import joined
from rlhf_core.dataprep.sources.rows import FileRows, FilteredRow, RawRow, attempt
from rlhf_core.dataprep.sources.tables import Layout
from rlhf_core.errors import DataError
from rlhf_core.schema import Comparison, Demonstration, Prompt, UnpairedExample

__all__ = [
    "parse_rows",
    "read_comparisons",
    "read_demonstrations",
    "read_prompts",
    "read_unpaired",
    "read_with_rows",
    "rows_of",
]

Item = TypeVar("Item", Demonstration, Prompt, UnpairedExample)
_DEMONSTRATIONS: dict[str, Callable[[RawRow], Demonstration]] = {
    "canonical": canonical.demonstration_of,
    "hh": hh.demonstration_of,
    "messages": chats.demonstration_of,
}


def read_comparisons(
    source: SourceConfig,
    source_rows: Counter[str] | None = None,
    files: dict[str, FileRows] | None = None,
    names: Mapping[Path, str] | None = None,
) -> Iterator[Comparison | FilteredRow]:
    """Yield the comparisons of one source in its order, and the rows that cannot be used.

    Args:
        source: where they lie and in which format.
        source_rows: receives the rows read of each file; a ranked list is one row and many
            comparisons, and a vote of a spreadsheet one row and part of a comparison.
        files: receives what became of the rows of each file, by path.
        names: of files that other sources have the same names of (``file_names``).

    Raises:
        DataError: the source cannot be read, nothing in one of its files can be used, or a row of
            it neither came out nor was filtered out.
    """
    for _, item in read_with_rows(source, source_rows, files, names):
        yield item


def read_with_rows(
    source: SourceConfig,
    source_rows: Counter[str] | None = None,
    files: dict[str, FileRows] | None = None,
    names: Mapping[Path, str] | None = None,
) -> Iterator[tuple[int, Comparison | FilteredRow]]:
    """Yield ``(number of rows behind it, item)``; otherwise like ``read_comparisons``.

    The first comparison of a list stands for its row; the others have no row behind them.
    """
    source_rows = Counter() if source_rows is None else source_rows
    num_before, num_accounted = source_rows.total(), 0
    own: dict[str, FileRows] = {}
    unfound = set() if source.format == "label_studio" else set(source.columns)
    rows = _counted(_finding(rows_of(source, own, names), unfound), source_rows, own)
    for num_rows, item in parse_rows(source, rows, own):
        num_accounted += num_rows
        yield num_rows, item
    num_read = source_rows.total() - num_before
    if num_accounted != num_read:
        raise DataError(
            f"{source.path}: {num_read} rows read, but {num_accounted} came out or were"
            f" filtered out; this is a defect of the {source.format} reader, please report it"
        )
    if files is not None:
        files.update(own)
    _require_usable(own)
    if unfound and num_read:
        missing = ", ".join(f"{source.columns[ours]!r} (our {ours})" for ours in sorted(unfound))
        raise DataError(f"{source.path}: columns: no row has {missing}; check the name")


def _finding(
    rows: Iterable[RawRow | FilteredRow], unfound: set[str]
) -> Iterator[RawRow | FilteredRow]:
    """Rows as they pass; what any of them has leaves ``unfound``."""
    for row in rows:
        if unfound and isinstance(row, RawRow):
            unfound.difference_update([name for name in unfound if name in row.value])
        yield row


def _require_usable(files: dict[str, FileRows]) -> None:
    """Refuse a file of which no row can be used, because of at least one that cannot be read."""
    for path, counts in files.items():
        if counts.used or not counts.num_faults:
            continue
        if counts.rows == 1:
            raise DataError(counts.first_fault)
        reasons = ", ".join(f"{reason} {n}" for reason, n in counts.filtered.most_common())
        raise DataError(
            f"{path}: none of its {counts.rows} rows can be used ({reasons}); the first:"
            f" {counts.first_fault}; `rlhf data look` tells which shape a file has"
        )


def rows_of(
    source: SourceConfig, files: dict[str, FileRows], names: Mapping[Path, str] | None = None
) -> Iterator[RawRow | FilteredRow]:
    """Yield the rows of a source under our names."""
    columns = {} if source.format == "label_studio" else source.columns
    rows: Iterable[RawRow | FilteredRow]
    if is_hub(source.path):
        rows = read_hub_rows(source)
    else:
        layout = Layout(source.delimiter, source.sheet, source.quotes)
        rows = read_rows(source.path, layout=layout, names=names)
    if source.join is not None:
        rows = joined(rows, read_rows(source.join.path), source.join, files)
    for row in rows:
        yield renamed(row, columns) if isinstance(row, RawRow) else row


def _counted(
    rows: Iterable[RawRow | FilteredRow], source_rows: Counter[str], files: dict[str, FileRows]
) -> Iterator[RawRow | FilteredRow]:
    """Rows as they pass, counted before a format looks at them."""
    for row in rows:
        source_rows[row.source] += 1
        _counts_of(row, files).rows += 1
        yield row


def _counts_of(row: RawRow | FilteredRow, files: dict[str, FileRows]) -> FileRows:
    path = str(row.path)
    if path not in files:
        files[path] = FileRows()
    return files[path]


def parse_rows(
    source: SourceConfig, rows: Iterable[RawRow | FilteredRow], files: dict[str, FileRows]
) -> Iterator[tuple[int, Comparison | FilteredRow]]:
    """Yield what a format makes of rows, each with the number of rows behind it.

    Args:
        source: format and wording; nothing is read.
        rows: under our names.
        files: by path of every row; receives what was filtered out and what nothing looked at.
    """
    if source.format == "flat":
        labels = flat.Labels(source.choices, source.strengths, source.annotators)
        items = flat.parse_comparisons(_watched(rows, files), labels)
    elif source.format == "tree_messages":
        items = trees.message_comparisons(_watched(rows, files))
    else:
        items = _row_by_row(rows, _parser(source), files)
    for num_rows, item in items:
        if num_rows and isinstance(item, FilteredRow):
            files[item.path].note_filtered(item)
        yield num_rows, item


def _row_by_row(
    rows: Iterable[RawRow | FilteredRow],
    parse: Callable[[RawRow], Iterator[Comparison | FilteredRow]],
    files: dict[str, FileRows],
) -> Iterator[tuple[int, Comparison | FilteredRow]]:
    for row in rows:
        if isinstance(row, FilteredRow):
            yield 1, row
            continue
        read = attempt(row, partial(_all_of, parse, row))
        items = [read] if isinstance(read, FilteredRow) else read
        _note_unused(row, files)
        # A list makes many comparisons of one row; it is filtered out only where all of them are.
        items.sort(key=lambda item: isinstance(item, FilteredRow))
        for number, item in enumerate(items):
            yield int(number == 0), item


def _all_of(
    parse: Callable[[RawRow], Iterator[Comparison | FilteredRow]], row: RawRow
) -> list[Comparison | FilteredRow]:
    return list(parse(row))


def _watched(
    rows: Iterable[RawRow | FilteredRow], files: dict[str, FileRows]
) -> Iterator[RawRow | FilteredRow]:
    """Rows as they pass; what was read of each is known once the next is asked for."""
    for row in rows:
        yield row
        if isinstance(row, RawRow):
            _note_unused(row, files)


def _note_unused(row: RawRow, files: dict[str, FileRows]) -> None:
    files[str(row.path)].note_columns(row)


def _parser(source: SourceConfig) -> Callable[[RawRow], Iterator[Comparison | FilteredRow]]:
    known: set[tuple[str, str]] = set()
    wording = label_studio.Wording(source.columns, source.choices, source.strengths)
    parsers: dict[str, Callable[[RawRow], Iterator[Comparison | FilteredRow]]] = {
        "canonical": lambda row: canonical.comparisons_of(row, source.choices, source.strengths),
        "hh": hh.comparisons_of,
        "pairs": pairs.comparisons_of,
        "ranked": ranked.comparisons_of,
        "tree": trees.comparisons_of,
        "label_studio": lambda row: iter([label_studio.comparison_of(row, wording, known)]),
    }
    return parsers[source.format]


def read_demonstrations(
    source: DemonstrationsConfig, files: dict[str, FileRows] | None = None
) -> Iterator[tuple[int, Demonstration | FilteredRow]]:
    """Yield ``(line, demonstration)`` of the demonstrations' own file, if there is one.

    Rows that cannot be used come filtered out. ``files`` receives what became of the rows of each
    file, by path.

    Raises:
        DataError: the file cannot be read, or nothing in it can be used.
    """
    if source.path is not None:
        rows = read_rows(source.path, source.columns)
        yield from _records(rows, _DEMONSTRATIONS[source.format], files)


def read_prompts(
    path: Path, files: dict[str, FileRows] | None = None
) -> Iterator[tuple[int, Prompt | FilteredRow]]:
    """Yield ``(line, prompt)`` of a file of prompts; like ``read_demonstrations``."""
    yield from _records(read_rows(path), canonical.prompt_of, files)


def read_unpaired(
    sources: Iterable[UnpairedConfig], files: dict[str, FileRows] | None = None
) -> Iterator[tuple[int, UnpairedExample | FilteredRow]]:
    """Yield ``(line, example)`` of files of labelled responses; like ``read_demonstrations``.

    Of ratings of one answer that a server kept, the last counts.
    """
    sources = list(sources)
    names = file_names(file for source in sources for file in source_files(source.path))
    for source in sources:
        found = ratings.last_ratings(read_rows(source.path, source.columns))
        again = read_rows(source.path, source.columns, names=names)
        rows = ratings.without_earlier(again, found)
        own: dict[str, FileRows] = {}
        yield from _records(rows, partial(chats.unpaired_of, labels=source.labels), own)
        if files is not None:
            files.update(own)


def _records(
    rows: Iterable[RawRow | FilteredRow],
    parse: Callable[[RawRow], Item],
    files: dict[str, FileRows] | None,
) -> Iterator[tuple[int, Item | FilteredRow]]:
    files = {} if files is None else files
    for row in rows:
        counts = _counts_of(row, files)
        counts.rows += 1
        item = row if isinstance(row, FilteredRow) else attempt(row, partial(parse, row))
        if isinstance(item, FilteredRow):
            counts.note_filtered(item)
        if isinstance(row, RawRow):
            _note_unused(row, files)
        yield row.line, item
    _require_usable(files)
