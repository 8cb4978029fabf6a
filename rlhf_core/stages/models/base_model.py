"""The base model as the configuration names it, with what ends its responses."""

import logging
from datetime import date
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from rlhf_core.config import ModelConfig
from rlhf_core.errors import ModelError
from rlhf_core.models.compute import save_in_float32
from rlhf_core.models.known_ids import num_embeddings, unknown_ids
from rlhf_core.models.load import load_causal, read_causal_config
from rlhf_core.models.text import num_positions
from rlhf_core.stages.models.renderers import base_renderer, require_no_clock
from rlhf_core.tokenization import Renderer, token_ids

logger = logging.getLogger(__name__)

_BENDS_DECODING = (
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "sequence_bias",
    "min_length",
    "min_new_tokens",
    "stop_strings",
    "penalty_alpha",
    "exponential_decay_length_penalty",
)
"""Fields of generation_config.json that give greedy decoding another text."""
_OF_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)
"""Fields that mean something only where tokens are drawn."""
_OF_BEAMS = ("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty")
"""Fields that mean something only where there are beams."""


def check_base(settings: ModelConfig) -> None:
    """Refuse a base model by its configuration alone: what ``load_base`` would find after hours.

    Raises:
        ModelError: as ``load_base``, but for what weights and tokenizer alone tell.
    """
    _require_positions(read_causal_config(settings.base, revision=settings.revision), settings)


def load_base(settings: ModelConfig, day: date | None = None) -> tuple[PreTrainedModel, Renderer]:
    """Load what SFT starts from; it stops where the renderer says, by its own files too.

    Args:
        settings: the model's.
        day: recorded with the dataset, for a template that reads the clock.

    Raises:
        ModelError: no model, tokenizer or chat template; or ``max_length`` exceeds the model's.
    """
    renderer = base_renderer(settings, day)
    require_no_clock(renderer)
    model = load_causal(settings.base, revision=settings.revision, device=settings.device)
    if settings.save_dtype == "float32":
        save_in_float32(model)
    _require_positions(model.config, settings)
    _require_embedded(model, renderer, settings.base)
    name_ends(model, renderer)
    return model, renderer


def _require_positions(config: PreTrainedConfig, settings: ModelConfig) -> None:
    positions = num_positions(config)
    if positions is not None and positions < 1:
        raise ModelError(f"{settings.base}: config.json gives it {positions} positions")
    if positions is not None and settings.max_length > positions:
        raise ModelError(
            f"model.max_length is {settings.max_length}, but {settings.base} has "
            f"{positions} positions; lower model.max_length"
        )


def _require_embedded(model: PreTrainedModel, renderer: Renderer, base: str) -> None:
    """Refuse a special token that the template writes and the model cannot read."""
    tokenizer, rows = renderer.tokenizer, num_embeddings(model)
    template = str(tokenizer.chat_template)
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    written = {token for token, word in added.items() if word.content in template}
    written |= {renderer.turn_end_id, tokenizer.bos_token_id or 0}
    if max(written) >= rows:
        raise ModelError(
            f"{base}: the chat template writes token {max(written)}, but the model embeds {rows}; "
            "resize the model's embeddings, or take the template it was trained with"
        )


def name_ends(model: PreTrainedModel, renderer: Renderer) -> None:
    """Write into a model's configurations what ends a response, as they are saved with it.

    Whatever generates from the saved files then stops where sampling stops here, and what only
    bends the publisher's own decoding (a repetition penalty, say) is left out: the model is
    trained and measured without.

    Raises:
        ModelError: ``suppress_tokens`` of its generation_config.json are no tokens.
    """
    ends = list(renderer.end_ids)
    named = ends[0] if len(ends) == 1 else ends
    for part in {id(one): one for one in (model.config, model.config.get_text_config())}.values():
        part.eos_token_id = named
    if not model.can_generate():
        return
    generation = model.generation_config
    generation.eos_token_id = named
    if generation.pad_token_id is None:
        pad = renderer.tokenizer.pad_token_id
        unused = pad is None or pad >= num_embeddings(model)
        generation.pad_token_id = renderer.turn_end_id if unused else pad
    suppressed = token_ids(generation.suppress_tokens, f"{model.name_or_path}: suppress_tokens")
    if set(suppressed or ()) <= set(unknown_ids(model)):
        generation.suppress_tokens = None  # ids of no token, written anew when it is saved
    bent = [name for name in _BENDS_DECODING if getattr(generation, name, None)]
    for name in bent:
        setattr(generation, name, None)
    if bent:
        logger.warning("generation_config: left out: %s", ", ".join(bent))
    _make_valid(generation, str(model.name_or_path))


def _make_valid(generation: GenerationConfig, base: str) -> None:
    """Let published settings of sampling be what they say: transformers does not save them else.

    Temperature and the like without ``do_sample`` are meant for sampling, which is what engines
    that read the file do with them; with ``do_sample: false`` they are nothing.

    Raises:
        ModelError: they contradict each other otherwise.
    """
    _clear_idle(generation)
    set_up = [name for name in _OF_SAMPLING if getattr(generation, name, None) is not None]
    if _objection(generation) is None:
        return
    if generation.do_sample is None and set_up:
        generation.do_sample = True
        logger.warning(
            "generation_config: do_sample is set, as %s have no meaning without", ", ".join(set_up)
        )
    elif not generation.do_sample:
        for name in set_up:
            setattr(generation, name, None)
        logger.warning("generation_config: left out, for it does not sample: %s", ", ".join(set_up))
    if (problem := _objection(generation)) is not None:
        said = " ".join(str(problem).split())[:300]
        raise ModelError(f"{base}: generation_config.json contradicts itself: {said}") from problem


def _clear_idle(generation: GenerationConfig) -> None:
    """Clear what means nothing without beams; a temperature of 0 is greedy, as engines read it."""
    if not (generation.num_beams or 1) > 1:
        for name in _OF_BEAMS:
            setattr(generation, name, None)
    if generation.temperature == 0:
        generation.do_sample = False


def _objection(generation: GenerationConfig) -> ValueError | None:
    """Return why transformers would not save it; None where it would."""
    try:
        generation.validate(strict=True)
    except ValueError as error:
        return error
    return None
