"""What a training is given and gives, as records: other processes read and write them."""

from pathlib import Path

from pydantic import Field

from rlhf_core.config import PipelineConfig
from rlhf_core.schema import DatasetSplits, ModelRef, ModelRole, Record


class TrainingJob(Record):
    """What a training needs: a record, so that other processes can be given it."""

    role: ModelRole
    config: PipelineConfig
    splits: DatasetSplits
    directory: Path
    """Where it keeps files besides its checkpoints."""
    checkpoints: Path
    sft: ModelRef | None = None
    """The model it starts from, unless that is the base model."""
    reward: ModelRef | None = None
    """What PPO optimises against."""
    scorers: dict[str, ModelRef] = Field(default_factory=dict)
    """Other models in the terms of its reward, by the name the settings have for them."""

    @property
    def start(self) -> ModelRef:
        """The SFT model; the job of SFT itself has none."""
        if self.sft is None:
            raise ValueError(f"the training of {self.role} was given no SFT model")
        return self.sft


class Trained(Record):
    """A model that was trained and written."""

    sha256: str
    num_steps: int
