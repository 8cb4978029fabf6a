"""Direct preference optimisation: the policy as its own reward model."""

from torch import Tensor

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
