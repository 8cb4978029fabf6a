import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.config import PpoConfig
from rlhf_core.errors import ShapeError
from rlhf_core.functional.kl import adapt_kl_coef, kl_k1, kl_k2, kl_k3

ESTIMATORS = [kl_k1, kl_k2, kl_k3]


def test_estimators_by_hand():
    logprobs, ref_logprobs = torch.tensor([-1.0]), torch.tensor([-1.5])
    assert kl_k1(logprobs, ref_logprobs).item() == pytest.approx(0.5)
    assert kl_k2(logprobs, ref_logprobs).item() == pytest.approx(0.125)
    assert kl_k3(logprobs, ref_logprobs).item() == pytest.approx(math.exp(-0.5) - 1 + 0.5)


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_unbiased_estimators_have_the_kl_as_expectation(estimator):
    policy = torch.log_softmax(torch.tensor([0.3, -1.0, 0.9, 0.1], dtype=torch.float64), 0)
    reference = torch.log_softmax(torch.tensor([-0.2, 0.4, 0.5, 0.0], dtype=torch.float64), 0)
    exact = (policy.exp() * (policy - reference)).sum()
    expectation = (policy.exp() * estimator(policy, reference)).sum()
    torch.testing.assert_close(expectation, exact)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_policies_have_no_kl(estimator):
    logprobs = torch.tensor([-0.1, -3.0, -20.0])
    assert torch.equal(estimator(logprobs, logprobs), torch.zeros(3))


@pytest.mark.parametrize("estimator", [kl_k2, kl_k3])
@settings(deadline=None)
@given(st.floats(-30, 0), st.floats(-30, 0))
def test_k2_and_k3_are_never_negative(estimator, logprob, ref_logprob):
    assert estimator(torch.tensor(logprob), torch.tensor(ref_logprob)) >= 0


def test_gradient_of_mean_k2_is_the_gradient_of_the_kl_and_that_of_k1_is_zero():
    logits = torch.tensor([0.3, -1.0, 0.9], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([-0.2, 0.4, 0.5], dtype=torch.float64), 0)
    policy = torch.log_softmax(logits, 0)
    weights = policy.detach().exp()
    exact = torch.autograd.grad(
        (policy.exp() * (policy - reference)).sum(), logits, retain_graph=True
    )
    sampled = torch.autograd.grad(
        (weights * kl_k2(policy, reference)).sum(), logits, retain_graph=True
    )
    useless = torch.autograd.grad((weights * kl_k1(policy, reference)).sum(), logits)
    torch.testing.assert_close(sampled, exact)
    torch.testing.assert_close(useless[0], torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_refuse_shapes_that_would_broadcast(estimator):
    with pytest.raises(ShapeError, match="ref_logprobs"):
        estimator(torch.zeros(3), torch.zeros(3, 1))


def test_k3_keeps_precision_near_zero():
    assert kl_k3(torch.tensor(-1.0), torch.tensor(-1.0001)).item() == pytest.approx(5e-9, rel=0.05)


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        (6.0, 0.05),  # on target
        (6.6, 0.05 * (1 + 0.1 * 64 / 10_000)),  # 10% above
        (60.0, 0.05 * (1 + 0.2 * 64 / 10_000)),  # error clipped to 0.2
        (0.0, 0.05 * (1 - 0.2 * 64 / 10_000)),
        (-3.0, 0.05 * (1 - 0.2 * 64 / 10_000)),  # a sampled KL may be negative
    ],
)
def test_controller_by_hand(observed, expected):
    adapted = adapt_kl_coef(
        0.05, observed_kl=observed, target_kl=6.0, num_samples=64, horizon=10_000
    )
    assert adapted == pytest.approx(expected)


def test_a_horizon_shorter_than_a_batch_is_refused():
    """64 responses over a horizon of 10 would multiply the coefficient by 1 - 0.2 * 6.4 < 0."""
    PpoConfig(kl_controller="adaptive", rollout_batch_size=64, kl_horizon=64)
    PpoConfig(rollout_batch_size=64, kl_horizon=10)  # which nothing reads
    with pytest.raises(ValueError, match="kl_horizon 10 is less than rollout_batch_size 64"):
        PpoConfig(kl_controller="adaptive", rollout_batch_size=64, kl_horizon=10)
