"""Sampled estimators of KL(policy || reference) and the controller of its weight."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_core.functional.shapes import require_same_shape

MAX_KL_ERROR = 0.2
"""Largest relative error the adaptive controller reacts to (Ziegler et al. 2019, section 2.2)."""


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Unbiased estimate of KL(policy || reference) at tokens sampled from the policy.

        k1 = logprobs - ref_logprobs

    Can be negative for single tokens; its mean over samples is the KL. As a loss it is useless:
    the expectation of its gradient is 0. Schulman (2020), "Approximating KL divergence".

    Args:
        logprobs: any shape, log-probability of each sampled token under the policy, nats.
        ref_logprobs: same shape, the same tokens under the reference.

    Returns:
        Same shape, nats.

    Raises:
        ShapeError: the shapes differ.
    """
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Low-variance, slightly biased estimate of KL(policy || reference), never negative.

        k2 = (logprobs - ref_logprobs)^2 / 2

    On-policy, the gradient of its mean is that of the KL of one token given those before. Summed
    over a response it leaves out that a token changes which ones come after, and so their KL: Tang
    & Munos (2025), arXiv:2506.09477. Schulman (2020), "Approximating KL divergence".

    Args:
        logprobs: any shape, log-probability of each sampled token under the policy, nats.
        ref_logprobs: same shape, the same tokens under the reference.

    Returns:
        Same shape, nats.

    Raises:
        ShapeError: the shapes differ.
    """
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return 0.5 * (logprobs - ref_logprobs).square()


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Low-variance, unbiased estimate of KL(policy || reference), never negative.

        k3 = exp(d) - 1 - d,   d = ref_logprobs - logprobs

    Schulman (2020), "Approximating KL divergence".

    Args:
        logprobs: any shape, log-probability of each sampled token under the policy, nats.
        ref_logprobs: same shape, the same tokens under the reference.

    Returns:
        Same shape, nats.

    Raises:
        ShapeError: the shapes differ.
    """
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    difference = ref_logprobs - logprobs
    return torch.expm1(difference) - difference


def adapt_kl_coef(
    kl_coef: float, *, observed_kl: float, target_kl: float, num_samples: int, horizon: int
) -> float:
    """Next KL coefficient: up when the policy drifts past the target, down otherwise.

        error = clip(observed_kl / target_kl - 1, -0.2, 0.2)
        next  = kl_coef * (1 + error * num_samples / horizon)

    Ziegler et al. (2019), arXiv:1909.08593, section 2.2, with K = num_samples / horizon.

    Args:
        kl_coef: coefficient used for the batch just finished.
        observed_kl: mean KL of that batch, nats per response.
        target_kl: KL the controller steers towards, same unit, > 0.
        num_samples: responses in that batch.
        horizon: responses over which a full 20% error is corrected, > 0.

    Returns:
        The coefficient for the next batch.
    """
    error = min(max(observed_kl / target_kl - 1.0, -MAX_KL_ERROR), MAX_KL_ERROR)
    return kl_coef * (1.0 + error * num_samples / horizon)


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": kl_k1,
    "k2": kl_k2,
    "k3": kl_k3,
}
"""Estimators per token by their name in the settings."""
