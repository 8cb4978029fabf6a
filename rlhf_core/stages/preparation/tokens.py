"""Token-level checks: what the base model's tokenizer and chat template make of every row."""

import sys
from datetime import date
from typing import TYPE_CHECKING

from rlhf_core.config import ModelConfig, PreparationConfig
from rlhf_core.dataprep.cleaning.rules import TokenCheck
from rlhf_core.errors import ModelError
from rlhf_core.schema import Message

if TYPE_CHECKING:
    from rlhf_core.tokenization import Renderer

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
    from rlhf_core.stages.models.renderers import base_renderer
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
    """Most tokens a prompt to sample from may have; None where tokens or a policy play no part.

    Evaluation samples whatever trained the policy, and asks no longer prompts.
    """
    if not config.data.cleaning.tokens or config.policy is None:
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
