import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.errors import ShapeError
from rlhf_core.functional.ppo import (
    clipped_fraction,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    logprob_mismatch,
    weights_of_tokens,
)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, -2.0),
        (1.5, 2.0, -2.4),  # gain capped at 1.2 * 2
        (0.5, 2.0, -1.0),  # no floor below for a good token
        (0.5, -2.0, 1.6),  # gain capped at 0.8 * -2
        (1.5, -2.0, 3.0),  # no ceiling for a bad token
    ],
)
def test_policy_loss_by_hand(ratio, advantage, expected):
    loss = clipped_policy_loss(
        torch.tensor([math.log(ratio) - 1.0]),
        torch.tensor([-1.0]),
        torch.tensor([advantage]),
        clip_eps=0.2,
    )
    assert loss.item() == pytest.approx(expected)


@settings(deadline=None)
@given(st.floats(-2, 2), st.floats(-3, 3), st.floats(0.05, 0.5))
def test_policy_loss_equals_the_case_by_case_definition(log_ratio, advantage, clip_eps):
    ratio = math.exp(log_ratio)
    if advantage >= 0:
        objective = advantage * min(ratio, 1 + clip_eps)
    else:
        objective = advantage * max(ratio, 1 - clip_eps)
    loss = clipped_policy_loss(
        torch.tensor(log_ratio, dtype=torch.float64),
        torch.tensor(0.0, dtype=torch.float64),
        torch.tensor(advantage, dtype=torch.float64),
        clip_eps=clip_eps,
    )
    assert loss.item() == pytest.approx(-objective, abs=1e-9)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.25, 2.0, -2.5),  # below the ceiling of 1.28
        (1.5, 2.0, -2.56),  # gain capped at 1.28 * 2
        (0.5, -2.0, 1.6),  # the floor stays at 0.8
    ],
)
def test_a_higher_ceiling_by_hand(ratio, advantage, expected):
    loss = clipped_policy_loss(
        torch.tensor([math.log(ratio)]),
        torch.tensor([0.0]),
        torch.tensor([advantage]),
        clip_eps=0.2,
        clip_eps_high=0.28,
    )
    assert loss.item() == pytest.approx(expected)


def test_what_lies_between_the_two_bounds_is_not_clipped():
    logprobs = torch.tensor([0.75, 0.85, 1.0, 1.25, 1.3]).log()
    fraction = clipped_fraction(logprobs, torch.zeros(5), clip_eps=0.2, clip_eps_high=0.28)
    assert fraction.item() == pytest.approx(0.4)


def test_at_ratio_one_the_gradient_is_the_policy_gradient():
    logprobs = torch.tensor([-1.0, -2.0, -0.3], requires_grad=True)
    advantages = torch.tensor([0.7, -1.1, 2.0])
    clipped_policy_loss(logprobs, logprobs.detach(), advantages, clip_eps=0.2).sum().backward()
    torch.testing.assert_close(logprobs.grad, -advantages)


def test_beyond_the_clip_a_token_that_already_gained_has_no_gradient():
    old = torch.tensor([-1.0, -1.0])
    logprobs = torch.tensor([-0.5, -1.5], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0])
    clipped_policy_loss(logprobs, old, advantages, clip_eps=0.2).sum().backward()
    assert torch.equal(logprobs.grad, torch.zeros(2))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1, 0.405),  # inside the range: (0.1 - 1)^2 / 2
        (0.5, 0.32),  # moved past the range towards the return: error of 0.2 counts
        (-0.5, 1.125),  # moved away: own error is larger
    ],
)
def test_value_loss_by_hand(value, expected):
    loss = clipped_value_loss(
        torch.tensor([value]), torch.tensor([0.0]), torch.tensor([1.0]), clip_eps=0.2
    )
    assert loss.item() == pytest.approx(expected)


def test_value_loss_inside_the_range_is_half_the_squared_error():
    old, returns = torch.randn(50), torch.randn(50)
    values = old + (torch.rand(50) - 0.5) * 0.38
    loss = clipped_value_loss(values, old, returns, clip_eps=0.2)
    torch.testing.assert_close(loss, (values - returns) ** 2 / 2)


def test_clipped_fraction_by_hand():
    logprobs = torch.log(torch.tensor([1.0, 1.19, 1.21, 0.79]))
    assert clipped_fraction(logprobs, torch.zeros(4), clip_eps=0.2).item() == 0.5


def test_explained_variance_by_hand():
    returns = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert explained_variance(returns, returns).item() == 1.0
    assert explained_variance(torch.full((4,), 7.0), returns).item() == pytest.approx(0.0)
    assert explained_variance(-returns, returns).item() == pytest.approx(-3.0)
    assert math.isnan(explained_variance(returns, torch.ones(4)).item())


def test_mismatch_by_hand():
    assert logprob_mismatch(torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -2.0])).item() == 1.0
    apart = logprob_mismatch(torch.tensor([-1.0, -2.0]), torch.tensor([-1.1, -1.9]))
    assert apart.item() == pytest.approx(math.exp(0.1))


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        ("tokens", [1.0, 1.0]),  # (2 + 6) tokens of losses 4 and 1: (8 + 6) / 8
        ("responses", [2.0, 2 / 3]),  # 8 / (2 * 2), 8 / (2 * 6)
        ("max_new_tokens", [0.4, 0.4]),  # 8 / (2 * 10)
    ],
)
def test_weights_of_tokens_by_hand(average, expected):
    weights = weights_of_tokens(torch.tensor([2, 6]), average, longest=10)
    torch.testing.assert_close(weights, torch.tensor(expected))
    mean = float((weights * torch.tensor([2 * 4.0, 6 * 1.0])).sum() / 8)
    of_losses = {"tokens": 14 / 8, "responses": (4 + 1) / 2, "max_new_tokens": 14 / 20}
    assert mean == pytest.approx(of_losses[average])


def test_extremes_stay_finite():
    loss = clipped_policy_loss(
        torch.tensor([0.0]), torch.tensor([-80.0]), torch.tensor([1.0]), clip_eps=0.2
    )
    assert loss.item() == pytest.approx(-1.2)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: clipped_policy_loss(a, a, b, clip_eps=0.2),
        lambda a, b: clipped_value_loss(a, a, b, clip_eps=0.2),
        lambda a, b: clipped_fraction(a, b, clip_eps=0.2),
        explained_variance,
        logprob_mismatch,
    ],
)
def test_shapes_that_would_broadcast_are_refused(function):
    with pytest.raises(ShapeError):
        function(torch.zeros(3), torch.zeros(3, 1))
