"""What a stage gives its trainer besides model, data and settings."""

from collections.abc import Mapping
from pathlib import Path

from rlhf_core.adapters.checkpoint_copies import copies_of
from rlhf_core.adapters.stage_run import StageRun
from rlhf_core.config import ComputeConfig, PipelineConfig
from rlhf_core.models.memory import require_memory_of_training
from rlhf_core.ports import Observer
from rlhf_core.stages.determinism import derived_seed
from rlhf_core.trainers.checkpoint import CheckpointStore
from rlhf_core.trainers.loop import TrainingRun


def training_run(
    config: PipelineConfig, role: str, run: StageRun, directory: Path, observer: Observer | None
) -> TrainingRun:
    """Return the seed of ``role``, the run's tracker, and checkpoints that follow the metrics."""
    return TrainingRun(
        seed=derived_seed(config.seed, role),
        tracker=run,
        checkpoints=CheckpointStore(
            directory / "checkpoints",
            before_save=run.send_before_checkpoint,
            copies=copies_of(run),
        ),
        observer=observer,
    )


def require_memory(
    config: PipelineConfig,
    compute: ComputeConfig,
    *,
    trained: Mapping[str, str | Path],
    read: Mapping[str, str | Path] | None = None,
) -> None:
    """Refuse a training whose models do not fit into memory, before anything is loaded.

    Args:
        config: settings of the run.
        compute: of the training; with adapters only they are trained.
        trained: directories of the models that are trained, by role.
        read: of those that are only read.

    Raises:
        ModelError: names the bytes needed and found.
    """
    whole, part = (trained, {}) if compute.lora is None else ({}, trained)
    require_memory_of_training(config.model.device, trained=whole, read={**part, **(read or {})})
