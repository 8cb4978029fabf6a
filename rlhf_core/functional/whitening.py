"""Moments under a mask, and whitening by them."""

import torch
from torch import Tensor

from rlhf_core.errors import ShapeError
from rlhf_core.functional.shapes import require_same_shape

WHITEN_EPS = 1e-8
"""Added to the variance, so that equal values become 0 and not NaN."""


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions where ``mask`` is True.

        mean = sum_{i: mask_i} values_i / |{i: mask_i}|

    Args:
        values: any shape; what lies outside the mask is not read, NaN included.
        mask: same shape, bool, True somewhere.

    Returns:
        Scalar in the unit of ``values``.

    Raises:
        ShapeError: the shapes differ, or the mask is empty.
    """
    require_same_shape(values=values, mask=mask)
    if not bool(mask.any()):
        raise ShapeError(f"the mask {tuple(mask.shape)} selects nothing to average over")
    return values[mask].mean()


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Population variance over the positions where ``mask`` is True.

        var = mean((values - mean(values))^2)

    Divides by the number of values, as the first implementation did (``tf.nn.moments``; Huang et
    al. 2024, arXiv:2403.17031). Others divide by one less, which scales whitened values by
    1 - 1/(2n), some 0.02% on a batch.

    Args:
        values: any shape; what lies outside the mask is not read, NaN included.
        mask: same shape, bool, True somewhere.

    Returns:
        Scalar in the squared unit of ``values``.

    Raises:
        ShapeError: the shapes differ, or the mask is empty.
    """
    return masked_mean((values - masked_mean(values, mask)).square(), mask)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale to mean 0 and variance 1 over the mask.

        w = (values - mean) / sqrt(var + 1e-8)

    PPO whitens the advantages of the whole rollout batch once, before it is cut into
    minibatches. Huang et al. (2024), arXiv:2403.17031, detail on advantage whitening.

    Args:
        values: any shape; what lies outside the mask is not read, NaN included.
        mask: same shape, bool, True somewhere.

    Returns:
        Same shape, dimensionless, 0.0 where ``mask`` is False.

    Raises:
        ShapeError: the shapes differ, or the mask is empty.
    """
    scale = torch.rsqrt(masked_variance(values, mask) + WHITEN_EPS)
    return torch.where(mask, (values - masked_mean(values, mask)) * scale, 0.0)
