import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.errors import ShapeError
from rlhf_core.functional.advantages import (
    GROUP_EPS,
    centered_advantages,
    generalized_advantages,
    group_relative_advantages,
    leave_one_out_advantages,
)


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


ESTIMATORS = (leave_one_out_advantages, group_relative_advantages, centered_advantages)


def test_leave_one_out_by_hand():
    # 1 - (2 + 6)/2 = -3;  2 - (1 + 6)/2 = -1.5;  6 - (1 + 2)/2 = 4.5
    returns = torch.tensor([[1.0, 2.0, 6.0], [-1.0, -1.0, 2.0]])
    torch.testing.assert_close(
        leave_one_out_advantages(returns), torch.tensor([[-3.0, -1.5, 4.5], [-1.5, -1.5, 3.0]])
    )


def test_group_relative_by_hand():
    # mean 3; squared distances 4, 1, 9, 0; variance 14 / 4, deviation 1.870829
    # -2 / 1.870929 = -1.068988;  -1 / ... = -0.534494;  3 / ... = 1.603481
    returns = torch.tensor([[1.0, 2.0, 6.0, 3.0]])
    torch.testing.assert_close(
        group_relative_advantages(returns),
        torch.tensor([[-1.068988, -0.534494, 1.603481, 0.0]]),
        atol=1e-6,
        rtol=0,
    )


def by_definition(estimator, group):
    """One group at a time, in Python's floats."""
    if estimator is leave_one_out_advantages:
        return [
            value - statistics.fmean(group[:index] + group[index + 1 :])
            for index, value in enumerate(group)
        ]
    if estimator is centered_advantages:
        return [value - statistics.fmean(group) for value in group]
    mean, std = statistics.fmean(group), statistics.pstdev(group)
    return [(value - mean) / (std + GROUP_EPS) for value in group]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@settings(deadline=None)
@given(size=st.integers(2, 8), seed=st.integers(0, 100), level=st.sampled_from([-30.0, 0.0, 5.0]))
def test_groups_are_measured_by_the_definition_each_alone(estimator, size, seed, level):
    generator = torch.Generator().manual_seed(seed)
    returns = level + 3 * torch.randn(5, size, generator=generator)
    advantages = estimator(returns)
    expected = [by_definition(estimator, group) for group in returns.tolist()]
    torch.testing.assert_close(advantages, torch.tensor(expected), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(advantages.sum(dim=1), torch.zeros(5), atol=1e-4, rtol=0)
    order = torch.randperm(size, generator=generator)
    torch.testing.assert_close(
        estimator(returns[:, order]), advantages[:, order], atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("value", [0.0, 0.1, -1.0, 1e6])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_a_group_of_equal_returns_has_no_advantage_at_all(estimator, value, size):
    advantages = estimator(torch.full((2, size), value))
    assert torch.equal(advantages, torch.zeros(2, size))


def test_centered_advantages_by_hand():
    returns = torch.tensor([[1.0, 2.0, 6.0]])
    assert centered_advantages(returns).tolist() == [[-2.0, -1.0, 3.0]]
    torch.testing.assert_close(
        centered_advantages(returns), leave_one_out_advantages(returns) * 2 / 3
    )


def test_rounding_of_equal_scores_is_not_blown_up_to_a_deviation():
    returns = torch.tensor([[5.0, 5.0 + 1e-6, 5.0 - 1e-6, 5.0]])
    assert group_relative_advantages(returns).abs().max() < 0.02


def test_group_relative_advantages_have_mean_square_one_and_a_bound():
    returns = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    squares = group_relative_advantages(returns).square().mean(dim=1)
    torch.testing.assert_close(squares, torch.ones(50), atol=5e-3, rtol=0)
    lone = group_relative_advantages(torch.tensor([[0.0, 0.0, 0.0, 1e9]]))
    assert lone.max().item() == pytest.approx(3**0.5)


def test_the_scale_of_the_returns_matters_to_rloo_and_not_to_grpo():
    """What Dr. GRPO calls a bias: a settled prompt weighs as much as an open one."""
    returns = torch.tensor([[1.0, 2.0, 4.0], [10.0, 20.0, 40.0]])
    rloo, grpo = leave_one_out_advantages(returns), group_relative_advantages(returns)
    torch.testing.assert_close(rloo[1], 10 * rloo[0])
    torch.testing.assert_close(grpo[1], grpo[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape", [(4,), (4, 1), (2, 2, 2)])
def test_returns_without_a_group_are_refused(estimator, shape):
    with pytest.raises(ShapeError, match="at least 2 responses"):
        estimator(torch.zeros(shape))
