"""What passes through one PPO iteration: Rollout -> ScoredRollout -> Experience.

[B, T] tensors hold the responses left-aligned, T being the longest of the batch; what lies outside
``mask`` means nothing. Masks come from lengths, never from token ids, so PAD plays no part.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from rlhf_core.config import VllmRolloutsConfig
from rlhf_core.errors import ConfigError, DivergedError
from rlhf_core.functional.advantages import GROUP_EPS, generalized_advantages
from rlhf_core.functional.kl import kl_k1
from rlhf_core.functional.ppo import explained_variance, truncated_importance_weights
from rlhf_core.functional.whitening import masked_mean, whiten
from rlhf_core.tokenization import TokenBatch, TokenIds, evenly, pack_grouped_responses


@dataclass(frozen=True, eq=False)
class Rollout:
    """Responses just sampled."""

    prompts: Sequence[TokenIds]
    responses: Sequence[TokenIds]
    """Cut after EOS, each at least one token."""
    logprobs: Tensor
    """[B, T] float32, as the sampler saw them, nats."""
    mask: Tensor
    """[B, T] bool, True on response tokens, EOS among them."""
    finished: Tensor
    """[B] bool, True where the response ended with EOS."""

    values: Tensor | None = None
    """[B, T] value before each token, where the policy has a value head of its own."""

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.responses)

    def pack(self, rows: Sequence[int]) -> TokenBatch:
        """Pack the sequences of ``rows``, in that order.

        Neighbours that answer one prompt (the same object) share it: it is computed once.
        """
        prompts: list[TokenIds] = []
        groups: list[list[TokenIds]] = []
        for row in rows:
            if not prompts or prompts[-1] is not self.prompts[row]:
                prompts.append(self.prompts[row])
                groups.append([])
            groups[-1].append(self.responses[row])
        return pack_grouped_responses(prompts, groups).to(self.mask.device)

    def micro_batches(self, rows: Sequence[int], *, budget: int) -> list[list[int]]:
        """Cut ``rows`` into even runs within ``budget`` tokens, each of one row at least."""
        return evenly(partial(self._filled, rows), budget=budget)

    def _filled(self, rows: Sequence[int], budget: int) -> list[list[int]]:
        runs: list[list[int]] = []
        used = 0
        for row in rows:
            prompt, response = len(self.prompts[row]), len(self.responses[row])
            shared = runs and self.prompts[runs[-1][-1]] is self.prompts[row]
            if not runs or used + response + (0 if shared else prompt) > budget:
                runs.append([])
                used, shared = 0, False
            runs[-1].append(row)
            used += response + (0 if shared else prompt)
        return runs


@dataclass(frozen=True, eq=False)
class ScoredRollout:
    """A rollout with what the frozen models and the value function say about it."""

    rollout: Rollout
    old_logprobs: Tensor
    """[B, T] log-probabilities that importance ratios refer to, nats."""
    ref_logprobs: Tensor
    """[B, T] under the reference, nats."""
    values: Tensor | None
    """[B, T] value estimate before each token; None where there is no value function."""
    scores: Tensor
    """[B] reward-model scores as they came; after ``sum_terms`` the sum of the terms."""
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    """[B] score of each term of ``policy.rewards``, before scale, clip and weight."""
    importance: Tensor | None = None
    """[B, T] weight of each token's advantage, where an engine elsewhere sampled it; 0 past the end
    of a response."""


@dataclass(frozen=True, eq=False)
class Experience:
    """What the update reads; constants, no gradient flows into them."""

    rollout: Rollout
    old_logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor | None
    """[B, T] value estimates at the time of the rollout; None where there is no value function."""
    advantages: Tensor
    """[B, T] whitened over the batch where the settings say so."""
    returns: Tensor
    """[B, T] advantages before whitening + values; without a value function the return of the whole
    response at each of its tokens."""

    def at(self, rows: Sequence[int], *fields: Tensor) -> tuple[Tensor, ...]:
        """Take [B, T] ``fields`` at the response tokens of ``rows``: [M] each, as ``pack`` does."""
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.rollout.mask.device)
        mask = self.rollout.mask[index]
        return tuple(field[index][mask] for field in fields)


def weighed_against_engine(scored: ScoredRollout, settings: VllmRolloutsConfig) -> ScoredRollout:
    """Give the tokens that an engine sampled their importance weights.

    Raises:
        DivergedError: engine and trainer disagree about the same policy, past the setting's limit.
    """
    mask, sampled = scored.rollout.mask, scored.rollout.logprobs
    require_engine_agrees(scored.old_logprobs[mask], sampled[mask], settings)
    weights = truncated_importance_weights(
        scored.old_logprobs, sampled, most=settings.max_importance_weight
    )
    return replace(scored, importance=torch.where(mask, weights, 0.0))


def require_engine_agrees(own: Tensor, sampled: Tensor, settings: VllmRolloutsConfig) -> None:
    """Compare what the trainer and an engine say about tokens that the engine sampled.

    Args:
        own: [M] log-probabilities by the trainer's pass, nats.
        sampled: [M] as the engine reported them.
        settings: of the engine.

    Raises:
        DivergedError: they disagree about the same policy, past the setting's limit.
    """
    mean, most = logprob_difference(own, sampled)
    if not mean <= settings.max_logprob_difference:
        raise DivergedError(
            f"the engine and the trainer disagree about the same policy: their log-probabilities "
            f"differ by {mean:.3g} nats a token (at most {most:.3g}), past "
            f"policy.rollouts.max_logprob_difference {settings.max_logprob_difference:.3g}; does "
            "the server run with --logprobs-mode processed_logprobs, and in a precision near that "
            "of policy.compute?"
        )


def logprob_difference(own: Tensor, sampled: Tensor) -> tuple[float, float]:
    """Return mean and largest |log-probability of the trainer - of the sampler|, nats; [M] each."""
    apart = (own - sampled).abs()
    return float(apart.mean()), float(apart.max())


def require_values(values: Tensor | None) -> Tensor:
    """Return ``values``.

    Raises:
        ConfigError: nobody gave any.
    """
    if values is None:
        raise ConfigError("neither a value model nor the policy's value head gives values")
    return values


def build_experience(
    scored: ScoredRollout,
    rewards: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
    whiten_advantages: bool,
) -> Experience:
    """Turn rewards into advantages and returns.

        advantages = GAE(rewards, values),   returns = advantages + values

    Args:
        scored: the rollout with its log-probabilities and values.
        rewards: [B, T] reward of each response token.
        gamma: discount per token.
        gae_lambda: see ``generalized_advantages``.
        whiten_advantages: whiten over all response tokens of the batch; returns are not.

    Raises:
        ConfigError: there are no values.
    """
    mask, values = scored.rollout.mask, require_values(scored.values)
    advantages = generalized_advantages(rewards, values, mask, gamma=gamma, gae_lambda=gae_lambda)
    return _experience(scored, advantages, advantages + values, whiten_advantages)


def build_group_experience(
    scored: ScoredRollout,
    rewards: Tensor,
    estimator: Callable[[Tensor], Tensor],
    *,
    group_size: int,
    whiten_advantages: bool,
) -> Experience:
    """Turn rewards into advantages within the group of each prompt; no value is read.

        R = sum_t rewards_t,   advantages_t = estimator(R of the group)

    A response is one action: all of its tokens get its advantage.

    Args:
        scored: the rollout; the G responses to a prompt follow one another.
        rewards: [B, T] reward of each response token, 0.0 elsewhere.
        estimator: from returns [B / G, G] to advantages of that shape.
        group_size: G.
        whiten_advantages: whiten over all response tokens of the batch.
    """
    mask = scored.rollout.mask
    returns = rewards.sum(dim=1)
    by_response = estimator(returns.view(-1, group_size)).view(-1, 1)
    advantages = torch.where(mask, by_response, 0.0)
    returns = torch.where(mask, returns[:, None], 0.0)
    return _experience(replace(scored, values=None), advantages, returns, whiten_advantages)


def _experience(
    scored: ScoredRollout, advantages: Tensor, returns: Tensor, whiten_advantages: bool
) -> Experience:
    mask = scored.rollout.mask
    if whiten_advantages:
        advantages = whiten(advantages, mask)
    if scored.importance is not None:
        # A weight on an advantage is one on the clipped surrogate: both of its sides carry it.
        advantages = advantages * scored.importance
    return Experience(
        rollout=scored.rollout,
        old_logprobs=scored.old_logprobs,
        ref_logprobs=scored.ref_logprobs,
        values=scored.values,
        advantages=advantages,
        returns=returns,
    )


def rollout_metrics(scored: ScoredRollout) -> dict[str, float]:
    """What the models say about a rollout, before anything is learned from it.

    ``kl`` is in nats per response and ``kl_per_token`` in nats per token, both by the unbiased
    estimator k1 whatever the reward uses; ``reward_model_score`` leaves the penalty for missing
    EOS out, and the terms of ``policy.rewards``, each of which has its mean score, before scale,
    clip and weight, as ``reward_term_<name>``; lengths are in tokens. Where an engine elsewhere
    sampled, ``engine_logprob_difference`` (mean, and ``_max``) is what it and the trainer differ by
    in a token's log-probability, nats, and ``truncated_weight_fraction`` the share of tokens whose
    importance weight was cut.
    """
    rollout, mask = scored.rollout, scored.rollout.mask
    kl = kl_k1(scored.old_logprobs, scored.ref_logprobs)
    num_tokens = int(mask.sum())
    return {
        "kl": float(kl[mask].sum()) / rollout.num_rows,
        "kl_per_token": float(kl[mask].sum()) / num_tokens,
        "reward_model_score": float(scored.scores.mean()),
        "response_length": num_tokens / rollout.num_rows,
        "eos_fraction": float(rollout.finished.float().mean()),
        "sampled_entropy": -float(masked_mean(scored.old_logprobs, mask)),
        **{f"reward_term_{name}": float(term.mean()) for name, term in scored.terms.items()},
        **_engine_metrics(scored),
    }


def _engine_metrics(scored: ScoredRollout) -> dict[str, float]:
    if scored.importance is None:
        return {}
    mask, own, sampled = scored.rollout.mask, scored.old_logprobs, scored.rollout.logprobs
    mean, most = logprob_difference(own[mask], sampled[mask])
    untruncated = torch.exp(own - sampled)[mask]
    return {
        "engine_logprob_difference": mean,
        "engine_logprob_difference_max": most,
        "truncated_weight_fraction": float((scored.importance[mask] < untruncated).float().mean()),
    }


def experience_metrics(experience: Experience, scores: Tensor, group_size: int) -> dict[str, float]:
    """What the policy is about to learn from.

    ``score_mean`` and ``score_std`` are of the final scores, penalty and scaling included.
    """
    of_scores = {
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std(correction=0)),
    }
    if experience.values is None:
        return of_scores | group_metrics(experience, group_size)
    mask = experience.rollout.mask
    values, returns = experience.values[mask], experience.returns[mask]
    return {
        **of_scores,
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std(correction=0)),
        "value_mean": float(values.mean()),
        "explained_variance": float(explained_variance(values, returns)),
    }


def group_metrics(experience: Experience, group_size: int) -> dict[str, float]:
    """What there is to tell the responses to one prompt apart by.

    ``return_mean`` and ``return_std`` are over the responses of the batch; ``group_return_std`` is
    the standard deviation within a group, averaged over groups: what the policy learns from.
    ``zero_advantage_fraction`` is the share of groups it learns nothing from: their returns are
    equal, but for rounding (``GROUP_EPS``).
    """
    returns = experience.returns[:, 0]  # a response has at least one token
    groups = returns.view(-1, group_size)
    settled = groups.amax(dim=1) - groups.amin(dim=1) <= GROUP_EPS
    return {
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std(correction=0)),
        "group_return_std": float(groups.std(dim=1, correction=0).mean()),
        "zero_advantage_fraction": float(settled.float().mean()),
    }
