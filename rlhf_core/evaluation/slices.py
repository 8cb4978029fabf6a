"""A policy's win rates and lengths over some of the prompts: a tag's value, a third by length."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlhf_core.config.metric_names import OVER_CHAMPION
from rlhf_core.evaluation.comparison import PairedAnswers
from rlhf_core.evaluation.judges import judge_breakdown
from rlhf_core.evaluation.preference_metrics import MAX_TAG_VALUES, thirds
from rlhf_core.evaluation.win_rate import win_rate
from rlhf_core.schema import Estimate, Prompt
from rlhf_core.statistics.intervals import Plans, estimate_ratio
from rlhf_core.statistics.resampling import Ints


def policy_breakdown(measured: PairedAnswers, plans: Plans) -> dict[str, dict[str, Estimate]]:
    """Win rates and length by slice: every value of every tag, every third by length."""
    breakdown: dict[str, dict[str, Estimate]] = {}
    slices = _slices(measured)
    for name, rows in slices.items():
        here = plans.of_rows(rows)
        metrics = {
            "policy/win_rate": win_rate(measured.won[rows], here("policy/win_rate")),
            "policy/length_ratio": estimate_ratio(
                measured.policy.lengths[rows],
                measured.sft.lengths[rows],
                here("policy/length_ratio"),
                bounds=measured.length_bounds,
            ),
        }
        if measured.champion is not None:
            over = "policy/win_rate_over_champion"
            metrics[over] = win_rate(measured.won_over_champion[rows], here(over))
        if measured.gold is not None:
            metrics["gold/win_rate"] = win_rate(measured.gold_won[rows], here("gold/win_rate"))
        breakdown[name] = metrics
    return breakdown | (judge_breakdown(measured.decided, plans) if measured.decided else {})


def slices_over_champion(measured: PairedAnswers, plans: Plans) -> dict[str, Estimate]:
    """Win rate over the champion in each slice, with the interval of a first look.

    No slice promotes anybody: each can only hold back what the win rate over all prompts proves at
    this look. Widened as that is, intervals of slices, which are small, could pass no more.
    """
    if measured.champion is None:
        return {}
    over, won = f"policy/{OVER_CHAMPION}", measured.won_over_champion
    first = replace(plans, default=replace(plans.default, share=1.0))
    slices = _slices(measured)
    return {name: win_rate(won[rows], first.of_rows(rows)(over)) for name, rows in slices.items()}


def _slices(measured: PairedAnswers) -> dict[str, Ints]:
    return tag_groups(measured.prompts) | length_groups(measured.prompts)


def tag_groups(prompts: Sequence[Prompt]) -> dict[str, Ints]:
    """``<tag>=<value>`` to the rows that carry it, for tags of at most ``MAX_TAG_VALUES``."""
    rows: dict[str, dict[str, list[int]]] = {}
    for index, prompt in enumerate(prompts):
        for tag, value in prompt.tags.items():
            rows.setdefault(tag, {}).setdefault(value, []).append(index)
    return {
        f"{tag}={value}": np.array(rows[tag][value])
        for tag in sorted(rows)
        if len(rows[tag]) <= MAX_TAG_VALUES
        for value in sorted(rows[tag])
    }


def length_groups(prompts: Sequence[Prompt]) -> dict[str, Ints]:
    """Thirds of the prompts by their number of characters, to the rows in each.

    Prompts of equal length share a third, so thirds may be uneven; one that is empty is left out.
    """
    lengths = np.array(
        [sum(len(message.content) for message in prompt.prompt) for prompt in prompts]
    )
    parts = thirds("prompt_length", lengths, ("short", "middle", "long"))
    return {name: np.array(np.flatnonzero(rows)) for name, rows in parts.items() if rows.any()}
