"""The text part of a model: the whole of most, one of several parts of a composite one.

A composite configuration (a vision or audio tower beside a language model) keeps the text part
under ``text_config``. What is trained of it, in this order:

- the class that transformers' ``AutoModelForCausalLM`` gives for the configuration (Gemma 3, Gemma
  3n, Gemma 4, Qwen 3.5), whole: towers are kept as they are and saved with it;
- the text model alone, where only that is a causal language model (Llava, Mistral 3);
- the composite class, where the text part has no causal class of its own (Qwen2-VL, Qwen3-VL).
"""

import logging
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from rlhf_core.errors import ModelError
from rlhf_core.models.compute import unwrapped

logger = logging.getLogger(__name__)

_CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
_COMPOSITE = (
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING,
)


def is_composite(config: PreTrainedConfig) -> bool:
    """Say whether the text part is one of several, with a configuration of its own."""
    return config.get_text_config() is not config


def text_config(model: nn.Module) -> Any:
    """Return the configuration of the text part."""
    return unwrapped(model).config.get_text_config()


def num_positions(config: PreTrainedConfig) -> int | None:
    """Return the positions that the text part has; None where there is no limit.

    Of ``longrope`` (Phi 3) only those before it stretches: beyond them one long sequence of a batch
    changes what all the others get, and keys that were kept no longer go with those that come.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return int(rope["original_max_position_embeddings"])
    positions: int | None = getattr(text, "max_position_embeddings", None)
    return positions


def text_trunk(model: nn.Module) -> PreTrainedModel:
    """Return the stack of decoder layers that maps token ids to hidden states."""
    inner = unwrapped(model)
    if is_composite(inner.config):
        trunk: Any = inner.get_decoder()
    elif inner.base_model is inner:
        # Llama 4's text model is filed under another name than its prefix says.
        trunk = getattr(inner, "model", inner)
    else:
        trunk = inner.base_model
    found: PreTrainedModel = trunk
    return found


def freeze_towers(model: PreTrainedModel) -> None:
    """Keep what is neither text trunk nor head out of training: text alone never reaches it."""
    if not is_composite(model.config):
        return
    head = model.get_output_embeddings()
    trained = {id(weight) for weight in text_trunk(model).parameters()}
    trained |= set() if head is None else {id(weight) for weight in head.parameters()}
    for weight in model.parameters():
        if id(weight) not in trained:
            weight.requires_grad_(False)


class CausalClass:
    """As ``AutoModelForCausalLM``, for composite configurations too."""

    @staticmethod
    def from_pretrained(directory: str, *, config: PreTrainedConfig, **options: Any) -> Any:
        """Load as the module's docstring says; arguments and result as the auto classes'."""
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        refuse_encoder(config)
        if type(config) in _CAUSAL or not is_composite(config) or hasattr(config, "auto_map"):
            return AutoModelForCausalLM.from_pretrained(directory, config=config, **options)
        if not any(type(config) in mapping for mapping in _COMPOSITE):
            raise ValueError(f"{config.model_type} is no causal language model to transformers")
        whole: Any = AutoModelForImageTextToText
        model, loaded = whole.from_pretrained(directory, config=config, **options)
        if type(config.get_text_config()) in _CAUSAL:
            logger.warning(
                "%s: the text model of %s is trained and saved alone, for that is what "
                "AutoModelForCausalLM loads; images are left out",
                directory,
                config.model_type,
            )
            model = text_model_of(model)
        return model, loaded


def refuse_encoder(config: PreTrainedConfig) -> None:
    """Refuse a model of two halves by its configuration.

    Raises:
        ValueError: says what to take instead.
    """
    if config.is_encoder_decoder and type(config) not in _CAUSAL:
        raise ValueError(
            f"{config.model_type} is an encoder-decoder: its answers come from a decoder that "
            "reads the prompt through an encoder; take a decoder-only model"
        )


def text_model_of(composite: PreTrainedModel) -> PreTrainedModel:
    """Return the causal language model inside a composite one; the weights are the same tensors.

    Raises:
        ModelError: the text part's class is not the one its configuration names.
    """
    trunk, head = text_trunk(composite), composite.get_output_embeddings()
    kind: Any = _CAUSAL[type(trunk.config)]
    with torch.device("meta"):
        model: PreTrainedModel = kind(trunk.config)
    if type(model.base_model) is not type(trunk) or head is None:
        raise ModelError(
            f"{type(composite).__name__}: its text part is a {type(trunk).__name__}, which "
            f"{kind.__name__} does not hold"
        )
    setattr(model, model.base_model_prefix, trunk)
    model.set_output_embeddings(head)
    tied = head.weight is trunk.get_input_embeddings().weight
    model.config.tie_word_embeddings = tied
    model.generation_config = composite.generation_config
    model.name_or_path = composite.name_or_path
    model.eval()
    return model
