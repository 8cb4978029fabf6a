"""Which prompts a collection asks: users' own before training's, and never a held-out one."""

import random
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from rlhf_core.config import PipelineConfig
from rlhf_core.dataprep.keys import DialogueKey, dialogue_key
from rlhf_core.dataprep.sources import read_prompts
from rlhf_core.errors import DataError
from rlhf_core.feedback.collection import SamplingSettings
from rlhf_core.schema import (
    DatasetSplits,
    Demonstration,
    ModelRef,
    PreferencePair,
    Prompt,
)
from rlhf_core.stages.models.determinism import derived_seed
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.stages.models.scoring import fits
from rlhf_core.storage.records import read_records, require_file


@dataclass(frozen=True, slots=True)
class AskedPrompts:
    """Prompts to answer, and how many of the file were left out."""

    prompts: list[Prompt]
    num_read: int
    heldout: int
    compared: int
    unfitting: int


def prompt_file(config: PipelineConfig, splits: DatasetSplits) -> Path:
    """Return the file to draw from: the collection's own, what users send, or what trains."""
    feedback = config.feedback_settings()
    named = {
        "feedback.prompts": feedback.prompts,
        "data.prompts.production_path": config.data.prompts.production_path,
    }
    for key, path in named.items():
        if path is not None:
            require_file(path, f"{key} must name an existing file")
            return path
    return splits.prompts_train.path


def draw_prompts(
    path: Path,
    heldout: Set[DialogueKey],
    models: Sequence[ModelRef],
    settings: SamplingSettings,
    compared: Set[DialogueKey] = frozenset(),
) -> AskedPrompts:
    """Draw the prompts that are asked: within every model, one of a dialogue.

    Args:
        path: file of prompts.
        heldout: dialogues that are left out.
        models: all of them get the prompts.
        settings: of the collection.
        compared: dialogues that have a pair already and are left out, too.

    Raises:
        DataError: none is left.
    """
    prompts, heldout_count, compared_count = _open_prompts(path, heldout, compared)
    renderers = [model_renderer(model.path) for model in models]
    seed = derived_seed(settings.seed, "collect prompts")
    drawn: dict[DialogueKey, int] = {}
    unfitting = 0
    for index in random.Random(seed).sample(range(len(prompts)), len(prompts)):
        key = dialogue_key(prompts[index].prompt)
        if len(drawn) == settings.num_prompts:
            break
        if key in drawn:
            continue
        if all(fits(prompts[index], one, settings.max_prompt_tokens) for one in renderers):
            drawn[key] = index
        else:
            unfitting += 1
    if not drawn:
        raise DataError(
            f"{path}: none of {len(prompts)} prompts fits into {settings.max_prompt_tokens}"
            " tokens; raise model.max_length, or lower feedback.max_new_tokens"
        )
    return AskedPrompts(
        prompts=[prompts[index] for index in sorted(drawn.values())],
        num_read=len(prompts) + heldout_count + compared_count,
        heldout=heldout_count,
        compared=compared_count,
        unfitting=unfitting,
    )


def _open_prompts(
    path: Path, heldout: Set[DialogueKey], compared: Set[DialogueKey]
) -> tuple[list[Prompt], int, int]:
    """Return the prompts of a file that may be asked, and how many are held out or compared."""
    prompts = [prompt for _, prompt in read_prompts(path) if isinstance(prompt, Prompt)]
    if not prompts:
        raise DataError(f"{path}: no prompts in it; name another file in feedback.prompts")
    allowed = [prompt for prompt in prompts if dialogue_key(prompt.prompt) not in heldout]
    if not allowed:
        raise DataError(
            f"{path}: all {len(prompts)} prompts are of held-out dialogues; name others in"
            " feedback.prompts"
        )
    fresh = [prompt for prompt in allowed if dialogue_key(prompt.prompt) not in compared]
    if not fresh:
        raise DataError(
            f"{path}: each of {len(allowed)} prompts is of a dialogue that has a pair already; name"
            " a file of others in feedback.prompts, or leave feedback.fresh out"
        )
    return fresh, len(prompts) - len(allowed), len(allowed) - len(fresh)


def compared_dialogues(splits: DatasetSplits) -> set[DialogueKey]:
    """Keys of all dialogues that have a pair of answers in the dataset."""
    files = (splits.reward_train, splits.judge_train, splits.reward_heldout, splits.judge_heldout)
    return {
        dialogue_key(pair.prompt) for file in files for pair in read_records(file, PreferencePair)
    }


def heldout_dialogues(splits: DatasetSplits) -> set[DialogueKey]:
    """Keys of all dialogues that evaluation reads."""
    records: list[Prompt | Demonstration | PreferencePair] = [
        *read_records(splits.prompts_heldout, Prompt),
        *read_records(splits.demonstrations_heldout, Demonstration),
        *read_records(splits.reward_heldout, PreferencePair),
        *read_records(splits.judge_heldout, PreferencePair),
    ]
    return {dialogue_key(record.prompt) for record in records}
