"""What the training of a stage needs of memory, said before it loads a model."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rlhf_core.config import ComputeConfig, GatedStage, PipelineConfig
from rlhf_core.config.policy import PolicySettings
from rlhf_core.models import choose_device
from rlhf_core.models.compute import HALVES
from rlhf_core.models.memory import (
    dtype_of_files,
    memory_of_training,
    require_memory_of_training,
    weight_bytes,
)
from rlhf_core.stages.training.job import TrainingJob

logger = logging.getLogger(__name__)

Folders = dict[str, str | Path]


def require_memory(
    job: TrainingJob,
    compute: ComputeConfig,
    *,
    trained: Mapping[str, str | Path],
    read: Mapping[str, str | Path] | None = None,
    step_tokens: int,
    sampled_tokens: int = 0,
) -> None:
    """Say what a training needs of memory, and refuse it where its models alone do not fit.

    Args:
        job: the training; each of its processes has models of its own, or a part of them.
        compute: of the training; with adapters only they are trained.
        trained: directories of the models that are trained, by role.
        read: of those that are only read.
        step_tokens: of the largest forward pass of a step.
        sampled_tokens: that keys and values are kept for while sampling.

    Raises:
        ModelError: names the bytes needed and found.
    """
    models, tokens = (trained, read or {}), (step_tokens, sampled_tokens)
    line = _needed(job.config, job.role, compute, models, tokens)
    logger.info("memory: %s", line)


def models_of_policy(
    settings: PolicySettings, sft: str | Path, reward: str | Path | None
) -> tuple[Folders, Folders]:
    """Return directories of the models that a policy's training trains and reads, by role."""
    trained: Folders = {"policy": sft}
    read: Folders = {}
    if settings.needs_reference_model:
        read["reference"] = sft
    if settings.needs_reward_model and reward is not None:
        read["reward"] = reward
        if settings.needs_value_model:
            trained["value"] = reward
    return trained, read


def memory_ahead(config: PipelineConfig, stage: GatedStage) -> str:
    """Say what a stage's training will need, before there is a model that it will start from.

    Each is taken to be as large as the base model; models that ``policy.rewards`` names are left
    out.

    Returns:
        A line; empty where the base model is no folder of this machine.

    Raises:
        ModelError: its models alone do not fit; names the bytes needed and found.
    """
    base, longest = config.model.base, config.model.max_length
    if not Path(base).is_dir():
        return ""
    if stage == "policy":
        policy = config.policy
        models = models_of_policy(policy, base, base)
        tokens = (policy.step_tokens(longest), policy.cached_tokens(longest))
        return _needed(config, stage, policy.compute, models, tokens)
    settings = config.training_of(stage)
    tokens = (settings.step_tokens(longest), 0)
    return _needed(config, stage, settings.compute, ({stage: base}, {}), tokens)


def _needed(
    config: PipelineConfig,
    stage: GatedStage,
    compute: ComputeConfig,
    models: tuple[Mapping[str, str | Path], Mapping[str, str | Path]],
    tokens: tuple[int, int],
) -> str:
    """Count for models that are trained and read, and the tokens of a step and while sampling."""
    distributed = config.distributed_of(stage)
    needed = memory_of_training(
        *models,
        compute,
        step_tokens=tokens[0],
        sampled_tokens=tokens[1],
        parts=distributed.processes if distributed.shard == "layers" else 1,
    )
    needed = replace(needed, copies=_copies(config, stage, models[0], needed.gradients))
    return require_memory_of_training(
        needed, config.model.device, what=stage, processes=distributed.processes_of_a_node
    )


def _copies(
    config: PipelineConfig, stage: GatedStage, trained: Mapping[str, str | Path], learning: int
) -> dict[str, int]:
    """Count what a training keeps of weights to go back to, and to compare with at its end.

    Args:
        config: of the run.
        stage: that trains.
        trained: directories of the models that are trained, by role.
        learning: bytes of the weights that move.
    """
    copies = {}
    if stage == "sft" and config.sft.early_stopping_patience is not None:
        copies["best weights"] = learning
    # With a GPU it lies in the machine's memory.
    if config.model.save_dtype == "base" and choose_device(config.model.device).type == "cpu":
        copies["weights at the start"] = sum(_start_bytes(Path(path)) for path in trained.values())
    return {which: size for which, size in copies.items() if size}


def _start_bytes(folder: Path) -> int:
    """Bytes of the copy of weights whose files are of half precision, for what rounding undoes."""
    dtype = dtype_of_files(folder)
    return weight_bytes(folder, dtype) if dtype in HALVES else 0
