"""Which rows came, went and changed their winner or their label between two datasets.

Memory holds two digests a row, whatever the texts weigh; texts are read a second time, and only
for the rows that are shown.
"""

from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from pydantic import Field

from rlhf_core.dataprep.assemble import PAIR_FILES, UNPAIRED_FILES
from rlhf_core.dataprep.keys import (
    Key,
    conversation_key,
    response_key,
    response_keys,
    text_key,
)
from rlhf_core.schema import DatasetSplits, PreferencePair, Record, UnpairedExample
from rlhf_core.storage.records import iterate_records

Row = TypeVar("Row", PreferencePair, UnpairedExample)
Named = TypeVar("Named", bound=Record)


class ChangedPair(Record):
    """One pair of a difference."""

    comparison_id: str
    file: str
    source: str
    prompt: str
    """Last turn."""
    chosen: str
    rejected: str


class ChangedExample(Record):
    """One labelled response of a difference."""

    example_id: str
    file: str
    source: str
    prompt: str
    """Last turn."""
    response: str
    label: bool


class DiffCounts(Record):
    """How many rows of two datasets differ, and how."""

    num_came: int = Field(ge=0)
    num_went: int = Field(ge=0)
    num_relabelled: int = Field(ge=0)
    num_same: int = Field(ge=0)


class UnpairedDiff(DiffCounts):
    """What differs between the labelled responses of two datasets, each known by its texts."""

    came: tuple[ChangedExample, ...]
    went: tuple[ChangedExample, ...]
    relabelled: tuple[ChangedExample, ...]
    """With the label of the second dataset; in the first it was the other."""


class DatasetDiff(DiffCounts):
    """What differs between the pairs of two datasets; a pair is known by its texts."""

    came: tuple[ChangedPair, ...]
    went: tuple[ChangedPair, ...]
    relabelled: tuple[ChangedPair, ...]
    """As they are in the second dataset; in the first, chosen and rejected were the other way."""
    unpaired: UnpairedDiff | None = None
    """Of the labelled responses; None where neither has any."""


class _Place(NamedTuple, Generic[Row]):
    key: Key
    """Of the texts, whatever the label."""
    label: Key | bool
    """Which response was chosen, or whether the one there is is good."""
    file: str
    row: Row


@dataclass(frozen=True, slots=True)
class _Changes:
    """Keys of rows, by what became of them."""

    came: Set[Key]
    went: Set[Key]
    relabelled: Set[Key]
    num_same: int

    @classmethod
    def between(cls, first: Iterable["_Place[Row]"], second: Iterable["_Place[Row]"]) -> "_Changes":
        before, after = ({place.key: place.label for place in side} for side in (first, second))
        shared = before.keys() & after.keys()
        relabelled = {key for key in shared if before[key] != after[key]}
        num_same = len(shared) - len(relabelled)
        return cls(after.keys() - shared, before.keys() - shared, relabelled, num_same)

    def numbers(self) -> dict[str, int]:
        return {
            "num_came": len(self.came),
            "num_went": len(self.went),
            "num_relabelled": len(self.relabelled),
            "num_same": self.num_same,
        }


def compare_datasets(
    first: DatasetSplits | None, second: DatasetSplits, *, limit: int | None = None
) -> DatasetDiff:
    """Return the difference; without a first dataset all pairs came.

    Args:
        first: the earlier dataset.
        second: the later one.
        limit: most rows named of each kind of change; the counts are complete all the same.
    """
    changes = _Changes.between(_pairs(first), _pairs(second))
    return DatasetDiff(
        **changes.numbers(),
        came=_named(_pairs(second), changes.came, limit, _pair),
        went=_named(_pairs(first), changes.went, limit, _pair),
        relabelled=_named(_pairs(second), changes.relabelled, limit, _pair),
        unpaired=_compare_unpaired(first, second, limit),
    )


def _compare_unpaired(
    first: DatasetSplits | None, second: DatasetSplits, limit: int | None
) -> UnpairedDiff | None:
    if not any(splits and splits.unpaired_train for splits in (first, second)):
        return None
    changes = _Changes.between(_examples(first), _examples(second))
    return UnpairedDiff(
        **changes.numbers(),
        came=_named(_examples(second), changes.came, limit, _example),
        went=_named(_examples(first), changes.went, limit, _example),
        relabelled=_named(_examples(second), changes.relabelled, limit, _example),
    )


def _named(
    places: Iterable[_Place[Row]],
    wanted: Set[Key],
    limit: int | None,
    named: Callable[[_Place[Row]], Named],
) -> tuple[Named, ...]:
    if not wanted:
        return ()
    return tuple(islice((named(place) for place in places if place.key in wanted), limit))


def _pair(place: _Place[PreferencePair]) -> ChangedPair:
    pair = place.row
    return ChangedPair(
        comparison_id=pair.comparison_id,
        file=place.file,
        source=pair.source,
        prompt=pair.prompt[-1].content,
        chosen=pair.chosen,
        rejected=pair.rejected,
    )


def _example(place: _Place[UnpairedExample]) -> ChangedExample:
    row = place.row
    return ChangedExample(
        example_id=row.example_id,
        file=place.file,
        source=row.source,
        prompt=row.prompt[-1].content,
        response=row.response,
        label=row.label,
    )


def _pairs(splits: DatasetSplits | None) -> Iterator[_Place[PreferencePair]]:
    if splits is None:
        return
    for name in PAIR_FILES:
        for pair in iterate_records(getattr(splits, name), PreferencePair):
            chosen, rejected = response_keys(pair.chosen, pair.rejected)
            both = b"".join(sorted((chosen, rejected)))
            key = text_key((conversation_key(pair.prompt) + both).hex())
            yield _Place(key, chosen, name, pair)


def _examples(splits: DatasetSplits | None) -> Iterator[_Place[UnpairedExample]]:
    for name in UNPAIRED_FILES:
        part = splits and getattr(splits, name)
        for row in iterate_records(part, UnpairedExample) if part else ():
            key = text_key((conversation_key(row.prompt) + response_key(row.response)).hex())
            yield _Place(key, row.label, name, row)
