"""What several judges, or judges without scores, make of pairs of answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations

import numpy as np
from numpy.typing import NDArray

from rlhf_core.evaluation.win_rate import outcomes, win_rate
from rlhf_core.schema import Estimate
from rlhf_core.statistics.intervals import DIFFERENCE, SHARE, Plans, estimate_mean
from rlhf_core.statistics.resampling import Array

Pair = tuple[int, int]
"""Which of the models' answers are compared: the first wins with 1."""
OVER_SFT, OVER_CHAMPION, CHAMPION_OVER_SFT = (0, 1), (0, 2), (2, 1)


@dataclass(frozen=True)
class Opinion:
    """What one judge says of all prompts."""

    name: str
    scores: Sequence[Array]
    """Of each model's answers, [n]; a pair that was not judged has its judge's mean."""
    won: Mapping[Pair, Array]
    """Of each pair of models the outcome by prompt, [n]; NaN where it was not judged."""
    problems: tuple[str, ...]
    """[n] why policy and SFT were not judged; empty where they were."""
    order_dependent: Array | None = None
    """[n] 1 where the verdict changed with the order; NaN where no order was asked about."""
    first_place: Array | None = None
    """[n] 1 where the first place won in both orders, -1 the second, NaN as above."""
    after_another: Sequence[Array] | None = None
    """Scores of the policy's and SFT's answers after another prompt than their own, NaN where not
    read; None where that was not asked, or the judge gives no scores."""


@dataclass(frozen=True)
class Decided:
    """Mean decision of the judges, prompt by prompt; row i of everything belongs to prompt i."""

    over_sft: Array
    over_champion: Array | None
    champion_over_sft: Array | None
    opinions: tuple[Opinion, ...] = field(default=())

    @property
    def unjudged(self) -> tuple[str, ...]:
        """Why nobody judged policy against SFT, "" where somebody did; it counts as a tie."""
        rows = zip(*(one.problems for one in self.opinions), strict=True)
        return tuple("; ".join(row) if all(row) else "" for row in rows)

    def unjudged_most(self, *pairs: Pair) -> Array:
        """[n] 1 where nobody judged a pair of models, of those ``pairs`` where it is so most often.

        Each comparison decides, and its ties are no evidence where nobody judged.
        """
        missing = [
            np.all([np.isnan(one.won[pair]) for one in self.opinions], axis=0).astype(np.float64)
            for pair in pairs
            if pair in self.opinions[0].won
        ]
        return max(missing, key=np.mean)

    @property
    def disagreement(self) -> Array:
        """[n] share of the pairs of judges whose outcomes differ."""
        won = np.stack([one.won[OVER_SFT] for one in self.opinions])
        pairs = list(combinations(range(len(won)), 2))
        if not pairs:
            return np.zeros(won.shape[1])
        known = [~np.isnan(won[a]) & ~np.isnan(won[b]) for a, b in pairs]
        differ = [(won[a] != won[b]) & both for (a, b), both in zip(pairs, known, strict=True)]
        return np.asarray(np.sum(differ, axis=0) / np.maximum(np.sum(known, axis=0), 1))


def outcomes_where_scored(first: Array, second: Array, a: Sequence[str], b: Sequence[str]) -> Array:
    """Outcome by two scores as ``outcomes`` says; NaN where one is none, [n]."""
    scored = np.isfinite(first) & np.isfinite(second)
    same = np.array([one == other for one, other in zip(a, b, strict=True)], dtype=bool)
    won = outcomes(
        np.where(scored, first, 0.0), np.where(scored, second, 0.0), policy_texts=a, sft_texts=b
    )
    return np.where(scored | same, won, np.nan)


def together(opinions: Sequence[Opinion]) -> Decided:
    """Return the mean decision: of each prompt over the judges that judged it, else a tie."""
    against = {
        pair: _mean_known([one.won[pair] for one in opinions], otherwise=0.5)
        for pair in opinions[0].won
    }
    return Decided(
        against[OVER_SFT],
        against.get(OVER_CHAMPION),
        against.get(CHAMPION_OVER_SFT),
        tuple(opinions),
    )


def mean_scores(opinions: Sequence[Opinion]) -> list[Array]:
    """Return the scores of one judge as they are; of several, the mean in their own scales.

    A scale is the standard deviation over the second model's answers (SFT's).
    """
    if len(opinions) == 1:
        return list(opinions[0].scores)
    scaled = [[_scaled(column, one.scores[1]) for column in one.scores] for one in opinions]
    return [np.mean(columns, axis=0) for columns in zip(*scaled, strict=True)]


def other_prompts(keys: Sequence[bytes], seed: int) -> NDArray[np.int64]:
    """Return for each prompt another one that reads differently, drawn by the seed: [n].

    A prompt is its own where all read the same.
    """
    order = np.random.default_rng(seed).permutation(len(keys))
    others = np.arange(len(keys))
    for place, row in enumerate(order):
        following = chain(order[place + 1 :], order[:place])
        others[row] = next((one for one in following if keys[one] != keys[row]), row)
    return others


def liked_as_much(opinions: Sequence[Opinion]) -> tuple[Array, Array] | None:
    """Share of the judges that score an answer higher after another prompt than after its own.

    Equal scores are half, and so is what a judge could not read. About 0.5 where a judge does not
    look at the prompt.

    Args:
        opinions: of all judges; those without scores after other prompts do not count.

    Returns:
        [n] of the policy's answers and of SFT's; None where no judge gives such scores.
    """
    scored = [(one, one.after_another) for one in opinions if one.after_another is not None]
    if not scored:
        return None
    policy, sft = (
        np.mean([_higher(one, after[model], model) for one, after in scored], axis=0)
        for model in OVER_SFT
    )
    return policy, sft


def _higher(opinion: Opinion, other: Array, model: int) -> Array:
    own = opinion.scores[model]
    unusable = np.array([bool(problem) for problem in opinion.problems]) | ~np.isfinite(other)
    return np.where(unusable | (other == own), 0.5, (other > own).astype(np.float64))


def _scaled(column: Array, reference: Array) -> Array:
    spread = float(reference.std())
    return np.asarray((column - reference.mean()) / (spread if spread > 0.0 else 1.0))


def judge_metrics(
    decided: Decided, plans: Plans, *, of_others: Array | None = None
) -> dict[str, Estimate]:
    """``policy/judge_unjudged``, of several judges their disagreement, of AI judges their bias.

    Args:
        decided: by the judges.
        plans: of the intervals.
        of_others: [n] ``unjudged_most`` of comparisons with other models; None where there are
            none.
    """
    unjudged = decided.unjudged_most(OVER_SFT, OVER_CHAMPION)
    if of_others is not None and of_others.mean() > unjudged.mean():
        unjudged = of_others
    columns = {"judge_unjudged": (unjudged, SHARE)}
    if len(decided.opinions) > 1:
        columns["judge_disagreement"] = (decided.disagreement, SHARE)
    changed = [one.order_dependent for one in decided.opinions if one.order_dependent is not None]
    places = [one.first_place for one in decided.opinions if one.first_place is not None]
    if changed:
        columns["judge_order_dependence"] = (_mean_known(changed), SHARE)
        columns["judge_position_bias"] = (_mean_known(places), DIFFERENCE)
    metrics = {}
    for name, (values, bounds) in columns.items():
        rows = np.flatnonzero(~np.isnan(values))
        if rows.size:
            metric = f"policy/{name}"
            plan = plans.of_rows(rows)(metric)
            metrics[metric] = estimate_mean(values[rows], plan, bounds=bounds)
    return metrics


def judge_breakdown(decided: Decided, plans: Plans) -> dict[str, dict[str, Estimate]]:
    """``judge=<name>`` to the win rate by that judge alone, where there are several."""
    if len(decided.opinions) < 2:
        return {}
    groups = {}
    for one in decided.opinions:
        rows = np.flatnonzero(~np.isnan(one.won[OVER_SFT]))
        if rows.size:
            plan = plans.of_rows(rows)("policy/win_rate")
            groups[f"judge={one.name}"] = {
                "policy/win_rate": win_rate(one.won[OVER_SFT][rows], plan)
            }
    return groups


def _mean_known(columns: Sequence[Array], *, otherwise: float = math.nan) -> Array:
    """Mean of what is known of each row, [n]; ``otherwise`` where nothing is."""
    values = np.stack(columns)
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), otherwise)
