"""Readers: containers give rows, formats give records; each knows the line it stands on."""

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


def read_comparisons(source: SourceConfig) -> Iterator[Comparison | SetAside]:
    """Yield the comparisons of one source in its order.

    Raises:
        DataError: the source cannot be read, or a row of it neither came out nor was set aside.
    """
    nested = source.format == "label_studio"
    columns = {} if nested else source.columns
    if is_hub(source.path):
        rows = rename(read_hub_rows(source), columns)
    else:
        rows = read_rows(source.path, columns)
    counted = _Counted(rows)
    num_accounted = 0
    for item in _parser(source)(counted):
        num_accounted += _num_rows(item, source)
        yield item
    # A ranked list makes many comparisons of one row.
    if source.format != "ranked" and num_accounted != counted.num_rows:
        raise DataError(
            f"{source.path}: {counted.num_rows} rows read, but {num_accounted} came out or were set"
            f" aside; this is a defect of the {source.format} reader, please report it"
        )


def _num_rows(item: Comparison | SetAside, source: SourceConfig) -> int:
    """Rows behind what a reader yields: of flat rows, one a vote."""
    return len(item.votes) if isinstance(item, Comparison) and source.format == "flat" else 1


class _Counted:
    """Rows as they pass, counted before a format looks at them."""

    def __init__(self, rows: Iterable[RawRow]) -> None:
        self._rows = rows
        self.num_rows = 0

    def __iter__(self) -> Iterator[RawRow]:
        for row in self._rows:
            self.num_rows += 1
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
        "flat": lambda rows: flat.parse_comparisons(rows, source.choices, source.strengths),
        "label_studio": lambda rows: label_studio.parse_comparisons(
            rows, label_studio.Wording(source.columns, source.choices, source.strengths)
        ),
    }
    return plain[source.format]
