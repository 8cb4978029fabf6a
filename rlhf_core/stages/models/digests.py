"""What tokens depend on, as digests: the files of a tokenizer and what settings choose."""

import json
from pathlib import Path

from rlhf_core.config import ModelConfig
from rlhf_core.dataprep.manifest import fingerprint_of
from rlhf_core.errors import ModelError
from rlhf_core.storage.records import sha256_of
from rlhf_core.tokenization.model_folder import tokenizer_files


def tokenizer_digest(model: ModelConfig) -> str:
    """Return a digest of what decides the tokens: tokenizer files, template and length."""
    base = Path(model.base)
    parts = {"base": model.base, "revision": str(model.revision), "length": str(model.max_length)}
    if base.is_dir():
        files = [*tokenizer_files(base), base / "generation_config.json"]
        parts = {path.name: sha256_of(path) for path in files if path.is_file()}
        parts["length"] = str(model.max_length)
    return fingerprint_of(parts | template_parts(model))


def template_parts(settings: ModelConfig) -> dict[str, str]:
    """What the settings say of the chat template, for a digest; empty where they say nothing.

    Raises:
        ModelError: ``model.chat_template`` cannot be read.
    """
    parts = {}
    if settings.chat_template is not None:
        try:
            parts["chat_template"] = sha256_of(settings.chat_template)
        except OSError as error:
            raise ModelError(
                f"model.chat_template: {settings.chat_template}: cannot be read: {error}"
            ) from error
    if settings.chat_template_kwargs:
        kwargs = json.dumps(settings.chat_template_kwargs, sort_keys=True)
        parts["chat_template_kwargs"] = kwargs
    if settings.template_date is not None:
        parts["template_date"] = settings.template_date.isoformat()
    return parts
