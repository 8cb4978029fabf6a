"""One training of a stage: what it is given, who follows it, and in how many processes it runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.adapters.registry.registry import register_model
from rlhf_core.adapters.tracking.checkpoint_copies import WEIGHTS, copies_of
from rlhf_core.adapters.tracking.stage_run import StageRun
from rlhf_core.config import PipelineConfig
from rlhf_core.models import save_model
from rlhf_core.ports import Observer, Tracker
from rlhf_core.schema import DatasetSplits, ModelRef, ModelRole, RunContext
from rlhf_core.stages.evaluation.independence import require_topics
from rlhf_core.stages.models.determinism import derived_seed, make_deterministic
from rlhf_core.stages.training.job import Trained, TrainingJob
from rlhf_core.trainers.checkpoint import CheckpointStore, KeptWeights
from rlhf_core.trainers.loop import FitSummary, TrainingRun


def kept_weights(job: TrainingJob, run: StageRun | None) -> KeptWeights | None:
    """Where weights of a policy stay that one is chosen from; None where the last is offered.

    Args:
        job: the training.
        run: with which they are shared among machines, where checkpoints are.
    """
    selection = job.config.policy.selection
    if job.role != "policy" or selection.num_prompts == 0:
        return None
    most = selection.max_checkpoints
    copies = None if run is None else copies_of(run, WEIGHTS, most=most)
    return KeptWeights(job.checkpoints / "kept", most=most, copies=copies)


def begin_training(
    role: ModelRole,
    config: PipelineConfig,
    splits: DatasetSplits,
    context: RunContext,
    *,
    sft: ModelRef | None = None,
    reward: ModelRef | None = None,
) -> TrainingJob:
    """Return what a stage trains in its folder of the run, this process made deterministic.

    Raises:
        DataError: evaluation will be by topics of a tag that no prompt has.
    """
    require_topics(config, splits)
    make_deterministic(config.seed)
    directory = context.stage_directory(role)
    return TrainingJob(
        role=role,
        config=config,
        splits=splits,
        directory=directory,
        checkpoints=directory / "checkpoints",
        sft=sft,
        reward=reward,
    )


@dataclass(frozen=True)
class Followers:
    """Who is told of a training while it runs."""

    tracker: Tracker
    observer: Observer | None = None

    def training_run(self, job: TrainingJob) -> TrainingRun:
        """Return the job's seed, its followers, and checkpoints that come after the metrics."""
        run = self.tracker if isinstance(self.tracker, StageRun) else None
        return TrainingRun(
            seed=derived_seed(job.config.seed, job.role),
            tracker=self.tracker,
            checkpoints=CheckpointStore(
                job.checkpoints,
                before_save=None if run is None else run.send_before_checkpoint,
                copies=None if run is None else copies_of(run),
            ),
            observer=self.observer,
            shard=job.config.distributed_of(job.role).shard,
            role=job.role,
            kept=kept_weights(job, run),
        )


Fitted = tuple[PreTrainedModel, PreTrainedTokenizerBase, FitSummary]
Fit = Callable[[TrainingJob, Followers], Fitted]
"""Loads the models and data of a job and trains: every process of a training calls it."""


def train(job: TrainingJob, fit: Fit, run: StageRun, observer: Observer | None) -> Trained:
    """Train in this process, or in as many of their own as the settings say, and write the model.

    Raises:
        ProcessError: one of several processes died; names it and says why. What a process raised
            on purpose is raised as it was.
    """
    if job.config.distributed_of(job.role).processes == 1:
        return write_trained(job, fit(job, Followers(run, observer)))
    from rlhf_core.stages.distributed.launch import train_in_processes

    return train_in_processes(job, run, observer)


def write_trained(job: TrainingJob, fitted: Fitted) -> Trained:
    """Write the model of a training to ``model`` in its folder."""
    model, tokenizer, summary = fitted
    sha256 = save_model(model, tokenizer, job.directory / "model")
    return Trained(sha256=sha256, num_steps=summary.num_steps)


def register_trained(
    run: StageRun,
    job: TrainingJob,
    trained: Trained,
    kind: Literal["causal", "scalar"],
    **tags: str,
) -> ModelRef:
    """Register the model of a training as the newest version of its role, with its digest."""
    return register_model(
        run,
        directory=job.directory / "model",
        name=f"{job.config.project}-{job.role}",
        kind=kind,
        sha256=trained.sha256,
        tags={"num_steps": str(trained.num_steps), **tags},
    )
