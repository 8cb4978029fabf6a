"""Which preference pairs came, went and changed their winner between two datasets."""

from typing import NamedTuple

from rlhf_core.dataprep.files import iterate_records
from rlhf_core.dataprep.keys import Key, conversation_key, response_key, text_key
from rlhf_core.schema import DatasetSplits, PreferencePair, Record

_FILES = ("reward_train", "reward_heldout", "judge_train", "judge_heldout")


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
    """Everything that differs between the pairs of two datasets; a pair is known by its texts."""

    came: tuple[ChangedPair, ...]
    went: tuple[ChangedPair, ...]
    relabelled: tuple[ChangedPair, ...]
    """As they are in the second dataset; in the first, chosen and rejected were the other way."""
    num_same: int


class _Place(NamedTuple):
    chosen: Key
    pair: ChangedPair


def compare_datasets(first: DatasetSplits | None, second: DatasetSplits) -> DatasetDiff:
    """Return the difference; without a first dataset all pairs came."""
    before = {} if first is None else _pairs(first)
    after = _pairs(second)
    shared = before.keys() & after.keys()
    relabelled = {key for key in shared if before[key].chosen != after[key].chosen}
    return DatasetDiff(
        came=tuple(after[key].pair for key in after if key not in before),
        went=tuple(before[key].pair for key in before if key not in after),
        relabelled=tuple(after[key].pair for key in after if key in relabelled),
        num_same=len(shared) - len(relabelled),
    )


def _pairs(splits: DatasetSplits) -> dict[Key, _Place]:
    found: dict[Key, _Place] = {}
    for name in _FILES:
        for pair in iterate_records(getattr(splits, name), PreferencePair):
            chosen, rejected = response_key(pair.chosen), response_key(pair.rejected)
            both = b"".join(sorted((chosen, rejected)))
            key = text_key((conversation_key(pair.prompt) + both).hex())
            shown = ChangedPair(
                comparison_id=pair.comparison_id,
                file=name,
                source=pair.source,
                prompt=pair.prompt[-1].content,
                chosen=pair.chosen,
                rejected=pair.rejected,
            )
            found[key] = _Place(chosen, shown)
    return found
