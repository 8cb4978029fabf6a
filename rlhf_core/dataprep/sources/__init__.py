"""Readers: containers give rows, formats give records; each knows the line it stands on."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rlhf_core.config.data import DemonstrationsConfig, SourceConfig
from rlhf_core.dataprep.rows import RawRow, SetAside
from rlhf_core.dataprep.sources import canonical, flat, hh, label_studio, pairs, ranked
from rlhf_core.dataprep.sources.containers import is_hub, read_rows, rename
from rlhf_core.dataprep.sources.hub import read_hub_rows
from rlhf_core.errors import DataError
from rlhf_core.schema import Comparison, Demonstration, Prompt

__all__ = ["read_comparisons", "read_demonstrations", "read_prompts"]

_DEMONSTRATIONS = {
    "canonical": canonical.parse_demonstrations,
    "hh": hh.parse_demonstrations,
    "messages": pairs.parse_demonstrations,
}


def read_comparisons(
    source: SourceConfig, source_rows: Counter[str] | None = None
) -> Iterator[Comparison | SetAside]:
    """Yield the comparisons of one source in its order.

    Args:
        source: where they lie and in which format.
        source_rows: receives the rows read of each file; a ranked list is one row and many
            comparisons, and a vote of a spreadsheet one row and part of a comparison.

    Raises:
        DataError: the source cannot be read, or a row of it neither came out nor was set aside.
    """
    nested = source.format == "label_studio"
    columns = {} if nested else source.columns
    if is_hub(source.path):
        rows = rename(read_hub_rows(source.path, source.split, source.revision), columns)
    else:
        rows = read_rows(source.path, columns)
    source_rows = Counter() if source_rows is None else source_rows
    num_before, num_accounted = source_rows.total(), 0
    for num_rows, item in _parsed(source, _counted(rows, source_rows)):
        num_accounted += num_rows
        yield item
    # A ranked list makes many comparisons of one row.
    num_read = source_rows.total() - num_before
    if source.format != "ranked" and num_accounted != num_read:
        raise DataError(
            f"{source.path}: {num_read} rows read, but {num_accounted} came out or were set"
            f" aside; this is a defect of the {source.format} reader, please report it"
        )


def _parsed(
    source: SourceConfig, rows: Iterable[RawRow]
) -> Iterator[tuple[int, Comparison | SetAside]]:
    """Yield what a format makes of rows, each with the number of rows behind it."""
    if source.format == "flat":
        yield from flat.parse_comparisons(rows, source.choices, source.strengths)
    else:
        yield from ((1, item) for item in _parser(source)(rows))


def _counted(rows: Iterable[RawRow], source_rows: Counter[str]) -> Iterator[RawRow]:
    """Rows as they pass, counted before a format looks at them."""
    for row in rows:
        source_rows[row.source] += 1
        yield row


def read_demonstrations(source: DemonstrationsConfig) -> Iterator[tuple[int, Demonstration]]:
    """Yield ``(line, demonstration)`` of the demonstrations' own file, if there is one."""
    if source.path is not None:
        yield from _DEMONSTRATIONS[source.format](read_rows(source.path, source.columns))


def read_prompts(path: Path) -> Iterator[tuple[int, Prompt]]:
    """Yield ``(line, prompt)`` of a file of prompts."""
    yield from canonical.parse_prompts(read_rows(path))


def _parser(
    source: SourceConfig,
) -> Callable[[Iterable[RawRow]], Iterator[Comparison | SetAside]]:
    plain: dict[str, Callable[[Iterable[RawRow]], Iterator[Comparison | SetAside]]] = {
        "canonical": canonical.parse_comparisons,
        "hh": hh.parse_comparisons,
        "pairs": pairs.parse_comparisons,
        "ranked": ranked.parse_comparisons,
        "label_studio": lambda rows: label_studio.parse_comparisons(
            rows, label_studio.Wording(source.columns, source.choices, source.strengths)
        ),
    }
    return plain[source.format]
