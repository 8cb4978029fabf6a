"""The update of one PPO iteration: epochs of minibatches over one batch of experience."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_core.config import PpoConfig
from rlhf_core.errors import DivergedError
from rlhf_core.functional.kl import kl_k1, kl_k2, kl_k3
from rlhf_core.functional.ppo import (
    clipped_fraction,
    clipped_policy_loss,
    clipped_value_loss,
    logprob_mismatch,
)
from rlhf_core.models import hidden_states, losses_from_hidden, token_values
from rlhf_core.rollout.experience import Experience, require_values
from rlhf_core.tokenization import TokenBatch
from rlhf_core.trainers.loop import Optimization, shuffled

Metrics = dict[str, float]

KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": kl_k1,
    "k2": kl_k2,
    "k3": kl_k3,
}


@dataclass(frozen=True, eq=False)
class Update:
    """What one iteration's update works on."""

    experience: Experience
    minibatches: Sequence[Sequence[int]]
    """Rows of each optimiser step."""
    settings: PpoConfig
    kl_coef: float
    """Weight of the KL, read where it is a loss."""
    mix: Callable[[], Metrics]
    """Adds the gradients of other losses before each policy step and returns their metrics."""

    def micro_batches(self, rows: Sequence[int]) -> list[list[int]]:
        """Cut a minibatch by the token budget."""
        return self.experience.rollout.micro_batches(rows, budget=self.settings.micro_batch_tokens)

    def num_tokens(self, rows: Sequence[int]) -> int:
        """Response tokens of a minibatch: what its losses are divided by."""
        return int(self.experience.rollout.mask[torch.as_tensor(rows)].sum())


@dataclass(frozen=True, eq=False)
class PolicyTerms:
    """What a pass over response tokens showed of the policy: [M] each, with no gradient."""

    losses: Tensor
    logprobs: Tensor
    old_logprobs: Tensor
    sampled_logprobs: Tensor
    entropy: Tensor

    def metrics(self, settings: PpoConfig) -> Metrics:
        """Health of a step, averaged over tokens."""
        clipped = clipped_fraction(
            self.logprobs,
            self.old_logprobs,
            clip_eps=settings.clip_eps,
            clip_eps_high=settings.clip_eps_high,
        )
        return {
            "policy_loss": float(self.losses.mean()),
            "entropy": float(self.entropy.mean()),
            "clip_fraction": float(clipped),
            "approx_kl": float(kl_k3(self.old_logprobs, self.logprobs).mean()),
        }


def plan_minibatches(
    num_rows: int, *, settings: PpoConfig, iteration: int, seed: int
) -> list[list[int]]:
    """Rows of every minibatch of an iteration; each epoch visits all rows in an order of its own.

    The responses to one prompt stay together, so that their prompt is computed once.

    Args:
        num_rows: responses in the batch.
        settings: epochs, minibatches, responses per prompt.
        iteration: and ``seed``: what the orders depend on, besides the epoch.
        seed: of the run.
    """
    group, size = settings.responses_per_prompt, num_rows // settings.num_minibatches
    minibatches: list[list[int]] = []
    for epoch in range(settings.num_epochs):
        number = iteration * settings.num_epochs + epoch
        order = [
            prompt * group + response
            for prompt in shuffled(num_rows // group, seed=seed, epoch=number)
            for response in range(group)
        ]
        minibatches += [order[start : start + size] for start in range(0, num_rows, size)]
    return minibatches


def update_policy(optimization: Optimization, update: Update) -> Metrics:
    """Take one policy step per minibatch.

    Returns:
        Means over all steps, and what the first minibatch said about ratio and mismatch.

    Raises:
        DivergedError: not finite, or the first ratio is not 1, or sampler and trainer disagree.
    """
    first: Metrics = {}
    steps: list[Metrics] = []
    for rows in update.minibatches:
        seen = accumulate_policy_gradient(optimization, update, rows)
        first = first or require_first_ratio_one(seen, update.settings)
        metrics = seen.metrics(update.settings) | update.mix()
        steps.append(metrics | optimization.apply(metrics["policy_loss"]))
    return {**mean_metrics(steps), **first}


def accumulate_policy_gradient(
    optimization: Optimization, update: Update, rows: Sequence[int]
) -> PolicyTerms:
    """Add the gradient of the minibatch's policy loss.

        loss = sum over its response tokens of (clipped surrogate [+ kl_coef * KL]) / their number

    The denominator is the whole minibatch's, so micro-batches do not change the gradient.
    """
    num_tokens, parts = update.num_tokens(rows), []
    for micro in update.micro_batches(rows):
        batch = update.experience.rollout.pack(micro)
        hidden = hidden_states(optimization.model, batch, batch.predictor_positions)
        total, terms = policy_terms(optimization.model, hidden, batch, update, micro)
        (total / num_tokens).backward()
        parts.append(terms)
    return join_terms(parts)


def policy_terms(
    model: nn.Module, hidden: Tensor, batch: TokenBatch, update: Update, rows: Sequence[int]
) -> tuple[Tensor, PolicyTerms]:
    """Losses of the response tokens of ``rows``, packed in ``batch``; hidden states are [M, H].

    Returns:
        [] their sum, the one that has a gradient, and what the pass showed.
    """
    experience, settings = update.experience, update.settings
    old, ref, advantages, sampled = experience.at(
        rows,
        experience.old_logprobs,
        experience.ref_logprobs,
        experience.advantages,
        experience.rollout.logprobs,
    )

    def loss_of(logprobs: Tensor, part: slice) -> Tensor:
        loss = clipped_policy_loss(
            logprobs,
            old[part],
            advantages[part],
            clip_eps=settings.clip_eps,
            clip_eps_high=settings.clip_eps_high,
        )
        if settings.kl_placement == "loss":
            loss = loss + update.kl_coef * KL_ESTIMATORS[settings.kl_estimator](logprobs, ref[part])
        return loss

    seen = losses_from_hidden(model, hidden, batch, loss_of, settings.temperature)
    return seen.total, PolicyTerms(seen.losses, seen.logprobs, old, sampled, seen.entropy)


def join_terms(parts: Sequence[PolicyTerms]) -> PolicyTerms:
    """Join micro-batches into their minibatch."""
    return PolicyTerms(
        losses=torch.cat([part.losses for part in parts]),
        logprobs=torch.cat([part.logprobs for part in parts]),
        old_logprobs=torch.cat([part.old_logprobs for part in parts]),
        sampled_logprobs=torch.cat([part.sampled_logprobs for part in parts]),
        entropy=torch.cat([part.entropy for part in parts]),
    )


def require_first_ratio_one(seen: PolicyTerms, settings: PpoConfig) -> Metrics:
    """Check that trainer and sampler see the same policy before it has moved.

    Raises:
        DivergedError: they do not; every importance ratio of the run would be wrong.
    """
    error = float(torch.expm1(seen.logprobs - seen.old_logprobs).abs().max())
    mismatch = float(logprob_mismatch(seen.logprobs, seen.sampled_logprobs))
    for name, found, limit in (
        ("max_ratio_error", error, settings.max_ratio_error),
        ("max_logprob_mismatch", mismatch, settings.max_logprob_mismatch),
    ):
        if not found <= limit:
            raise DivergedError(
                f"sampler and trainer disagree about the same policy: {found:.3g} is past "
                f"policy.{name} {limit:.3g}; with low precision set recompute_old_logprobs"
            )
    return {"first_ratio_error": error, "logprob_mismatch": mismatch}


def update_value(optimization: Optimization, update: Update) -> Metrics:
    """Take one step of the value model per minibatch."""
    steps: list[Metrics] = []
    for rows in update.minibatches:
        num_tokens, parts = update.num_tokens(rows), []
        for micro in update.micro_batches(rows):
            values = token_values(optimization.model, update.experience.rollout.pack(micro))
            loss, moved = value_terms(values, update, micro)
            (update.settings.value_coef * loss.sum() / num_tokens).backward()
            parts.append((loss.detach(), moved))
        steps.append(value_step(optimization, parts))
    return mean_metrics(steps)


def value_terms(values: Tensor, update: Update, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Loss per response token of ``rows`` from values [M], and whether each left the clip range."""
    experience, clip_eps = update.experience, update.settings.value_clip_eps
    old, returns = experience.at(rows, require_values(experience.values), experience.returns)
    loss = clipped_value_loss(values, old, returns, clip_eps=clip_eps)
    return loss, (values.detach() - old).abs() > clip_eps


def value_step(optimization: Optimization, parts: Sequence[tuple[Tensor, Tensor]]) -> Metrics:
    """Step on the gradients gathered from micro-batches with these ``value_terms``."""
    loss = float(torch.cat([loss for loss, _ in parts]).mean())
    taken = optimization.apply(loss)
    return {
        "value_loss": loss,
        "value_clip_fraction": float(torch.cat([moved for _, moved in parts]).float().mean()),
        "value_grad_norm": taken["grad_norm"],
        "value_learning_rate": taken["learning_rate"],
    }


def mean_metrics(steps: Sequence[Metrics]) -> Metrics:
    """Average each metric over the steps."""
    return {name: math.fsum(step[name] for step in steps) / len(steps) for name in steps[0]}
