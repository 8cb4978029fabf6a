"""Log-probabilities under a language-model head, without a [tokens, vocabulary] tensor.

Every function walks over the tokens in chunks: logits of one chunk exist at a time, forwards and
backwards, so memory does not grow with tokens times vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_core.errors import ShapeError
from rlhf_core.functional.logits import PLAIN, LogitTransform

CHUNK_ELEMENTS = 1 << 20
"""Logits in one chunk: 4 MB in float32, which stays in a core's cache."""
MIN_CHUNK_ROWS = 128
"""Fewer rows than this make the matrix products slow, whatever the vocabulary."""

LossOfTokens = Callable[[Tensor, slice], Tensor]
"""From the log-probabilities [m] of the tokens in a slice to the loss of each of them, [m]."""


def chunked_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    transform: LogitTransform = PLAIN,
) -> Tensor:
    """Log-probability of each target token.

        logprob_m = y_m[target_m] - logsumexp(y_m)

    with y = transform(hidden @ weight.T + bias). The backward pass computes the logits of each
    chunk a second time instead of keeping them.

    Args:
        hidden: [M, H] final hidden states that predict the targets.
        weight: [V, H] output embedding.
        bias: [V] or None.
        targets: [M] int64 token ids.
        transform: the model's treatment of its logits, and the temperature.

    Returns:
        [M] in nats, differentiable; float32, or float64 where ``hidden`` is.

    Raises:
        ShapeError: rows of ``hidden`` and ``targets`` differ, or widths of ``hidden`` and
            ``weight``.
    """
    _require_head_shapes(hidden, weight, targets)
    logprobs: Tensor = _ChunkedLogprobs.apply(hidden, weight, bias, targets, transform)  # type: ignore[no-untyped-call]
    return logprobs


class TokenLosses(NamedTuple):
    """What ``chunked_losses`` returns; float32, or float64 where the hidden states are."""

    total: Tensor
    """[] sum of the losses, differentiable. The others carry no gradient."""
    losses: Tensor
    """[M]"""
    logprobs: Tensor
    """[M] in nats."""
    entropy: Tensor
    """[M] in nats, of the distribution that each token was drawn from."""


def chunked_losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    loss_of: LossOfTokens,
    transform: LogitTransform = PLAIN,
) -> TokenLosses:
    """Losses that depend on the log-probability of one token each, and their sum.

        loss_m = loss_of(logprob_m),   entropy_m = -sum_v p_mv log p_mv

    What a token adds to the gradient is known once its own logits are, so it is taken there, chunk
    by chunk: no logits are computed twice.

    Args:
        hidden: [M, H] final hidden states that predict the targets.
        weight: [V, H] output embedding.
        bias: [V] or None.
        targets: [M] int64 token ids.
        loss_of: called once per chunk; differentiable in the log-probabilities alone.
        transform: the model's treatment of its logits, and the temperature.

    Raises:
        ShapeError: as ``chunked_logprobs``.
    """
    _require_head_shapes(hidden, weight, targets)
    outputs = _ChunkedLosses.apply(hidden, weight, bias, targets, (transform, loss_of))  # type: ignore[no-untyped-call]
    return TokenLosses(*outputs)


def chunked_nll_sum(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    transform: LogitTransform = PLAIN,
) -> Tensor:
    """Negative log-likelihood of the targets, summed over tokens: [], in nats, differentiable.

        nll = -sum_m logprob_m

    Arguments and errors as ``chunked_losses``, whose sum it is for loss_m = -logprob_m.
    """
    _require_head_shapes(hidden, weight, targets)
    nll: Tensor = _ChunkedLosses.apply(hidden, weight, bias, targets, (transform, None))[0]  # type: ignore[no-untyped-call]
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


class _ChunkedLogprobs(torch.autograd.Function):
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
        logprobs = hidden.new_empty(len(hidden), dtype=torch.promote_types(dtype, torch.float32))
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(weight, bias, transform, dtype)
            for part in _chunks(hidden, weight):
                every = torch.log_softmax(head.logits(hidden[part]), -1)
                logprobs[part] = every.gather(1, targets[part, None]).squeeze(1)
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.transform, ctx.dtype = transform, dtype
        return logprobs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        head = _Head(weight, bias, ctx.transform, ctx.dtype, ctx.needs_input_grad)
        grad_hidden = torch.empty_like(hidden)
        for part in _chunks(hidden, weight):
            logits = head.logits(hidden[part])
            grad_of_logits = _grad_logits(torch.softmax(logits, -1), targets[part], grad[part])
            grad_hidden[part] = head.backward(hidden[part], grad_of_logits, logits)
        return grad_hidden, head.grad_weight, head.grad_bias, None, None


class _ChunkedLosses(torch.autograd.Function):
    """Sum, losses, log-probabilities and entropies; without ``loss_of`` the sum of NLLs alone."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        rule: tuple[LogitTransform, LossOfTokens | None],
    ) -> tuple[Tensor, ...]:
        (transform, loss_of), dtype = rule, _compute_dtype(hidden)
        exact = torch.promote_types(dtype, torch.float32)
        losses, logprobs, entropy = hidden.new_empty(3, len(hidden), dtype=exact)
        grad_hidden = torch.empty_like(hidden) if any(ctx.needs_input_grad) else None
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(weight, bias, transform, dtype, ctx.needs_input_grad)
            for part in _chunks(hidden, weight):
                logits = head.logits(hidden[part])
                every = torch.log_softmax(logits, -1)
                logprobs[part] = every.gather(1, targets[part, None]).squeeze(1)
                # dL/dlogits = slope * (one-hot - p), and the hidden states' and head's gradients
                # follow from it: taken here, so that backward has only to scale them.
                losses[part], slope = _loss_and_slope(loss_of or _nll, logprobs[part], part)
                probs = every.exp()  # grad_logits overwrites it below; the entropy comes first
                if loss_of is not None:
                    entropy[part] = -torch.einsum("mv,mv->m", probs, every)
                if grad_hidden is not None:
                    grad = _grad_logits(probs, targets[part], slope)
                    grad_hidden[part] = head.backward(hidden[part], grad, logits)
        ctx.save_for_backward(grad_hidden, head.grad_weight, head.grad_bias)
        ctx.mark_non_differentiable(losses, logprobs, entropy)
        return losses.sum(), losses, logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if saved is None else saved * grad for saved in ctx.saved_tensors)
        return (*scaled, None, None)


def _nll(logprobs: Tensor, _: slice) -> Tensor:
    return -logprobs


def _loss_and_slope(loss_of: LossOfTokens, logprobs: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Return the losses [m] and the derivative of each in its own log-probability, [m]."""
    with torch.enable_grad():
        leaf = logprobs.detach().requires_grad_()
        losses = loss_of(leaf, part)
        (slope,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), slope


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Cut the rows of ``hidden`` [M, H] so that each part's logits stay small."""
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


def _grad_logits(probs: Tensor, targets: Tensor, slope: Tensor) -> Tensor:
    """Gradient in the logits [m, V]: slope * (one-hot - p). ``probs`` is overwritten."""
    grad = probs.mul_(-slope[:, None])
    grad[torch.arange(len(grad), device=grad.device), targets] += slope
    return grad
