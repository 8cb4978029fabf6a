"""The base model and its tokenizer, as the configuration names them."""

from pathlib import Path

from transformers import PreTrainedModel

from rlhf_core.config import ModelConfig
from rlhf_core.errors import ModelError
from rlhf_core.models import load_causal
from rlhf_core.tokenization import Renderer, load_tokenizer, make_renderer


def load_base(settings: ModelConfig) -> tuple[PreTrainedModel, Renderer]:
    """Load what SFT starts from.

    Raises:
        ModelError: no model, tokenizer or chat template; or ``max_length`` exceeds the model's.
    """
    renderer = base_renderer(settings)
    model = load_causal(settings.base, revision=settings.revision, device=settings.device)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and settings.max_length > positions:
        raise ModelError(
            f"model.max_length is {settings.max_length}, but {settings.base} has "
            f"{positions} positions; lower model.max_length"
        )
    return model, renderer


def base_renderer(settings: ModelConfig) -> Renderer:
    """Load only the tokenizer of the base model."""
    return make_renderer(
        load_tokenizer(
            settings.base, revision=settings.revision, chat_template=settings.chat_template
        )
    )


def model_renderer(directory: Path) -> Renderer:
    """Load the tokenizer that was saved with one of our own models."""
    return make_renderer(load_tokenizer(directory))
