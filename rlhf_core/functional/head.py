"""Log-probabilities under a language-model head, without a [tokens, vocabulary] tensor.

Every function walks over the tokens in chunks: logits of one chunk exist at a time, forwards and
backwards, so memory does not grow with tokens times vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from rlhf_core.errors import ShapeError
from rlhf_core.functional.logits import PLAIN, LogitTransform

CHUNK_ELEMENTS = 1 << 20
"""Logits in one chunk: 4 MB in float32, which stays in a core's cache."""
MIN_CHUNK_ROWS = 128
"""Fewer rows than this make the matrix products slow, whatever the vocabulary."""


def chunked_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    transform: LogitTransform = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target token, and the entropy of its distribution.

        logprob_m = y_m[target_m] - logsumexp(y_m),   entropy_m = -sum_v p_mv log p_mv

    with y = transform(hidden @ weight.T + bias) and p = softmax(y). The backward pass computes the
    logits of each chunk a second time instead of keeping them.

    Args:
        hidden: [M, H] final hidden states that predict the targets.
        weight: [V, H] output embedding.
        bias: [V] or None.
        targets: [M] int64 token ids.
        transform: the model's treatment of its logits, and the temperature.

    Returns:
        [M] log-probabilities in nats, differentiable, and [M] entropies in nats, which carry no
        gradient; both float32, or float64 where ``hidden`` is.

    Raises:
        ShapeError: rows of ``hidden`` and ``targets`` differ, or widths of ``hidden`` and
            ``weight``.
    """
    _require_head_shapes(hidden, weight, targets)
    outputs = _ChunkedLogprobs.apply(hidden, weight, bias, targets, transform)  # type: ignore[no-untyped-call]
    logprobs, entropy = outputs
    return logprobs, entropy


def chunked_nll_sum(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    transform: LogitTransform = PLAIN,
) -> Tensor:
    """Negative log-likelihood of the targets, summed over tokens.

        nll = -sum_m logprob_m

    The loss is linear in the log-probabilities, so its gradient is known in the forward pass and
    is taken there, chunk by chunk: no logits are computed twice.

    Args:
        hidden: [M, H] final hidden states that predict the targets.
        weight: [V, H] output embedding.
        bias: [V] or None.
        targets: [M] int64 token ids.
        transform: the model's treatment of its logits, and the temperature.

    Returns:
        [] float32 (float64 where ``hidden`` is), in nats.

    Raises:
        ShapeError: rows of ``hidden`` and ``targets`` differ, or widths of ``hidden`` and
            ``weight``.
    """
    _require_head_shapes(hidden, weight, targets)
    nll: Tensor = _ChunkedNll.apply(hidden, weight, bias, targets, transform)  # type: ignore[no-untyped-call]
    return nll


def _require_head_shapes(hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ShapeError(
            f"expected hidden [M, H] and weight [V, H], got {tuple(hidden.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if targets.shape != hidden.shape[:1]:
        raise ShapeError(
            f"expected one target per row of hidden, got {tuple(targets.shape)} for "
            f"{tuple(hidden.shape)}"
        )


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    rows = max(MIN_CHUNK_ROWS, CHUNK_ELEMENTS // len(weight))
    return [slice(start, start + rows) for start in range(0, len(hidden), rows)]


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of the matrix products: autocast's where it is on."""
    device = hidden.device.type
    enabled = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if enabled else hidden.dtype


class _Head:
    """One head applied to one chunk at a time, with the gradient sums of all chunks."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, transform: LogitTransform, dtype: torch.dtype
    ) -> None:
        self.weight, self.bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        self.transform, self.dtype = transform, dtype
        self.grad_weight: Tensor | None = None
        self.grad_bias: Tensor | None = None

    def logits(self, hidden: Tensor) -> Tensor:
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


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
    ) -> tuple[Tensor, Tensor]:
        dtype = _compute_dtype(hidden)
        logprobs = hidden.new_empty(len(hidden), dtype=torch.promote_types(dtype, torch.float32))
        entropy, normalizer = torch.empty_like(logprobs), torch.empty_like(logprobs)
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(weight, bias, transform, dtype)
            for part in _chunks(hidden, weight):
                logits = head.logits(hidden[part])
                normalizer[part] = logits.logsumexp(-1)
                picked = logits.gather(1, targets[part, None]).squeeze(1)
                logprobs[part] = picked - normalizer[part]
                probs = (logits - normalizer[part, None]).exp_()
                expected = torch.einsum("mv,mv->m", probs, logits)
                entropy[part] = normalizer[part] - expected
        ctx.save_for_backward(hidden, weight, bias, targets, normalizer)
        ctx.transform, ctx.dtype = transform, dtype
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalizer = ctx.saved_tensors
        head = _Head(weight, bias, ctx.transform, ctx.dtype)
        if ctx.needs_input_grad[1]:
            head.grad_weight = torch.zeros_like(weight)
        if bias is not None and ctx.needs_input_grad[2]:
            head.grad_bias = torch.zeros_like(bias)
        grad_hidden = torch.empty_like(hidden)
        for part in _chunks(hidden, weight):
            logits = head.logits(hidden[part])
            grad_logits = (logits - normalizer[part, None]).exp_().mul_(-grad[part, None])
            rows = torch.arange(len(grad_logits), device=grad_logits.device)
            grad_logits[rows, targets[part]] += grad[part]
            grad_hidden[part] = head.backward(hidden[part], grad_logits, logits)
        return grad_hidden, head.grad_weight, head.grad_bias, None, None


class _ChunkedNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
    ) -> Tensor:
        dtype = _compute_dtype(hidden)
        train = any(ctx.needs_input_grad)
        grad_hidden = torch.empty_like(hidden) if train else None
        total = hidden.new_zeros((), dtype=torch.promote_types(dtype, torch.float32))
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(weight, bias, transform, dtype)
            if ctx.needs_input_grad[1]:
                head.grad_weight = torch.zeros_like(weight)
            if bias is not None and ctx.needs_input_grad[2]:
                head.grad_bias = torch.zeros_like(bias)
            for part in _chunks(hidden, weight):
                logits = head.logits(hidden[part])
                normalizer = logits.logsumexp(-1)
                picked = logits.gather(1, targets[part, None]).squeeze(1)
                total += (normalizer - picked).sum()
                if grad_hidden is not None:
                    grad = (logits - normalizer[:, None]).exp_()
                    grad[torch.arange(len(grad), device=grad.device), targets[part]] -= 1.0
                    grad_hidden[part] = head.backward(hidden[part], grad, logits)
        ctx.save_for_backward(grad_hidden, head.grad_weight, head.grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if saved is None else saved * grad for saved in ctx.saved_tensors)
        return (*scaled, None, None)
