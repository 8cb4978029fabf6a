import pytest
import torch

from rlhf_core.errors import ShapeError
from rlhf_core.functional.rewards import penalize_unfinished, scale_scores, token_rewards
from rlhf_core.functional.running_moments import RunningMoments, update_moments

MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_rewards_by_hand():
    rewards = token_rewards(
        torch.tensor([2.0, -3.0]),
        torch.tensor([[0.1, -0.2, 0.3], [0.4, 9.0, 9.0]]),
        MASK,
        kl_coef=0.5,
    )
    expected = torch.tensor([[-0.05, 0.1, 1.85], [-3.2, 0.0, 0.0]])
    torch.testing.assert_close(rewards, expected)


def test_sum_of_rewards_is_score_minus_weighted_kl():
    scores, kl = torch.randn(2), torch.randn(2, 3)
    total = token_rewards(scores, kl, MASK, kl_coef=0.3).sum(1)
    torch.testing.assert_close(total, scores - 0.3 * torch.where(MASK, kl, 0.0).sum(1))


def test_padding_cannot_change_the_rewards():
    kl = torch.randn(2, 3)
    dirty = torch.where(MASK, kl, torch.nan)
    scores = torch.randn(2)
    assert torch.equal(
        token_rewards(scores, kl, MASK, kl_coef=0.3),
        token_rewards(scores, dirty, MASK, kl_coef=0.3),
    )


def test_inputs_are_left_alone():
    kl, scores = torch.randn(2, 3), torch.randn(2)
    before = kl.clone(), scores.clone()
    token_rewards(scores, kl, MASK, kl_coef=0.0)
    assert torch.equal(kl, before[0])
    assert torch.equal(scores, before[1])


def test_rewards_refuse_scores_of_another_batch():
    with pytest.raises(ShapeError, match="scores"):
        token_rewards(torch.zeros(3), torch.zeros(2, 3), MASK, kl_coef=0.1)


def test_unfinished_responses_get_the_fixed_penalty_whatever_the_reward_model_says():
    scores = torch.tensor([4.0, 100.0, torch.nan])
    finished = torch.tensor([True, False, False])
    penalized = penalize_unfinished(scores, finished, penalty=1.0)
    assert penalized.tolist() == [4.0, -1.0, -1.0]


def test_scaling_divides_by_the_running_deviation_and_keeps_signs():
    moments = update_moments(RunningMoments(), torch.tensor([-2.0, 2.0]))
    scaled = scale_scores(torch.tensor([4.0, -1.0, 0.0]), moments)
    torch.testing.assert_close(scaled, torch.tensor([2.0, -0.5, 0.0]))


@pytest.mark.parametrize("values", [[4.0], [0.7, 0.7]])
def test_scaling_waits_until_scores_differ(values):
    scores = torch.tensor(values)
    assert torch.equal(scale_scores(scores, update_moments(RunningMoments(), scores)), scores)
