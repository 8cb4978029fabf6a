"""Dialogues that open nearly alike: kept on one side of the split, as if they were one."""

import logging
from collections.abc import Iterable, Sequence, Set
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_core.dataprep.cleaning.near import linked
from rlhf_core.dataprep.cleaning.signature_rows import SignatureRows
from rlhf_core.dataprep.cleaning.signatures import SignatureTable
from rlhf_core.dataprep.keys import DialogueKey, dialogue_key, first_turn, unit_interval
from rlhf_core.errors import DataError
from rlhf_core.schema import Conversation, Prompt
from rlhf_core.statistics.clusters import numbered

Ints = NDArray[np.int64]

logger = logging.getLogger(__name__)

_STRICTER = (0.9, 1.0)
"""Similarities that a group has to reach which is too large for one side."""
_ALWAYS_FITS = 10
"""Dialogues that a group may have, however few there are in all."""


@dataclass(frozen=True, slots=True)
class NearDialogues:
    """What is to be kept together."""

    representative: dict[DialogueKey, DialogueKey] = field(default_factory=dict)
    """Each dialogue of a group to the one whose key decides for all of them."""
    beside_reserved: frozenset[DialogueKey] = frozenset()
    """Dialogues in a group with one of the held-out prompt file, those of the file left out."""
    num_groups: int = 0
    num_dialogues: int = 0
    """In those groups."""
    largest: int = 0
    num_too_large: int = 0
    """Groups that no side could take whole; each dialogue of them is split by itself."""
    num_dialogues_too_large: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the counts."""
        found = asdict(self)
        del found["representative"], found["beside_reserved"]
        return {**found, "num_beside_heldout_file": len(self.beside_reserved)}


class FirstTurnIndex:
    """How dialogues open: the first user turn, whatever a system message says before it."""

    def __init__(self) -> None:
        """Start empty."""
        self._place: dict[DialogueKey, int] = {}
        self._turns = SignatureTable()

    def extend(self, prompts: Iterable[tuple[Conversation, DialogueKey]]) -> None:
        """Remember the dialogues that prompts are part of; many together are cheaper."""
        turns = []
        for prompt, dialogue in prompts:
            if dialogue in self._place:
                continue
            self._place[dialogue] = len(self._place)
            turns.append((first_turn(prompt)[-1].content,))
        self._turns.extend(turns)

    def groups(
        self, threshold: float, *, largest_fraction: float, reserved: Set[DialogueKey], seed: int
    ) -> NearDialogues:
        """Group dialogues whose first turns are nearly equal.

        Near of near is near: groups are what similar pairs connect. A group of more than
        ``largest_fraction`` of all dialogues would upset the split, as that of questions made from
        one template; it is taken apart at higher similarities, and at last dialogue by dialogue.

        Args:
            threshold: Jaccard similarity of word triples.
            largest_fraction: of the dialogues, in the largest group.
            reserved: dialogues of the held-out prompt file.
            seed: draws which dialogue of a group decides for it.
        """
        # Sorted, so that groups do not depend on the order of the files.
        keys = sorted(self._place)
        rows = np.array([self._place[key] for key in keys], dtype=np.int64)
        table = SignatureRows(self._turns.array(), rows)
        limit = max(_ALWAYS_FITS, int(largest_fraction * len(keys)))
        groups = linked([table], threshold)
        for similarity in (step for step in _STRICTER if step > threshold):
            groups = [
                part
                for group in groups
                for part in (_apart(group, table, similarity) if len(group) > limit else [group])
            ]
        too_large = [group for group in groups if len(group) > limit]
        _warn(too_large, limit)
        return _describe(
            [[keys[row] for row in group.tolist()] for group in groups if len(group) <= limit],
            reserved,
            seed,
            [len(group) for group in too_large],
        )


NEAR_DUPLICATES = "near-duplicates"
_NEAR = 0.7
"""Jaccard similarity of word triples, as ``data.near_dialogues`` has it by default."""


def topic_numbers(prompts: Sequence[Prompt], key: str) -> Ints:
    """Return a number for each prompt, equal ones for prompts on one topic.

    Args:
        prompts: whose topics are asked.
        key: a tag, of which each value is a topic and a prompt without it one of its own; or
            ``near-duplicates``, for dialogues that open nearly alike.

    Raises:
        DataError: no prompt has the tag.
    """
    dialogues = [dialogue_key(prompt.prompt) for prompt in prompts]
    if key != NEAR_DUPLICATES:
        require_tag(prompts, key)
        return numbered(
            prompt.tags.get(key, dialogue)
            for prompt, dialogue in zip(prompts, dialogues, strict=True)
        )
    first_turns = FirstTurnIndex()
    first_turns.extend(zip((prompt.prompt for prompt in prompts), dialogues, strict=True))
    near = first_turns.groups(_NEAR, largest_fraction=1.0, reserved=frozenset(), seed=0)
    return numbered(near.representative.get(dialogue, dialogue) for dialogue in dialogues)


def require_tag(prompts: Iterable[Prompt], key: str) -> None:
    """Refuse topics by a tag that no prompt has; prompts are read up to the first that has it.

    Raises:
        DataError: says which tags there are.
    """
    tags: set[str] = set()
    for prompt in prompts:
        if key in prompt.tags:
            return
        tags |= prompt.tags.keys()
    raise DataError(
        f"evaluation.topics: no prompt has a tag {key!r}; tags are "
        f"{', '.join(sorted(tags)) or 'none'}, and {NEAR_DUPLICATES} needs none"
    )


def _apart(group: Ints, table: SignatureRows, similarity: float) -> list[Ints]:
    return [group[part] for part in linked([table.only(group)], similarity)]


def _describe(
    groups: list[list[DialogueKey]], reserved: Set[DialogueKey], seed: int, too_large: list[int]
) -> NearDialogues:
    representative: dict[DialogueKey, DialogueKey] = {}
    for group in groups:
        # By a draw of its own, so that who decides says nothing about the side it falls on.
        chosen = min(group, key=lambda key: unit_interval(seed, "near", key))
        representative |= dict.fromkeys(group, chosen)
    beside = {key for group in groups if not reserved.isdisjoint(group) for key in group} - reserved
    return NearDialogues(
        representative=representative,
        beside_reserved=frozenset(beside),
        num_groups=len(groups),
        num_dialogues=len(representative),
        largest=max(map(len, groups), default=0),
        num_too_large=len(too_large),
        num_dialogues_too_large=sum(too_large),
    )


def _warn(too_large: list[Ints], limit: int) -> None:
    if too_large:
        logger.warning(
            "near_dialogues_too_large groups=%d dialogues=%d limit=%d; questions made from one"
            " template look alike, and each of these is split by itself",
            len(too_large),
            sum(map(len, too_large)),
            limit,
        )
