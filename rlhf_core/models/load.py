"""Causal models from a directory or the hub, checked before anything is computed with them."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf_core.errors import ModelError
from rlhf_core.models.attention import PACKED, register_packed_attention
from rlhf_core.models.device import choose_device
from rlhf_core.models.dropout import switch_off_dropout, without_dropout
from rlhf_core.models.probe import require_packable, require_repeatable
from rlhf_core.models.quiet import quiet_transformers


def load_causal(
    base: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> PreTrainedModel:
    """Load a causal model, dropout off for good, ready for packed batches.

    Args:
        base: directory in ``save_pretrained`` layout, or a hub name.
        revision: hub revision; ignored for a directory.
        dtype: of the weights.
        device: as ``model.device``.

    Raises:
        ConfigError: the device is not there.
        ModelError: it cannot be loaded; its logits on a packed probe are not those of its own
            forward pass (recurrent layers, a head this code does not know); or training mode
            gives other numbers.
    """
    register_packed_attention()
    place = choose_device(device)
    try:
        with quiet_transformers():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                str(base),
                config=without_dropout(base, revision),
                revision=revision or "main",
                dtype=dtype,
                attn_implementation=PACKED,
            )
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{base}: cannot load a causal language model: {reason}") from error
    model.to(place)  # type: ignore[arg-type]
    switch_off_dropout(model)
    require_packable(model)
    require_repeatable(model)
    return model
