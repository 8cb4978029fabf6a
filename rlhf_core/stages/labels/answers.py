"""Two answers to every prompt that a reader can tell apart."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rlhf_core.dataprep.keys import response_keys
from rlhf_core.feedback.collection import SamplingSettings
from rlhf_core.models import load_causal
from rlhf_core.rollout.sample import sample_responses
from rlhf_core.rollout.sampler import TRANSFORMERS_SAMPLER, Sampler
from rlhf_core.schema import ModelRef, Prompt, Record
from rlhf_core.stages.models.determinism import derived_seed, make_deterministic
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.storage.journal import Keep, appending, read_journal
from rlhf_core.trainers.progress import Progress

logger = logging.getLogger(__name__)

_AT_ONCE = 64
"""Prompts answered between two lines of the journal."""


class Answer(Record):
    """What a model said."""

    text: str
    finished: bool
    """False where it was cut."""


class AnsweredPart(Record):
    """Answers of one model to some prompts, in order: a line of the journal."""

    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class AnswerPairs:
    """Two answers to each prompt; None where they could not be distinguished."""

    pairs: list[tuple[Answer, Answer] | None]
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
    journal: Path,
    sampler: Sampler = TRANSFORMERS_SAMPLER,
) -> AnswerPairs:
    """Answer every prompt twice; again, from new random streams, where the answers are alike.

    Args:
        models: one that answers twice, or two that answer once each.
        prompts: all of them fit.
        settings: of the collection.
        device: where the models compute.
        journal: file that answers are kept in as they come; those in it are not sampled again.
        sampler: who draws the tokens.
    """
    make_deterministic(settings.seed)
    pairs: list[tuple[Answer, Answer] | None] = [None] * len(prompts)
    waiting, resampled = list(range(len(prompts))), 0
    kept_parts = iter(read_journal(journal, AnsweredPart))
    with appending(journal) as keep:
        asking = _Asking(models, settings, device, sampler, kept_parts, keep)
        for attempt in range(1 + settings.max_resamples):
            resampled = max(resampled, len(waiting) if attempt else 0)
            asked = [prompts[index] for index in waiting]
            first, second = (asking.ask(side, attempt, asked) for side in range(2))
            for index, one, other in zip(waiting, first, second, strict=True):
                if _distinct(one.text, other.text):
                    pairs[index] = (one, other)
            waiting = [index for index in waiting if pairs[index] is None]
            logger.info("collecting attempt=%d alike=%d of=%d", attempt, len(waiting), len(prompts))
            if not waiting:
                break
    return AnswerPairs(pairs, resampled)


class _Asking:
    """Asks part by part, in an order that is always the same, so that a journal can stand in."""

    def __init__(
        self,
        models: Sequence[ModelRef],
        settings: SamplingSettings,
        device: str,
        sampler: Sampler,
        kept_parts: Iterator[AnsweredPart],
        keep: Keep,
    ) -> None:
        self._models, self._settings, self._device = models, settings, device
        self._kept_parts, self._keep, self._sampler = kept_parts, keep, sampler
        self._loaded: tuple[Path, nn.Module] | None = None

    def ask(self, side: int, attempt: int, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return the answers of the first or of the last model."""
        seed = derived_seed(self._settings.seed, "collect", str(side), str(attempt))
        starts = range(0, len(prompts), _AT_ONCE)
        progress = Progress(f"answers {side + 1}/2", total=len(starts), done=0)
        answers: list[Answer] = []
        for start in starts:
            part = next(self._kept_parts, None)
            if part is None:
                asked = prompts[start : start + _AT_ONCE]
                part = self._sample(self._models[-side], asked, seed, start)
                self._keep(part)
            answers += part.answers
            progress.advance({})
        progress.close()
        return answers

    def _sample(
        self, model: ModelRef, prompts: Sequence[Prompt], seed: int, first_stream: int
    ) -> AnsweredPart:
        if self._loaded is None or self._loaded[0] != model.path:
            self._loaded = None  # two large models at once might not fit
            self._loaded = model.path, load_causal(model.path, device=self._device)
        sampled = sample_responses(
            self._loaded[1],
            model_renderer(model.path).tokenizer,
            [prompt.prompt for prompt in prompts],
            max_new_tokens=self._settings.max_new_tokens,
            temperature=self._settings.temperature,
            seed=seed,
            first_stream=first_stream,
            sampler=self._sampler,
        )
        answers = (Answer(text=one.text, finished=one.finished) for one in sampled)
        return AnsweredPart(answers=tuple(answers))


def _distinct(first: str, second: str) -> bool:
    """Tell whether people could compare two answers."""
    one, other = response_keys(first, second)
    return one != other and bool(first.strip()) and bool(second.strip())
