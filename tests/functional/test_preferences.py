"""Bradley-Terry and DPO losses: by hand, by definition, identities, extremes."""

import math

import pytest
import torch

from rlhf_core.errors import ShapeError
from rlhf_core.functional.bradley_terry import soft_bradley_terry_loss
from rlhf_core.functional.dpo import (
    dpo_loss,
    implicit_rewards,
    ipo_loss,
    orpo_loss,
    per_token,
    robust_dpo_loss,
    simpo_loss,
)


def certain_loss(chosen, rejected):
    """The loss where all annotators agree."""
    return soft_bradley_terry_loss(chosen, rejected, torch.ones_like(chosen))


def test_bradley_terry_by_hand():
    losses = certain_loss(torch.tensor([math.log(3.0), 0.0]), torch.tensor([0.0, 0.0]))
    assert losses.tolist() == pytest.approx([math.log(4 / 3), math.log(2)])


def test_probabilities_of_both_orders_add_to_one():
    chosen, rejected = torch.randn(2, 50, dtype=torch.float64)
    forward = torch.exp(-certain_loss(chosen, rejected))
    backward = torch.exp(-certain_loss(rejected, chosen))
    torch.testing.assert_close(forward + backward, torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(forward, chosen.exp() / (chosen.exp() + rejected.exp()))


def test_a_constant_added_to_all_scores_changes_nothing():
    chosen, rejected = torch.randn(2, 9, dtype=torch.float64)
    torch.testing.assert_close(
        certain_loss(chosen + 7, rejected + 7), certain_loss(chosen, rejected)
    )


def test_wide_gaps_stay_finite():
    chosen = torch.tensor([1e4, -1e4], requires_grad=True)
    losses = certain_loss(chosen, torch.zeros(2))
    assert losses.tolist() == [0.0, 1e4]
    losses.sum().backward()
    assert chosen.grad.tolist() == [0.0, -1.0]


def test_a_label_of_zero_is_certain_of_the_other():
    chosen, rejected = torch.randn(2, 9)
    torch.testing.assert_close(
        soft_bradley_terry_loss(chosen, rejected, torch.zeros(9)), certain_loss(rejected, chosen)
    )


def test_a_soft_label_is_cross_entropy_and_asks_for_its_log_odds():
    probability = torch.tensor([0.6, 0.75, 0.9], dtype=torch.float64)
    margin = torch.log(probability / (1 - probability)).requires_grad_()
    losses = soft_bradley_terry_loss(margin, torch.zeros(3), probability)
    entropy = torch.distributions.Bernoulli(probability).entropy()
    torch.testing.assert_close(losses, entropy)
    losses.sum().backward()
    torch.testing.assert_close(margin.grad, torch.zeros(3, dtype=torch.float64))


def test_implicit_reward_by_hand():
    rewards = implicit_rewards(torch.tensor([-3.0, -5.0]), torch.tensor([-4.0, -2.0]), beta=0.5)
    assert rewards.tolist() == [0.5, -1.5]


def test_dpo_at_the_reference_is_log_two():
    logprobs = torch.randn(6)
    rewards = implicit_rewards(logprobs, logprobs, beta=0.1)
    losses = dpo_loss(rewards[:3], rewards[3:], torch.ones(3))
    assert losses.tolist() == pytest.approx([math.log(2)] * 3)


def test_dpo_gradient_is_the_papers():
    """Rafailov et al. (2023), section 4: beta sigmoid(r_rejected - r_chosen), up and down."""
    logprobs = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(2, 4, dtype=torch.float64)
    chosen, rejected = implicit_rewards(logprobs, reference, beta=0.3)
    dpo_loss(chosen, rejected, torch.ones(4, dtype=torch.float64)).sum().backward()
    weight = 0.3 * torch.sigmoid(rejected - chosen).detach()
    torch.testing.assert_close(logprobs.grad, torch.stack([-weight, weight]))


def test_robust_dpo_by_hand_and_unbiased_over_flipped_labels():
    """With d = log 3: l(d) = log(4/3), l(-d) = log 4, noise 0.2."""
    gap, zero = torch.tensor([math.log(3.0)], dtype=torch.float64), torch.zeros(1).double()
    loss = robust_dpo_loss(gap, zero, noise=0.2)
    assert loss.item() == pytest.approx((0.8 * math.log(4 / 3) - 0.2 * math.log(4)) / 0.6)
    chosen, rejected = torch.randn(2, 50, dtype=torch.float64)
    right = robust_dpo_loss(chosen, rejected, noise=0.3)
    wrong = robust_dpo_loss(rejected, chosen, noise=0.3)
    clean = dpo_loss(chosen, rejected, torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(0.7 * right + 0.3 * wrong, clean)
    torch.testing.assert_close(robust_dpo_loss(chosen, rejected, noise=0.0), clean)


def test_ipo_by_hand_and_its_minimum_is_the_margin():
    one = torch.ones(1, dtype=torch.float64)
    assert ipo_loss(one, -2 * one, one, beta=0.1).item() == pytest.approx(4.0)
    assert ipo_loss(one, -2 * one, 0.75 * one, beta=0.1).item() == pytest.approx(
        0.75 * (3 - 5) ** 2 + 0.25 * (3 + 5) ** 2
    )
    chosen = torch.tensor([5.0], dtype=torch.float64, requires_grad=True)
    ipo_loss(chosen, 0 * one, one, beta=0.1).sum().backward()
    assert chosen.grad.item() == 0.0


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 0.9])
def test_a_margin_is_asked_of_whichever_response_is_better(probability):
    """Naming the responses the other way round is the same label, so it is the same loss."""
    scores, label = torch.randn(2, 50), torch.full((50,), probability)
    one = soft_bradley_terry_loss(*scores, label, 0.7)
    torch.testing.assert_close(soft_bradley_terry_loss(*scores.flip(0), 1 - label, 0.7), one)
    other = simpo_loss(*scores.flip(0), 1 - label, target_margin=0.7)
    torch.testing.assert_close(other, one)
    # -p log sigmoid(d - m) - (1 - p) log sigmoid(-d - m) at d = 0.
    level = soft_bradley_terry_loss(torch.zeros(1), torch.zeros(1), label[:1], 0.7)
    assert level.item() == pytest.approx(-math.log(1 / (1 + math.exp(0.7))))


def test_simpo_by_hand_and_by_definition():
    chosen, rejected, sure = torch.tensor([1.5]), torch.tensor([1.0]), torch.ones(1)
    loss = simpo_loss(chosen, rejected, sure, target_margin=0.5)
    assert loss.item() == pytest.approx(math.log(2))
    chosen, rejected = torch.randn(2, 50, dtype=torch.float64)
    loss = simpo_loss(chosen, rejected, torch.ones(50).double(), target_margin=0.3)
    torch.testing.assert_close(loss, torch.log1p(torch.exp(rejected + 0.3 - chosen)))


def test_orpo_by_hand_and_by_definition():
    """p = 3/4 against p = 1/2: odds 3 and 1, so the odds ratio wins with 3/4."""
    logprobs = torch.tensor([[3 / 4], [1 / 2]], dtype=torch.float64).log()
    expected = math.log(4 / 3) + 0.1 * math.log(4 / 3)
    assert orpo_loss(*logprobs, weight=0.1).item() == pytest.approx(expected)
    probabilities = torch.rand(2, 50, dtype=torch.float64) * 0.98 + 0.01
    odds = probabilities / (1 - probabilities)
    expected = -probabilities[0].log() - 0.3 * (odds[0] / (odds[0] + odds[1])).log()
    torch.testing.assert_close(orpo_loss(*probabilities.log(), weight=0.3), expected)


def test_orpo_stays_exact_and_finite_at_both_ends():
    logprobs = torch.tensor([[-1e-7, -200.0], [-200.0, -1e-7]], requires_grad=True)
    losses = orpo_loss(*logprobs, weight=1.0)
    losses.sum().backward()
    log_odds = -1e-7 - math.log(1e-7)
    assert losses.tolist() == pytest.approx([1e-7, 400.0 + log_odds], rel=1e-5, abs=1e-6)
    assert bool(torch.isfinite(logprobs.grad).all())


@pytest.mark.parametrize("chosen", [0.0, -1e-9, -3e-8, -0.3, -0.7, -30.0])
def test_orpo_has_a_gradient_of_a_response_as_good_as_certain(chosen):
    """Rounded to float32 the mean of a memorised response is 0, or next to it."""
    logprobs = torch.tensor([chosen], requires_grad=True)
    orpo_loss(logprobs, torch.tensor([-1.0]), weight=0.1).backward()
    exact = torch.tensor([min(chosen, -1e-12)], dtype=torch.float64, requires_grad=True)
    odds = exact - torch.log(-torch.expm1(exact))
    other = -1.0 - math.log(-math.expm1(-1.0))
    (-exact - 0.1 * torch.nn.functional.logsigmoid(odds - other)).backward()
    assert float(logprobs.grad) == pytest.approx(float(exact.grad), rel=1e-4 if chosen else 0.1)


def test_per_token_is_the_mean_of_a_response():
    sums, lengths = torch.tensor([[-6.0, -3.0]]), torch.tensor([[3, 2]])
    assert per_token(sums, lengths).tolist() == [[-2.0, -1.5]]


def test_shapes_are_refused():
    with pytest.raises(ShapeError, match="rejected_logprobs"):
        orpo_loss(torch.zeros(3), torch.zeros(3, 1), weight=0.1)
    with pytest.raises(ShapeError, match="probability"):
        ipo_loss(torch.zeros(3), torch.zeros(3), torch.zeros(1), beta=0.1)
    with pytest.raises(ShapeError, match="rejected_rewards"):
        robust_dpo_loss(torch.zeros(3), torch.zeros(1), noise=0.1)
    with pytest.raises(ShapeError, match="lengths"):
        per_token(torch.zeros(3), torch.zeros(1))
    with pytest.raises(ShapeError, match="rejected_scores"):
        certain_loss(torch.zeros(3), torch.zeros(3, 1))
    with pytest.raises(ShapeError, match="probability"):
        soft_bradley_terry_loss(torch.zeros(3), torch.zeros(3), torch.zeros(1))
    with pytest.raises(ShapeError, match="ref_logprobs"):
        implicit_rewards(torch.zeros(2), torch.zeros(3), beta=1.0)
