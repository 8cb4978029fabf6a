"""The language-model head over a chunk of tokens at a time, forwards and backwards."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_core.functional.logits import LogitTransform

CHUNK_ELEMENTS = 1 << 20
"""Logits in one chunk: 4 MB in float32, which stays in a core's cache."""
MIN_CHUNK_ROWS = 128
"""Fewer rows than this make the matrix products slow, whatever the vocabulary."""


def chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Cut the rows of ``hidden`` [M, H] so that each part's logits stay small."""
    rows = max(MIN_CHUNK_ROWS, CHUNK_ELEMENTS // len(weight))
    return [slice(start, start + rows) for start in range(0, len(hidden), rows)]


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of the matrix products: autocast's where it is on."""
    device = hidden.device.type
    enabled = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if enabled else hidden.dtype


class Head:
    """One head applied to one chunk at a time, with the gradient sums of all chunks."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        transform: LogitTransform,
        dtype: torch.dtype,
        needed: Sequence[bool] = (False, False, False),
    ) -> None:
        """``needed``: whether hidden states, weight and bias need a gradient."""
        self.weight, self.bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        self.transform, self.dtype = transform, dtype
        self.grad_weight = torch.zeros_like(weight) if needed[1] else None
        self.grad_bias = None if bias is None or not needed[2] else torch.zeros_like(bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """Transformed logits [m, V] of hidden states [m, H]."""
        raw = torch.nn.functional.linear(hidden.to(self.dtype), self.weight, self.bias)
        return self.transform.forward(raw)

    def backward(self, hidden: Tensor, grad: Tensor, transformed: Tensor) -> Tensor:
        """Add to the weight's gradient and return that of ``hidden``."""
        grad = self.transform.backward(grad, transformed).to(self.dtype)
        if self.grad_weight is not None and self.grad_weight.dtype == self.dtype:
            self.grad_weight.addmm_(grad.T, hidden.to(self.dtype))
        elif self.grad_weight is not None:
            self.grad_weight += grad.T @ hidden.to(self.dtype)
        if self.grad_bias is not None:
            self.grad_bias += grad.sum(0)
        return grad @ self.weight


def grad_logits(probs: Tensor, targets: Tensor, slope: Tensor) -> Tensor:
    """Gradient in the logits [m, V]: slope * (one-hot - p). ``probs`` is overwritten."""
    grad = probs.mul_(-slope[:, None])
    grad[torch.arange(len(grad), device=grad.device), targets] += slope
    return grad
