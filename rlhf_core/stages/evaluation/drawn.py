"""Answers of an engine elsewhere, kept in the run as they were drawn.

It would draw others if it were asked again. An evaluation that was stopped between answers and
verdict goes on from these, so that it is of one draw. Another run draws its own.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from rlhf_core.config import PipelineConfig
from rlhf_core.dataprep.keys import conversation_key
from rlhf_core.rollout.sample import SampledResponse
from rlhf_core.schema import Conversation, ModelRef, Record
from rlhf_core.storage.records import read_records, write_records

FOLDER = "drawn-answers"


def sampling(config: PipelineConfig) -> str:
    """Return all that decides which prompts are asked and how answers are drawn, in words."""
    settings, rollouts = config.evaluation, config.policy.rollouts
    return (
        f"seed {config.seed}, {settings.num_prompts} prompts at most, temperature "
        f"{settings.temperature:g}, {config.answer_length()} of {config.model.max_length} tokens"
        + (f", by {rollouts.engine}" if rollouts.elsewhere else "")
    )


class DrawnAnswer(Record):
    """One answer, as ``SampledResponse`` has it."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


def drawn_once(
    directory: Path,
    model: ModelRef,
    prompts: Sequence[Conversation],
    how: str,
    draw: Callable[[], list[SampledResponse]],
) -> list[SampledResponse]:
    """Return the answers that lie in the stage's folder; draw and keep them where none do.

    Args:
        directory: of the evaluation.
        model: who answers.
        prompts: what is asked.
        how: the settings of sampling, in words.
        draw: asks the engine.

    Raises:
        DataError: the file was changed since.
    """
    known = [model.sha256, how, *(conversation_key(prompt).hex() for prompt in prompts)]
    name = hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]
    path = directory / FOLDER / f"{name}.jsonl"
    if path.exists():
        kept = read_records(path, DrawnAnswer)
        return [
            SampledResponse(one.text, one.token_ids, one.logprobs, one.finished) for one in kept
        ]
    answers = draw()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_records(
        path,
        (
            DrawnAnswer(
                text=one.text,
                token_ids=one.token_ids,
                logprobs=one.logprobs,
                finished=one.finished,
            )
            for one in answers
        ),
    )
    return answers
