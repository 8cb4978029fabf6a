"""Load a tokenizer and refuse one that cannot serve."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_core.errors import ModelError
from rlhf_core.tokenization.model_folder import loading_options, why_not_loaded

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)


def load_tokenizer(
    base: str | Path, *, revision: str | None = None, chat_template: Path | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model directory or hub name, with a chat template.

    Args:
        base: directory in ``save_pretrained`` layout, or a hub name.
        revision: hub revision; ignored for a directory.
        chat_template: Jinja file for a tokenizer that has no template; one that has keeps its own.

    Raises:
        ModelError: no tokenizer, no EOS token, or no chat template from either side.
    """
    tokenizer = _load(base, revision)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _read_template(base, chat_template)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{base}: the tokenizer has no EOS token; responses could never end")
    return tokenizer


def _load(base: str | Path, revision: str | None) -> PreTrainedTokenizerBase:
    directory = Path(base)
    if directory.is_dir():
        if not any((directory / name).is_file() for name in TOKENIZER_FILES):
            raise ModelError(
                f"{base}: no tokenizer in this directory; expected one of "
                f"{', '.join(TOKENIZER_FILES)}"
            )
    elif directory.exists():
        raise ModelError(f"{base}: expected a model directory, found a file")
    elif directory.is_absolute() or len(directory.parts) > 2:
        raise ModelError(f"{base}: no such model directory")
    options = loading_options(base, revision)
    try:
        return AutoTokenizer.from_pretrained(str(base), **options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{base}: cannot load a tokenizer: {why_not_loaded(base, error)}"
        ) from error


def _read_template(base: str | Path, chat_template: Path | None) -> str:
    if chat_template is None:
        raise ModelError(
            f"{base}: the tokenizer has no chat template; set model.chat_template to a Jinja file "
            "(configs/templates/hh.jinja writes plain Human/Assistant turns)"
        )
    try:
        return chat_template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"model.chat_template: {chat_template}: cannot be read: {error}"
        ) from error
