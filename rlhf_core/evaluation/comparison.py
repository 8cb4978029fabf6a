"""Policy and SFT on the same held-out prompts: every metric of the policy gate and its report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_core.config import MonitorsConfig
from rlhf_core.evaluation.intervals import (
    DIFFERENCE,
    SHARE,
    Array,
    Plans,
    estimate_mean,
    estimate_ratio,
)
from rlhf_core.evaluation.monitors import (
    AnswerTexts,
    gain,
    proxy_gap,
    vice_metrics,
    vice_rates,
)
from rlhf_core.evaluation.rater import SCORE
from rlhf_core.evaluation.text_metrics import distinct_share
from rlhf_core.evaluation.win_rate import length_controlled_win_rate, outcomes, win_rate
from rlhf_core.schema import Estimate, Prompt

MAX_TAG_VALUES = 30
"""A tag with more values than this labels single prompts; no table is broken down by it."""

Both = tuple[Array, Array]
"""The policy's values and SFT's, [n] each."""
Ratings = tuple[tuple[dict[str, float], ...], tuple[dict[str, float], ...]]


@dataclass(frozen=True)
class Answers:
    """One model's answers, in the order of the prompts."""

    texts: tuple[str, ...]
    lengths: Array
    """Tokens, EOS included."""
    finished: Array
    """1 where the answer ended with EOS, 0 where it was cut."""


@dataclass(frozen=True)
class PairedAnswers:
    """All that was measured; row i of everything belongs to prompt i."""

    prompts: tuple[Prompt, ...]
    policy: Answers
    sft: Answers
    judge: Both
    """Scores by the judge, which decides."""
    reward: Both | None
    """Scores by the model the policy was optimised against; None after DPO."""
    kl: tuple[Array, Array] | None
    """k1 and k3 estimates, nats per response; None for greedy answers, which have no KL."""
    reference_nll: Array
    """Nats of the policy's answer under SFT."""
    gold: Ratings | None
    """Ratings by the outside rater; None where there is none."""

    @property
    def won(self) -> Array:
        """[n] outcome by the judge: 1, 0.5 or 0."""
        return self._outcomes(self.judge)

    @property
    def gold_won(self) -> Array:
        """[n] outcome by the outside rater."""
        return self._outcomes(self.gold_values(SCORE))

    def gold_values(self, key: str) -> Both:
        """One of the rater's numbers for both models."""
        policy, sft = self.gold or ((), ())
        return np.array([row[key] for row in policy]), np.array([row[key] for row in sft])

    def _outcomes(self, scores: Both) -> Array:
        return outcomes(*scores, policy_texts=self.policy.texts, sft_texts=self.sft.texts)


def policy_metrics(
    measured: PairedAnswers, monitors: MonitorsConfig, plans: Plans
) -> dict[str, Estimate]:
    """Every ``policy/...`` metric, and ``gold/...`` where there is an outside rater."""
    texts = AnswerTexts(
        prompts=tuple(prompt.prompt for prompt in measured.prompts),
        policy=measured.policy.texts,
        sft=measured.sft.texts,
    )
    return {
        **_win_rates(measured, plans),
        **_lengths(measured, plans),
        **_distances(measured, plans),
        **_gains(measured, plans),
        "policy/distinct_2": distinct_share(texts.policy, plans("policy/distinct_2"), n=2),
        **vice_metrics(vice_rates(texts, monitors), plans),
        **_gold(measured, plans),
    }


def _win_rates(measured: PairedAnswers, plans: Plans) -> dict[str, Estimate]:
    return {
        "policy/win_rate": win_rate(measured.won, plans("policy/win_rate")),
        "policy/length_controlled_win_rate": length_controlled_win_rate(
            measured.won,
            measured.policy.lengths,
            measured.sft.lengths,
            plans("policy/length_controlled_win_rate"),
        ),
    }


def _lengths(measured: PairedAnswers, plans: Plans) -> dict[str, Estimate]:
    policy, sft = measured.policy, measured.sft
    return {
        "policy/response_length": estimate_mean(policy.lengths, plans("policy/response_length")),
        "policy/sft_response_length": estimate_mean(
            sft.lengths, plans("policy/sft_response_length")
        ),
        "policy/length_ratio": estimate_ratio(
            policy.lengths, sft.lengths, plans("policy/length_ratio")
        ),
        "policy/eos_fraction": estimate_mean(
            policy.finished, plans("policy/eos_fraction"), bounds=SHARE
        ),
        "policy/sft_eos_fraction": estimate_mean(
            sft.finished, plans("policy/sft_eos_fraction"), bounds=SHARE
        ),
    }


def _distances(measured: PairedAnswers, plans: Plans) -> dict[str, Estimate]:
    """How far the policy went from SFT: KL in nats per response, and SFT's perplexity of it."""
    nll = estimate_ratio(
        measured.reference_nll, measured.policy.lengths, plans("policy/reference_perplexity")
    )
    metrics = {"policy/reference_perplexity": exponential(nll)}
    if measured.kl is not None:
        k1, k3 = measured.kl
        metrics["policy/kl"] = estimate_mean(k1, plans("policy/kl"))
        metrics["policy/kl_k3"] = estimate_mean(k3, plans("policy/kl_k3"))
    return metrics


def _gains(measured: PairedAnswers, plans: Plans) -> dict[str, Estimate]:
    metrics = {"policy/judge_gain": gain(measured.judge, plans("policy/judge_gain"))}
    if measured.reward is not None:
        metrics["policy/reward_gain"] = gain(measured.reward, plans("policy/reward_gain"))
        metrics["policy/proxy_gap"] = proxy_gap(
            reward=measured.reward, judge=measured.judge, plan=plans("policy/proxy_gap")
        )
    return metrics


def _gold(measured: PairedAnswers, plans: Plans) -> dict[str, Estimate]:
    if measured.gold is None:
        return {}
    metrics = {"gold/win_rate": win_rate(measured.gold_won, plans("gold/win_rate"))}
    for key in measured.gold[0][0]:
        policy, sft = measured.gold_values(key)
        bounds = SHARE if _all_shares(policy, sft) else (-math.inf, math.inf)
        change = DIFFERENCE if bounds == SHARE else bounds
        metrics[f"gold/{key}"] = estimate_mean(policy, plans(f"gold/{key}"), bounds=bounds)
        metrics[f"gold/{key}_change"] = estimate_mean(
            policy - sft, plans(f"gold/{key}_change"), bounds=change
        )
    return metrics


def _all_shares(*columns: Array) -> bool:
    return all(bool(((column >= 0.0) & (column <= 1.0)).all()) for column in columns)


def exponential(estimate: Estimate) -> Estimate:
    """Perplexity from nats per token; the bounds go along, for exp only rises."""
    return estimate.model_copy(
        update={field: _exp(getattr(estimate, field)) for field in ("value", "low", "high")}
    )


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < math.log(math.nextafter(math.inf, 0.0)) else math.inf


def policy_breakdown(measured: PairedAnswers, plans: Plans) -> dict[str, dict[str, Estimate]]:
    """Win rates and length for every value of every tag, e.g. ``style=terse``."""
    breakdown: dict[str, dict[str, Estimate]] = {}
    for name, rows in tag_groups(measured.prompts).items():
        metrics = {
            "policy/win_rate": win_rate(measured.won[rows], plans("policy/win_rate")),
            "policy/length_ratio": estimate_ratio(
                measured.policy.lengths[rows],
                measured.sft.lengths[rows],
                plans("policy/length_ratio"),
            ),
        }
        if measured.gold is not None:
            metrics["gold/win_rate"] = win_rate(measured.gold_won[rows], plans("gold/win_rate"))
        breakdown[name] = metrics
    return breakdown


def tag_groups(prompts: Sequence[Prompt]) -> dict[str, Array]:
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
