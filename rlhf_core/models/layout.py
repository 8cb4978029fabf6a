"""How a model runs several sequences: packed end to end, or each length by itself.

Packing needs layers whose only traffic between tokens is an attention this code knows. Recurrent
and convolutional layers, attention sinks, linear biases and masks of a model's own have more; such
a model runs sequences of equal length together and nothing else. What comes out lies in the packed
order either way, so nobody but this module has to know.
"""

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rlhf_core.errors import ModelError
from rlhf_core.models.compute import forward_precision, unwrapped
from rlhf_core.models.last_layer import READ
from rlhf_core.models.text import text_trunk
from rlhf_core.tokenization.batches import NO_PARENT, TokenBatch

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

_LAYOUT = "_sequence_layout"
_warned: set[str] = set()


@dataclass(frozen=True)
class Layout:
    """What a model can do."""

    packed: bool = True
    """Sequences lie end to end in one row; else each length is a pass of its own."""
    cached: bool = True
    """Its own cache gives what the whole sequence gives; read where ``in_block`` is False."""
    once: bool = True
    """A pass runs each layer once; of models that loop, the same layer has keys of each loop."""

    @property
    def in_block(self) -> bool:
        """Whether rows of any length are sampled side by side, their keys in one block."""
        return self.packed and self.once


def layout_of(model: nn.Module) -> Layout:
    """Return the layout that was chosen when the model was loaded."""
    layout: Layout = getattr(unwrapped(model), _LAYOUT, Layout())
    return layout


def set_layout(model: nn.Module, layout: Layout, reason: str | None = None) -> None:
    """Give a model its layout; with a reason, it is logged for the first model of its class."""
    setattr(unwrapped(model), _LAYOUT, layout)
    name = type(unwrapped(model)).__name__
    if reason is not None and name not in _warned:
        _warned.add(name)
        how = (
            "samples prompts of equal length together, with its own cache: exact, but slower"
            if layout.packed
            else "runs sequences of equal length together, not packed: exact, but slower"
        )
        slower = "" if layout.cached else "; it samples without a cache, which is slower still"
        logger.warning("%s %s (%s)%s", name, how, reason, slower)


def hidden_states(model: nn.Module, batch: TokenBatch, positions: Tensor | None = None) -> Tensor:
    """Final hidden states of a batch, after the last norm, in its packed order.

    Args:
        model: a transformers model.
        batch: of N tokens.
        positions: [M] int64, where to read; a position may come twice. None reads everywhere.

    Returns:
        [M, H], or [N, H] without ``positions``.
    """
    with forward_precision(model):
        return _trunk_states(model, batch, positions)


def _trunk_states(model: nn.Module, batch: TokenBatch, positions: Tensor | None) -> Tensor:
    trunk, layout = text_trunk(model), layout_of(model)
    if not layout.packed:
        states, source = _separate_states(trunk, batch)
        return states.index_select(0, source if positions is None else source[positions])
    unused_mask = batch.input_ids.new_empty((1, 1, 1, 0), dtype=torch.bool)
    output = trunk(
        input_ids=batch.input_ids[None],
        position_ids=batch.position_ids[None],
        attention_mask=unused_mask,
        use_cache=False,
        cu_seqlens=batch.cu_seqlens,
        parents=batch.parents,
        **({READ: positions.unique()} if positions is not None and layout.once else {}),
    )
    packed: Tensor = output.last_hidden_state[0]
    return packed if positions is None else packed.index_select(0, positions)


def _separate_states(trunk: nn.Module, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """States of every pass end to end [P, H], and where each token of the batch is read in them.

    A shared prompt is computed with each of its responses and read with the first.
    """
    states: list[Tensor] = []
    places: list[Tensor] = []
    sequences = sequence_places(batch)
    for rows in by_length(sequences, [len(places) for places in sequences]):
        index = torch.stack(rows)
        tokens = batch.input_ids[index.to(batch.input_ids.device)]
        states.append(whole_states(trunk, tokens).flatten(0, 1))
        places.append(index.flatten())
    every = torch.cat(places)
    source = torch.full((batch.num_tokens,), len(every)).scatter_reduce_(
        0, every, torch.arange(len(every)), "amin"
    )
    return torch.cat(states), source.to(batch.input_ids.device)


def whole_states(trunk: nn.Module, tokens: Tensor) -> Tensor:
    """Hidden states [B, L, H] of rows of one length [B, L], as any caller of the model has them."""
    states: Tensor = trunk(input_ids=tokens, use_cache=False).last_hidden_state
    return states


def sequence_places(batch: TokenBatch) -> list[Tensor]:
    """Indices into N of the tokens of each sequence, a shared prompt included: B of [L] int64."""
    bounds, parents = batch.cu_seqlens.tolist(), batch.parents.tolist()
    rows = []
    for leaf in batch.leaves.tolist():
        spans: list[Tensor] = []
        segment = leaf
        while segment != NO_PARENT:
            spans.insert(0, torch.arange(bounds[segment], bounds[segment + 1]))
            segment = parents[segment]
        rows.append(torch.cat(spans))
    return rows


class OwnCache:
    """A model's own cache over rows of equal length, whatever it calls it.

    Where the cache does not repeat what the whole sequence gives, the whole sequence is read again
    for every token.
    """

    def __init__(self, model: nn.Module, *, cached: bool = True) -> None:
        self.trunk, self.cached = text_trunk(model), cached
        self.name = cache_argument(self.trunk)
        self.state: dict[str, Any] = {}
        self.tokens: Tensor | None = None

    def read(self, tokens: Tensor) -> Tensor:
        """Read the next tokens [B, L] of every row: hidden states of the last ones, [B, H]."""
        if not self.cached:
            seen = tokens if self.tokens is None else torch.cat([self.tokens, tokens], dim=1)
            self.tokens = seen
            return whole_states(self.trunk, seen)[:, -1]
        output = self.trunk(input_ids=tokens, use_cache=True, **self.state)
        # Transformers renames it in what a model returns, also where the model's code does not.
        held = (getattr(output, name, None) for name in (_RENAMED, self.name))
        cache = next((value for value in held if value is not None), None)
        if cache is None:
            raise ModelError(f"{type(self.trunk).__name__} returns no cache")
        self.state = {self.name: cache}
        last: Tensor = output.last_hidden_state[:, -1]
        return last


_RENAMED = "cache"
"""What transformers 5.24 calls every cache."""
_CACHES = (_RENAMED, "past_key_values", "cache_params", "state")


def cache_argument(trunk: nn.Module) -> str:
    """Return as which argument a trunk takes its cache: as its own code says.

    Transformers 5.24 renamed it, a model with code of its own may not have.
    """
    known = inspect.signature(trunk.forward).parameters
    return next((name for name in _CACHES if name in known), "past_key_values")


def by_length(items: Sequence[Item], lengths: Sequence[int]) -> list[list[Item]]:
    """Group what is equally long, in the order in which the lengths first come."""
    groups: dict[int, list[Item]] = {}
    for item, length in zip(items, lengths, strict=True):
        groups.setdefault(length, []).append(item)
    return list(groups.values())
