"""Held-out pairs as a reward model scores them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Literal

import numpy as np

from rlhf_core.config import PipelineConfig
from rlhf_core.dataprep.keys import conversation_key, dialogue_key
from rlhf_core.evaluation.preference_metrics import ScoredPairs
from rlhf_core.models import load_scalar
from rlhf_core.schema import (
    DatasetRef,
    DatasetSplits,
    Estimate,
    ModelRef,
    PreferencePair,
    Prompt,
    RunContext,
)
from rlhf_core.stages.models.examples import pair_fault, tokenize_records
from rlhf_core.stages.models.scoring import response_scores
from rlhf_core.statistics.clusters import numbered
from rlhf_core.storage.records import iterate_records
from rlhf_core.tokenization import Renderer, TokenizedPair

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldoutPair:
    """A pair with its tokens."""

    record: PreferencePair
    tokens: TokenizedPair


def heldout_pairs(
    config: PipelineConfig,
    renderer: Renderer,
    context: RunContext,
    role: Literal["reward", "judge"],
    source: DatasetRef,
) -> Iterator[HeldoutPair]:
    """Read prepared pairs as tokens; those that do not fit are filtered out by reason."""
    return tokenize_records(
        iterate_records(source, PreferencePair),
        lambda pair: HeldoutPair(pair, renderer.pair(pair)),
        length=attrgetter("tokens.num_tokens"),
        max_length=config.model.max_length,
        filtered=context.stage_directory(role) / f"set-aside-{source.path.stem}.jsonl",
        at_fault=partial(pair_fault, renderer, config.model.max_length),
    )


def score_pairs(config: PipelineConfig, model: ModelRef, pairs: list[HeldoutPair]) -> ScoredPairs:
    """Score both sides of every pair; pairs of one dialogue form a cluster."""
    budget = config.evaluation.micro_batch_tokens
    scorer = load_scalar(model.path, device=config.model.device)
    prompts = [pair.tokens.prompt_ids for pair in pairs]
    chosen = [pair.tokens.chosen_ids for pair in pairs]
    rejected = [pair.tokens.rejected_ids for pair in pairs]
    return ScoredPairs(
        chosen_scores=response_scores(scorer, prompts, chosen, budget=budget),
        rejected_scores=response_scores(scorer, prompts, rejected, budget=budget),
        chosen_lengths=np.array([float(len(ids)) for ids in chosen]),
        rejected_lengths=np.array([float(len(ids)) for ids in rejected]),
        clusters=numbered(dialogue_key(pair.record.prompt) for pair in pairs),
    )


def with_tags(pairs: Sequence[PreferencePair], splits: DatasetSplits) -> list[PreferencePair]:
    """Return the pairs, those without tags with the tags of a prompt that reads the same."""
    if all(pair.tags for pair in pairs):
        return list(pairs)
    tags = {
        conversation_key(prompt.prompt): prompt.tags
        for source in (splits.prompts_train, splits.prompts_heldout)
        for prompt in iterate_records(source, Prompt)
        if prompt.tags
    }
    if not tags:
        return list(pairs)
    return [
        pair
        if pair.tags
        else pair.model_copy(update={"tags": tags.get(conversation_key(pair.prompt), {})})
        for pair in pairs
    ]


def warn_of_length_alone(role: str, metrics: Mapping[str, Estimate]) -> None:
    """Say that a reward model is no better than lengths, which no gate need have asked."""
    own, rival, lead = (
        metrics[f"{role}/{name}"].value
        for name in ("heldout_accuracy", "length_only_accuracy", "accuracy_over_length")
    )
    if lead <= 0.0:
        logger.warning(
            "no_better_than_length: the %s is right on %.1f%% of the held-out pairs, and one that "
            "knows lengths alone on %.1f%%: what it likes may be length; more pairs, or a gate on "
            "%s/accuracy_over_length",
            role,
            100 * own,
            100 * rival,
            role,
        )
