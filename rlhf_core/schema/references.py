"""References that travel between stages: where bytes lie and how to prove they are the same."""

from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import Field

from rlhf_core.schema.base import Record
from rlhf_core.schema.model_uri import is_model_uri

StageName = Literal["prepare", "sft", "reward", "judge", "policy", "evaluate", "promote"]
ModelKind = Literal["causal", "scalar", "classifier", "endpoint", "panel"]
"""Text or scores of our own models; judges from elsewhere: a reward model, a chat endpoint, several
judges together."""
ModelRole = Literal["sft", "reward", "judge", "policy"]

CHAMPION = "champion"
"""Alias, in the registry, of the versions of the release in use."""
PREVIOUS = "previous-champion"
"""Alias of the release that a rollback returns to."""


class DatasetRef(Record):
    """One prepared file (JSON lines, one record a line)."""

    path: Path
    sha256: str
    num_rows: int = Field(ge=0)
    dvc_md5: str
    """md5 of the file, which is also the key DVC stores it under."""
    git_revision: str | None
    """Commit of the working tree at preparation; None outside a git repository."""


class DatasetSplits(Record):
    """What ``prepare`` made. No dialogue appears on both sides, train and held-out."""

    directory: Path
    sha256: str
    """Over the sha256 of all files, in name order: the version of the dataset as a whole."""
    dvc_md5: str
    """DVC's md5 of the directory."""
    git_revision: str | None
    split: str = ""
    """Rule by which dialogues were split: what is held out here is held out in every dataset of the
    same rule. Empty in datasets that do not say."""
    template_date: date | None = None
    """What a chat template that reads the clock takes for today, in every stage."""
    demonstrations_train: DatasetRef
    demonstrations_heldout: DatasetRef
    reward_train: DatasetRef
    reward_heldout: DatasetRef
    judge_train: DatasetRef
    judge_heldout: DatasetRef
    prompts_train: DatasetRef
    """Prompts PPO samples from."""
    prompts_heldout: DatasetRef
    """Prompts that only evaluation reads."""
    unpaired_train: DatasetRef | None = None
    """Responses with good or bad labels; None in datasets that have none."""
    unpaired_heldout: DatasetRef | None = None
    report: Path
    """JSON report of preparation: counts, agreement, validation."""


class ModelRef(Record):
    """A trained model: registry version and the exact weights."""

    name: str
    """Registered name, e.g. ``rlhf-sft``."""
    version: str
    uri: str
    """``models:/<name>/<version>``."""
    path: Path
    """Local directory in ``save_pretrained`` layout."""
    sha256: str
    """Over the weight file's bytes."""
    kind: ModelKind
    run_id: str
    """MLflow run that logged it."""
    members: tuple["ModelRef", ...] = ()
    """Of several judges together, each of them."""

    @property
    def registered(self) -> bool:
        """Whether it is a version of the registry, and no folder."""
        return is_model_uri(self.uri)


class RunContext(Record):
    """Where one pipeline run keeps its files; made once, given to every stage."""

    run_id: str
    directory: Path
    """Each stage works in ``directory/<stage>``: checkpoints, model, report."""
    flow_run_id: str | None = None
    """Prefect flow run that drives the stage, for links and lineage tags."""

    def stage_directory(self, stage: StageName) -> Path:
        """Return the stage's own directory (not created here)."""
        return self.directory / stage
