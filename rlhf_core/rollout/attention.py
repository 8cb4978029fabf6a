"""Attention of the decode loop: one query per row against the cached keys."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_core.errors import ModelError
from rlhf_core.models.attention import attending_by, packed_attention
from rlhf_core.models.compute import forward_precision
from rlhf_core.models.text import text_trunk

DECODE = "rlhf_decode"
"""Name under which transformers knows this attention."""


@contextmanager
def decoding(model: nn.Module) -> Iterator[None]:
    """Make ``model`` ready to sample inside the block.

    In evaluation mode, for in training mode gradient checkpointing drops the cache; in the
    precision it is trained in; and uncompiled, for every step has another shape.
    """
    was_training = model.training
    model.eval()
    try:
        with forward_precision(model), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.train(was_training)


@contextmanager
def decode_attention(model: nn.Module) -> Iterator[None]:
    """Let ``model`` sample by this attention inside the block, and use its own again after."""
    with decoding(model), attending_by(text_trunk(model), DECODE, attend_cached):
        yield


def attend_cached(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend with one query per row; packed prompts are left to ``packed_attention``.

    Two batched products: on a CPU two to three times faster here than the fused kernel, which is
    made for many queries.

    Args:
        module: the attention layer that calls.
        query: [B, heads, 1, D].
        key: [B, key heads, T, D]; fewer heads than the query's are shared (GQA).
        value: [B, key heads, T, E]; E is D but where heads of values have a size of their own.
        attention_mask: [B, 1, 1, T] float, 0 on the row's own columns and -inf before them.
        options: ``cu_seqlens`` for packed prompts; the layer's own ``scaling``,
            ``sliding_window``, ``softcap``.

    Returns:
        [B, 1, heads, E] and None (no attention weights).

    Raises:
        ModelError: the layer asks for a kind of attention this one does not know (sinks).
    """
    if options.get("cu_seqlens") is not None:
        return packed_attention(module, query, key, value, attention_mask, **options)
    if options.get("s_aux") is not None:
        raise ModelError("this model's attention sinks are not supported by the decode loop")
    window = options.get("sliding_window")
    if window is not None and window < key.shape[2]:
        # Rows end in the same column, so the last columns are every row's window.
        key, value = key[:, :, -window:], value[:, :, -window:]
        attention_mask = attention_mask[..., -window:]
    rows, heads, _, size = query.shape
    groups = heads // key.shape[1]
    scaling = options.get("scaling") or size**-0.5
    grouped = query.reshape(rows, key.shape[1], groups, size) * scaling
    scores = grouped @ key.transpose(2, 3)
    if options.get("softcap") is not None:
        scores = torch.tanh(scores / options["softcap"]) * options["softcap"]
    weights = torch.softmax(scores + attention_mask, dim=-1, dtype=torch.float32)
    output = weights.to(value.dtype) @ value
    return output.reshape(rows, 1, heads, value.shape[3]), None
