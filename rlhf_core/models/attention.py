"""Attention over packed sequences, registered with transformers so that every decoder can use it.

No mask of [tokens, tokens] is ever built: each segment attends to itself, and to the prompt it
shares with its siblings where it has one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf_core.errors import ModelError
from rlhf_core.models.segment_op import Unit, causal_mask, segment_attention, units_of
from rlhf_core.tokenization.batches import NO_PARENT

PACKED = "rlhf_packed"
"""Name under which transformers knows this attention."""
_RECORDED = "rlhf_recorded"


def register_packed_attention() -> None:
    """Make ``attn_implementation="rlhf_packed"`` known to transformers; harmless to repeat."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, sdpa_mask)


@contextmanager
def attending_by(
    model: PreTrainedModel, name: str, attend: Callable[..., tuple[Tensor, None]]
) -> Iterator[None]:
    """Let ``model`` attend by ``attend`` inside the block, and as before after it.

    Args:
        model: a transformers model.
        name: under which transformers is to know ``attend``.
        attend: called by the model's layers.
    """
    AttentionInterface.register(name, attend)
    own, model.config._attn_implementation = model.config._attn_implementation, name
    try:
        yield
    finally:
        model.config._attn_implementation = own


@contextmanager
def recorded_windows(model: PreTrainedModel) -> Iterator[list[int | None]]:
    """Give a list to which each layer that attends inside adds the window it asks for."""
    windows: list[int | None] = []

    def attend(*states: Any, **options: Any) -> tuple[Tensor, None]:
        windows.append(options.get("sliding_window"))
        return packed_attention(*states, **options)

    with attending_by(model, _RECORDED, attend):
        yield windows


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment of a packed row.

    Called by transformers' models. Without ``cu_seqlens`` among the options (a plain call of the
    model, ``generate``) it is transformers' own SDPA with the mask it was given.

    Args:
        module: the attention layer that calls.
        query: [1, heads, N, D].
        key: [1, key heads, N, D]; fewer heads than the query's are shared (GQA).
        value: [1, key heads, N, D].
        attention_mask: ignored where ``cu_seqlens`` is given.
        options: ``cu_seqlens`` [S + 1] and ``parents`` [S] as in ``TokenBatch``, and the layer's
            own ``scaling``, ``sliding_window``, ``softcap``.

    Returns:
        [1, N, heads, D] and None (no attention weights).

    Raises:
        ModelError: the layer asks for a kind of attention this one does not know (sinks); such
            a model is not run packed.
    """
    if options.get("s_aux") is not None:
        raise ModelError("packed attention has no sinks")
    if options.get("cu_seqlens") is None:
        return _unpacked(module, query, key, value, attention_mask, options)
    states = _States(query, key, value)
    plain = options.get("softcap") is None and query.shape[-1] == value.shape[-1]
    if query.device.type != "cpu" or not plain:
        return _by_parts(states, options), None
    # Half-precision attention is several times slower than float32 on a CPU, backwards most of all.
    with torch.autocast("cpu", enabled=False):
        exact = states.to(torch.float64 if value.dtype == torch.float64 else torch.float32)
        layout = [options["cu_seqlens"], options["parents"]]
        scaling, window = options.get("scaling"), options.get("sliding_window")
        return segment_attention(*exact.shared(), layout, scaling, window)[0], None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _by_parts(states: "_States", options: dict[str, Any]) -> Tensor:
    """Attention that the one operation does not do: on a GPU, with a softcap, of unequal widths."""
    attend = _Attend(*(options.get(name) for name in ("scaling", "softcap", "sliding_window")))
    query, value, half = states.query, states.value, (torch.float16, torch.bfloat16)
    if query.is_cuda and value.dtype in half and attend.softcap is None:
        return _varlen(states.to(value.dtype), options["cu_seqlens"], options["parents"], attend)
    units = units_of(options["cu_seqlens"], options["parents"])
    dtype = value.dtype if query.is_cuda else torch.promote_types(value.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        return _by_unit(states.to(dtype).shared(), units, attend)


def _unpacked(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor, None]:
    softcap, scaling = options.get("softcap"), options.get("scaling")
    if softcap is None:
        keep = {name: options[name] for name in ("scaling", "is_causal") if name in options}
        output, _ = sdpa_attention_forward(module, query, key, value, mask, **keep)
        return output, None
    states = _States(query, key, value).shared()
    if mask is None:
        mask = states.causal_mask(None)
    output = _softcapped(states, mask, scaling, softcap)
    return output.transpose(1, 2), None


class _States(NamedTuple):
    """Query, key and value, each [1, heads, T, D]."""

    query: Tensor
    key: Tensor
    value: Tensor

    def to(self, dtype: torch.dtype) -> "_States":
        """Cast all three; autocast leaves them in different precisions."""
        return _States(self.query.to(dtype), self.key.to(dtype), self.value.to(dtype))

    def shared(self) -> "_States":
        """Repeat the key heads that several query heads share."""
        groups = self.query.shape[1] // self.key.shape[1]
        return _States(self.query, repeat_kv(self.key, groups), repeat_kv(self.value, groups))

    def causal_mask(self, window: int | None) -> Tensor:
        """Which keys each query sees, the last query on the last key: [rows, columns] bool."""
        rows, columns = self.query.shape[2], self.key.shape[2]
        return causal_mask(rows, columns, window, self.query.device)


class _Attend(NamedTuple):
    """Attention of one segment's queries over its keys, the last query on the last key."""

    scaling: float | None
    softcap: float | None
    window: int | None

    def __call__(self, states: _States) -> Tensor:
        rows, columns = states.query.shape[2], states.key.shape[2]
        windowed = self.window is not None and self.window < columns
        if self.softcap is not None:
            mask = states.causal_mask(self.window)
            return _softcapped(states, mask, self.scaling, self.softcap)
        if windowed or rows != columns:
            mask = states.causal_mask(self.window)
            return F.scaled_dot_product_attention(*states, attn_mask=mask, scale=self.scaling)
        return F.scaled_dot_product_attention(*states, is_causal=True, scale=self.scaling)


def _softcapped(states: _States, mask: Tensor, scaling: float | None, softcap: float) -> Tensor:
    """Attention with tanh-capped scores (Gemma 2, arXiv:2408.00118), which SDPA cannot do."""
    query, key, value = states
    scores = query @ key.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5)
    scores = torch.tanh(scores / softcap) * softcap
    scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, -torch.inf)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value


def _by_unit(states: _States, units: list[Unit], attend: _Attend) -> Tensor:
    """One call per unit.

    ``split`` and ``cat`` undo each other in the backward pass at the cost of one copy; slices
    would each add a full-size gradient.
    """
    sizes = [unit.length for unit in units]
    queries, keys, values = (tensor.split(sizes, dim=2) for tensor in states)
    outputs = [
        attend(_States(query, unit.keys(key, keys), unit.keys(value, values)))
        for unit, query, key, value in zip(units, queries, keys, values, strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _varlen(states: _States, bounds: Tensor, parents: Tensor, attend: _Attend) -> Tensor:
    """FlashAttention over all segments in one call; keys of shared prompts are gathered."""
    from torch.nn.attention.varlen import varlen_attn

    spans = [torch.arange(start, end) for start, end in pairwise(bounds.tolist())]
    sources = [
        span if parent == NO_PARENT else torch.cat([spans[parent], span])
        for span, parent in zip(spans, parents.tolist(), strict=True)
    ]
    device, key_lengths = states.query.device, [len(source) for source in sources]
    query, key, value = (tensor[0].transpose(0, 1).contiguous() for tensor in states)
    if bool((parents != NO_PARENT).any()):
        index = torch.cat(sources).to(device)
        key, value = key[index], value[index]
    output: Tensor = varlen_attn(  # type: ignore[assignment]
        query,
        key,
        value,
        bounds.to(device, torch.int32),
        torch.tensor([0, *key_lengths]).cumsum(0).to(device, torch.int32),
        max(len(span) for span in spans),
        max(key_lengths),
        scale=attend.scaling,
        window_size=(-1 if attend.window is None else attend.window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.unsqueeze(0)
