import torch
from torch import Tensor

from rlhf_core.functional.shapes import require_same_shape


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
