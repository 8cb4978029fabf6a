"""Load a tokenizer and refuse one that cannot serve."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from rlhf_core.errors import ModelError, RlhfError
from rlhf_core.tokenization.model_folder import loading_options, why_not_loaded
from rlhf_core.tokenization.template import Template, with_date, with_variables

logger = logging.getLogger(__name__)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)

_BEYOND_TOKENS = 2**31


@dataclass(frozen=True)
class TemplateChoice:
    """What the settings say of the chat template; nothing: the tokenizer's own as it is."""

    path: Path | None = None
    """Jinja file; it is used even where the tokenizer has a template."""
    variables: Mapping[str, object] = field(default_factory=dict)
    """Values of the template's variables, such as ``enable_thinking``."""
    day: date | None = None
    """What a template that reads the clock takes for today; None leaves it the clock."""


def load_tokenizer(
    base: str | Path, *, revision: str | None = None, choice: TemplateChoice | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model directory or hub name, with a chat template.

    Variables and date become part of the template, and so of what is saved with a model.

    Args:
        base: directory in ``save_pretrained`` layout, or a hub name.
        revision: hub revision; ignored for a directory.
        choice: of the template; None takes the tokenizer's own.

    Raises:
        ModelError: no tokenizer, no EOS token, no chat template from either side, or one that
            never reads a variable it is given.
    """
    tokenizer, choice = _load(base, revision), choice or TemplateChoice()
    template = tokenizer.chat_template
    if choice.path is not None:
        own, template = template, read_template(choice.path)
        if own not in (None, template):
            logger.warning("chat_template=%s takes the place of that of %s", choice.path, base)
    if template is None:
        raise ModelError(
            f"{base}: the tokenizer has no chat template; set model.chat_template to a Jinja file "
            "(configs/templates/hh.jinja writes plain Human/Assistant turns)"
        )
    if choice.variables:
        template = with_variables(template, choice.variables)
    if choice.day is not None:
        template = with_date(template, choice.day)
    tokenizer.chat_template = template
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{base}: the tokenizer has no EOS token; responses could never end")
    return tokenizer


def own_template(base: str | Path, *, revision: str | None = None) -> Template | None:
    """Return the chat template that comes with a model; None where none does."""
    found: Template | None = _load(base, revision).chat_template
    return found


def tokenizer_beside(
    base: str | Path, *, revision: str | None = None
) -> PreTrainedTokenizerBase | None:
    """Load a model's tokenizer as it is, with or without a template; None where a folder has none.

    Raises:
        ModelError: there is one, and it cannot be loaded.
    """
    directory = Path(base)
    if directory.is_dir() and not any((directory / name).is_file() for name in TOKENIZER_FILES):
        return None
    return _load(base, revision)


def published_ends(base: str | Path, *, revision: str | None = None) -> tuple[int, ...]:
    """Tokens at which a model's own files let sampling stop, ``eos_token_id`` in them.

    That of generation_config.json; where there is none, that of config.json.

    Raises:
        ModelError: what is written there is no token.
    """
    for load in (GenerationConfig.from_pretrained, AutoConfig.from_pretrained):
        try:
            found = load(str(base), **loading_options(base, revision))
        except RlhfError:
            raise
        except Exception:  # whoever needs the file says what is wrong
            continue
        parts = [found, found.get_text_config()] if hasattr(found, "get_text_config") else [found]
        for part in parts:
            if ends := token_ids(getattr(part, "eos_token_id", None), f"{base}: eos_token_id"):
                return ends
    return ()


def token_ids(setting: object, where: str) -> tuple[int, ...]:
    """One token, several or none, as transformers' configurations write them.

    Args:
        setting: as it is written.
        where: begin of a message about it.

    Raises:
        ModelError: it is nothing of that.
    """
    if setting is None:
        return ()
    tokens = tuple(setting) if isinstance(setting, Sequence) else (setting,)
    if isinstance(setting, str) or not all(map(_is_token, tokens)):
        raise ModelError(f"{where}: expected a token's number or a list, found {setting!r:.60}")
    return tokens


def _is_token(value: object) -> bool:
    return type(value) is int and abs(value) < _BEYOND_TOKENS


def read_template(path: Path) -> str:
    """Read a Jinja file.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"model.chat_template: {path}: cannot be read: {error}") from error


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
    except Exception as error:  # the tokenizers library raises Exception itself
        elsewhere = "" if directory.is_dir() else "; nor is there a folder of this name"
        raise ModelError(
            f"{base}: cannot load a tokenizer: {why_not_loaded(base, error)}{elsewhere}"
        ) from error
