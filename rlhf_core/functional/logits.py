"""What architectures do to their raw logits before they are probabilities."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

_NEVER = -1e30
"""A logit whose probability is 0; infinite, it would make p log p no number."""


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to its raw logits, in this order, and the sampling temperature after it.

        u = scale * z;   v = softcap * tanh(u / softcap);   y = v / temperature

    ``scale`` is Cohere's and Granite's, ``softcap`` Gemma 2's (arXiv:2408.00118, section 2).
    """

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    left_out: Tensor | None = field(default=None, compare=False)
    """[K] int64 ids that no token has, of probability 0; None where there are none."""

    def forward(self, logits: Tensor) -> Tensor:
        """Return y for raw logits z, in float32 or better."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return logits if self.left_out is None else logits.index_fill(-1, self.left_out, _NEVER)

    def backward(self, grad: Tensor, transformed: Tensor) -> Tensor:
        """Return dL/dz for ``grad`` = dL/dy; both arguments are [.., V], ``grad`` is reused."""
        factor = self.scale / self.temperature
        if self.softcap is not None:
            tanh = transformed * (self.temperature / self.softcap)
            grad = grad * (1.0 - tanh.square())
        grad = grad if factor == 1.0 else grad.mul_(factor)
        return grad if self.left_out is None else grad.index_fill(-1, self.left_out, 0.0)


PLAIN = LogitTransform()
"""Logits as they are, at temperature 1."""
