"""What models make of held-out texts: log-probabilities, scores, answers. Nothing is trained."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from rlhf_core.dataprep.keys import DialogueKey, dialogue_key
from rlhf_core.errors import DataError
from rlhf_core.evaluation.comparison import Answers
from rlhf_core.models import (
    device_of,
    hidden_states,
    load_scalar,
    logprobs_from_hidden,
    sequence_scores,
)
from rlhf_core.models.classifier import Classifier
from rlhf_core.models.text import num_positions
from rlhf_core.rollout.sample import SampledResponse
from rlhf_core.schema import Conversation, ModelRef, Prompt
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.statistics.resampling import Array
from rlhf_core.storage.model_folders import folder_kind
from rlhf_core.tokenization import Renderer, TokenIds, as_token_ids, pack_responses
from rlhf_core.tokenization.model_folder import loading_options
from rlhf_core.tokenization.turns import without_control
from rlhf_core.trainers.loop import split_by_tokens

_SCORE_TOKENS = 16_384
"""As ``evaluation.micro_batch_tokens`` by default."""


@torch.inference_mode()
def response_logprobs(
    model: nn.Module,
    prompts: Sequence[TokenIds],
    responses: Sequence[TokenIds],
    *,
    budget: int,
) -> list[Tensor]:
    """Log-probability of every response token: one [T] float32 tensor per row."""
    return response_logprobs_at(model, prompts, responses, temperatures=[1.0], budget=budget)[0]


@torch.inference_mode()
def response_logprobs_at(
    model: nn.Module,
    prompts: Sequence[TokenIds],
    responses: Sequence[TokenIds],
    *,
    temperatures: Sequence[float],
    budget: int,
) -> list[list[Tensor]]:
    """Log-probabilities at each temperature, one [T] float32 tensor per row; one pass for all."""
    rows: list[list[Tensor]] = [[] for _ in temperatures]
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    for run in split_by_tokens(range(len(lengths)), lengths.__getitem__, budget=budget):
        batch = pack_responses([prompts[i] for i in run], [responses[i] for i in run])
        batch = batch.to(device_of(model))
        hidden = hidden_states(model, batch, batch.predictor_positions)
        sizes = batch.response_lengths.tolist()
        for kept, temperature in zip(rows, temperatures, strict=True):
            logprobs = logprobs_from_hidden(model, hidden, batch, temperature)
            kept += logprobs.cpu().split(sizes)
    return rows


@torch.inference_mode()
def response_scores(
    model: nn.Module,
    prompts: Sequence[TokenIds],
    responses: Sequence[TokenIds],
    *,
    budget: int,
) -> Array:
    """Score of every response: [n] float64."""
    scores: list[Tensor] = []
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    for run in split_by_tokens(range(len(lengths)), lengths.__getitem__, budget=budget):
        batch = pack_responses([prompts[i] for i in run], [responses[i] for i in run])
        scores.append(sequence_scores(model, batch.to(device_of(model))).cpu())
    return np.asarray(torch.cat(scores).double().numpy(), dtype=np.float64)


Score = Callable[[Sequence[Conversation], Sequence[Sequence[str]]], list[Array]]
"""Prompts [n] and lists of [n] answers to the scores of each list."""


def score_texts(
    directory: Path,
    prompts: Sequence[Conversation],
    answers: Sequence[Sequence[str]],
    *,
    budget: int,
    device: str = "cpu",
) -> list[Array]:
    """Scores that the reward model in ``directory`` gives to each list of answers.

    The texts are rendered with the scorer's own tokenizer and end with EOS, as in its training.
    """
    return load_scorer(directory, budget=budget, device=device)(prompts, answers)


def load_scorer(directory: Path, *, budget: int, device: str = "cpu") -> Score:
    """Load a reward model for several calls of what ``score_texts`` does."""
    model, renderer = load_scalar(directory, device=device), model_renderer(directory)

    def score(prompts: Sequence[Conversation], answers: Sequence[Sequence[str]]) -> list[Array]:
        prompt_ids = [renderer.prompt_ids(prompt) for prompt in prompts]
        return [
            response_scores(
                model, prompt_ids, [readable_ids(renderer, text) for text in texts], budget=budget
            )
            for texts in answers
        ]

    return score


Scorer = Callable[[Sequence[Conversation], Sequence[str]], Array]
"""Scores each answer, [n]; NaN where it cannot read one."""


def open_scorer(scorer: ModelRef, device: str, *, max_length: int | None = None) -> Scorer:
    """Load a reward model, judge or classifier; what it cannot read scores NaN.

    Args:
        scorer: one of ours, or of somebody else's.
        device: as ``model.device``.
        max_length: tokens of the longest conversation; None takes the model's positions.
    """
    # One of ours is read where it was trained: at the end of the answer's turn, whatever
    # its template writes behind it.
    if scorer.kind == "classifier" and folder_kind(scorer.path) != "scalar":
        return Classifier(scorer.path, max_length=max_length, device=device).scores
    model, renderer = load_scalar(scorer.path, device=device), model_renderer(scorer.path)
    room = max_length or positions_of(scorer.path)

    def score(prompts: Sequence[Conversation], texts: Sequence[str]) -> Array:
        scores = np.full(len(prompts), np.nan)
        read = {
            row: found
            for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
            if (found := _read(renderer, prompt, text, room)) is not None
        }
        if read:
            asked, answered = zip(*read.values(), strict=True)
            scores[list(read)] = response_scores(model, asked, answered, budget=_SCORE_TOKENS)
        return scores

    return score


def _read(
    renderer: Renderer, prompt: Conversation, text: str, room: int | None
) -> tuple[TokenIds, TokenIds] | None:
    """Tokens of prompt and answer; None where they cannot be rendered or are more than ``room``."""
    try:
        asked, answered = renderer.prompt_ids(prompt), readable_ids(renderer, text)
    except DataError:
        return None
    return (asked, answered) if room is None or len(asked) + len(answered) <= room else None


def positions_of(folder: Path) -> int | None:
    """Return the tokens that a saved model has positions for; None where there is no limit."""
    return num_positions(AutoConfig.from_pretrained(folder, **loading_options(folder, None)))


def readable_ids(renderer: Renderer, text: str) -> TokenIds:
    """Tokens of an answer; control tokens that a model spelled out in letters are taken out."""
    return renderer.response_ids(without_control(text, renderer.turns.control_pattern))


def choose_prompts(
    prompts: Sequence[Prompt],
    renderers: Sequence[Renderer],
    *,
    count: int,
    longest: int,
    seed: int,
) -> list[Prompt]:
    """Draw at most ``count`` prompts that fit, keeping their order; the same draw for one seed.

    Of each dialogue one is drawn: its turns are no independent samples.

    Args:
        prompts: held-out prompts.
        renderers: of all models that read them; a prompt has to fit each.
        count: at most so many.
        longest: tokens a prompt may have.
        seed: of the draw.

    Raises:
        DataError: none fits.
    """
    fitting = [
        prompt
        for prompt in prompts
        if all(fits(prompt, renderer, longest) for renderer in renderers)
    ]
    if not fitting:
        raise DataError(
            f"none of {len(prompts)} held-out prompts fits into {longest} tokens; "
            "raise model.max_length"
        )
    order = random.Random(seed).sample(range(len(fitting)), len(fitting))
    drawn: dict[DialogueKey, int] = {}
    for index in order:
        drawn.setdefault(dialogue_key(fitting[index].prompt), index)
    return [fitting[index] for index in sorted(list(drawn.values())[:count])]


def fits(prompt: Prompt, renderer: Renderer, longest: int) -> bool:
    """Say whether a prompt can be rendered in at most ``longest`` tokens."""
    return fits_conversation(prompt.prompt, renderer, longest)


def fits_conversation(prompt: Conversation, renderer: Renderer, longest: int) -> bool:
    """The same of a prompt's turns alone."""
    try:
        return len(renderer.prompt_ids(prompt)) <= longest
    except DataError:
        return False


def as_answers(responses: Sequence[SampledResponse]) -> Answers:
    """Sampled responses as evaluation counts them."""
    return Answers(
        texts=tuple(response.text for response in responses),
        lengths=np.array([len(response.token_ids) for response in responses], dtype=np.float64),
        finished=np.array([response.finished for response in responses], dtype=np.float64),
    )


def sampled_ids(responses: Sequence[SampledResponse]) -> list[TokenIds]:
    """Sampled tokens, EOS included where it was drawn."""
    return [as_token_ids(response.token_ids) for response in responses]
