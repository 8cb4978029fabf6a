"""Losses of policies trained straight from preferences: DPO and its family.

What they take are log-probabilities of whole responses, as sums or per token (``per_token``); a
loss that has no reference takes those of the policy where the others take the difference.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from rlhf_core.functional.bradley_terry import soft_bradley_terry_loss
from rlhf_core.functional.shapes import require_same_shape


def implicit_rewards(logprobs: Tensor, ref_logprobs: Tensor, *, beta: float) -> Tensor:
    """Reward that the policy expresses by preferring a response more than the reference does.

        r = beta * (log pi(y | x) - log pi_ref(y | x))

    Rafailov et al. (2023), arXiv:2305.18290, eq. 5, without the term that depends on x alone.

    Args:
        logprobs: [B] float, log-probability of each response under the policy, summed over its
            tokens, in nats.
        ref_logprobs: [B] the same under the reference.
        beta: weight of the implicit KL penalty, > 0.

    Returns:
        [B] rewards.

    Raises:
        ShapeError: the two shapes differ.
    """
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return beta * (logprobs - ref_logprobs)


def dpo_loss(chosen_rewards: Tensor, rejected_rewards: Tensor, probability: Tensor) -> Tensor:
    """Negative log-likelihood of the preferences under the implicit rewards.

        d    = r_chosen - r_rejected
        loss = -p log sigmoid(d) - (1 - p) log sigmoid(-d)

    p = 1 is Rafailov et al. (2023), arXiv:2305.18290, eq. 7; p = 1 - epsilon the conservative
    DPO of Mitchell (2023) with label smoothing epsilon; p per pair uses soft labels.

    Args:
        chosen_rewards: [P] float, ``implicit_rewards`` of the chosen responses.
        rejected_rewards: [P] float, of the rejected ones, same order.
        probability: [P] float in [0, 1], probability p that ``chosen`` is better.

    Returns:
        [P] loss per pair, in nats.

    Raises:
        ShapeError: the three shapes differ.
    """
    return soft_bradley_terry_loss(chosen_rewards, rejected_rewards, probability)


def robust_dpo_loss(chosen_rewards: Tensor, rejected_rewards: Tensor, *, noise: float) -> Tensor:
    """DPO's loss as it would be on clean labels, from labels of which a known share is wrong.

        l(d) = -log sigmoid(d),   d = r_chosen - r_rejected
        loss = ((1 - noise) l(d) - noise l(-d)) / (1 - 2 noise)

    Its mean over wrong and right labels is the mean of l over the right ones; single pairs may have
    a loss below 0. Chowdhury et al. (2024), arXiv:2403.00409, eq. 12.

    Args:
        chosen_rewards: [P] float, ``implicit_rewards`` of the chosen responses.
        rejected_rewards: [P] float, of the rejected ones, same order.
        noise: share of labels that are wrong, in [0, 0.5).

    Returns:
        [P] loss per pair, in nats.

    Raises:
        ShapeError: the two shapes differ.
    """
    require_same_shape(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    gap = chosen_rewards - rejected_rewards
    clean, flipped = -F.logsigmoid(gap), -F.logsigmoid(-gap)
    return ((1.0 - noise) * clean - noise * flipped) / (1.0 - 2.0 * noise)


def ipo_loss(
    chosen_ratios: Tensor, rejected_ratios: Tensor, probability: Tensor, *, beta: float
) -> Tensor:
    """Squared distance of the policy's preference from a margin that is finite.

        d    = ratio_chosen - ratio_rejected
        loss = p (d - 1 / (2 beta))^2 + (1 - p) (d + 1 / (2 beta))^2

    Azar et al. (2023), arXiv:2310.12036, eq. 17, with beta for their tau; p = 1 there.

    Args:
        chosen_ratios: [P] float, log-probability of the chosen response under the policy less that
            under the reference, in nats.
        rejected_ratios: [P] float, of the rejected ones, same order.
        probability: [P] float in [0, 1], probability p that ``chosen`` is better.
        beta: the margin asked for is 1 / (2 beta), > 0.

    Returns:
        [P] loss per pair, in squared nats.

    Raises:
        ShapeError: the three shapes differ.
    """
    require_same_shape(
        chosen_ratios=chosen_ratios, rejected_ratios=rejected_ratios, probability=probability
    )
    gap, target = chosen_ratios - rejected_ratios, 1.0 / (2.0 * beta)
    return probability * (gap - target) ** 2 + (1.0 - probability) * (gap + target) ** 2


def simpo_loss(
    chosen_rewards: Tensor, rejected_rewards: Tensor, probability: Tensor, *, target_margin: float
) -> Tensor:
    """Bradley-Terry loss of rewards without a reference, which have to differ by a margin.

        d    = r_chosen - r_rejected,   r = beta * mean log pi(token)
        loss = -p log sigmoid(d - target_margin) - (1 - p) log sigmoid(-d - target_margin)

    Meng et al. (2024), arXiv:2405.14734, eq. 6, with target_margin for their gamma; p = 1 there.
    With a soft label the margin is asked of whichever response is better.

    Args:
        chosen_rewards: [P] float, of the chosen responses.
        rejected_rewards: [P] float, of the rejected ones, same order.
        probability: [P] float in [0, 1], probability p that ``chosen`` is better.
        target_margin: how far apart they should be, >= 0.

    Returns:
        [P] loss per pair, in nats.

    Raises:
        ShapeError: the three shapes differ.
    """
    return soft_bradley_terry_loss(chosen_rewards, rejected_rewards, probability, target_margin)


def orpo_loss(chosen_logprobs: Tensor, rejected_logprobs: Tensor, *, weight: float) -> Tensor:
    """NLL of the chosen response, and the odds of choosing it over the rejected one.

        odds(p) = p / (1 - p),   p = exp(mean log-probability of a token)
        loss    = -log p_chosen - weight * log sigmoid(log odds(p_chosen) - log odds(p_rejected))

    Hong et al. (2024), arXiv:2403.07691, eq. 6 and 7, with weight for their lambda.

    Args:
        chosen_logprobs: [P] float < 0, mean log-probability of a token of the chosen response
            under the policy, in nats.
        rejected_logprobs: [P] float < 0, of the rejected ones, same order.
        weight: of the odds ratio, > 0.

    Returns:
        [P] loss per pair, in nats.

    Raises:
        ShapeError: the two shapes differ.
    """
    require_same_shape(chosen_logprobs=chosen_logprobs, rejected_logprobs=rejected_logprobs)
    gap = _log_odds(chosen_logprobs) - _log_odds(rejected_logprobs)
    return -chosen_logprobs - weight * F.logsigmoid(gap)


def kto_loss(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    baseline: Tensor,
    *,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """Loss of good and bad responses by themselves, against what the policy says on average.

        z    = beta * max(0, KL(policy || reference))
        loss = (w_good (1 - sigmoid(r_chosen - z)) + w_bad (1 - sigmoid(z - r_rejected))) / 2

    Ethayarajh et al. (2024), arXiv:2402.01306, eq. 7 and 8: no term holds both responses of a pair,
    which is one desirable and one undesirable example here. Weights are their lambda_D, lambda_U.

    Args:
        chosen_rewards: [P] float, ``implicit_rewards`` of the chosen responses.
        rejected_rewards: [P] float, of the rejected ones, same order.
        baseline: [] float >= 0, z, without gradient.
        desirable_weight: of the chosen responses, > 0.
        undesirable_weight: of the rejected ones, > 0.

    Returns:
        [P] loss per pair, the mean of its two.

    Raises:
        ShapeError: the two shapes differ.
    """
    require_same_shape(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    good = desirable_weight * torch.sigmoid(baseline - chosen_rewards)
    bad = undesirable_weight * torch.sigmoid(rejected_rewards - baseline)
    return (good + bad) / 2.0


def unpaired_kto_loss(
    rewards: Tensor,
    desirable: Tensor,
    baseline: Tensor,
    *,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """``kto_loss`` of responses that are no pairs, each with its own label.

        loss = w_good (1 - sigmoid(r - z)) where desirable, w_bad (1 - sigmoid(z - r)) elsewhere

    Ethayarajh et al. (2024), arXiv:2402.01306, eq. 7 and 8.

    Args:
        rewards: [N] float, ``implicit_rewards`` of the responses.
        desirable: [N] bool, their labels.
        baseline: [] float >= 0, z, without gradient.
        desirable_weight: of the desirable responses, > 0.
        undesirable_weight: of the others, > 0.

    Returns:
        [N] loss per response.

    Raises:
        ShapeError: the two shapes differ.
    """
    require_same_shape(rewards=rewards, desirable=desirable)
    good = desirable_weight * torch.sigmoid(baseline - rewards)
    bad = undesirable_weight * torch.sigmoid(rewards - baseline)
    return torch.where(desirable, good, bad)


def per_token(logprobs: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the tokens of each response, from sums [...] and numbers of tokens [...].

    Raises:
        ShapeError: the two shapes differ.
    """
    require_same_shape(logprobs=logprobs, lengths=lengths)
    return logprobs / lengths


def _log_odds(logprobs: Tensor) -> Tensor:
    # log(1 - p) from log p: of the two forms each is exact where the other cancels.
    # Each is given a harmless value where the other is taken: an infinite one has no gradient, and
    # 0 times that is nan. Rounded to float32 a mean can be 0, whose odds are infinite.
    logprobs = logprobs.clamp(max=-torch.finfo(logprobs.dtype).tiny)
    half = logprobs.new_tensor(-math.log(2.0))
    near_one = logprobs > half
    rest = torch.where(
        near_one,
        torch.log(-torch.expm1(torch.where(near_one, logprobs, half))),
        torch.log1p(-torch.exp(torch.where(near_one, half, logprobs))),
    )
    return logprobs - rest
