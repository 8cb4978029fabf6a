"""Pretrained models ready for packed batches, whatever their head is for."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from rlhf_core.errors import ModelError
from rlhf_core.models.attention import PACKED, register_packed_attention
from rlhf_core.models.device import choose_device
from rlhf_core.models.dropout import switch_off_dropout, without_dropout
from rlhf_core.models.quiet import quiet_transformers
from rlhf_core.models.unread import leave_out_unread


def build_model(
    auto_class: Any,
    base: str | Path,
    what: str,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    revision: str | None = None,
    **changes: Any,
) -> PreTrainedModel:
    """Build a model on its device, dropout off; whether it can be trained is the caller's to ask.

    Args:
        auto_class: of transformers, e.g. ``AutoModelForCausalLM``.
        base: directory in ``save_pretrained`` layout, or a hub name.
        what: as what it is loaded, for the error.
        dtype: of the weights.
        device: as ``model.device``.
        revision: hub revision; ignored for a directory.
        changes: what differs from the model's own configuration.

    Raises:
        ConfigError: the device is not there.
        ModelError: it cannot be loaded.
    """
    register_packed_attention()
    place = choose_device(device)
    try:
        with quiet_transformers():
            config = without_dropout(base, revision)
            config.update(changes)
            model: PreTrainedModel = auto_class.from_pretrained(
                str(base),
                config=config,
                revision=revision or "main",
                dtype=dtype,
                attn_implementation=PACKED,
            )
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{base}: cannot load {what}: {reason}") from error
    model.to(place)  # type: ignore[arg-type]
    switch_off_dropout(model)
    leave_out_unread(model)
    return model
