"""Policy, SFT and champion answer the same held-out prompts; who has a say scores the answers."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.adapters.endpoints.vllm_sampler import open_sampler
from rlhf_core.config import PipelineConfig, VllmRolloutsConfig
from rlhf_core.dataprep.cleaning.near_dialogues import topic_numbers
from rlhf_core.evaluation.comparison import PairedAnswers
from rlhf_core.evaluation.judges import liked_as_much
from rlhf_core.evaluation.rater import score_gold
from rlhf_core.evaluation.samples import compared_answers
from rlhf_core.functional.kl import kl_k1, kl_k3
from rlhf_core.models import load_causal
from rlhf_core.rollout.experience import require_engine_agrees
from rlhf_core.rollout.sample import SampledResponse, sample_responses
from rlhf_core.schema import Conversation, DatasetSplits, ModelRef, Prompt
from rlhf_core.stages.evaluation.best_of_n import best_of_n
from rlhf_core.stages.evaluation.drawn import drawn_once, sampling
from rlhf_core.stages.evaluation.judging import Panel
from rlhf_core.stages.models.determinism import derived_seed
from rlhf_core.stages.models.examples import note_rows
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.stages.models.scoring import (
    as_answers,
    choose_prompts,
    fits,
    response_logprobs_at,
    sampled_ids,
    score_texts,
)
from rlhf_core.statistics.resampling import Array, Ints
from rlhf_core.storage.records import read_records, write_records
from rlhf_core.tokenization import Renderer, TokenIds, make_renderer
from rlhf_core.trainers.progress import Progress

_AT_ONCE = 64
"""Prompts decoded together."""


def compare_answers(
    config: PipelineConfig,
    splits: DatasetSplits,
    models: Mapping[str, ModelRef],
    panel: Panel,
    directory: Path,
) -> PairedAnswers:
    """Sample the models' answers and measure them.

    All draw from the same random numbers, so a policy equal to SFT gives equal answers, and the
    comparisons are paired. Scorers read text, so a champion may have another tokenizer, template
    or base model; it is asked only prompts that all of them can read.

    Args:
        config: settings of the run.
        splits: dataset version.
        models: ``policy``, ``sft`` and, where there is one, ``reward``, ``champion``.
        panel: the judges.
        directory: where it is noted which prompts leave no room for an answer.
    """
    settings, renderer = config.evaluation, model_renderer(models["sft"].path)
    readers = [judge for judge in panel.judges if judge.kind == "scalar"]
    readers += [models["champion"]] if "champion" in models else []
    prompts = _choose(config, splits, renderer, readers, directory)
    conversations = [prompt.prompt for prompt in prompts]
    answers, reference_nll, kl = _answers(config, models, renderer, conversations, directory)
    policy, sft, *others = answers
    texts, reward = [[answer.text for answer in own] for own in answers], None
    if "reward" in models:
        reward = score_texts(
            models["reward"].path,
            conversations,
            texts[:2],
            budget=settings.micro_batch_tokens,
            device=config.model.device,
        )
    opinions = panel.opinions(conversations, texts, after_others=True)
    scores, decided = panel.concluded(opinions)
    gold = score_gold(settings.rater, conversations, texts)
    return PairedAnswers(
        prompts=tuple(prompts),
        policy=as_answers(policy),
        sft=as_answers(sft),
        judge=(scores[0], scores[1]),
        reward=None if reward is None else (reward[0], reward[1]),
        kl=kl,
        reference_nll=reference_nll,
        gold=None if gold is None else (gold[0], gold[1]),
        champion=as_answers(others[0]) if others else None,
        champion_judge=scores[2] if others else None,
        champion_gold=gold[2] if gold is not None and others else None,
        decided=decided,
        best_of_n=best_of_n(config, models, panel, conversations, texts[:2], directory),
        longest=config.answer_length(),
        shuffled=liked_as_much(opinions),
    )


def _choose(
    config: PipelineConfig,
    splits: DatasetSplits,
    renderer: Renderer,
    others: Sequence[ModelRef],
    directory: Path,
) -> list[Prompt]:
    """Choose held-out prompts that SFT's renderer and all ``others`` can read."""
    longest = config.model.max_length - config.answer_length()
    candidates = read_records(splits.prompts_heldout, Prompt)
    _note_room(candidates, renderer, longest, directory)
    return choose_prompts(
        candidates,
        [renderer, *(model_renderer(model.path) for model in others)],
        count=config.evaluation.num_prompts,
        longest=longest,
        seed=derived_seed(config.seed, "evaluation prompts"),
    )


def _note_room(
    prompts: Sequence[Prompt], renderer: Renderer, longest: int, directory: Path
) -> None:
    """Write down how many prompts leave no room for an answer and so are never asked."""
    num_fitting = sum(fits(prompt, renderer, longest) for prompt in prompts)
    no_room = Counter({"too_long": len(prompts) - num_fitting})
    note_rows(directory / "set-aside-prompts_heldout.jsonl", num_fitting, +no_room)


def _answers(
    config: PipelineConfig,
    models: Mapping[str, ModelRef],
    renderer: Renderer,
    prompts: Sequence[Conversation],
    directory: Path,
) -> tuple[list[list[SampledResponse]], Array, tuple[Array, Array] | None]:
    """Return each model's answers and the policy's ``distances`` from SFT, which is loaded once.

    One model is in memory at a time.
    """
    sample = partial(_sample, config, directory, prompts)
    policy = sample("policy", models["policy"])
    reference = load_causal(models["sft"].path, device=config.model.device)
    sft = sample("sft", models["sft"], reference)
    rendered = [renderer.prompt_ids(prompt) for prompt in prompts]
    nll, kl = distances(config, reference, rendered, policy)
    del reference
    answers = [policy, sft]
    if "champion" in models:
        answers.append(sample("champion", models["champion"]))
    return answers, nll, kl


def _sample(
    config: PipelineConfig,
    directory: Path,
    prompts: Sequence[Conversation],
    role: str,
    model: ModelRef,
    loaded: PreTrainedModel | None = None,
) -> list[SampledResponse]:
    def draw() -> list[SampledResponse]:
        return sample_answers(
            config,
            loaded or load_causal(model.path, device=config.model.device),
            model_renderer(model.path).tokenizer,
            prompts,
            purpose="evaluate",
            label=f"evaluate: {role} answers",
        )

    if config.policy.rollouts.elsewhere:
        return drawn_once(directory, model, prompts, sampling(config), draw)
    return draw()


def sample_answers(
    config: PipelineConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    *,
    purpose: str,
    label: str,
) -> list[SampledResponse]:
    """Answer every prompt once, as the evaluation's settings say.

    The log-probabilities are those of our own pass, an engine's answers included.

    Args:
        config: settings of the run.
        model: who answers.
        tokenizer: its own.
        prompts: [n] conversations.
        purpose: the random numbers are those of this purpose, for every model the same.
        label: name of the progress.

    Raises:
        DivergedError: an engine elsewhere disagrees with our own pass about the same model.
    """
    progress = Progress(label, total=math.ceil(len(prompts) / _AT_ONCE), done=0)
    with closing(progress), open_sampler(config.policy.rollouts) as sampler:
        answers = sample_responses(
            model,
            tokenizer,
            prompts,
            max_new_tokens=config.answer_length(),
            temperature=config.evaluation.temperature,
            seed=derived_seed(config.seed, purpose),
            batch_size=_AT_ONCE,
            advance=lambda: progress.advance({}),
            sampler=sampler,
        )
    return _with_own_logprobs(config, model, tokenizer, prompts, answers)


def _with_own_logprobs(
    config: PipelineConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    answers: Sequence[SampledResponse],
) -> list[SampledResponse]:
    """Put our own pass's log-probabilities in place of an engine's, once both agree.

    A KL is between two models: what the engine adds by its precision and its settings is no part
    of it. Greedy answers have none.
    """
    rollouts, temperature = config.policy.rollouts, config.evaluation.temperature
    if not isinstance(rollouts, VllmRolloutsConfig) or temperature == 0:
        return list(answers)
    (own,) = response_logprobs_at(
        model,
        list(map(make_renderer(tokenizer).prompt_ids, prompts)),
        sampled_ids(answers),
        temperatures=[temperature],
        budget=config.evaluation.micro_batch_tokens,
    )
    theirs = torch.tensor([one for answer in answers for one in answer.logprobs])
    require_engine_agrees(torch.cat(own), theirs, rollouts)
    return [
        replace(answer, logprobs=tuple(row.tolist()))
        for answer, row in zip(answers, own, strict=True)
    ]


def distances(
    config: PipelineConfig,
    sft: PreTrainedModel,
    prompts: Sequence[TokenIds],
    answers: Sequence[SampledResponse],
) -> tuple[Array, tuple[Array, Array] | None]:
    """Nats of each answer under SFT, and the k1 and k3 estimates of KL(policy || SFT).

    The KL is between the two models at the temperature the answers were drawn at; it is a sum over
    the tokens of a response, so its unit is nats per response. Greedy answers have none.
    """
    temperature = config.evaluation.temperature
    plain, *tempered = response_logprobs_at(
        sft,
        prompts,
        sampled_ids(answers),
        temperatures=[1.0, temperature] if temperature > 0 else [1.0],
        budget=config.evaluation.micro_batch_tokens,
    )
    nll = np.array([-float(row.double().sum()) for row in plain])
    if not tempered:
        return nll, None
    drawn = [torch.tensor(answer.logprobs, dtype=torch.float64) for answer in answers]
    rows = [(own, other.double()) for own, other in zip(drawn, tempered[0], strict=True)]
    k1 = np.array([float(kl_k1(own, other).sum()) for own, other in rows])
    k3 = np.array([float(kl_k3(own, other).sum()) for own, other in rows])
    return nll, (k1, k3)


def write_samples(path: Path, measured: PairedAnswers) -> None:
    """Write what the metrics were computed from, one prompt a line."""
    write_records(path, compared_answers(measured))


def topics_of(
    config: PipelineConfig, splits: DatasetSplits, prompts: Sequence[Prompt]
) -> tuple[Ints | None, str]:
    """Return the number of each prompt's topic, None where prompts are the units, and it in words.

    Raises:
        DataError: no prompt has the tag that the settings name.
    """
    key = config.evaluation.topics
    if key is None:
        return None, (
            f"Units are dialogues: {len(prompts)} prompts, one of each. Intervals are about new "
            "prompts on the topics of these, and say less about new topics."
        )
    training = read_records(splits.prompts_train, Prompt)
    numbers = topic_numbers([*prompts, *training], key)
    own, theirs = numbers[: len(prompts)], numbers[len(prompts) :]
    seen = int(np.isin(own, theirs).sum())
    return own, (
        f"Units are topics ({key}): {len(np.unique(own))} of them in {len(prompts)} prompts, each "
        f"resampled whole. Intervals are about new topics; {seen} of the prompts are on a topic "
        "that training prompts have too."
    )
