"""What a training step keeps for its backward pass, counted before a weight is loaded.

The model is built on PyTorch's fake tensors, which have shapes and no storage, and is run forward
over two small batches: what autograd saves grows with the tokens, and the slope is the answer. So
the count is right for any architecture, precision and adapter, and costs less than a second.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from rlhf_core.config import ComputeConfig
from rlhf_core.models.attention import PACKED, register_packed_attention
from rlhf_core.models.compute import prepare_training
from rlhf_core.models.dropout import without_dropout
from rlhf_core.models.layout import hidden_states
from rlhf_core.models.library_output import hide_transformers_output
from rlhf_core.models.text import text_config
from rlhf_core.tokenization.batches import NO_PARENT, TokenBatch

_LENGTH = 32
"""Tokens of each sequence that is counted over; few, for every model has as many positions."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes that one training step of a model needs besides weights that were loaded."""

    per_token: int
    """What each token of a forward pass keeps for the backward pass, and one layer's gradients."""
    at_once: int
    """Whatever the number of tokens: weights cast by autocast."""
    adapters: int
    """Weights of the adapters, float32; 0 where the model is trained whole."""
    cached_per_token: int
    """Keys and values that are kept for a token while sampling."""


def step_memory(folder: str | Path, compute: ComputeConfig) -> StepMemory | None:
    """Count what a training step of the model in a folder keeps.

    Args:
        folder: model in ``save_pretrained`` layout; its configuration alone is read.
        compute: precision, adapters and recomputation of the training.

    Returns:
        None where it cannot be known: a hub name, a model with code of its own, or one whose
        forward pass does not run on fake tensors.
    """
    with suppress(OSError):
        settings = (Path(folder) / "config.json").read_text(encoding="utf-8")
        return _counted(settings, str(folder), compute)
    return None


@lru_cache(maxsize=16)
def _counted(settings: str, folder: str, compute: ComputeConfig) -> StepMemory | None:
    """``settings`` is part of the key alone: a folder may be replaced by another of its name."""
    if "auto_map" in json.loads(settings):
        return None
    with suppress(Exception):  # an unknown architecture fails in its own way; nothing is at stake
        return _count(folder, compute)
    return None


def _count(folder: str, compute: ComputeConfig) -> StepMemory:
    register_packed_attention()
    small, large = _batch(2), _batch(4)
    # Trained whole: the input of a layer is kept for its adapter as it is for its weight.
    whole = ComputeConfig(precision=compute.precision)
    # The batches' lengths are real numbers, which attention reads.
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = prepare_training(_build(folder), whole, seed=0)
        first, second = _saved_bytes(model, small), _saved_bytes(model, large)
    per_token = (second - first) / (large.num_tokens - small.num_tokens)
    at_once = first - per_token * small.num_tokens
    config = text_config(model)
    one_layer = per_token / config.num_hidden_layers
    if compute.gradient_checkpointing:
        # Each layer keeps what it was given; the layer that is computed again keeps the rest.
        per_token = one_layer + config.num_hidden_layers * config.hidden_size * 4
    # Going backwards, a layer's gradients are there while all before it is still kept.
    per_token += one_layer
    return StepMemory(
        round(per_token), round(at_once), _adapter_bytes(folder, compute), _cached_per_token(model)
    )


def _build(folder: str) -> Any:
    with hide_transformers_output():
        config = without_dropout(folder)
        return AutoModelForCausalLM.from_config(config, attn_implementation=PACKED)


def _adapter_bytes(folder: str, compute: ComputeConfig) -> int:
    """Float32 bytes of the adapters; PEFT moves them about, which fake tensors do not let it."""
    if compute.lora is None:
        return 0
    with torch.device("meta"):
        adapted = prepare_training(_build(folder), ComputeConfig(lora=compute.lora), seed=0)
    return sum(weight.numel() * 4 for weight in adapted.parameters() if weight.requires_grad)


def _batch(num_sequences: int) -> TokenBatch:
    num_tokens = num_sequences * _LENGTH
    return TokenBatch(
        input_ids=torch.zeros(num_tokens, dtype=torch.int64),
        position_ids=torch.arange(_LENGTH).repeat(num_sequences),
        loss_mask=torch.ones(num_tokens, dtype=torch.bool),
        cu_seqlens=torch.arange(0, num_tokens + 1, _LENGTH),
        parents=torch.full((num_sequences,), NO_PARENT),
    )


def _saved_bytes(model: nn.Module, batch: TokenBatch) -> int:
    """Bytes of all that autograd saves in one forward pass, each storage once, weights not."""
    own = {weight.untyped_storage()._cdata for weight in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # The states stay alive until all is counted: a freed storage's address is given again.
        states = hidden_states(model, batch)
        total = 0
        for storage in kept.values():
            total += storage.nbytes()
    del states
    return total


def _cached_per_token(model: nn.Module) -> int:
    """Keys and values of a token in all layers, float32."""
    config = text_config(model)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.num_hidden_layers * 2 * heads * width * 4)
