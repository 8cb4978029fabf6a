"""The sample file of an evaluation: what its metrics were computed from, a prompt a line."""

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from rlhf_core.evaluation.comparison import PairedAnswers
from rlhf_core.evaluation.resampling import Array
from rlhf_core.schema import Conversation, Record


class ComparedAnswer(Record):
    """One held-out prompt with both answers, as the sample file of a report keeps it."""

    prompt_id: str
    prompt: Conversation
    tags: dict[str, str]
    policy: str
    sft: str
    policy_length: int
    sft_length: int
    policy_finished: bool
    sft_finished: bool
    won: float
    """By the judge: 1 the policy, 0 SFT, 0.5 a tie."""
    scores: dict[str, tuple[float, float]]
    """Scorer (``judge``, ``reward``) to its scores of the policy's and SFT's answer."""
    gold: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """The outside rater's numbers for both."""
    champion: str | None = None
    """The champion's answer, where there is a champion."""
    champion_score: float | None = None
    """Of the judge."""
    won_over_champion: float | None = None
    """By the judge: 1 the policy, 0 the champion, 0.5 a tie."""


def compared_answers(measured: PairedAnswers) -> Iterator[ComparedAnswer]:
    """Both answers to every prompt, with all that was said of them."""
    return (_row(measured, index) for index in range(len(measured.prompts)))


def _row(measured: PairedAnswers, index: int) -> ComparedAnswer:
    prompt, policy, sft = measured.prompts[index], measured.policy, measured.sft
    scorers = {"judge": measured.judge, "reward": measured.reward}
    keys = measured.gold[0][index] if measured.gold else {}
    return ComparedAnswer(
        prompt_id=prompt.prompt_id,
        prompt=prompt.prompt,
        tags=prompt.tags,
        policy=policy.texts[index],
        sft=sft.texts[index],
        policy_length=int(policy.lengths[index]),
        sft_length=int(sft.lengths[index]),
        policy_finished=bool(policy.finished[index]),
        sft_finished=bool(sft.finished[index]),
        won=float(measured.won[index]),
        scores={
            name: (float(both[0][index]), float(both[1][index]))
            for name, both in scorers.items()
            if both is not None
        },
        gold={key: _at(measured.gold_values(key), index) for key in keys},
        **_against_champion(measured, index),
    )


def _against_champion(measured: PairedAnswers, index: int) -> dict[str, Any]:
    if measured.champion is None:
        return {}
    champion, scores = measured.compared_champion()
    return {
        "champion": champion.texts[index],
        "champion_score": float(scores[index]),
        "won_over_champion": float(measured.won_over_champion[index]),
    }


def _at(both: tuple[Array, Array], index: int) -> tuple[float, float]:
    return float(both[0][index]), float(both[1][index])
