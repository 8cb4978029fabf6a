"""Ask a model: responses as text and tokens, for evaluation, collection and a look by hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from rlhf_core.models.compute import unwrapped
from rlhf_core.rollout.decode import Decoded, Sampling
from rlhf_core.rollout.sampler import TRANSFORMERS_SAMPLER, Draws, Sampler
from rlhf_core.schema import Conversation
from rlhf_core.tokenization import Renderer, make_renderer, token_ids

_DECODE_TOKENS = 65_536
"""As ``policy.decode_tokens`` by default."""


@dataclass(frozen=True)
class SampledResponse:
    """One answer of a model."""

    text: str
    token_ids: tuple[int, ...]
    """Sampled tokens, with that which ended the answer where it ended by itself."""
    logprobs: tuple[float, ...]
    """Log-probability of each token when it was drawn, nats."""
    finished: bool
    """True where the answer ended by itself, False where it was cut at ``max_new_tokens``."""


def sample_responses(  # noqa: PLR0913 - each of them changes the answer, none groups
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int = 64,
    first_stream: int = 0,
    advance: Callable[[], None] | None = None,
    sampler: Sampler = TRANSFORMERS_SAMPLER,
) -> list[SampledResponse]:
    """Answer every conversation once, in order.

    The answer to prompt i depends on ``seed``, ``first_stream + i`` and the prompt, not on
    ``batch_size`` or on the other prompts.

    Args:
        model: causal model.
        tokenizer: with a chat template.
        prompts: conversations that end with the user's turn.
        max_new_tokens: longest answer.
        temperature: divides the logits; 0 takes the most probable token.
        seed: of the random numbers.
        batch_size: prompts decoded together.
        first_stream: number of the first prompt, where these are a part of more.
        advance: called after each batch.
        sampler: who draws the tokens.

    Raises:
        DataError: a prompt cannot be rendered.
        ModelError: a prompt and its answer do not fit the model.
        RolloutError: an engine elsewhere does not answer, or not as this model would.
    """
    generation = getattr(unwrapped(model), "generation_config", None)
    renderer = make_renderer(
        tokenizer, token_ids(getattr(generation, "eos_token_id", None), "eos_token_id")
    )
    sampling = Sampling(temperature, renderer.end_ids)
    responses: list[SampledResponse] = []
    for start in range(0, len(prompts), batch_size):
        part = [renderer.prompt_ids(prompt) for prompt in prompts[start : start + batch_size]]
        streams = range(first_stream + start, first_stream + start + len(part))
        decoded = sampler.sample(
            model,
            part,
            draws=Draws(seed, streams, max_new_tokens),
            sampling=sampling,
            budget=_DECODE_TOKENS,
        )
        responses += [_response(renderer, decoded, row) for row in range(len(part))]
        if advance is not None:
            advance()
    return responses


def _response(renderer: Renderer, decoded: Decoded, row: int) -> SampledResponse:
    length = int(decoded.lengths[row])
    ids: list[int] = decoded.tokens[row, :length].tolist()
    return SampledResponse(
        text=renderer.response_text(ids),
        token_ids=tuple(ids),
        logprobs=tuple(decoded.logprobs[row, :length].tolist()),
        finished=bool(decoded.finished[row]),
    )
