"""Stage 3: a reward model from people's preferences; and, from the other half, the judge."""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import attrgetter
from typing import Literal

from rlhf_core.adapters.tracking.tracking import open_run, stage_inputs
from rlhf_core.config import PipelineConfig, RewardConfig
from rlhf_core.models import scalar_from_causal
from rlhf_core.ports import Observer
from rlhf_core.schema import (
    DatasetSplits,
    Demonstration,
    ModelRef,
    PreferencePair,
    RunContext,
    StageResult,
)
from rlhf_core.stages.evaluate import evaluate_reward
from rlhf_core.stages.models.base_model import name_ends
from rlhf_core.stages.models.determinism import derived_seed
from rlhf_core.stages.models.examples import load_pairs, tokenize_records
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.stages.training.job import TrainingJob
from rlhf_core.stages.training.memory import require_memory
from rlhf_core.stages.training.run import (
    Fitted,
    Followers,
    begin_training,
    register_trained,
    train,
)
from rlhf_core.storage.records import iterate_records
from rlhf_core.trainers.reward import fit_reward_model

NUM_CENTERING = 512
"""Held-out demonstrations whose mean score becomes 0; their mean is known well enough by then."""


def train_reward(
    config: PipelineConfig,
    splits: DatasetSplits,
    sft: ModelRef,
    context: RunContext,
    role: Literal["reward", "judge"] = "reward",
    observer: Observer | None = None,
) -> StageResult:
    """Train a Bradley-Terry model on its half of the preferences, register it, apply the gates.

    Args:
        config: settings of the run.
        splits: dataset version.
        sft: the model whose trunk it starts from.
        context: where the run keeps its files.
        role: ``reward`` is what PPO optimises; ``judge`` decides promotion and never trains a
            policy. The two see disjoint dialogues and start from different heads.
        observer: follows the training.
    """
    started = time.monotonic()
    job = begin_training(role, config, splits, context, sft=sft)
    settings = _settings(job)
    require_memory(
        job,
        settings.compute,
        trained={role: sft.path},
        step_tokens=settings.step_tokens(config.model.max_length),
    )
    with open_run(config, context, role, inputs=stage_inputs(splits, sft=sft)) as run:
        run.log_dataset(splits)
        trained = train(job, fit, run, observer)
        reference = register_trained(run, job, trained, "scalar")
        result = evaluate_reward(config, splits, reference, context, role=role, run=run)
    return result.model_copy(update={"seconds": time.monotonic() - started})


def margin_by(settings: RewardConfig) -> Callable[[PreferencePair], float] | None:
    """Return what says by how much the scores of a pair should differ; None where nothing does.

    A pair whose source says no strength asks for no margin.
    """
    scale = settings.margin_scale
    if scale == 0.0:
        return None
    if settings.margin_of == "strength":
        return lambda pair: scale * (pair.strength or 0.0)
    return lambda pair: scale * max(2.0 * pair.agreement - 1.0, 0.0)


def fit(job: TrainingJob, followers: Followers) -> Fitted:
    """Train the reward model or judge of a job on its half of the preferences."""
    config, splits, sft = job.config, job.splits, job.start
    renderer = model_renderer(sft.path)
    head, device = derived_seed(config.seed, job.role, "head"), config.model.device
    model = scalar_from_causal(sft.path, seed=head, device=device)
    name_ends(model, renderer)
    settings = _settings(job)
    load = partial(load_pairs, config, renderer, job.directory, margin=margin_by(settings))
    summary = fit_reward_model(
        model,
        load(splits.judge_train if job.role == "judge" else splits.reward_train),
        load(splits.judge_heldout if job.role == "judge" else splits.reward_heldout),
        list(
            tokenize_records(
                _first(iterate_records(splits.demonstrations_heldout, Demonstration)),
                renderer.demonstration,
                length=attrgetter("num_tokens"),
                max_length=config.model.max_length,
                filtered=job.directory / "set-aside-references.jsonl",
            )
        ),
        settings=settings,
        run=followers.training_run(job),
    )
    return model, renderer.tokenizer, summary


def _settings(job: TrainingJob) -> RewardConfig:
    return job.config.judge_settings() if job.role == "judge" else job.config.reward


def _first(demonstrations: Iterable[Demonstration]) -> Iterator[Demonstration]:
    """Yield the references; the file is read, and its rows are checked and counted, to the end."""
    return (row for place, row in enumerate(demonstrations) if place < NUM_CENTERING)
