"""What a stage gives its trainer besides model, data and settings."""

from pathlib import Path

from rlhf_core.adapters.checkpoint_copies import copies_of
from rlhf_core.adapters.stage_run import StageRun
from rlhf_core.config import PipelineConfig
from rlhf_core.stages.determinism import derived_seed
from rlhf_core.trainers.checkpoint import CheckpointStore
from rlhf_core.trainers.loop import TrainingRun


def training_run(config: PipelineConfig, role: str, run: StageRun, directory: Path) -> TrainingRun:
    """Return the seed of ``role``, the run's tracker, and checkpoints that follow the metrics."""
    return TrainingRun(
        seed=derived_seed(config.seed, role),
        tracker=run,
        checkpoints=CheckpointStore(
            directory / "checkpoints",
            before_save=run.send_before_checkpoint,
            copies=copies_of(run),
        ),
    )
