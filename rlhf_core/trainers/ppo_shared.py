"""Policy and value function on one trunk: a value head reads the policy's hidden states."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rlhf_core.models import hidden_states, output_head
from rlhf_core.trainers.loop import Optimization
from rlhf_core.trainers.ppo_update import (
    Metrics,
    Update,
    join_terms,
    mean_metrics,
    policy_terms,
    require_first_ratio_one,
    value_step,
    value_terms,
)


def fresh_value_head(policy: nn.Module) -> nn.Linear:
    """Return a head that values every state at 0, so that it draws nothing at random."""
    weight, _ = output_head(policy)
    head = nn.Linear(weight.shape[1], 1, device=weight.device, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def value_of_hidden(head: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function from hidden states [M, H] to values [M], float32 under autocast too."""

    def values(hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            out: Tensor = head(hidden.float()).squeeze(-1)
        return out

    return values


def update_shared(
    policy: Optimization, head: Optimization, update: Update, *, policy_frozen: bool
) -> Metrics:
    """Take one step of trunk and value head per minibatch.

        loss = policy loss + value_coef * value loss, each a mean over the minibatch's tokens

    Both gradients meet in the trunk; trunk and head are clipped and stepped apart.

    Args:
        policy: optimisation of the policy, trunk included.
        head: optimisation of the value head.
        update: what to learn from.
        policy_frozen: warm-up of the critic: the head learns, the trunk stays.
    """
    first: Metrics = {}
    steps: list[Metrics] = []
    for rows in update.minibatches:
        num_tokens = update.num_tokens(rows)
        policy_parts, value_parts = [], []
        for micro in update.micro_batches(rows):
            batch = update.experience.rollout.pack(micro)
            with torch.set_grad_enabled(not policy_frozen):
                hidden = hidden_states(policy.model, batch, batch.predictor_positions)
            values = value_of_hidden(head.model)(hidden)
            value_loss, moved = value_terms(values, update, micro)
            total = update.settings.value_coef * value_loss.sum()
            if not policy_frozen:
                policy_loss, terms = policy_terms(policy.model, hidden, batch, update, micro)
                total = total + policy_loss
                policy_parts.append(terms)
            (total / num_tokens).backward()
            value_parts.append((value_loss.detach(), moved))
        metrics = value_step(head, value_parts)
        if policy_parts:
            seen = join_terms(policy_parts)
            first = first or require_first_ratio_one(seen, update.settings)
            metrics |= seen.metrics(update.settings) | update.mix()
            metrics |= policy.apply(metrics["policy_loss"])
        steps.append(metrics)
    return {**mean_metrics(steps), **first}
