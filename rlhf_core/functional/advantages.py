"""How much better than expected: against a value function, or against the group of a prompt."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_core.errors import ShapeError
from rlhf_core.functional.shapes import require_same_shape

GROUP_EPS = 1e-4
"""Added to a group's standard deviation, in the unit of the returns. Far above the rounding of
float32 scores, so that returns which differ by rounding alone give advantages near 0 and not 1."""


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float
) -> Tensor:
    """Generalized advantage estimation over right-padded responses.

        delta_t = r_t + gamma * v_{t+1} - v_t
        A_t     = delta_t + gamma * gae_lambda * A_{t+1}

    with v = 0 and A = 0 after the last response token. The return that the value function
    learns is A_t + v_t. Schulman et al. (2016), arXiv:1506.02438, eq. 16.

    Args:
        rewards: [B, T] reward of each response token.
        values: [B, T] value estimate before each response token.
        mask: [B, T] bool, True on response tokens; each row is True up to its length.
        gamma: discount per token, 0 to 1.
        gae_lambda: 0 gives the one-step TD error, 1 gives return minus value.

    Returns:
        [B, T] advantages, 0.0 where ``mask`` is False.

    Raises:
        ShapeError: the three shapes differ.
    """
    require_same_shape(rewards=rewards, values=values, mask=mask)
    rewards = torch.where(mask, rewards, 0.0)
    values = torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(mask[:, t], delta + gamma * gae_lambda * next_advantage, 0.0)
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages


def leave_one_out_advantages(returns: Tensor) -> Tensor:
    """Return of each response less the mean return of the other responses to its prompt (RLOO).

        A_bi = R_bi - 1 / (G - 1) * sum_{j != i} R_bj

    Unbiased, for the baseline of a response does not depend on it; G / (G - 1) times its distance
    from the mean of all. Kool et al. (2019), "Buy 4 REINFORCE samples, get a baseline for free!";
    Ahmadian et al. (2024), arXiv:2402.14740, the RLOO estimator, where G is k.

    Args:
        returns: [B, G] return of each of G >= 2 responses to each of B prompts.

    Returns:
        [B, G] advantages in the unit of ``returns``; exactly 0.0 where a group's are all equal.

    Raises:
        ShapeError: ``returns`` is not [B, G] with at least two responses a prompt.
    """
    shifted = _from_first_of_group(returns)
    others = shifted.sum(dim=1, keepdim=True) - shifted
    return shifted - others / (returns.shape[1] - 1)


def group_relative_advantages(returns: Tensor) -> Tensor:
    """Return of each response in standard deviations from its group's mean (GRPO).

        A_bi = (R_bi - mean_b) / (std_b + 1e-4),   std_b = sqrt(mean_j (R_bj - mean_b)^2)

    Shao et al. (2024), arXiv:2402.03300, section 4.1.2 (outcome supervision). The paper leaves
    open which deviation; this one divides by G and not G - 1, as ``masked_variance`` does, for the
    group is all there is to normalise and no sample of it: the mean square of its advantages is 1.
    Dividing by G - 1 would make them all sqrt(1 - 1 / G) as large. Either way a prompt whose
    responses hardly differ weighs as much as one where much is at stake, a bias towards prompts
    that are nearly settled (Liu et al. 2025, "Dr. GRPO", arXiv:2503.20783), which
    ``leave_one_out_advantages`` does not have.

    Args:
        returns: [B, G] return of each of G >= 2 responses to each of B prompts.

    Returns:
        [B, G] advantages, dimensionless, at most sqrt(G - 1) from 0; exactly 0.0 where a group's
        returns are all equal.

    Raises:
        ShapeError: ``returns`` is not [B, G] with at least two responses a prompt.
    """
    centered = centered_advantages(returns)
    std = centered.square().mean(dim=1, keepdim=True).sqrt()
    return centered / (std + GROUP_EPS)


def centered_advantages(returns: Tensor) -> Tensor:
    """Return of each response less the mean return of its group (Dr. GRPO).

        A_bi = R_bi - mean_j R_bj

    GRPO without the division by the deviation, so that prompts which are nearly settled weigh no
    more than others; (G - 1) / G times ``leave_one_out_advantages``. Liu et al. (2025),
    arXiv:2503.20783, section 3.2.

    Args:
        returns: [B, G] return of each of G >= 2 responses to each of B prompts.

    Returns:
        [B, G] advantages in the unit of ``returns``; exactly 0.0 where a group's are all equal.

    Raises:
        ShapeError: ``returns`` is not [B, G] with at least two responses a prompt.
    """
    shifted = _from_first_of_group(returns)
    return shifted - shifted.mean(dim=1, keepdim=True)


def _from_first_of_group(returns: Tensor) -> Tensor:
    """Shift groups by their first return, so that equal ones are exactly 0 before any mean."""
    if returns.dim() != 2 or returns.shape[1] < 2:
        raise ShapeError(
            f"expected returns [B, G] of at least 2 responses a prompt, got {tuple(returns.shape)}"
        )
    return returns - returns[:, :1]


GROUP_ADVANTAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "rloo": leave_one_out_advantages,
    "grpo": group_relative_advantages,
    "dr_grpo": centered_advantages,
}
"""Estimators that need no value function, by their name in the settings."""
