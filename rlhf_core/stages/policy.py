"""Stage 4: the policy. PPO against the reward model, or DPO straight from the pairs."""

import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial, singledispatch
from itertools import chain, zip_longest
from operator import attrgetter
from pathlib import Path

from transformers import PreTrainedModel

from rlhf_core.adapters.endpoints.vllm_sampler import open_sampler
from rlhf_core.adapters.tracking.tracking import open_run, stage_inputs
from rlhf_core.config import DpoConfig, PipelineConfig, PpoConfig
from rlhf_core.config.base import Section
from rlhf_core.dataprep.keys import DialogueKey, dialogue_key
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.models import load_causal, load_scalar
from rlhf_core.ports import Observer
from rlhf_core.rollout.sample import sample_responses
from rlhf_core.rollout.sampler import TRANSFORMERS_SAMPLER, Sampler
from rlhf_core.schema import (
    Conversation,
    DatasetSplits,
    ModelRef,
    Prompt,
    Record,
    RunContext,
    StageResult,
    UnpairedExample,
)
from rlhf_core.stages.evaluation.independence import require_independent_judge
from rlhf_core.stages.models.base_model import name_ends
from rlhf_core.stages.models.determinism import derived_seed
from rlhf_core.stages.models.examples import load_demonstrations, load_pairs, tokenize_records
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.stages.models.scoring import fits
from rlhf_core.stages.training.job import TrainingJob
from rlhf_core.stages.training.memory import models_of_policy, require_memory
from rlhf_core.stages.training.reward_terms import open_reward_terms, rewards_digest
from rlhf_core.stages.training.run import (
    Fitted,
    Followers,
    begin_training,
    register_trained,
    train,
)
from rlhf_core.stages.training.selection import choose_checkpoint
from rlhf_core.stages.training.selection_prompts import set_apart
from rlhf_core.storage.records import iterate_records, read_records, write_records
from rlhf_core.tokenization import Renderer, TokenizedPrompt, TokenizedUnpaired, keep_rows
from rlhf_core.trainers.dpo import fit_dpo
from rlhf_core.trainers.kto import examples_of_pairs, fit_kto
from rlhf_core.trainers.loop import FitSummary
from rlhf_core.trainers.ppo import PpoData, PpoModels, fit_ppo

NUM_WATCHED_PROMPTS = 16
"""Held-out prompts answered at every checkpoint, spread over the tags, for people to look at."""


class WatchedAnswer(Record):
    """What the policy said to a held-out prompt at one point of its training."""

    step: int
    prompt: Conversation
    response: str
    finished: bool


def train_policy(  # noqa: PLR0913 - every model that a policy may learn from
    config: PipelineConfig,
    splits: DatasetSplits,
    sft: ModelRef,
    reward: ModelRef | None,
    context: RunContext,
    observer: Observer | None = None,
    *,
    scorers: Mapping[str, ModelRef] | None = None,
    judge: ModelRef | None = None,
) -> StageResult:
    """Optimise the policy from SFT and register it as a candidate; evaluation decides about it.

    Of its checkpoints the one is registered that the judge prefers on prompts set apart.

    Args:
        config: settings of the run; ``policy.algorithm`` chooses PPO or DPO.
        splits: dataset version.
        sft: start of the policy and its KL reference.
        reward: reward model PPO optimises against; DPO reads none.
        context: where the run keeps its files.
        observer: follows the training.
        scorers: what ``find_scorers`` found of the models that ``policy.rewards`` names.
        judge: who chooses the checkpoint; it never trains the policy. None where
            ``policy.selection.num_prompts`` is 0 and the last one is offered.

    Raises:
        ConfigError: PPO without a reward model, or a checkpoint is to be chosen and by nobody.
        RegistryError: the judge is what the policy is optimised against.
        DivergedError: the loss is not finite, or the KL watch stopped the run.
    """
    started = time.monotonic()
    job = begin_training("policy", config, splits, context, sft=sft, reward=reward)
    job = job.model_copy(update={"scorers": dict(scorers or {})})
    _require_memory(job)
    _require_chooser(config, judge, reward, splits)
    upstream = {"sft": sft} | ({"reward": reward} if reward else {})
    inputs = stage_inputs(splits, **upstream) | _rewards_of(job)
    with open_run(config, context, "policy", inputs=inputs) as run:
        run.log_dataset(splits)
        trained, choice = train(job, fit, run, observer), None
        if judge is not None and config.policy.selection.num_prompts > 0:
            trained, choice = choose_checkpoint(job, trained, judge, run)
        tags: dict[str, str] = {"algorithm": config.policy.algorithm}
        tags |= {"checkpoint": choice.summary} if choice else {}
        model = register_trained(run, job, trained, "causal", **tags)
        seconds = time.monotonic() - started
        return StageResult.judged_later(
            "policy", model, seconds=seconds, tracking_url=run.url, choice=choice
        )


def fit(job: TrainingJob, followers: Followers) -> Fitted:
    """Optimise the policy of a job as its settings say."""
    renderer = model_renderer(job.start.path)
    policy = load_causal(job.start.path, device=job.config.model.device)
    name_ends(policy, renderer)
    summary = optimize(job.config.policy, _Task(job, followers, policy, renderer))
    return policy, renderer.tokenizer, summary


def _require_chooser(
    config: PipelineConfig, judge: ModelRef | None, reward: ModelRef | None, splits: DatasetSplits
) -> None:
    if config.policy.selection.num_prompts == 0:
        return
    if judge is None:
        raise ConfigError(
            "policy.selection: a judge chooses which checkpoint is offered, and none was given; "
            "give one (--judge), or set policy.selection.num_prompts to 0 for the last checkpoint"
        )
    require_independent_judge(judge, None, reward, splits)


def _rewards_of(job: TrainingJob) -> dict[str, str]:
    """What the terms of the reward are made of, as tags; nothing where there are none."""
    terms = job.config.policy.rewards
    if not terms:
        return {}
    models = {
        f"upstream.scorer_{index}" if model.registered else f"scorer_{index}": model.uri
        for index, model in enumerate(job.scorers.values())
    }
    return {"rewards_sha256": rewards_digest(terms, job.scorers), **models}


def _require_memory(job: TrainingJob) -> None:
    settings, reward = job.config.policy, job.reward
    scored_by = None if reward is None else reward.path
    trained, read = models_of_policy(settings, job.start.path, scored_by)
    read |= {f"reward {name}": model.path for name, model in job.scorers.items()}
    longest = job.config.model.max_length
    require_memory(
        job,
        settings.compute,
        trained=trained,
        read=read,
        step_tokens=settings.step_tokens(longest),
        sampled_tokens=settings.cached_tokens(longest),
    )


@dataclass(frozen=True)
class _Task:
    """What every algorithm is given besides its settings."""

    job: TrainingJob
    followers: Followers
    policy: PreTrainedModel
    renderer: Renderer


@singledispatch
def optimize(settings: Section, task: _Task) -> FitSummary:
    """Train ``task.policy`` in place as its settings ask; their class chooses the function below.

    Raises:
        ConfigError: they need a reward model, and there is none.
    """
    raise NotImplementedError(f"no trainer is registered for {type(settings).__name__}")


@optimize.register
def _optimize_ppo(settings: PpoConfig, task: _Task) -> FitSummary:
    job, config = task.job, task.job.config
    device = config.model.device
    if job.reward is None:
        raise ConfigError("policy.algorithm ppo needs a reward model; give --reward")
    watcher = AnswerWatcher(
        config,
        watched_prompts(config, job.splits, task.renderer),
        task.policy,
        task.renderer,
        job.directory,
    )
    models = PpoModels(
        policy=task.policy,
        # With LoRA the policy without its adapters is the reference: no second copy.
        reference=load_causal(job.start.path, device=device)
        if settings.needs_reference_model
        else None,
        reward_model=load_scalar(job.reward.path, device=device),
        value_model=load_scalar(job.reward.path, device=device)
        if settings.needs_value_model
        else None,
    )
    data = _ppo_data(config, settings, job.splits, task.renderer, job.directory)
    prompts = iterate_records(job.splits.prompts_train, Prompt)
    with (
        open_sampler(settings.rollouts) as sampler,
        open_reward_terms(
            settings.rewards, job.scorers, prompts, task.renderer, device=device
        ) as rewards,
    ):
        watcher.sampler = sampler
        summary = fit_ppo(
            models,
            replace(data, rewards=rewards, sampler=sampler),
            settings=settings,
            run=task.followers.training_run(job),
            on_checkpoint=watcher.look,
        )
    task.followers.tracker.log_artifact(watcher.path)
    return summary


@optimize.register
def _optimize_dpo(settings: DpoConfig, task: _Task) -> FitSummary:
    job = task.job
    apart = set_apart(job.config, job.splits, task.renderer).dialogues
    load = partial(load_pairs, job.config, task.renderer, job.directory)
    if settings.learns_from_unpaired(has_unpaired=job.splits.unpaired_train is not None):
        return _optimize_kto(settings, task, apart)
    return fit_dpo(
        task.policy,
        None,
        load(job.splits.reward_train, apart=apart),
        load(job.splits.reward_heldout),
        settings=settings,
        run=task.followers.training_run(job),
    )


def _optimize_kto(settings: DpoConfig, task: _Task, apart: Set[DialogueKey]) -> FitSummary:
    """KTO on labelled responses, and on the pairs taken apart where ``train_on`` does not say no.

    Raises:
        DataError: the dataset has no such responses.
    """
    job, splits = task.job, task.job.splits
    parts = []
    for unpaired, pairs in (
        (splits.unpaired_train, splits.reward_train),
        (splits.unpaired_heldout, splits.reward_heldout),
    ):
        if unpaired is None:
            raise DataError(
                f"{splits.directory}: no responses with good or bad labels in this dataset, which"
                " policy.train_on asks for; prepare it with data.unpaired"
            )
        examples: Iterator[TokenizedUnpaired] = tokenize_records(
            (
                row
                for row in iterate_records(unpaired, UnpairedExample)
                if dialogue_key(row.prompt) not in apart
            ),
            task.renderer.unpaired,
            length=attrgetter("num_tokens"),
            max_length=job.config.model.max_length,
            filtered=job.directory / f"set-aside-{unpaired.path.stem}.jsonl",
        )
        if settings.learns_from_pairs:
            taken_apart = load_pairs(job.config, task.renderer, job.directory, pairs, apart=apart)
            examples = chain(examples, examples_of_pairs(taken_apart))
        parts.append(keep_rows(TokenizedUnpaired, examples, job.directory))
    train, heldout = parts
    run = task.followers.training_run(job)
    return fit_kto(task.policy, train, heldout, settings=settings, run=run)


class AnswerWatcher:
    """Answers the same held-out prompts at every checkpoint: people see where it drifts."""

    def __init__(
        self,
        config: PipelineConfig,
        prompts: Sequence[Prompt],
        policy: PreTrainedModel,
        renderer: Renderer,
        directory: Path,
    ) -> None:
        self.path = directory / "watched-answers.jsonl"
        self._config, self._prompts = config, prompts
        self._policy, self._renderer = policy, renderer
        self.sampler: Sampler = TRANSFORMERS_SAMPLER

    def look(self, step: int) -> None:
        """Answer the prompts as the policy is now; a step answered before a kill is replaced."""
        answers = sample_responses(
            self._policy,
            self._renderer.tokenizer,
            [prompt.prompt for prompt in self._prompts],
            max_new_tokens=self._config.answer_length(),
            temperature=self._config.evaluation.temperature,
            seed=derived_seed(self._config.seed, "watch"),
            sampler=self.sampler,
        )
        earlier = read_records(self.path, WatchedAnswer) if self.path.exists() else []
        fresh = [
            WatchedAnswer(
                step=step, prompt=prompt.prompt, response=answer.text, finished=answer.finished
            )
            for prompt, answer in zip(self._prompts, answers, strict=True)
        ]
        write_records(self.path, [row for row in earlier if row.step < step] + fresh)


def watched_prompts(
    config: PipelineConfig, splits: DatasetSplits, renderer: Renderer
) -> list[Prompt]:
    """Return a few held-out prompts, the same every time, from as many tag values as possible.

    Only such as fit: a policy is never asked what it has no room to answer.
    """
    by_tags: dict[str, list[Prompt]] = {}
    longest = config.model.max_length - config.answer_length()
    for prompt in iterate_records(splits.prompts_heldout, Prompt):
        alike = by_tags.setdefault(str(sorted(prompt.tags.items())), [])
        if len(alike) < NUM_WATCHED_PROMPTS and fits(prompt, renderer, longest):
            alike.append(prompt)
    turns = zip_longest(*(by_tags[key] for key in sorted(by_tags)))
    spread = [prompt for turn in turns for prompt in turn if prompt is not None]
    return spread[:NUM_WATCHED_PROMPTS]


def _ppo_data(
    config: PipelineConfig,
    settings: PpoConfig,
    splits: DatasetSplits,
    renderer: Renderer,
    directory: Path,
) -> PpoData:
    apart = set_apart(config, splits, renderer).dialogues
    prompts = tokenize_records(
        (
            prompt
            for prompt in iterate_records(splits.prompts_train, Prompt)
            if dialogue_key(prompt.prompt) not in apart
        ),
        renderer.prompt,
        length=attrgetter("num_tokens"),
        max_length=config.longest_prompt(),
        filtered=directory / "set-aside-prompts.jsonl",
    )
    kept = keep_rows(TokenizedPrompt, prompts, directory)
    demonstrations = (
        load_demonstrations(config, renderer, directory, splits.demonstrations_train, apart=apart)
        if settings.ptx_coef > 0
        else ()
    )
    return PpoData(
        prompts=kept,
        end_ids=renderer.end_ids,
        demonstrations=demonstrations,
        turn_end_id=renderer.turn_end_id,
    )
