"""Best-of-n: a model answers several times, a reward model chooses. Nothing is trained."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from rlhf_core.adapters.endpoints.vllm_sampler import open_sampler
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.evaluation.comparison import BestOfN
from rlhf_core.evaluation.judges import CHAMPION_OVER_SFT, OVER_CHAMPION
from rlhf_core.evaluation.rater import score_gold
from rlhf_core.evaluation.win_rate import outcomes
from rlhf_core.models import load_causal
from rlhf_core.rollout.sample import SampledResponse, sample_responses
from rlhf_core.rollout.sampler import TRANSFORMERS_SAMPLER, Sampler
from rlhf_core.schema import Conversation, ModelRef
from rlhf_core.stages.evaluation.drawn import drawn_once, sampling
from rlhf_core.stages.evaluation.judging import Panel
from rlhf_core.stages.models.determinism import derived_seed
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.stages.models.scoring import as_answers, score_texts
from rlhf_core.statistics.resampling import Array, Ints
from rlhf_core.trainers.progress import Progress

_AT_ONCE = 64
"""Prompts decoded together."""


def best_of_n(
    config: PipelineConfig,
    models: Mapping[str, ModelRef],
    panel: Panel,
    prompts: Sequence[Conversation],
    texts: Sequence[Sequence[str]],
    directory: Path,
) -> BestOfN | None:
    """Measure the baseline that optimising a policy has to be worth more than.

    SFT's single answer is none of those that are chosen from, so the two are independent.

    Args:
        config: settings of the run.
        models: ``sft`` answers, ``reward`` chooses.
        panel: the judges, who do not choose.
        prompts: [n] held-out conversations.
        texts: the policy's answers and SFT's, [n] each.
        directory: of the evaluation.

    Returns:
        None where settings ask for none.

    Raises:
        ConfigError: there is no reward model to choose with.
    """
    count = config.evaluation.best_of_n
    if count is None:
        return None
    if "reward" not in models:
        raise ConfigError(
            "evaluation.best_of_n: no reward model is there to choose among the answers; name one "
            "(--reward MODEL), or leave best_of_n out"
        )
    drawn = _answers_of(config, models["sft"], prompts, count, directory)
    scores = score_texts(
        models["reward"].path,
        prompts,
        [[answer.text for answer in column] for column in drawn],
        budget=config.evaluation.micro_batch_tokens,
        device=config.model.device,
    )
    chosen = highest(scores)
    answers = as_answers([drawn[place][row] for row, place in enumerate(chosen)])
    # To the judges it is a third model, as the champion is: each pair of the three is compared.
    judged, decided = panel.decide(prompts, [*texts, answers.texts])
    policy, sft, best = judged
    won = outcomes(best, sft, policy_texts=answers.texts, sft_texts=texts[1])
    policy_won = outcomes(policy, best, policy_texts=texts[0], sft_texts=answers.texts)
    if decided and decided.champion_over_sft is not None and decided.over_champion is not None:
        won, policy_won = decided.champion_over_sft, decided.over_champion
    gold = score_gold(config.evaluation.rater, prompts, [answers.texts])
    return BestOfN(
        num_answers=count,
        answers=answers,
        reward=np.stack(scores).max(axis=0),
        judge=best,
        won=won,
        policy_won=policy_won,
        unjudged=decided.unjudged_most(OVER_CHAMPION, CHAMPION_OVER_SFT) if decided else None,
        gold=gold[0] if gold else None,
    )


def _drawn(
    config: PipelineConfig, sft: ModelRef, prompts: Sequence[Conversation], count: int
) -> list[list[SampledResponse]]:
    batches = count * math.ceil(len(prompts) / _AT_ONCE)
    progress = Progress(f"evaluate: best of {count} answers", total=batches, done=0)
    with closing(progress), open_sampler(config.policy.rollouts) as sampler:
        return answer_several_times(
            load_causal(sft.path, device=config.model.device),
            model_renderer(sft.path).tokenizer,
            prompts,
            num_answers=count,
            max_new_tokens=config.answer_length(),
            temperature=config.evaluation.temperature,
            seed=config.seed,
            advance=lambda: progress.advance({}),
            sampler=sampler,
        )


def _answers_of(
    config: PipelineConfig,
    sft: ModelRef,
    prompts: Sequence[Conversation],
    count: int,
    directory: Path,
) -> list[list[SampledResponse]]:
    """Return [count][n] answers; those of an engine elsewhere are drawn once."""
    if not config.policy.rollouts.elsewhere:
        return _drawn(config, sft, prompts, count)
    size, how = len(prompts), f"best of {count}, {sampling(config)}"
    drawn = drawn_once(
        directory, sft, prompts, how, lambda: list(chain(*_drawn(config, sft, prompts, count)))
    )
    return [drawn[start : start + size] for start in range(0, count * size, size)]


def answer_several_times(  # noqa: PLR0913 - each of them changes the answers, none groups
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    *,
    num_answers: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    advance: Callable[[], None] | None = None,
    sampler: Sampler = TRANSFORMERS_SAMPLER,
) -> list[list[SampledResponse]]:
    """Answer every prompt ``num_answers`` times: [num_answers][n].

    Answer j to prompt i has a random stream of its own, whatever the number of answers or prompts,
    so the answers of best-of-4 are the first of best-of-8.

    Args:
        model: causal model.
        tokenizer: with a chat template.
        prompts: [n] conversations that end with the user's turn.
        num_answers: to each.
        max_new_tokens: longest answer.
        temperature: divides the logits; above 0.
        seed: of all of them.
        advance: called after each batch.
        sampler: who draws the tokens.

    Raises:
        DataError: a prompt cannot be rendered.
        ModelError: a prompt and its answer do not fit the model.
    """
    return [
        sample_responses(
            model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=derived_seed(seed, "best of n", str(number)),
            batch_size=_AT_ONCE,
            advance=advance,
            sampler=sampler,
        )
        for number in range(num_answers)
    ]


def highest(scores: Sequence[Array]) -> Ints:
    """Return which answer to each prompt scores highest, the first of equal ones: [n].

    Args:
        scores: [num_answers] columns of [n].

    Raises:
        DataError: a score is not finite.
    """
    table = np.stack(scores)
    if not np.isfinite(table).all():
        row = int(np.argwhere(~np.isfinite(table))[0][1])
        raise DataError(
            f"the reward model gives an answer to prompt {row + 1} no finite score; it is broken, "
            "or reads less than the answers are long"
        )
    return np.asarray(table.argmax(axis=0), dtype=np.int64)
