"""Which preference pairs came, went and changed their winner between two datasets.

Memory holds two digests a pair, whatever the texts weigh; texts are read a second time, and only
for the pairs that are shown.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pydantic import Field

from rlhf_core.dataprep.keys import Key, conversation_key, response_keys, text_key
from rlhf_core.dataprep.outputs import PAIR_FILES
from rlhf_core.schema import DatasetSplits, PreferencePair, Record
from rlhf_core.storage.records import iterate_records


class ChangedPair(Record):
    """One pair of a difference."""

    comparison_id: str
    file: str
    source: str
    prompt: str
    """Last turn."""
    chosen: str
    rejected: str


class DatasetDiff(Record):
    """What differs between the pairs of two datasets; a pair is known by its texts."""

    num_came: int = Field(ge=0)
    num_went: int = Field(ge=0)
    num_relabelled: int = Field(ge=0)
    num_same: int = Field(ge=0)
    came: tuple[ChangedPair, ...]
    went: tuple[ChangedPair, ...]
    relabelled: tuple[ChangedPair, ...]
    """As they are in the second dataset; in the first, chosen and rejected were the other way."""


class _Place(NamedTuple):
    key: Key
    """Of prompt and both responses, whichever was chosen."""
    chosen: Key
    file: str
    pair: PreferencePair


def compare_datasets(
    first: DatasetSplits | None, second: DatasetSplits, *, limit: int | None = None
) -> DatasetDiff:
    """Return the difference; without a first dataset all pairs came.

    Args:
        first: the earlier dataset.
        second: the later one.
        limit: most pairs named of each kind of change; the counts are complete all the same.
    """
    before, after = _labels(first), _labels(second)
    shared = before.keys() & after.keys()
    relabelled = {key for key in shared if before[key] != after[key]}
    came, went = after.keys() - shared, before.keys() - shared
    return DatasetDiff(
        num_came=len(came),
        num_went=len(went),
        num_relabelled=len(relabelled),
        num_same=len(shared) - len(relabelled),
        came=_named(second, came.__contains__, limit),
        went=_named(first, went.__contains__, limit),
        relabelled=_named(second, relabelled.__contains__, limit),
    )


def _labels(splits: DatasetSplits | None) -> dict[Key, Key]:
    """Return every pair's key to the key of the response that won."""
    return {place.key: place.chosen for place in _places(splits)}


def _named(
    splits: DatasetSplits | None, wanted: Callable[[Key], bool], limit: int | None
) -> tuple[ChangedPair, ...]:
    found: list[ChangedPair] = []
    if limit == 0:
        return ()
    for place in _places(splits):
        if not wanted(place.key):
            continue
        found.append(
            ChangedPair(
                comparison_id=place.pair.comparison_id,
                file=place.file,
                source=place.pair.source,
                prompt=place.pair.prompt[-1].content,
                chosen=place.pair.chosen,
                rejected=place.pair.rejected,
            )
        )
        if len(found) == limit:
            break
    return tuple(found)


def _places(splits: DatasetSplits | None) -> Iterator[_Place]:
    if splits is None:
        return
    for name in PAIR_FILES:
        for pair in iterate_records(getattr(splits, name), PreferencePair):
            chosen, rejected = response_keys(pair.chosen, pair.rejected)
            both = b"".join(sorted((chosen, rejected)))
            key = text_key((conversation_key(pair.prompt) + both).hex())
            yield _Place(key, chosen, name, pair)
