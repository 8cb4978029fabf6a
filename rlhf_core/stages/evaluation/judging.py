"""The judges of an evaluation: our own by its scores, others by theirs or by what they say."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from rlhf_core.config import AiJudgeConfig, PipelineConfig, RewardModelJudgeConfig, judges_of
from rlhf_core.dataprep.keys import conversation_key
from rlhf_core.dataprep.manifest import fingerprint_of
from rlhf_core.errors import ConfigError
from rlhf_core.evaluation.judges import (
    CHAMPION_OVER_SFT,
    OVER_CHAMPION,
    OVER_SFT,
    Decided,
    Opinion,
    Pair,
    mean_scores,
    other_prompts,
    outcomes_where_scored,
    together,
)
from rlhf_core.feedback.ballots import Ballot, BallotBox
from rlhf_core.feedback.judge import read_verdict
from rlhf_core.models.classifier import outside_model
from rlhf_core.schema import Comparison, Conversation, ModelRef
from rlhf_core.stages.labels.ai import ask_judge, judge_name, what_is_asked
from rlhf_core.stages.models.determinism import derived_seed
from rlhf_core.stages.models.scoring import Score, Scorer, load_scorer, open_scorer, positions_of
from rlhf_core.statistics.resampling import Array

_TOO_LONG = "the conversation is longer than {name} reads ({limit} tokens)"
_VALUE = {"a": 1.0, "tie": 0.5, "b": 0.0}
_PLACE = {"a": 1.0, "tie": 0.0, "b": -1.0}


def outside_judge(settings: AiJudgeConfig | RewardModelJudgeConfig) -> ModelRef:
    """Return the identity of a judge that no registry knows.

    Of an AI judge that is all that decides its answers but the address: the model, the principles
    and the instructions. Of a reward model it is its weights.

    Raises:
        ModelError: there is no such reward model.
    """
    if isinstance(settings, AiJudgeConfig):
        name = judge_name(settings)
        asked = {key: str(value) for key, value in what_is_asked(settings).items()}
        return ModelRef(
            name=name,
            version="",
            uri=name,
            path=Path(),
            sha256=fingerprint_of(asked),
            kind="endpoint",
            run_id="",
        )
    return outside_model("evaluation.judge", settings.model, settings.revision)


def judges_together(judges: Sequence[ModelRef]) -> ModelRef:
    """Return one judge as it is, several as one whose decision is their mean.

    Raises:
        ConfigError: one is named twice.
    """
    if len(judges) == 1:
        return judges[0]
    digests = [judge.sha256 for judge in judges]
    if len(set(digests)) < len(digests):
        twice = next(judge.uri for judge in judges if digests.count(judge.sha256) > 1)
        raise ConfigError(f"evaluation.judge: {twice} is named twice; name each judge once")
    return ModelRef(
        name="several judges",
        version="",
        uri=" + ".join(judge.uri for judge in judges),
        path=Path(),
        sha256=hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest(),
        kind="panel",
        run_id="",
        members=tuple(judges),
    )


@dataclass(frozen=True)
class Asked:
    """What each judge is asked about."""

    prompts: Sequence[Conversation]
    """[n]"""
    texts: Sequence[Sequence[str]]
    """Answers of the policy, of SFT, and of the champion where there is one; [n] each."""
    others: Sequence[Conversation] | None = None
    """[n] prompts after which the first two models' answers are scored as well."""


class PanelJudge(Protocol):
    """One judge at work."""

    def opinion(self, asked: Asked) -> Opinion:
        """Judge each model's answers; who gives no scores leaves the other prompts out."""


class Panel:
    """All judges of an evaluation."""

    def __init__(self, config: PipelineConfig, judge: ModelRef, votes: Path) -> None:
        """Name the judges; nothing is loaded yet.

        Args:
            config: settings of the run.
            judge: who decides.
            votes: folder of the votes of AI judges, so that nothing is asked twice.
        """
        self.judges = judge.members or (judge,)
        self.seed = derived_seed(config.seed, "shuffled prompts")
        self._members = [_member(config, one, votes) for one in self.judges]

    def decide(
        self, prompts: Sequence[Conversation], texts: Sequence[Sequence[str]]
    ) -> tuple[list[Array], Decided | None]:
        """Return scores of each model's answers, and the decision where scores do not make it.

        Args:
            prompts: [n] conversations.
            texts: the policy's answers, SFT's, and the champion's where there is one; [n] each.
        """
        return self.concluded(self.opinions(prompts, texts))

    def opinions(
        self,
        prompts: Sequence[Conversation],
        texts: Sequence[Sequence[str]],
        *,
        after_others: bool = False,
    ) -> list[Opinion]:
        """Return what each judge says, and with ``after_others`` what ``liked_as_much`` reads.

        Each judge is loaded once, one after the other.
        """
        others = None
        if after_others:
            keys = [conversation_key(prompt) for prompt in prompts]
            others = [prompts[other] for other in other_prompts(keys, self.seed)]
        asked = Asked(prompts, texts, others)
        return [member.opinion(asked) for member in self._members]

    def concluded(self, opinions: Sequence[Opinion]) -> tuple[list[Array], Decided | None]:
        """Return what ``decide`` does, of what the judges said."""
        ours = len(self.judges) == 1 and self.judges[0].kind == "scalar"
        return mean_scores(opinions), None if ours else together(opinions)


def _member(config: PipelineConfig, judge: ModelRef, votes: Path) -> PanelJudge:
    if judge.kind not in ("endpoint", "classifier"):
        return _Ours(config, judge)
    for settings in judges_of(config.evaluation.judge):
        if isinstance(settings, str):
            continue
        if settings.kind == "reward_model" and settings.model == judge.name:
            return _Elsewhere(config, judge, settings)
        if settings.kind == "ai" and outside_judge(settings).sha256 == judge.sha256:
            return _Endpoint(settings, judge, votes, derived_seed(config.seed, "judge"))
    raise ConfigError(f"evaluation.judge: {judge.uri} is to judge, and no settings are about it")


def _compared(num_models: int) -> tuple[Pair, ...]:
    return (OVER_SFT,) if num_models == 2 else (OVER_SFT, OVER_CHAMPION, CHAMPION_OVER_SFT)


class _Ours:
    def __init__(self, config: PipelineConfig, judge: ModelRef) -> None:
        self._judge = judge
        self._load = partial(
            load_scorer,
            judge.path,
            budget=config.evaluation.micro_batch_tokens,
            device=config.model.device,
        )

    def opinion(self, asked: Asked) -> Opinion:
        return _by_scores(self._judge.uri, self._load(), asked, "")


class _Elsewhere:
    def __init__(
        self, config: PipelineConfig, judge: ModelRef, settings: RewardModelJudgeConfig
    ) -> None:
        self._judge, self._settings, self._device = judge, settings, config.model.device

    def opinion(self, asked: Asked) -> Opinion:
        limit = self._settings.max_length or positions_of(self._judge.path)
        score = open_scorer(self._judge, self._device, max_length=limit)
        problem = _TOO_LONG.format(name=self._judge.uri, limit=limit)
        return _by_scores(self._judge.uri, partial(_scores, score), asked, problem)


def _scores(
    score: Scorer, prompts: Sequence[Conversation], texts: Sequence[Sequence[str]]
) -> list[Array]:
    return [score(prompts, answers) for answers in texts]


def _by_scores(name: str, score: Score, asked: Asked, problem: str) -> Opinion:
    texts, others = asked.texts, asked.others
    scores = score(asked.prompts, texts)
    after = None if others is None else score(others, texts[:2])
    won = {
        (i, j): outcomes_where_scored(scores[i], scores[j], texts[i], texts[j])
        for i, j in _compared(len(texts))
    }
    # What one judge could not read says nothing of how far the models' scores are apart.
    unjudged = ~np.isfinite(np.stack(scores)).all(axis=0)
    filled = [
        np.where(unjudged, column[~unjudged].mean() if (~unjudged).any() else 0.0, column)
        for column in scores
    ]
    problems = tuple(problem if np.isnan(one) else "" for one in won[OVER_SFT])
    return Opinion(name, filled, won, problems, after_another=after)


class _Endpoint:
    """An AI judge: every pair in both orders, a tie where the orders disagree."""

    def __init__(self, settings: AiJudgeConfig, judge: ModelRef, votes: Path, seed: int) -> None:
        self._settings, self._judge, self._seed = settings, judge, seed
        self._box = BallotBox(votes, f"{judge.uri}-{judge.sha256[:12]}")

    def opinion(self, asked: Asked) -> Opinion:
        texts, compared = asked.texts, _compared(len(asked.texts))
        questions = {
            (i, j): [
                None if first == second else _question(prompt, first, second)
                for prompt, first, second in zip(asked.prompts, texts[i], texts[j], strict=True)
            ]
            for i, j in compared
        }
        distinct = {
            one.comparison_id: one for rows in questions.values() for one in rows if one is not None
        }
        ask_judge(self._settings, self._box, list(distinct.values()), seed=self._seed)
        ballots = {ballot.comparison_id: ballot for ballot in self._box.read()}
        given = {
            pair: [ballots[one.comparison_id] if one else None for one in rows]
            for pair, rows in questions.items()
        }
        won = {
            (i, j): np.array([_outcome(*row) for row in zip(rows, texts[i], texts[j], strict=True)])
            for (i, j), rows in given.items()
        }
        rows = given[OVER_SFT]
        return Opinion(
            self._judge.uri,
            _as_scores(won),
            won,
            tuple(one.problem if one else "" for one in rows),
            np.array([_changed(one) for one in rows]),
            np.array([_place(one) for one in rows]),
        )


def _question(prompt: Conversation, first: str, second: str) -> Comparison:
    """One pair, named by what it holds, in the order of the alphabet: nothing is asked twice.

    The id stands in the question, where no answer can know it.
    """
    first, second = sorted((first, second))
    said = [f"{turn.role}\n{turn.content}" for turn in prompt]
    digest = hashlib.sha256("\0".join([*said, first, second]).encode()).hexdigest()
    return Comparison(
        comparison_id=digest[:20], prompt=prompt, response_a=first, response_b=second, votes=()
    )


def _as_scores(won: dict[Pair, Array]) -> list[Array]:
    """Outcome against SFT as a score: 1 and 0 for winner and loser."""
    over = np.nan_to_num(won[OVER_SFT], nan=0.5)
    scores = [over, 1.0 - over]
    if CHAMPION_OVER_SFT in won:
        scores.append(np.nan_to_num(won[CHAMPION_OVER_SFT], nan=0.5))
    return scores


def _outcome(ballot: Ballot | None, first: str, second: str) -> float:
    if ballot is None:
        return 0.5  # two equal answers
    won = _VALUE[ballot.votes[0].choice] if ballot.votes else float("nan")
    return won if first < second else 1.0 - won


def _changed(ballot: Ballot | None) -> float:
    voted = ballot is not None and bool(ballot.votes)
    return float(bool(ballot and ballot.order_dependent)) if voted else float("nan")


def _place(ballot: Ballot | None) -> float:
    """Return how much the verdicts lean to the first place, from -1 to 1."""
    if ballot is None or not ballot.votes:
        return float("nan")
    return float(np.mean([_PLACE[read_verdict(answer) or "tie"] for answer in ballot.answers]))
