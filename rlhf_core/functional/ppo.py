"""The two clipped losses of PPO and the numbers that tell whether it is healthy."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from rlhf_core.functional.kl import kl_k3
from rlhf_core.functional.shapes import require_same_shape


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_eps: float,
    clip_eps_high: float | None = None,
) -> Tensor:
    """Clipped surrogate objective of PPO, negated, one value per token.

        ratio = exp(logprobs - old_logprobs)
        loss  = -min(ratio * A, clip(ratio, 1 - clip_eps, 1 + clip_eps_high) * A)

    Schulman et al. (2017), arXiv:1707.06347, eq. 7; with a higher ceiling Yu et al. (2025),
    arXiv:2503.14476, section 3.1 ("clip-higher").

    Args:
        logprobs: any shape, sampled tokens under the policy being trained, nats.
        old_logprobs: same shape, the same tokens under the policy that sampled them.
        advantages: same shape, constants.
        clip_eps: > 0.
        clip_eps_high: > 0; None is ``clip_eps``.

    Returns:
        Same shape. The caller divides by all response tokens of the minibatch.

    Raises:
        ShapeError: the shapes differ.
    """
    require_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    ratio = torch.exp(logprobs - old_logprobs)
    high = clip_eps if clip_eps_high is None else clip_eps_high
    clipped = ratio.clamp(1.0 - clip_eps, 1.0 + high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def weights_of_tokens(
    lengths: Tensor, average: Literal["tokens", "responses", "max_new_tokens"], *, longest: int
) -> Tensor:
    """Weight of each response's tokens, with which the mean over all tokens is another mean.

        tokens          1
        responses       N / (R n_i), so that (1 / N) sum w loss = (1 / R) sum_i (1 / n_i) sum loss
        max_new_tokens  N / (R L),   so that (1 / N) sum w loss = (1 / (R L)) sum loss

    with N tokens in R responses of n_i. Yu et al. (2025), arXiv:2503.14476, eq. 8; Shao et al.
    (2024), arXiv:2402.03300, eq. 3; Liu et al. (2025), arXiv:2503.20783, section 3.2.

    Args:
        lengths: [R] tokens of each response, n_i > 0.
        average: which mean.
        longest: L, the longest response that is sampled.

    Returns:
        [R] float32.
    """
    num_tokens, share = lengths.sum().float(), 1.0 / len(lengths)
    if average == "responses":
        return num_tokens * share / lengths
    if average == "max_new_tokens":
        return (num_tokens * share / longest).expand(len(lengths))
    return torch.ones(len(lengths), device=lengths.device)


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip_eps: float
) -> Tensor:
    """Squared error of the value function, pessimistic about large moves, one value per token.

        v_clip = clip(values, old_values - clip_eps, old_values + clip_eps)
        loss   = max((values - returns)^2, (v_clip - returns)^2) / 2

    Ziegler et al. (2019), arXiv:1909.08593 (code); Huang et al. (2024), arXiv:2403.17031, value
    function clipping.

    Args:
        values: any shape, value estimates being trained.
        old_values: same shape, estimates at the time of the rollout.
        returns: same shape, advantages + old values, before whitening.
        clip_eps: > 0, in the unit of the values.

    Returns:
        Same shape. The caller divides by all response tokens of the minibatch.

    Raises:
        ShapeError: the shapes differ.
    """
    require_same_shape(values=values, old_values=old_values, returns=returns)
    clipped = torch.clamp(values, old_values - clip_eps, old_values + clip_eps)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


def clipped_fraction(
    logprobs: Tensor,
    old_logprobs: Tensor,
    *,
    clip_eps: float,
    clip_eps_high: float | None = None,
) -> Tensor:
    """Share of tokens whose importance ratio lies outside the clip range.

        moved    = exp(logprobs - old_logprobs) - 1
        fraction = mean(moved < -clip_eps or moved > clip_eps_high)

    Args:
        logprobs: [N] sampled tokens under the policy being trained, nats.
        old_logprobs: [N] the same tokens under the policy that sampled them.
        clip_eps: > 0.
        clip_eps_high: > 0; None is ``clip_eps``.

    Returns:
        Scalar, 0 to 1.

    Raises:
        ShapeError: the shapes differ.
    """
    require_same_shape(logprobs=logprobs, old_logprobs=old_logprobs)
    moved = torch.expm1(logprobs - old_logprobs)
    high = clip_eps if clip_eps_high is None else clip_eps_high
    return ((moved < -clip_eps) | (moved > high)).float().mean()


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """Share of the variance of the returns that the value function foresaw.

        ev = 1 - var(returns - values) / var(returns)

    1 is perfect, 0 no better than a constant, negative worse than one. NaN when the returns do
    not vary, for then there was nothing to explain.

    Args:
        values: [N] value estimates at the time of the rollout.
        returns: [N] what came.

    Returns:
        Scalar, at most 1.

    Raises:
        ShapeError: the shapes differ.
    """
    require_same_shape(values=values, returns=returns)
    spread = returns.var(correction=0)
    explained = 1.0 - (returns - values).var(correction=0) / spread
    return torch.where(spread > 0, explained, torch.nan)


def logprob_mismatch(logprobs: Tensor, sampled_logprobs: Tensor) -> Tensor:
    """How far sampler and trainer disagree about the same tokens under the same weights.

        mismatch = mean(exp(|logprobs - sampled_logprobs|))

    1 is perfect agreement. A sampler with another precision or kernel drifts above it, and
    training becomes off-policy without saying so. Yao et al. (2025), "Your efficient RL
    framework secretly brings you off-policy RL training".

    Args:
        logprobs: [N] sampled tokens under the trainer's forward pass, nats.
        sampled_logprobs: [N] as the sampler reported them.

    Returns:
        Scalar, >= 1.

    Raises:
        ShapeError: the shapes differ.
    """
    require_same_shape(logprobs=logprobs, sampled_logprobs=sampled_logprobs)
    return (logprobs - sampled_logprobs).abs().exp().mean()


def truncated_importance_weights(
    logprobs: Tensor, sampled_logprobs: Tensor, *, most: float
) -> Tensor:
    """Weights that make up for a sampler that is not quite the policy, one value per token.

        weight = min(exp(logprobs - sampled_logprobs), most)

    Yao et al. (2025), "Your efficient RL framework secretly brings you off-policy RL training"
    (truncated importance sampling); the rho-bar of Espeholt et al. (2018), arXiv:1802.01561, eq. 1.

    Args:
        logprobs: any shape, sampled tokens under the trainer's forward pass, nats.
        sampled_logprobs: same shape, as the sampler reported them.
        most: > 0, the largest weight.

    Returns:
        Same shape, 0 to ``most``.

    Raises:
        ShapeError: the shapes differ.
    """
    require_same_shape(logprobs=logprobs, sampled_logprobs=sampled_logprobs)
    return torch.exp(logprobs - sampled_logprobs).clamp(max=most)


@dataclass(frozen=True, eq=False)
class PolicyTerms:
    """What a pass over response tokens showed of the policy: [M] each, with no gradient."""

    losses: Tensor
    logprobs: Tensor
    old_logprobs: Tensor
    sampled_logprobs: Tensor
    entropy: Tensor

    def metrics(self, *, clip_eps: float, clip_eps_high: float | None) -> dict[str, float]:
        """Health of a step, averaged over tokens."""
        clipped = clipped_fraction(
            self.logprobs,
            self.old_logprobs,
            clip_eps=clip_eps,
            clip_eps_high=clip_eps_high,
        )
        return {
            "policy_loss": float(self.losses.mean()),
            "entropy": float(self.entropy.mean()),
            "clip_fraction": float(clipped),
            "approx_kl": float(kl_k3(self.old_logprobs, self.logprobs).mean()),
        }

    @classmethod
    def joined(cls, parts: Sequence["PolicyTerms"]) -> "PolicyTerms":
        """Join micro-batches into their minibatch."""
        names = [field.name for field in fields(cls)]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
