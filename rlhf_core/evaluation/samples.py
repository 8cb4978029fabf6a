"""The sample file of an evaluation: what its metrics were computed from, a prompt a line."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isnan
from statistics import fmean
from typing import Any

from pydantic import Field

from rlhf_core.evaluation.comparison import PairedAnswers
from rlhf_core.evaluation.judges import OVER_SFT
from rlhf_core.schema import Conversation, Record
from rlhf_core.statistics.resampling import Array


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
    """The gold rater's numbers for both."""
    champion: str | None = None
    """The champion's answer, where there is a champion."""
    champion_score: float | None = None
    """Of the judge."""
    won_over_champion: float | None = None
    """By the judge: 1 the policy, 0 the champion, 0.5 a tie."""
    champion_won: float | None = None
    """By the judge: 1 the champion, 0 SFT, 0.5 a tie; None in files of earlier builds."""
    best_of_n: str | None = None
    """The best-of-n baseline's answer, where one was measured."""
    best_of_n_scores: dict[str, float] = Field(default_factory=dict)
    """Scorer (``judge``, ``reward``) to its score of it."""
    best_of_n_won: float | None = None
    """By the judge: 1 best-of-n, 0 SFT, 0.5 a tie."""
    won_over_best_of_n: float | None = None
    """By the judge: 1 the policy, 0 best-of-n, 0.5 a tie."""
    judges: dict[str, float | None] = Field(default_factory=dict)
    """Of several judges, or one from elsewhere, each one's ``won``; None where it did not say."""
    unjudged: str = ""
    """Why no judge compared policy and SFT, which then count as a tie."""


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
        **_against_best_of_n(measured, index),
        **_by_judges(measured, index),
    )


def _against_champion(measured: PairedAnswers, index: int) -> dict[str, Any]:
    if measured.champion is None:
        return {}
    champion, scores = measured.compared_champion()
    return {
        "champion": champion.texts[index],
        "champion_score": float(scores[index]),
        "won_over_champion": float(measured.won_over_champion[index]),
        "champion_won": float(measured.champion_won[index]),
    }


def _against_best_of_n(measured: PairedAnswers, index: int) -> dict[str, Any]:
    best = measured.best_of_n
    if best is None:
        return {}
    return {
        "best_of_n": best.answers.texts[index],
        "best_of_n_scores": {
            "judge": float(best.judge[index]),
            "reward": float(best.reward[index]),
        },
        "best_of_n_won": float(best.won[index]),
        "won_over_best_of_n": float(best.policy_won[index]),
    }


def _by_judges(measured: PairedAnswers, index: int) -> dict[str, Any]:
    if measured.decided is None:
        return {}
    said = {one.name: float(one.won[OVER_SFT][index]) for one in measured.decided.opinions}
    return {
        "judges": {name: None if isnan(won) else won for name, won in said.items()},
        "unjudged": measured.decided.unjudged[index],
    }


def _at(both: tuple[Array, Array], index: int) -> tuple[float, float]:
    return float(both[0][index]), float(both[1][index])


@dataclass(frozen=True)
class AverageQuantity:
    """One quantity of the models that answered the same prompts, averaged over the prompts."""

    text: str
    policy: float
    sft: float | None
    champion: float | None
    """None where it was not measured, or there is no champion."""


def side_by_side(rows: Sequence[ComparedAnswer]) -> list[AverageQuantity]:
    """Return what the models' answers were like, for reading; gates have intervals, this has none.

    Args:
        rows: of one evaluation, at least one.
    """
    crowned = [row for row in rows if row.champion is not None and row.champion_score is not None]

    def mean(of: Callable[[ComparedAnswer], float]) -> float:
        return fmean(of(row) for row in rows)

    def mean_of_champion(of: Callable[[ComparedAnswer], float]) -> float | None:
        return fmean(of(row) for row in crowned) if crowned else None

    found = [
        AverageQuantity(
            "wins against SFT, share of prompts", mean(lambda row: row.won), None,
            mean_of_champion(_champion_won),
        ),
        AverageQuantity(
            "judge's score", mean(lambda row: row.scores["judge"][0]),
            mean(lambda row: row.scores["judge"][1]),
            mean_of_champion(lambda row: row.champion_score or 0.0),
        ),
        AverageQuantity(
            "letters in an answer", mean(lambda row: len(row.policy)),
            mean(lambda row: len(row.sft)), mean_of_champion(lambda row: len(row.champion or "")),
        ),
        AverageQuantity(
            "tokens in an answer", mean(lambda row: row.policy_length),
            mean(lambda row: row.sft_length), None,
        ),
        AverageQuantity(
            "answers that ended by themselves", mean(lambda row: row.policy_finished),
            mean(lambda row: row.sft_finished), None,
        ),
    ]  # fmt: skip
    if all("score" in row.gold for row in rows):
        found.append(
            AverageQuantity(
                "gold rater's score", mean(lambda row: row.gold["score"][0]),
                mean(lambda row: row.gold["score"][1]), None,
            )
        )  # fmt: skip
    return found


def _champion_won(row: ComparedAnswer) -> float:
    if row.champion_won is not None:
        return row.champion_won
    return _won(row.champion_score or 0.0, row.scores["judge"][1])


def _won(mine: float, theirs: float) -> float:
    return 0.5 if mine == theirs else float(mine > theirs)
