"""One process of a training with several: trains with the others; the first one tells and writes.

``python -m rlhf_core.stages.distributed.rank TASK AGENT``, as torchrun's agent starts it.
"""

import json
import logging
import signal
import sys
from collections.abc import Mapping
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import IO

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from rlhf_core import processes
from rlhf_core.adapters.settings import set_environment_defaults
from rlhf_core.adapters.tracking.tracking import rejoin_run
from rlhf_core.orphans import end_with
from rlhf_core.schema import ModelRole
from rlhf_core.stages.distributed.task import LINES, TRAINED, RankTask
from rlhf_core.stages.models.determinism import make_deterministic
from rlhf_core.stages.training.run import Fit, Followers, write_trained
from rlhf_core.storage.records import read_record, write_record

FITS: dict[ModelRole, str] = {
    "sft": "rlhf_core.stages.sft",
    "reward": "rlhf_core.stages.reward",
    "judge": "rlhf_core.stages.reward",
    "policy": "rlhf_core.stages.policy",
}
"""Modules whose ``fit`` trains a role."""
PATIENCE = timedelta(hours=1)
"""How long a rank waits for another, which may be writing a checkpoint or resuming one."""


class NoTracker:
    """The ``Tracker`` of the ranks that do not lead: one of them tells MLflow."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Drop them: they are those of every rank."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Drop them."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Drop it."""


class EventWriter:
    """Writes what happens to a file that the stage reads: an ``Observer``, and a log handler."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def step(self, trainer: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Tell the stage's observer."""
        self._write("step", trainer, done, total, dict(metrics))

    def kl_spike(self, action: str, message: str) -> None:
        """Tell the stage's observer."""
        self._write("kl_spike", action, message)

    def line(self, record: logging.LogRecord) -> None:
        """Tell the stage's log."""
        self._write("line", record.name, record.levelno, record.getMessage(), record.created)

    def _write(self, kind: str, *values: object) -> None:
        self._stream.write(json.dumps([kind, *values]) + "\n")
        self._stream.flush()


class _ToStage(logging.Handler):
    def __init__(self, events: EventWriter) -> None:
        super().__init__()
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        self._events.line(record)


@record
def main(task_file: Path, agent: int) -> None:
    """Train as one of the ranks, and as the first write the model as well.

    What is raised goes to torchrun's error file of this rank. It ends with the agent, a process id,
    which may have ended already: imports took seconds.
    """
    end_with(agent, signal.SIGKILL)
    set_environment_defaults()
    task = read_record(task_file, RankTask)
    on_gpu = torch.cuda.is_available() and task.job.config.model.device != "cpu"
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    if on_gpu:
        torch.cuda.set_device(dist.get_node_local_rank())
    fit: Fit = import_module(FITS[task.job.role]).fit
    with processes.lost_processes_reported():
        _train(task, fit)
    dist.destroy_process_group()


def _train(task: RankTask, fit: Fit) -> None:
    if processes.is_main():
        _lead(task, fit)
        return
    _begin(task, logging.StreamHandler())
    scratch = task.folder / f"rank-{processes.rank()}"
    scratch.mkdir()
    fit(task.job.model_copy(update={"directory": scratch}), Followers(NoTracker()))


def _lead(task: RankTask, fit: Fit) -> None:
    with (task.folder / LINES).open("w", encoding="utf-8") as stream:
        events = EventWriter(stream)
        _begin(task, logging.StreamHandler(), _ToStage(events))
        with rejoin_run(task.mlflow_run, task.lineage, resumed=task.resumed) as run:
            fitted = fit(task.job, Followers(run, events))
        trained = write_trained(task.job, fitted)
        write_record(task.folder / TRAINED, trained)


def _begin(task: RankTask, *handlers: logging.Handler) -> None:
    """Send lines to ``handlers`` (torchrun keeps each rank's in its own file), and seed."""
    form = "%(asctime)s %(levelname)-7s %(name)s %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, handlers=handlers, force=True)
    logging.getLogger("rlhf_core").setLevel(task.log_level)
    make_deterministic(task.job.config.seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
