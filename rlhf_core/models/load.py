"""Causal models from a directory or the hub, checked before anything is computed with them."""

from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from rlhf_core.models.build import build_model, loading, require_plain_weights
from rlhf_core.models.dropout import without_dropout
from rlhf_core.models.known_ids import limit_ids
from rlhf_core.models.probe import choose_layout, require_known_head, require_repeatable
from rlhf_core.models.text import CausalClass, refuse_encoder

_WHAT = "a causal language model"


def load_causal(
    base: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> PreTrainedModel:
    """Load a causal model, dropout off for good, its layout chosen (``models.layout``).

    Args:
        base: directory in ``save_pretrained`` layout, or a hub name.
        revision: hub revision; ignored for a directory.
        dtype: of the weights.
        device: as ``model.device``.

    Raises:
        ConfigError: the device is not there.
        ModelError: it cannot be loaded; it is not causal, or has a head this code does not know;
            or training mode gives other numbers.
    """
    model = build_model(
        CausalClass,
        base,
        _WHAT,
        dtype=dtype,
        device=device,
        revision=revision,
    )
    _say_whether_tied(model)
    limit_ids(model, base, revision)
    choose_layout(model)
    require_known_head(model)
    require_repeatable(model)
    return model


def read_causal_config(base: str | Path, *, revision: str | None = None) -> PreTrainedConfig:
    """Read the configuration of what ``load_causal`` is to load, and refuse what it would by it.

    Of the weights it is known how they are written, and none is read.

    Args:
        base: directory in ``save_pretrained`` layout, or a hub name.
        revision: hub revision; ignored for a directory.

    Raises:
        ModelError: it is not there, needs code that is not trusted, is no causal model, or its
            weights are a pickle with more than tensors.
    """
    with loading(base, _WHAT):
        config = without_dropout(base, revision)
        require_plain_weights(base)
        refuse_encoder(config)
        return config


def _say_whether_tied(model: PreTrainedModel) -> None:
    """Let the configuration say what the files hold.

    Files with two matrices are loaded as two, whatever the configuration says; an engine that goes
    by the configuration alone (vLLM) would serve another model than was trained.
    """
    head = model.get_output_embeddings()
    if head is None:
        return
    is_tied = head.weight is model.get_input_embeddings().weight
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "tie_word_embeddings", is_tied) and not is_tied:
            config.tie_word_embeddings = False
