"""Which pairs of answers are worth a vote: those that reward models disagree on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from rlhf_core.feedback.collection import Choice, SampledModel
from rlhf_core.schema import ModelRef, Prompt
from rlhf_core.stages.labels.answers import Answer
from rlhf_core.stages.models.scoring import open_scorer
from rlhf_core.statistics.resampling import Array
from rlhf_core.trainers.progress import Progress

logger = logging.getLogger(__name__)

Answered = Sequence[tuple[Answer, Answer] | None]
_AT_ONCE = 256
"""Pairs scored between two lines of progress."""


@dataclass(frozen=True, slots=True)
class ChosenPairs:
    """The pairs that are kept, and why."""

    pairs: list[tuple[Answer, Answer] | None]
    """None where there was no pair, or the models agreed on it."""
    probabilities: list[dict[str, float]]
    """For each pair kept, by the model's URI: that its first answer is better."""
    agreed: int
    """Pairs left out."""
    choice: Choice


def choose_pairs(
    models: Sequence[ModelRef],
    prompts: Sequence[Prompt],
    pairs: Answered,
    *,
    count: int,
    device: str,
) -> ChosenPairs:
    """Keep the pairs on which the models' predictions differ most.

        disagreement = standard deviation over the models of sigmoid(s_first - s_second)

    Christiano et al. (2017), arXiv:1706.03741, section 2.2.4, take the variance, which has the same
    order. Each model's own scale counts: one that is sure of nothing disagrees little. Of equal
    pairs the earlier prompt's is kept; a pair that a model cannot read comes last.

    Args:
        models: two or more reward models, loaded one after the other.
        prompts: of all pairs.
        pairs: two answers to each prompt; None where they are alike.
        count: pairs kept, at most.
        device: of the models.
    """
    rows = [index for index, pair in enumerate(pairs) if pair is not None]
    given = np.stack([_probabilities(model, prompts, pairs, rows, device) for model in models])
    spread = np.nan_to_num(given.std(axis=0), nan=-1.0)  # [P]
    kept = sorted(np.argsort(-spread, kind="stable")[:count].tolist())
    chosen: list[tuple[Answer, Answer] | None] = [None] * len(pairs)
    probabilities: list[dict[str, float]] = [{} for _ in pairs]
    for place in kept:
        index = rows[place]
        chosen[index] = pairs[index]
        probabilities[index] = {
            model.uri: round(float(p), 6)
            for model, p in zip(models, given[:, place], strict=True)
            if np.isfinite(p)
        }
    readable = spread >= 0
    choice = Choice(
        models=tuple(SampledModel(uri=m.uri, version=m.version, sha256=m.sha256) for m in models),
        drawn=len(rows),
        kept_disagreement=_mean(spread[[k for k in kept if readable[k]]]),
        disagreement=_mean(spread[readable]),
    )
    said = len(kept), len(rows), choice.kept_disagreement, choice.disagreement
    logger.info("pairs_chosen kept=%d of=%d disagreement=%.3f of_all=%.3f", *said)
    return ChosenPairs(chosen, probabilities, len(rows) - len(kept), choice)


def _probabilities(
    model: ModelRef, prompts: Sequence[Prompt], pairs: Answered, rows: Sequence[int], device: str
) -> Array:
    """Return the model's probability that the first answer is better: [P], NaN: cannot read."""
    score = open_scorer(model, device)
    found: list[Array] = []
    starts = range(0, len(rows), _AT_ONCE)
    progress = Progress(f"scores by {model.uri}", total=len(starts), done=0)
    for start in starts:
        part = rows[start : start + _AT_ONCE]
        asked = [prompts[index].prompt for index in part]
        told = [pair for index in part if (pair := pairs[index]) is not None]
        first, second = (score(asked, [pair[side].text for pair in told]) for side in range(2))
        found.append(expit(first - second))
        progress.advance({})
    progress.close()
    return np.concatenate(found) if found else np.zeros(0)


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else 0.0
