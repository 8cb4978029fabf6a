"""Token-level checks: what the base model's tokenizer and chat template make of every row."""

import json
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_core.config import ModelConfig, PreparationConfig
from rlhf_core.dataprep.cleaning.rules import TokenCheck
from rlhf_core.dataprep.manifest import fingerprint_of
from rlhf_core.errors import ModelError
from rlhf_core.schema import Message
from rlhf_core.storage.records import sha256_of

if TYPE_CHECKING:
    from rlhf_core.tokenization import Renderer

_TOKENIZER_FILES = (
    "generation_config.json",
    "token*",
    "special_tokens_map.json",
    "vocab*",
    "merges*",
    "spiece*",
    "*.jinja",
)
_PROBES = ("Where is the station?", "Who wrote this, and when?")


def load_renderer(config: PreparationConfig) -> tuple["Renderer | None", date | None]:
    """Load the tokenizer and the day its chat template takes for today.

    Returns:
        None without a renderer where tokens are not looked at. The day is None where the template
        does not read the clock; else what the settings say, or today.

    Raises:
        ModelError: no tokenizer, or its chat template is broken.
    """
    if not config.data.cleaning.tokens:
        return None, config.model.template_date
    from rlhf_core.stages.base_model import base_renderer
    from rlhf_core.tokenization.template import reads_clock

    renderer, day = base_renderer(config.model), config.model.template_date
    if day is None and reads_clock(renderer.tokenizer.chat_template):
        day = date.today()
        renderer = base_renderer(config.model, day)
    require_sound_template(renderer)
    return renderer, day


def make_token_check(config: PreparationConfig, renderer: "Renderer | None") -> TokenCheck | None:
    """Return the check of rows; None without a renderer."""
    if renderer is None:
        return None
    from rlhf_core.stages.preparation.token_rows import RowTokens

    # The tokenizer's own warning about long texts; here they are counted and filtered out.
    renderer.tokenizer.model_max_length = sys.maxsize
    return RowTokens(renderer, config.model.max_length, prompt_limit(config))


def prompt_limit(config: PreparationConfig) -> int | None:
    """Most tokens a prompt to sample from may have; None where tokens or sampling play no part."""
    if not config.data.cleaning.tokens or config.sampled_tokens() is None:
        return None
    return config.longest_prompt()


def require_sound_template(renderer: "Renderer") -> None:
    """Refuse a chat template that training could not recover from.

    It must show what the user says, open the assistant's turn, and show earlier answers; and the
    EOS of a response must count in the loss of a batch.

    Raises:
        ModelError: says which of these fails.
    """
    from rlhf_core.schema import Demonstration
    from rlhf_core.tokenization import pack_examples
    from rlhf_core.tokenization.template import apply_template

    tokenizer = renderer.tokenizer
    for probe in _PROBES:
        question = Message(role="user", content=probe)
        answered = (question, Message(role="assistant", content="Nobody knows."), question)
        opening = apply_template(tokenizer, (question,), generation_prompt=True)
        closed = apply_template(tokenizer, (question,), generation_prompt=False)
        if probe not in opening:
            raise ModelError(f"the chat template does not show the user's text {probe!r}")
        if opening == closed:
            raise ModelError(
                "the chat template ignores add_generation_prompt: nothing tells the model to answer"
            )
        if "Nobody knows." not in apply_template(tokenizer, answered, generation_prompt=True):
            raise ModelError("the chat template does not show earlier assistant turns")
        item = Demonstration(demonstration_id="probe", prompt=(question,), response="Nobody knows.")
        batch = pack_examples([renderer.demonstration(item)])
        counted = batch.input_ids[batch.loss_mask].tolist()
        if not counted or counted[-1] != renderer.turn_end_id:
            raise ModelError("the end of a response does not count in the loss")


def tokenizer_digest(model: ModelConfig) -> str:
    """Return a digest of what decides the tokens: tokenizer files, template and length."""
    base = Path(model.base)
    parts = {"base": model.base, "revision": str(model.revision), "length": str(model.max_length)}
    if base.is_dir():
        files = {path for pattern in _TOKENIZER_FILES for path in base.glob(pattern)}
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


def describe_conversations(
    model: ModelConfig, renderer: "Renderer | None", day: date | None
) -> dict[str, object]:
    """Return what the report says of the chat template and of where turns end."""
    said: dict[str, object] = {
        "template": "the tokenizer's own"
        if model.chat_template is None
        else str(model.chat_template)
    }
    if model.chat_template_kwargs:
        said["chat_template_kwargs"] = model.chat_template_kwargs
    if day is not None:
        said["date"] = day.isoformat()
    if renderer is None:
        return said
    names = renderer.tokenizer.convert_ids_to_tokens(list(renderer.end_ids))
    turns = renderer.turns
    return said | {
        "replaces_own_template": replaces_own(model),
        "turn_ends_with": turns.end,
        "end_is_written_by_template": turns.is_written,
        "sampling_stops_at": names,
        "answers_open_with": turns.lead,
    }


def replaces_own(model: ModelConfig) -> bool:
    """Tell whether ``model.chat_template`` takes the place of another that came with the model."""
    if model.chat_template is None:
        return False
    from rlhf_core.tokenization import own_template, read_template

    own = own_template(model.base, revision=model.revision)
    return own not in (None, read_template(model.chat_template))
