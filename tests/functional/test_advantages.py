import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.errors import ShapeError
from rlhf_core.functional.advantages import generalized_advantages


def padded_case(seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([5, 1, 3, 4])
    mask = torch.arange(5) < lengths[:, None]
    rewards = torch.randn(4, 5, generator=generator)
    values = torch.randn(4, 5, generator=generator)
    return rewards, values, mask, lengths


def test_two_tokens_by_hand():
    # delta_1 = 1 - 0.5 = 0.5;  delta_0 = 0 + 0.9 * 0.5 - 0.2 = 0.25
    # A_1 = 0.5;  A_0 = 0.25 + 0.9 * 0.8 * 0.5 = 0.61
    advantages = generalized_advantages(
        torch.tensor([[0.0, 1.0]]),
        torch.tensor([[0.2, 0.5]]),
        torch.ones(1, 2, dtype=torch.bool),
        gamma=0.9,
        gae_lambda=0.8,
    )
    torch.testing.assert_close(advantages, torch.tensor([[0.61, 0.5]]))


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 100))
def test_recursion_equals_the_sum_of_equation_16(gamma, gae_lambda, seed):
    rewards, values, mask, lengths = padded_case(seed)
    advantages = generalized_advantages(rewards, values, mask, gamma=gamma, gae_lambda=gae_lambda)
    for row, length in enumerate(lengths.tolist()):
        r, v = rewards[row, :length].tolist(), [*values[row, :length].tolist(), 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            expected = sum((gamma * gae_lambda) ** k * delta[t + k] for k in range(length - t))
            assert advantages[row, t].item() == pytest.approx(expected, abs=1e-5)


def test_lambda_one_is_return_minus_value_and_lambda_zero_the_td_error():
    rewards, values, mask, _ = padded_case()
    rewards = torch.where(mask, rewards, 0.0)
    monte_carlo = generalized_advantages(rewards, values, mask, gamma=1.0, gae_lambda=1.0)
    returns = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(monte_carlo, torch.where(mask, returns - values, 0.0))
    one_step = generalized_advantages(rewards, values, mask, gamma=1.0, gae_lambda=0.0)
    next_values = torch.cat([torch.where(mask, values, 0.0)[:, 1:], torch.zeros(4, 1)], 1)
    torch.testing.assert_close(one_step, torch.where(mask, rewards + next_values - values, 0.0))


def test_padding_cannot_change_the_answer():
    rewards, values, mask, _ = padded_case()
    clean = generalized_advantages(rewards, values, mask, gamma=1.0, gae_lambda=0.95)
    dirty = generalized_advantages(
        torch.where(mask, rewards, torch.nan),
        torch.where(mask, values, torch.inf),
        mask,
        gamma=1.0,
        gae_lambda=0.95,
    )
    assert torch.equal(clean, dirty)
    wider = generalized_advantages(
        *(torch.nn.functional.pad(x, (0, 3)) for x in (rewards, values)),
        torch.nn.functional.pad(mask, (0, 3)),
        gamma=1.0,
        gae_lambda=0.95,
    )
    assert torch.equal(wider[:, :5], clean)
    assert torch.equal(wider[:, 5:], torch.zeros(4, 3))


def test_rows_do_not_know_each_other():
    rewards, values, mask, _ = padded_case()
    order = torch.tensor([2, 0, 3, 1])
    whole = generalized_advantages(rewards, values, mask, gamma=0.99, gae_lambda=0.95)
    shuffled = generalized_advantages(
        rewards[order], values[order], mask[order], gamma=0.99, gae_lambda=0.95
    )
    assert torch.equal(shuffled, whole[order])


def test_shapes_that_differ_are_refused():
    with pytest.raises(ShapeError, match="mask"):
        generalized_advantages(
            torch.zeros(2, 3),
            torch.zeros(2, 3),
            torch.ones(2, 4, dtype=torch.bool),
            gamma=1.0,
            gae_lambda=0.95,
        )
