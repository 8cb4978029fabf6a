"""What a stage and the processes it starts tell each other: files in one folder."""

from pathlib import Path

from rlhf_core.config import DistributedConfig
from rlhf_core.schema import ModelRole, Record
from rlhf_core.stages.training.job import TrainingJob

TASK, TRAINED, LINES, FAILED = "task.json", "trained.json", "lines.jsonl", "failed.json"
NODE, JOINED, NODES = "node.json", "joined.json", "nodes.json"
LOGS = "logs"
"""Folder in which torchrun keeps each rank's output, and what it raised."""


class RankTask(Record):
    """What every rank of a training is given."""

    job: TrainingJob
    folder: Path
    """Where stage and ranks leave files for each other."""
    processes: int
    mlflow_run: str
    """Run of the stage, which the first rank logs to."""
    lineage: dict[str, str]
    resumed: bool
    log_level: int

    @property
    def distributed(self) -> DistributedConfig:
        """How many processes there are, on how many nodes."""
        return self.job.config.distributed_of(self.job.role)

    def folder_of(self, node: int) -> Path:
        """Return where a node keeps its ranks' lines, and what they raised."""
        return self.folder / f"node-{node}" if node else self.folder


class NodeTask(Record):
    """What the command of a node other than the first gives its agent."""

    distributed: DistributedConfig
    role: ModelRole
    digest: str
    """Of the settings that decide a run: every node has the same."""
    run: Path | None
    """Folder of the run it was started for; None takes node 0's."""


class Joined(Record):
    """That node 0 was found, and what it trains."""

    task: Path


class NodesLost(Record):
    """Nodes that did not end well, with a line on how."""

    lines: dict[int, str]


class RankFailure(Record):
    """How one rank ended that did not end well, as torchrun saw it."""

    rank: int
    """Of its node, from 0."""
    pid: int
    exit_code: int


class RankFailures(Record):
    """All of them."""

    failures: tuple[RankFailure, ...]
