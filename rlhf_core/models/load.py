"""Causal models from a directory or the hub, checked before anything is computed with them."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf_core.models.build import build_model
from rlhf_core.models.probe import require_packable, require_repeatable


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
    model = build_model(
        AutoModelForCausalLM,
        base,
        "a causal language model",
        dtype=dtype,
        device=device,
        revision=revision,
    )
    require_packable(model)
    require_repeatable(model)
    return model
