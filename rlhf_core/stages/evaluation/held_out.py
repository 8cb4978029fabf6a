"""How much is held out for each gate, told before hours of training."""

import logging
import math
from collections.abc import Callable, Sequence
from functools import cache, partial

from rlhf_core.config import PipelineConfig
from rlhf_core.config.evaluation import GATED_STAGES, GateConfig, GatedStage
from rlhf_core.config.metric_names import ERROR_CORRELATION
from rlhf_core.dataprep.cleaning.near_dialogues import NEAR_DUPLICATES, topic_numbers
from rlhf_core.evaluation.preference_metrics import record_slices
from rlhf_core.evaluation.slices import length_groups
from rlhf_core.schema import DatasetSplits, PreferencePair, Prompt
from rlhf_core.storage.records import read_records

logger = logging.getLogger(__name__)


def warn_of_too_few(config: PipelineConfig, splits: DatasetSplits) -> None:
    """Log where a gate asks for more samples than are held out, before hours of training.

    Gates count dialogues, of which there are as many as rows at most; those of the policy count
    topics where ``evaluation.topics`` says so, and over a slice by a tag the prompts that have it.
    """
    prompts: list[Prompt] = []
    if config.evaluation.topics or any(gate.slice for gate in config.gates_of("policy")):
        prompts = read_records(splits.prompts_heldout, Prompt)
    # Near duplicates of a slice are sought once, however many gates ask about it.
    of_policy = cache(partial(_held_out_prompts, config, splits, prompts))
    of_pairs = cache(partial(_held_out_pairs, splits))
    for stage in GATED_STAGES:
        asked: dict[tuple[int, str, bool], list[int]] = {}
        for gate in config.gates_of(stage):
            if stage in ("reward", "judge"):
                count, what = of_pairs(stage, gate.slice)
            else:
                count, what = _held_out_for(gate, stage, splits, of_policy)
            if gate.min_samples > count:
                waits = stage == "policy" and gate in config.promotion.gates()
                asked.setdefault((count, what, waits), []).append(gate.min_samples)
        for (count, what, waits), too_many in asked.items():
            logger.warning(
                "too_few_held_out: %d gates of %s ask for %d samples, and %d %s are held out for"
                " them: %s; hold out more (data.heldout_fraction, more data,"
                " evaluation.num_prompts) or ask for fewer (%s)",
                len(too_many),
                stage,
                max(too_many),
                count,
                what,
                *_OVER_CHAMPION if waits else _AT_ONCE,
            )


_AT_ONCE = "the verdict cannot be PROMOTE", "min_samples"
_OVER_CHAMPION = "no policy can follow a champion", "promotion.min_samples"
"""What follows where gates ask for too much, and the setting that says how much."""


def _held_out_for(
    gate: GateConfig,
    stage: GatedStage,
    splits: DatasetSplits,
    of_policy: Callable[[str | None], tuple[int, str]],
) -> tuple[int, str]:
    """How many samples a gate of SFT or policy can have at most, and what they are."""
    if stage == "sft":
        return splits.demonstrations_heldout.num_rows, "rows"
    if gate.metric == f"policy/{ERROR_CORRELATION}":
        return splits.reward_heldout.num_rows + splits.judge_heldout.num_rows, "rows"
    return of_policy(gate.slice)


def _held_out_pairs(splits: DatasetSplits, role: str, part: str | None) -> tuple[int, str]:
    """How many pairs a gate of reward model or judge can have at most, and what they are.

    Which answer is longer, and by how much, is told in tokens when they are scored.
    """
    file = splits.reward_heldout if role == "reward" else splits.judge_heldout
    if part is None or part.partition("=")[0] in ("chosen", "length_difference"):
        return file.num_rows, "rows"
    rows = record_slices(read_records(file, PreferencePair)).get(part)
    return (0 if rows is None else int(rows.sum())), f"rows of {part}"


def _held_out_prompts(
    config: PipelineConfig, splits: DatasetSplits, prompts: Sequence[Prompt], part: str | None
) -> tuple[int, str]:
    """How many samples a policy's gate can have at most over a slice, and what they are.

    Which prompts are asked is known once SFT is; they have no more topics than all held-out ones,
    and groups of near duplicates can only grow by the training prompts between them. Thirds by
    length are of the prompts that are asked: about so many.
    """
    count, what = splits.prompts_heldout.num_rows, "rows"
    most = config.evaluation.num_prompts
    tag, _, value = (part or "").partition("=")
    if part is not None and tag == "prompt_length" and prompts:
        third = length_groups(prompts).get(part, ())
        most = math.ceil(len(third) * min(1.0, most / len(prompts)))
        prompts = [prompts[index] for index in third]
        count, what = len(prompts), f"rows of {part}"
    elif any(tag in prompt.tags for prompt in prompts):
        prompts = [prompt for prompt in prompts if prompt.tags.get(tag) == value]
        count, what = len(prompts), f"rows of {part}"
    count, key = min(count, most), config.evaluation.topics
    if key == NEAR_DUPLICATES or any(key in prompt.tags for prompt in prompts):
        num_topics = len(set(topic_numbers(prompts, str(key)).tolist()))
        count, what = min(count, num_topics), what.replace("rows", f"topics ({key})")
    return count, what
