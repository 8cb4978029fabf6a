"""Answers of a vLLM server to ``/v1/completions``, read with care: a policy learns from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from rlhf_core.errors import RolloutError
from rlhf_core.rollout.decode import Decoded, Sampling

_EXCERPT = 200


class OtherWeightsError(RolloutError):
    """The server has, or may have had, other weights than the model: the batch does not count."""


@dataclass(frozen=True)
class Answer:
    """One response: tokens with their log-probabilities, and whether it ended by itself."""

    tokens: list[int]
    logprobs: list[float]
    finished: bool


def read_answer(
    answer: Any, prompt: list[int], max_new_tokens: int, sampling: Sampling, place: str
) -> Answer:
    """Check an answer in every part that training relies on, and return its response.

    Args:
        answer: the JSON.
        prompt: what was asked.
        max_new_tokens: as asked for.
        sampling: as asked for.
        place: of the server, for messages.

    Raises:
        OtherWeightsError: the server gave the request up.
        RolloutError: it is no answer to what was asked.
    """
    try:
        choice = answer["choices"][0]
        tokens, reason = choice["token_ids"], choice["finish_reason"]
    except (KeyError, IndexError, TypeError):
        raise RolloutError(
            f"{place}: /v1/completions answers without choices.0.token_ids, which newer servers "
            f"give with return_token_ids: {excerpt(answer)}"
        ) from None
    if reason == "abort":
        raise OtherWeightsError(f"{place}: it gave a request up (finish_reason abort)")
    if choice.get("prompt_token_ids") not in (None, prompt):
        raise RolloutError(
            f"{place}: it read other tokens than those of the prompt: {excerpt(choice)}"
        )
    whole = isinstance(tokens, list) and all(isinstance(token, int) for token in tokens)
    if not whole or not 1 <= len(tokens) <= max_new_tokens or reason not in ("stop", "length"):
        raise RolloutError(
            f"{place}: expected 1 to {max_new_tokens} tokens, found {excerpt(choice)}"
        )
    ends = [token in sampling.eos_ids for token in tokens]
    cut = reason == "length" and len(tokens) == max_new_tokens
    if any(ends[:-1]) or not (ends[-1] or cut):
        raise RolloutError(
            f"{place}: it ends responses elsewhere than at {list(sampling.eos_ids)}: "
            f"{excerpt(choice)}"
        )
    return Answer(tokens, _logprobs(choice, len(tokens), place), finished=ends[-1])


def _logprobs(choice: dict[str, Any], count: int, place: str) -> list[float]:
    given = choice.get("logprobs")
    found = given.get("token_logprobs") if isinstance(given, dict) else None
    if not isinstance(found, list) or len(found) != count:
        raise RolloutError(
            f"{place}: it gives no log-probabilities (choices.0.logprobs.token_logprobs, one for "
            f"each of {count} tokens): {excerpt(choice)}"
        )
    if not all(isinstance(one, int | float) and math.isfinite(one) for one in found):
        raise RolloutError(f"{place}: a log-probability is not finite: {excerpt(found)}")
    return [float(one) for one in found]


def decoded(answers: Sequence[Answer], width: int, device: torch.device) -> Decoded:
    """Return responses as columns, [B, width], on ``device``."""
    out = Decoded(
        tokens=torch.zeros(len(answers), width, dtype=torch.int64),
        logprobs=torch.zeros(len(answers), width),
        lengths=torch.tensor([len(one.tokens) for one in answers]),
        finished=torch.tensor([one.finished for one in answers]),
        values=torch.zeros(len(answers), width),
    )
    for row, one in enumerate(answers):
        out.tokens[row, : len(one.tokens)] = torch.tensor(one.tokens)
        out.logprobs[row, : len(one.tokens)] = torch.tensor(one.logprobs)
    return Decoded(*(getattr(out, field.name).to(device) for field in fields(Decoded)))


def excerpt(answer: Any) -> str:
    """Return the beginning of an answer, for a message."""
    return str(answer)[:_EXCERPT]
