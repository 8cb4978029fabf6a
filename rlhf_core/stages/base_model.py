"""The base model and its tokenizer, as the configuration names them."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from rlhf_core.config import ModelConfig
from rlhf_core.dataprep.files import sha256_of
from rlhf_core.dataprep.manifest import fingerprint_of
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
    positions = _num_positions(model)
    if positions is not None and settings.max_length > positions:
        raise ModelError(
            f"model.max_length is {settings.max_length}, but {settings.base} has "
            f"{positions} positions; lower model.max_length"
        )
    highest = max(len(renderer.tokenizer) - 1, renderer.eos_id)
    embedding: Any = model.get_input_embeddings()
    rows = embedding.num_embeddings
    if highest >= rows:
        raise ModelError(
            f"{settings.base}: the tokenizer's highest token is {highest}, but the model embeds "
            f"{rows}; resize the model's embeddings, or take the tokenizer it was trained with"
        )
    return model, renderer


def _num_positions(model: PreTrainedModel) -> int | None:
    """Positions that a model has; None where there is no limit.

    Of ``longrope`` (Phi 3) only those before it stretches: beyond them one long sequence of a batch
    changes what all the others get.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return int(rope["original_max_position_embeddings"])
    positions: int | None = getattr(config, "max_position_embeddings", None)
    return positions


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


def base_digest(settings: ModelConfig) -> str:
    """Return a digest of the base model: of every file of a folder, or of the hub's revision."""
    base = Path(settings.base)
    parts = {"base": settings.base, "revision": str(settings.revision)}
    if base.is_dir():
        files = sorted(path for path in base.rglob("*") if path.is_file())
        parts = {str(path.relative_to(base)): sha256_of(path) for path in files}
    if settings.chat_template is not None and settings.chat_template.is_file():
        parts["chat_template"] = sha256_of(settings.chat_template)
    return fingerprint_of(parts)
