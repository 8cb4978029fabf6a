"""Causal language models on packed batches; the transformers model stays the public object."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf_core.errors import ModelError
from rlhf_core.functional.head import chunked_logprobs, chunked_nll_sum
from rlhf_core.functional.logits import LogitTransform
from rlhf_core.models.attention import PACKED, register_packed_attention
from rlhf_core.models.compute import forward_precision, unwrapped
from rlhf_core.models.quiet import quiet_transformers
from rlhf_core.tokenization.batches import NO_PARENT, TokenBatch

PACKING_TOLERANCE = 0.02
"""Largest difference of probe logits, relative to their spread, that rounding can explain (in
bfloat16; in float32 it is below 1e-5, and a wrong layout gives 1 and more)."""


def load_causal(
    base: str | Path, *, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load a causal model, dropout off for good, ready for packed batches.

    Args:
        base: directory in ``save_pretrained`` layout, or a hub name.
        revision: hub revision; ignored for a directory.
        dtype: of the weights.

    Raises:
        ModelError: it cannot be loaded, or its logits on a packed probe are not those of its own
            forward pass (recurrent layers, a head this code does not know).
    """
    register_packed_attention()
    try:
        with quiet_transformers():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                str(base), revision=revision or "main", dtype=dtype, attn_implementation=PACKED
            )
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{base}: cannot load a causal language model: {reason}") from error
    switch_off_dropout(model)
    require_packable(model)
    return model


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout to 0, so that training and evaluation mode give the same numbers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def hidden_states(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Final hidden states of a packed batch: [N, H], after the last norm."""
    backbone: nn.Module = unwrapped(model).base_model
    unused_mask = batch.input_ids.new_empty((1, 1, 1, 0), dtype=torch.bool)
    with forward_precision(model):
        output = backbone(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            attention_mask=unused_mask,
            use_cache=False,
            cu_seqlens=batch.cu_seqlens,
            parents=batch.parents,
        )
    states: Tensor = output.last_hidden_state[0]
    return states


def token_logprobs(model: nn.Module, batch: TokenBatch, *, temperature: float = 1.0) -> Tensor:
    """Log-probability of every token that counts: [M] float32, in nats, differentiable."""
    return logprobs_from_hidden(model, hidden_states(model, batch), batch, temperature)[0]


def logprobs_from_hidden(
    model: nn.Module, hidden: Tensor, batch: TokenBatch, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [M] (differentiable) and entropies [M] (not) from hidden states [N, H].

    Both are float32, in nats, of the distribution at ``temperature``.
    """
    weight, bias = output_head(model)
    transform = logit_transform(model, temperature)
    read = hidden.index_select(0, batch.predictor_positions)
    with forward_precision(model):
        return chunked_logprobs(read, weight, bias, batch.targets, transform)


def nll_sum(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Negative log-likelihood summed over the tokens that count: [] float32, in nats."""
    read = hidden_states(model, batch).index_select(0, batch.predictor_positions)
    weight, bias = output_head(model)
    with forward_precision(model):
        return chunked_nll_sum(read, weight, bias, batch.targets, logit_transform(model))


def output_head(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight [V, H] and bias [V] (or None) of the language-model head."""
    head = unwrapped(model).get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ModelError(
            f"the language-model head is a {type(head).__name__}; expected a plain linear layer "
            "(adapters on the head are not supported)"
        )
    return head.weight, head.bias


def logit_transform(model: nn.Module, temperature: float = 1.0) -> LogitTransform:
    """What the architecture does to its logits, as its configuration says."""
    config = unwrapped(model).config
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
    return LogitTransform(
        scale=scale,
        softcap=getattr(config, "final_logit_softcapping", None),
        temperature=temperature,
    )


@torch.no_grad()
def require_packable(model: PreTrainedModel) -> None:
    """Compare packed logits with the model's own, sequence by sequence, on a small probe.

    Raises:
        ModelError: they differ, so training on packed batches would be wrong for this model.
    """
    name = type(model).__name__
    probe = _probe_batch(model.config.get_text_config().vocab_size).to(model.device)
    try:
        hidden = hidden_states(model, probe)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{name}: cannot run packed sequences: {error}") from error
    weight, bias = output_head(model)
    packed = logit_transform(model).forward(nn.functional.linear(hidden, weight, bias))
    first, second, third = probe.input_ids.split(probe.cu_seqlens.diff().tolist())
    own = [
        model(input_ids=tokens[None], use_cache=False).logits[0].float()
        for tokens in (first, second, torch.cat([first, third]))
    ]
    expected = torch.cat([own[0], own[1], own[2][len(first) :]])
    gap = (packed - expected).abs().max() / expected.std().clamp_min(1e-6)
    if not gap < PACKING_TOLERANCE:
        raise ModelError(
            f"{name}: packed sequences do not give the model's own logits (relative difference "
            f"{gap:.1e}); this architecture cannot be trained here"
        )


def _probe_batch(vocab_size: int) -> TokenBatch:
    """Three segments: one of four tokens, one of three, and two more that continue the first."""
    lengths, parents = [4, 3, 2], [NO_PARENT, NO_PARENT, 0]
    positions = [torch.arange(4), torch.arange(3), torch.arange(4, 6)]
    return TokenBatch(
        input_ids=torch.arange(7, 16) * 7 % vocab_size,
        position_ids=torch.cat(positions),
        loss_mask=torch.zeros(9, dtype=torch.bool),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0),
        parents=torch.tensor(parents),
    )
