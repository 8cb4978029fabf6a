"""The prompts by which a checkpoint is chosen: a third part of the split.

They come out of the policy's training prompts, so every other stage reads what it ever read.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rlhf_core.config import PipelineConfig
from rlhf_core.dataprep.cleaning.near_dialogues import FirstTurnIndex
from rlhf_core.dataprep.keys import DialogueKey, conversation_key, dialogue_key, unit_interval
from rlhf_core.schema import DatasetRef, DatasetSplits, PreferencePair, Prompt, UnpairedExample
from rlhf_core.stages.models.scoring import fits
from rlhf_core.storage.records import batched, iterate_records
from rlhf_core.tokenization import Renderer

logger = logging.getLogger(__name__)

MOST_SET_APART = 0.1
"""Share of the training prompts' dialogues, at most: the policy has to learn from the rest."""


@dataclass(frozen=True)
class SelectionPart:
    """The third part of the split."""

    prompts: tuple[Prompt, ...] = ()
    """One of each dialogue."""
    dialogues: frozenset[DialogueKey] = frozenset()
    """No row of these trains the policy."""


def set_apart(config: PipelineConfig, splits: DatasetSplits, renderer: Renderer) -> SelectionPart:
    """Take the selection prompts out of the training prompts: the same ones every time.

    Dialogues are taken whole, by the key that all other parts are made by, those that open nearly
    alike together where the split keeps them so; which ones, their hash says. None is taken whose
    pairs trained the judge: it would know the answers by heart. Of each dialogue one prompt is
    asked, which leaves room for an answer.

    Args:
        config: settings of the run.
        splits: dataset version, of this build or an earlier one.
        renderer: of the policy.
    """
    count, seed = config.policy.selection.num_prompts, config.seed
    if count == 0:
        return SelectionPart()
    threshold = config.data.near_dialogues
    opened = None if threshold is None else FirstTurnIndex()
    judged = _dialogues(splits.judge_train, PreferencePair, opened)
    own = _dialogues(splits.prompts_train, Prompt, opened)
    learned: set[DialogueKey] = set()
    if not config.policy.needs_reward_model:
        learned = _dialogues(splits.reward_train, PreferencePair, opened)
        learned |= _dialogues(splits.unpaired_train, UnpairedExample, opened)
    decides = _deciding(own | learned | judged, opened, threshold, seed)
    sizes, room = Counter(decides[key] for key in own), int(MOST_SET_APART * len(own))
    taken = {decides[key] for key in judged}
    order = sorted(
        (key for key, size in sizes.items() if key not in taken and size <= room),
        key=lambda key: unit_interval(seed, "selection", key),
    )
    chosen: dict[DialogueKey, Prompt] = {}
    longest = config.model.max_length - config.answer_length()
    for key, prompts in _in_order(splits.prompts_train, order, decides, at_once=4 * count):
        if len(chosen) >= count:
            break
        if sizes[key] > room:
            continue
        if fitting := [prompt for prompt in prompts if fits(prompt, renderer, longest)]:
            chosen[key] = min(fitting, key=lambda prompt: conversation_key(prompt.prompt))
            room -= sizes[key]
    logger.info("selection_prompts=%d of_dialogues=%d", len(chosen), len(own))
    dialogues = frozenset(key for key, deciding in decides.items() if deciding in chosen)
    return SelectionPart(tuple(chosen.values()), dialogues)


def _in_order(
    source: DatasetRef,
    order: Sequence[DialogueKey],
    decides: Mapping[DialogueKey, DialogueKey],
    *,
    at_once: int,
) -> Iterator[tuple[DialogueKey, list[Prompt]]]:
    """Yield groups of dialogues with their prompts; the file is read anew for every so many.

    Each time for twice as many: a few passes whatever is chosen, and few prompts in memory.
    """
    start = 0
    while start < len(order):
        groups: dict[DialogueKey, list[Prompt]] = {
            key: [] for key in order[start : start + at_once]
        }
        for prompt in iterate_records(source, Prompt):
            if (deciding := decides[dialogue_key(prompt.prompt)]) in groups:
                groups[deciding].append(prompt)
        yield from groups.items()
        start, at_once = start + at_once, 2 * at_once


def _dialogues(
    part: DatasetRef | None,
    kind: type[Prompt | PreferencePair | UnpairedExample],
    opened: FirstTurnIndex | None,
) -> set[DialogueKey]:
    """Return the dialogues of a file of the dataset, none where there is no file.

    How they open is noted in ``opened``.
    """
    found = set[DialogueKey]()
    rows = () if part is None else iterate_records(part, kind)
    asked = ((row.prompt, dialogue_key(row.prompt)) for row in rows)  # of a row no more is kept
    for prompts in batched(asked):
        found.update(key for _, key in prompts)
        if opened is not None:
            opened.extend(prompts)
    return found


def _deciding(
    dialogues: Iterable[DialogueKey],
    opened: FirstTurnIndex | None,
    threshold: float | None,
    seed: int,
) -> dict[DialogueKey, DialogueKey]:
    """Return which dialogue decides for each: another one where they open nearly alike."""
    if opened is None or threshold is None:
        return {key: key for key in dialogues}
    near = opened.groups(
        threshold, largest_fraction=MOST_SET_APART / 2, reserved=frozenset(), seed=seed
    )
    return {key: near.representative.get(key, key) for key in dialogues}
