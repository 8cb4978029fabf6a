"""A few tokens through a fresh model: does it do what training takes for granted?"""

import torch
from torch import nn
from transformers import PreTrainedModel

from rlhf_core.errors import ModelError
from rlhf_core.models.attention import recorded_windows
from rlhf_core.models.causal import hidden_states, logit_transform, output_head
from rlhf_core.tokenization.batches import NO_PARENT, TokenBatch

PACKING_TOLERANCE = 0.02
"""Largest difference of probe logits, relative to their spread, that rounding can explain (in
bfloat16; in float32 it is below 1e-5, and a wrong layout gives 1 and more)."""
TRAINING_PASSES = 3
"""Forward passes in training mode; noise on every token shows in the first."""


@torch.no_grad()
def require_packable(model: PreTrainedModel) -> None:
    """Compare packed logits with the model's own, sequence by sequence, on a small probe.

    The probe is shorter than any window, so of a window it is asked whether packed attention hears
    of it at all.

    Raises:
        ModelError: they differ, so training on packed batches would be wrong for this model.
    """
    name = type(model).__name__
    probe = _probe_batch(model.config.get_text_config().vocab_size).to(model.device)
    try:
        with recorded_windows(model) as windows:
            hidden = hidden_states(model, probe)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{name}: cannot run packed sequences: {error}") from error
    if sum(window is not None for window in windows) < _num_windows(model):
        raise ModelError(
            f"{name}: its attention windows are in its masks alone, which packed sequences do not "
            "have; this architecture cannot be trained here"
        )
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


@torch.no_grad()
def require_repeatable(model: PreTrainedModel) -> None:
    """Run the probe in training mode and compare: it must be what evaluation mode gives.

    With dropout, dropped layers or routing noise the importance ratio would not be 1 before the
    first update, and a reward would not belong to its text.

    Raises:
        ModelError: the numbers differ.
    """
    probe = _probe_batch(model.config.get_text_config().vocab_size).to(model.device)
    expected = hidden_states(model.eval(), probe)
    model.train()
    passes = [hidden_states(model, probe) for _ in range(TRAINING_PASSES)]
    model.eval()
    gap = max(float((states - expected).abs().max() / expected.std()) for states in passes)
    if not gap < PACKING_TOLERANCE:
        raise ModelError(
            f"{type(model).__name__}: training mode does not repeat the numbers of evaluation mode "
            f"(relative difference {gap:.1e}): some noise of the model cannot be switched off"
        )


def _num_windows(model: PreTrainedModel) -> int:
    """Layers that may not see the whole sequence; where they are not listed, at least one."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return int(getattr(config, "sliding_window", None) is not None)
    return sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds)


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
