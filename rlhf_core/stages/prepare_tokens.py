"""Token-level checks: what the base model's tokenizer and chat template make of every row."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlhf_core.config import ModelConfig, PipelineConfig
from rlhf_core.dataprep.files import sha256_of
from rlhf_core.dataprep.manifest import fingerprint_of
from rlhf_core.dataprep.rules import Problem, TokenCheck
from rlhf_core.errors import DataError, ModelError
from rlhf_core.schema import Conversation, Message

if TYPE_CHECKING:
    from rlhf_core.tokenization import Renderer

_TOKENIZER_FILES = ("token*", "special_tokens_map.json", "vocab*", "merges*", "spiece*", "*.jinja")
_PROBES = ("Where is the station?", "Who wrote this, and when?")


def make_token_check(config: PipelineConfig) -> TokenCheck | None:
    """Load the tokenizer and return the check of single rows; None where it is switched off.

    Raises:
        ModelError: no tokenizer, or its chat template is broken.
    """
    if not config.data.cleaning.tokens:
        return None
    from rlhf_core.stages.base_model import base_renderer

    renderer = base_renderer(config.model)
    require_sound_template(renderer)
    # The tokenizer's own warning about long texts; here they are counted and set aside.
    renderer.tokenizer.model_max_length = sys.maxsize
    max_length = config.model.max_length

    def check(prompt: Conversation, responses: Sequence[str]) -> Problem | None:
        return token_problem(renderer, prompt, responses, max_length)

    return check


def token_problem(
    renderer: "Renderer", prompt: Conversation, responses: Sequence[str], max_length: int
) -> Problem | None:
    """Return what is wrong with the tokens of one row.

    A prompt has exactly one BOS (where the model has one), a response exactly one EOS and that at
    its end, the text comes back from the tokens unchanged, and nothing has to be cut. Every
    response follows the very same prompt tokens, for the prompt is encoded once.
    """
    try:
        prompt_ids = renderer.prompt_ids(prompt)
        encoded = [renderer.response_ids(response) for response in responses]
    except DataError as error:
        return "not_renderable", str(error)
    bos = renderer.bos_id
    if bos is not None and np.count_nonzero(prompt_ids == bos) != 1:
        return "not_renderable", "the prompt has not exactly one BOS"
    for response, ids in zip(responses, encoded, strict=True):
        if ids[-1] != renderer.eos_id or np.count_nonzero(ids == renderer.eos_id) != 1:
            return "not_renderable", "the response does not end in its one EOS"
        if renderer.response_text(ids) != response:
            return "not_renderable", "the response does not survive the tokenizer"
    num_tokens = len(prompt_ids) + max((len(ids) for ids in encoded), default=1)
    if num_tokens > max_length:
        return "too_long", f"{num_tokens} tokens, at most {max_length} fit"
    return None


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
