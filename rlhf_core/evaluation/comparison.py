"""Policy, SFT and champion on the same held-out prompts: every metric of the policy's report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rlhf_core.config import MonitorsConfig
from rlhf_core.config.metric_names import BEST_OF_N_KL, BEST_OF_N_METRICS, SHUFFLED
from rlhf_core.errors import DataError
from rlhf_core.evaluation.judges import Decided, judge_metrics
from rlhf_core.evaluation.monitors import (
    AnswerTexts,
    as_words,
    gain,
    proxy_gap,
    vice_metrics,
    vice_rates,
)
from rlhf_core.evaluation.rater import SCORE
from rlhf_core.evaluation.text_metrics import distinct_ratio, distinct_share
from rlhf_core.evaluation.win_rate import length_controlled_win_rate, outcomes, win_rate
from rlhf_core.schema import Estimate, Prompt
from rlhf_core.statistics.intervals import DIFFERENCE, SHARE, Plans, estimate_mean, estimate_ratio
from rlhf_core.statistics.resampling import Array

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
class BestOfN:
    """Of several answers of SFT to each prompt, the one that the reward model scores highest."""

    num_answers: int
    """To each prompt; none of them is the answer that SFT is compared with."""
    answers: Answers
    """Those chosen."""
    reward: Array
    """[n] the reward model's scores of them."""
    judge: Array
    """[n] the judge's."""
    won: Array
    """[n] outcome against SFT's single answer by the judge: 1, 0.5 or 0."""
    policy_won: Array
    """[n] outcome of the policy against them by the judge."""
    unjudged: Array | None = None
    """[n] 1 where nobody judged them, of the comparison where that is so most often; None where the
    judge's scores decide."""
    gold: tuple[dict[str, float], ...] | None = None
    """The gold rater's numbers; None where there is none."""


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
    """Ratings by the gold rater; None where there is none."""
    champion: Answers | None = None
    """The champion's answers; None where there is none to compare with."""
    champion_judge: Array | None = None
    """[n] the judge's scores of them."""
    champion_gold: tuple[dict[str, float], ...] | None = None
    """The gold rater's of them."""
    decided: Decided | None = None
    """What several judges, or one from elsewhere, decided; None where the judge's scores do."""
    best_of_n: BestOfN | None = None
    """The baseline; None where settings ask for none."""
    longest: int | None = None
    """Most tokens that an answer can have, EOS included; None where nobody says."""
    shuffled: Both | None = None
    """How far judges like each answer as much after another prompt; None where none gives scores.
    """

    @property
    def length_bounds(self) -> tuple[float, float] | None:
        """Range of the length of an answer, in tokens."""
        return None if self.longest is None else (1.0, float(self.longest))

    @cached_property
    def won(self) -> Array:
        """[n] outcome by the judge: 1, 0.5 or 0."""
        return self._outcomes(self.judge) if self.decided is None else self.decided.over_sft

    @property
    def gold_won(self) -> Array:
        """[n] outcome by the gold rater."""
        return self._outcomes(self.gold_values(SCORE))

    def gold_values(self, key: str) -> Both:
        """One of the rater's numbers for both models."""
        policy, sft = self.gold or ((), ())
        return np.array([row[key] for row in policy]), np.array([row[key] for row in sft])

    @cached_property
    def won_over_champion(self) -> Array:
        """[n] outcome of policy against champion by the judge."""
        if self.decided is not None and self.decided.over_champion is not None:
            return self.decided.over_champion
        return self._against_champion(self.judge[0], self.policy.texts)

    @property
    def champion_won(self) -> Array:
        """[n] outcome of champion against SFT by the judge."""
        if self.decided is not None and self.decided.champion_over_sft is not None:
            return self.decided.champion_over_sft
        return 1.0 - self._against_champion(self.judge[1], self.sft.texts)

    def _outcomes(self, scores: Both) -> Array:
        return outcomes(*scores, policy_texts=self.policy.texts, sft_texts=self.sft.texts)

    def _against_champion(self, scores: Array, texts: Sequence[str]) -> Array:
        champion, champion_scores = self.compared_champion()
        return outcomes(scores, champion_scores, policy_texts=texts, sft_texts=champion.texts)

    def compared_champion(self) -> tuple[Answers, Array]:
        """Return the champion's answers and the judge's scores of them.

        Raises:
            DataError: there is no champion.
        """
        if self.champion is None or self.champion_judge is None:
            raise DataError("no champion answered these prompts")
        return self.champion, self.champion_judge


def policy_metrics(
    measured: PairedAnswers, monitors: MonitorsConfig, plans: Plans
) -> dict[str, Estimate]:
    """Every ``policy/...`` metric, and ``gold/...`` where there is a gold rater."""
    texts = AnswerTexts(
        prompts=tuple(prompt.prompt for prompt in measured.prompts),
        policy=measured.policy.texts,
        sft=measured.sft.texts,
    )
    rates = vice_rates(texts, monitors)
    rates |= {} if measured.shuffled is None else {SHUFFLED: measured.shuffled}
    return {
        **_win_rates(measured, plans),
        **_over_champion(measured, plans),
        **_over_best_of_n(measured, plans),
        **_lengths(measured, plans),
        **_distances(measured, plans),
        **_gains(measured, plans),
        **_variety(measured, plans),
        **vice_metrics(rates, plans),
        **_of_judges(measured, plans),
        **_gold(measured, plans),
    }


def _of_judges(measured: PairedAnswers, plans: Plans) -> dict[str, Estimate]:
    if measured.decided is None:
        return {}
    others = None if measured.best_of_n is None else measured.best_of_n.unjudged
    return judge_metrics(measured.decided, plans, of_others=others)


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


def _over_champion(measured: PairedAnswers, plans: Plans) -> dict[str, Estimate]:
    """How the policy does against the champion, prompt by prompt; nothing where there is none."""
    if measured.champion is None:
        return {}
    over, ratio = "policy/win_rate_over_champion", "policy/length_ratio_over_champion"
    metrics = {
        over: win_rate(measured.won_over_champion, plans(over)),
        ratio: estimate_ratio(
            measured.policy.lengths,
            measured.champion.lengths,
            plans(ratio),
            bounds=measured.length_bounds,
        ),
        "policy/champion_win_rate": win_rate(
            measured.champion_won, plans("policy/champion_win_rate")
        ),
    }
    if measured.champion_gold is not None:
        own = measured.gold_values(SCORE)[0]
        other = np.array([row[SCORE] for row in measured.champion_gold])
        won = outcomes(
            own, other, policy_texts=measured.policy.texts, sft_texts=measured.champion.texts
        )
        metrics["gold/win_rate_over_champion"] = win_rate(won, plans("gold/win_rate_over_champion"))
    return metrics


def _over_best_of_n(measured: PairedAnswers, plans: Plans) -> dict[str, Estimate]:
    """What choosing among SFT's answers reaches, and how the policy does against it.

    Its KL has no interval: the bound is known from the number of answers.
    """
    best = measured.best_of_n
    if best is None:
        return {}
    won = {"policy": (best.won, best.policy_won)}
    if best.gold is not None:
        chosen = np.array([row[SCORE] for row in best.gold])
        policy, sft = measured.gold_values(SCORE)
        texts = best.answers.texts
        won["gold"] = (
            outcomes(chosen, sft, policy_texts=texts, sft_texts=measured.sft.texts),
            outcomes(policy, chosen, policy_texts=measured.policy.texts, sft_texts=texts),
        )
    metrics = {
        f"{who}/{name}": win_rate(values, plans(f"{who}/{name}"))
        for who, columns in won.items()
        for name, values in zip(BEST_OF_N_METRICS, columns, strict=True)
    }
    nats = best_of_n_kl_bound(best.num_answers)
    known = {"value": nats, "low": nats, "high": nats}
    own = metrics[f"policy/{BEST_OF_N_METRICS[0]}"]
    return metrics | {f"policy/{BEST_OF_N_KL}": own.model_copy(update=known)}


def best_of_n_kl_bound(num_answers: int) -> float:
    """Upper bound of KL(best-of-n || the model that answers), nats per response.

        log n - (n - 1) / n

    It is the KL itself where no answer is drawn twice and no two score alike, and more than the KL
    otherwise. Stiennon et al. (2020), arXiv:2009.01325, and Gao et al. (2022), arXiv:2210.10760,
    take it for the KL; Beirami et al. (2024), arXiv:2401.01879, show that it bounds it.

    Args:
        num_answers: n, how many answers one is chosen from; 1 is the model itself.
    """
    return math.log(num_answers) - (num_answers - 1) / num_answers


def _lengths(measured: PairedAnswers, plans: Plans) -> dict[str, Estimate]:
    policy, sft = measured.policy, measured.sft
    return {
        "policy/response_length": estimate_mean(policy.lengths, plans("policy/response_length")),
        "policy/sft_response_length": estimate_mean(
            sft.lengths, plans("policy/sft_response_length")
        ),
        "policy/length_ratio": estimate_ratio(
            policy.lengths,
            sft.lengths,
            plans("policy/length_ratio"),
            bounds=measured.length_bounds,
        ),
        "policy/eos_fraction": estimate_mean(
            policy.finished, plans("policy/eos_fraction"), bounds=SHARE
        ),
        "policy/sft_eos_fraction": estimate_mean(
            sft.finished, plans("policy/sft_eos_fraction"), bounds=SHARE
        ),
    }


def _variety(measured: PairedAnswers, plans: Plans) -> dict[str, Estimate]:
    """Distinct bigrams of both models' answers, and their ratio; read as the eye reads them."""
    policy, sft = ([*map(as_words, one.texts)] for one in (measured.policy, measured.sft))
    own, other, ratio = "policy/distinct_2", "policy/sft_distinct_2", "policy/distinct_2_ratio"
    return {
        own: distinct_share(policy, plans(own), n=2),
        other: distinct_share(sft, plans(other), n=2),
        ratio: distinct_ratio(policy, sft, plans(ratio), n=2),
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
