"""Two answers to every prompt that a reader can tell apart."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_core.dataprep.keys import response_keys
from rlhf_core.feedback.collection import SamplingSettings
from rlhf_core.models import load_causal
from rlhf_core.rollout.sample import SampledResponse, sample_responses
from rlhf_core.schema import ModelRef, Prompt
from rlhf_core.stages.base_model import model_renderer
from rlhf_core.stages.determinism import derived_seed, make_deterministic

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AnswerPairs:
    """Two answers to each prompt; None where they could not be told apart."""

    pairs: list[tuple[SampledResponse, SampledResponse] | None]
    resampled: int
    """Prompts asked more than once."""

    @property
    def unfinished(self) -> int:
        """Answers of the pairs that were cut."""
        return sum(not answer.finished for pair in self.pairs if pair for answer in pair)


def answer_twice(
    models: Sequence[ModelRef],
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    *,
    device: str,
) -> AnswerPairs:
    """Answer every prompt twice; again, from new random streams, where the answers are alike.

    Args:
        models: one that answers twice, or two that answer once each.
        prompts: all of them fit.
        settings: of the collection.
        device: where the models compute.
    """
    make_deterministic(settings.seed)
    pairs: list[tuple[SampledResponse, SampledResponse] | None] = [None] * len(prompts)
    waiting, resampled = list(range(len(prompts))), 0
    for attempt in range(1 + settings.max_resamples):
        resampled = max(resampled, len(waiting) if attempt else 0)
        seeds = [
            derived_seed(settings.seed, "collect", str(side), str(attempt)) for side in range(2)
        ]
        asked = [prompts[index] for index in waiting]
        first, second = _ask_both(models, asked, settings, seeds, device)
        for index, one, other in zip(waiting, first, second, strict=True):
            if _distinct(one.text, other.text):
                pairs[index] = (one, other)
        waiting = [index for index in waiting if pairs[index] is None]
        logger.info("collecting attempt=%d alike=%d of=%d", attempt, len(waiting), len(prompts))
        if not waiting:
            break
    return AnswerPairs(pairs, resampled)


def _ask_both(
    models: Sequence[ModelRef],
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    seeds: Sequence[int],
    device: str,
) -> list[list[SampledResponse]]:
    """Answers of the first and of the second model; a single one is loaded once."""
    answers: list[list[SampledResponse]] = []
    loaded = None
    for model, seed in zip((models[0], models[-1]), seeds, strict=True):
        if loaded is None or model.path != models[0].path:
            loaded = None  # two large models at once might not fit
            loaded = load_causal(model.path, device=device)
        answers.append(
            sample_responses(
                loaded,
                model_renderer(model.path).tokenizer,
                [prompt.prompt for prompt in prompts],
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                seed=seed,
            )
        )
    return answers


def _distinct(first: str, second: str) -> bool:
    """Tell whether people could compare two answers."""
    one, other = response_keys(first, second)
    return one != other and bool(first.strip()) and bool(second.strip())
