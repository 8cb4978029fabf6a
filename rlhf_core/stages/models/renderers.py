"""The tokenizers of base model and own models, with their templates; no weight is loaded."""

from datetime import date
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhf_core.config import ModelConfig
from rlhf_core.dataprep.manifest import fingerprint_of
from rlhf_core.errors import ModelError
from rlhf_core.stages.models.digests import template_parts
from rlhf_core.storage.records import sha256_of
from rlhf_core.tokenization import (
    Renderer,
    TemplateChoice,
    load_tokenizer,
    make_renderer,
    published_ends,
)
from rlhf_core.tokenization.model_folder import require_whole_files
from rlhf_core.tokenization.template import reads_clock


def base_renderer(settings: ModelConfig, day: date | None = None) -> Renderer:
    """Load only the tokenizer of the base model, with the template that the settings choose.

    Args:
        settings: the model's; its ``template_date`` goes before ``day``.
        day: recorded with the dataset; None leaves a template that reads the clock to it.

    Raises:
        ModelError: no tokenizer or chat template, they do not go together, or a file of weights is
            not whole.
    """
    require_whole_files(settings.base)
    tokenizer = load_tokenizer(
        settings.base,
        revision=settings.revision,
        choice=TemplateChoice(
            settings.chat_template, settings.chat_template_kwargs, settings.template_date or day
        ),
    )
    ends = published_ends(settings.base, revision=settings.revision)
    return _renderer(tokenizer, ends, settings.chat_template or settings.base)


def require_no_clock(renderer: Renderer) -> None:
    """Refuse a chat template that would say something else tomorrow.

    Raises:
        ModelError: it reads the clock, and neither settings nor dataset say a date.
    """
    if reads_clock(renderer.tokenizer.chat_template):
        raise ModelError(
            "the chat template reads the clock and the dataset records no date for it (prepared"
            " without data.cleaning.tokens, or by an older version): set model.template_date, such"
            f" as {date.today().isoformat()}"
        )


def model_renderer(directory: Path) -> Renderer:
    """Load the tokenizer that was saved with one of our own models."""
    return _renderer(load_tokenizer(directory), published_ends(directory), directory)


def _renderer(
    tokenizer: PreTrainedTokenizerBase, ends: tuple[int, ...], origin: str | Path
) -> Renderer:
    """Probe a tokenizer with its template; an error says where the template comes from."""
    try:
        return make_renderer(tokenizer, ends)
    except ModelError as error:
        raise ModelError(f"{origin}: {error}") from error


def base_digest(settings: ModelConfig) -> str:
    """Return a digest of the base model: of every file of a folder, or of the hub's revision.

    The chat template that the settings choose is part of it.

    Raises:
        ModelError: ``model.chat_template`` cannot be read.
    """
    base = Path(settings.base)
    parts = {"base": settings.base, "revision": str(settings.revision)}
    if base.is_dir():
        files = sorted(path for path in base.rglob("*") if path.is_file())
        parts = {str(path.relative_to(base)): sha256_of(path) for path in files}
    return fingerprint_of(parts | template_parts(settings))
