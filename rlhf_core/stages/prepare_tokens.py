"""Token-level checks: what the base model's tokenizer and chat template make of every row."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_core.config import ModelConfig, PpoConfig, PreparationConfig
from rlhf_core.dataprep.files import sha256_of
from rlhf_core.dataprep.manifest import fingerprint_of
from rlhf_core.dataprep.rules import TokenCheck
from rlhf_core.errors import ModelError
from rlhf_core.schema import Message

if TYPE_CHECKING:
    from rlhf_core.tokenization import Renderer

_TOKENIZER_FILES = ("token*", "special_tokens_map.json", "vocab*", "merges*", "spiece*", "*.jinja")
_PROBES = ("Where is the station?", "Who wrote this, and when?")


def make_token_check(config: PreparationConfig) -> TokenCheck | None:
    """Load the tokenizer and return the check of rows; None where it is switched off.

    Raises:
        ModelError: no tokenizer, or its chat template is broken.
    """
    if not config.data.cleaning.tokens:
        return None
    from rlhf_core.stages.base_model import base_renderer
    from rlhf_core.stages.prepare_token_rows import RowTokens

    renderer = base_renderer(config.model)
    require_sound_template(renderer)
    # The tokenizer's own warning about long texts; here they are counted and set aside.
    renderer.tokenizer.model_max_length = sys.maxsize
    return RowTokens(renderer, config.model.max_length, prompt_limit(config))


def prompt_limit(config: PreparationConfig) -> int | None:
    """Most tokens a prompt to sample from may have; None where tokens or sampling play no part."""
    if not config.data.cleaning.tokens or not isinstance(config.policy, PpoConfig):
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
    from rlhf_core.tokenization.render import apply_template

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
        if not counted or counted[-1] != renderer.eos_id:
            raise ModelError("the EOS of a response does not count in the loss")


def tokenizer_digest(model: ModelConfig) -> str:
    """Return a digest of what decides the tokens: tokenizer files, template and length."""
    base = Path(model.base)
    parts = {"base": model.base, "revision": str(model.revision), "length": str(model.max_length)}
    if base.is_dir():
        files = {path for pattern in _TOKENIZER_FILES for path in base.glob(pattern)}
        parts = {path.name: sha256_of(path) for path in files if path.is_file()}
        parts["length"] = str(model.max_length)
    if model.chat_template is not None and model.chat_template.is_file():
        parts["chat_template"] = sha256_of(model.chat_template)
    return fingerprint_of(parts)
