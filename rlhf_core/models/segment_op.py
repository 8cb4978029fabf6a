"""Attention of every segment of a packed row as one operation, forwards and backwards.

One operation, so that the autograd graph holds one node a layer however many segments there are,
and so that the compiler can take a whole layer: it sees shapes in and shapes out. Inside is the
kernel that ``scaled_dot_product_attention`` uses on a CPU, once per segment.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_core.tokenization.batches import NO_PARENT

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Unit(NamedTuple):
    """Queries that attend in one call: a segment, or a prompt and the response right after it."""

    length: int
    """Tokens."""
    prompt: int
    """The unit whose first ``shared`` keys come before this one's own."""
    shared: int
    """Tokens of the prompt it shares; 0 where it shares none."""

    def keys(self, own: Tensor, states: Sequence[Tensor]) -> Tensor:
        """Put the shared prompt's keys (or values) before ``own``; ``states`` are those of all."""
        if not self.shared:
            return own
        return torch.cat([states[self.prompt][:, :, : self.shared], own], dim=2)

    def mask(self, window: int | None, like: Tensor) -> Tensor | None:
        """Return what to add to the scores, or None where the kernel's causal mask will do."""
        columns = self.length + self.shared
        if not self.shared and (window is None or window >= columns):
            return None
        mask = causal_mask(self.length, columns, window, like.device)
        return torch.where(mask, 0.0, -torch.inf).to(like.dtype)


def causal_mask(rows: int, columns: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys each query sees, the last query on the last key: [rows, columns] bool."""
    mask = torch.ones(rows, columns, dtype=torch.bool, device=device).tril(columns - rows)
    return mask if window is None else mask.triu(columns - rows - window + 1)


def units_of(cu_seqlens: Tensor, parents: Tensor) -> list[Unit]:
    """Join each prompt and the response right after it: together they are one causal segment.

    Args:
        cu_seqlens: [S + 1] int64, as in ``TokenBatch``.
        parents: [S] int64; a parent has none itself.
    """
    lengths, units, unit_of = cu_seqlens.diff().tolist(), list[Unit](), list[int]()
    for segment, parent in enumerate(parents.tolist()):
        length = lengths[segment]
        if parent == NO_PARENT:
            units.append(Unit(length, 0, 0))
        elif parent == segment - 1:
            # Right behind its prompt a response needs no copy of the prompt's keys: the causal
            # mask of the two as one text is the mask it wants.
            units[-1] = units[-1]._replace(length=units[-1].length + length)
        else:
            units.append(Unit(length, unit_of[parent], lengths[parent]))
        unit_of.append(len(units) - 1)
    return units


@torch.library.custom_op("rlhf::segment_attention", mutates_args=())
def segment_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: list[Tensor],
    scaling: float | None,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """Causal attention within each segment, and over the prompt it shares. On a CPU.

    Args:
        query: [1, heads, N, D] float32 or float64.
        key: [1, heads, N, D].
        value: [1, heads, N, D].
        layout: ``cu_seqlens`` [S + 1] and ``parents`` [S], as in ``TokenBatch``.
        scaling: of the scores; None: 1 / sqrt(D).
        window: how many keys a query sees, its own among them; None: all before it.

    Returns:
        [1, N, heads, D], and the logarithm of each softmax's denominator, [1, heads, N].
    """
    units = units_of(*layout)
    queries, keys, values = _split(units, query, key, value)
    outputs, denominators = [], []
    for unit, own, own_keys, own_values in zip(units, queries, keys, values, strict=True):
        mask = unit.mask(window, query)
        output, denominator = _flash(
            own,
            unit.keys(own_keys, keys),
            unit.keys(own_values, values),
            is_causal=mask is None,
            attn_mask=mask,
            scale=scaling,
        )
        outputs.append(output.transpose(1, 2))
        denominators.append(denominator)
    return torch.cat(outputs, dim=1), torch.cat(denominators, dim=2)


@torch.library.custom_op("rlhf::segment_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    states: list[Tensor],
    attended: list[Tensor],
    layout: list[Tensor],
    scaling: float | None,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    units, (query, key, value) = units_of(*layout), states
    queries, keys, values = _split(units, query, key, value)
    given, outputs, denominators = _split(units, grad.transpose(1, 2), *attended)
    # The kernel recomputes each softmax from its denominator: no [T, T] weights were kept.
    grads: list[tuple[Tensor, ...]] = []
    for index, unit in enumerate(units):
        mask = unit.mask(window, query)
        of_query, *of_keys = _flash_backward(
            given[index],
            queries[index],
            unit.keys(keys[index], keys),
            unit.keys(values[index], values),
            outputs[index],
            denominators[index],
            0.0,
            mask is None,
            attn_mask=mask,
            scale=scaling,
        )
        if unit.shared:
            # Every response that read the prompt's keys adds to their gradient. The prompt's unit
            # stands before its responses, so its own gradient is there already to be added to.
            for whole, part in zip(grads[unit.prompt][1:], of_keys, strict=True):
                whole[:, :, : unit.shared] += part[:, :, : unit.shared]
        grads.append((of_query, *(part[:, :, unit.shared :] for part in of_keys)))
    query, key, value = (_joined(parts) for parts in zip(*grads, strict=True))
    return query, key, value


def _split(units: list[Unit], *states: Tensor) -> tuple[Sequence[Tensor], ...]:
    sizes = [unit.length for unit in units]
    return tuple(state.split(sizes, dim=2) for state in states)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Join [1, heads, T, D] so that tokens lie one after the other, as in a projection."""
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1).transpose(1, 2)


def _like(states: Tensor) -> Tensor:
    # The compiler trusts these strides: they have to be those ``_joined`` really returns.
    by_token = states.transpose(1, 2)
    return by_token.new_empty(by_token.shape).transpose(1, 2)


@segment_attention.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _like(query).transpose(1, 2), query.new_empty(query.shape[:3])


@_backward.register_fake
def _(grad: Tensor, states: list[Tensor], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = map(_like, states)
    return query, key, value


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *states, layout, ctx.scaling, ctx.window = inputs
    ctx.save_for_backward(*states, *output, *layout)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    *states, output, denominators, cu_seqlens, parents = ctx.saved_tensors
    attended, layout = [output.transpose(1, 2), denominators], [cu_seqlens, parents]
    grads = _backward(grad, states, attended, layout, ctx.scaling, ctx.window)
    return (*grads, [None, None], None, None)


segment_attention.register_autograd(_differentiate, setup_context=_keep)
