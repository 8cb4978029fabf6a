"""A training in several processes, seen from its command: starts them, listens, ends them all.

The command's child is torchrun's agent, whose children are the ranks of this node. However the
command ends, in order, by an error, a cancelled flow or Ctrl-C, they end with it: asked first,
which takes the agent up to half a minute where a rank does not listen, then killed one by one. The
stage runs on node 0; the command on another node follows it.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import joblib
import psutil
import torch

from rlhf_core.adapters.settings import environment_of_ranks
from rlhf_core.adapters.tracking.stage_run import StageRun
from rlhf_core.config import DistributedConfig, PipelineConfig, config_digest
from rlhf_core.errors import ConfigError, ProcessError
from rlhf_core.models import choose_device
from rlhf_core.ports import Observer
from rlhf_core.schema import ModelRole
from rlhf_core.stages.distributed.failures import first_failure, how_ended, lines_of_lost
from rlhf_core.stages.distributed.peers import note_peers_notified
from rlhf_core.stages.distributed.task import (
    JOINED,
    LINES,
    LOGS,
    NODE,
    TASK,
    TRAINED,
    Joined,
    NodeTask,
    RankTask,
)
from rlhf_core.stages.training.job import Trained, TrainingJob
from rlhf_core.storage.records import read_record, write_record

logger = logging.getLogger(__name__)

AGENT = "rlhf_core.stages.distributed.agent"
FOLDER = "processes"
"""In a stage's folder, with a folder of each attempt: the ranks' lines, and what they raised."""
ASKED_SECONDS = 40.0
"""The agent waits 30 s for ranks that do not listen, and kills them then."""
LOOK_SECONDS = 0.1
AGENT_LOG = "agent.log"


def train_in_processes(job: TrainingJob, run: StageRun, observer: Observer | None) -> Trained:
    """Train with several processes, on this machine and, as their node 0, on others.

    Returns when all have ended.

    Raises:
        ConfigError: there are not as many GPUs, or nowhere to meet the other nodes.
        ProcessError: a rank or a node was lost; names it and says how. What a rank raised on
            purpose is raised again, with its number.
    """
    settings = job.config.distributed_of(job.role)
    require_place(settings, job.config.model.device)
    if settings.node_rank:
        raise ConfigError(
            f"distributed.node_rank is {settings.node_rank}: a flow and its stage are node 0; the "
            f"other nodes run `rlhf {job.role}` with their number"
        )
    folder = _new_folder(job.directory / FOLDER)
    task = RankTask(
        job=job,
        folder=folder,
        processes=settings.processes,
        mlflow_run=run.run_id,
        lineage=run.lineage,
        resumed=run.resumed,
        log_level=logging.getLogger("rlhf_core").getEffectiveLevel(),
    )
    write_record(folder / TASK, task)
    note_peers_notified(job.role)
    _log_begin(settings, folder / LOGS)
    events = EventReader(folder / LINES, observer)
    exit_code = _run_agent("lead", folder / TASK, settings, events.pass_on)
    if exit_code != 0:
        raise first_failure(task, exit_code, folder)
    return read_record(folder / TRAINED, Trained)


def follow_node_0(config: PipelineConfig, role: ModelRole, run: Path | None) -> Trained | None:
    """Run this node's share of the processes of a stage; node 0 alone tells MLflow and writes.

    Args:
        config: as on node 0, but for the node's own number.
        role: what is trained.
        run: folder of the run; None takes the one that node 0 works on.

    Returns:
        What was trained; None where node 0 had finished the stage before.

    Raises:
        ConfigError: there are not as many GPUs, or nothing says where node 0 is.
        ProcessError: node 0 did not come, has ended, or has other settings or files; or a rank was
            lost, on any node.
    """
    settings = config.distributed_of(role)
    require_place(settings, config.model.device)
    with tempfile.TemporaryDirectory(prefix="rlhf-node-") as name:
        folder = Path(name)
        node = NodeTask(distributed=settings, role=role, digest=config_digest(config), run=run)
        write_record(folder / NODE, node)
        _log_begin(settings, folder)
        exit_code = _run_agent("follow", folder / NODE, settings)
        if not (folder / JOINED).exists():
            if exit_code == 0:
                return None
            raise ProcessError(lines_of_lost(folder) or f"the agent {how_ended(exit_code)}")
        task = read_record(read_record(folder / JOINED, Joined).task, RankTask)
        shutil.copy(folder / AGENT_LOG, task.folder_of(settings.node_rank) / AGENT_LOG)
        if exit_code != 0:
            raise first_failure(task, exit_code, folder)
    return read_record(task.folder / TRAINED, Trained)


def _log_begin(settings: DistributedConfig, logs: Path) -> None:
    if settings.nnodes > 1:
        logger.info(
            "node=%d of=%d rdzv_endpoint=%s waits_at_most=%ds",
            settings.node_rank,
            settings.nnodes,
            settings.rdzv_endpoint,
            settings.rdzv_timeout,
        )
    if not settings.node_rank:
        logger.info(
            "processes=%d shard=%s threads_each=%d lines=%s",
            settings.processes,
            settings.shard,
            threads_each(settings),
            logs,
        )


def threads_each(settings: DistributedConfig) -> int:
    """Return how many threads each process takes, unless a person has chosen a number."""
    return max(1, int(joblib.cpu_count()) // settings.processes_of_a_node)


class EventReader:
    """Passes the events that the first rank writes on to the stage's log and observer."""

    def __init__(self, path: Path, observer: Observer | None) -> None:
        self._path, self._observer, self._offset = path, observer, 0

    def pass_on(self) -> None:
        """Pass on what is new; a line that is still being written comes next time."""
        if not self._path.exists():
            return
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                kind, *values = json.loads(line)
                self._pass(kind, values)

    def _pass(self, kind: str, values: list[Any]) -> None:
        if kind == "line":
            name, level, message, created = values
            fields = {"name": name, "levelno": level, "levelname": logging.getLevelName(level)}
            line = logging.makeLogRecord({**fields, "msg": message, "created": created})
            logging.getLogger(name).handle(line)
        elif self._observer is not None:
            getattr(self._observer, kind)(*values)


def _run_agent(
    role: str, file: Path, settings: DistributedConfig, look: Callable[[], None] | None = None
) -> int:
    """Run torchrun's agent and its ranks, and end all of them whatever happens.

    Args:
        role: ``lead`` or ``follow``.
        file: what the agent is given; its lines go beside it.
        settings: of the training.
        look: called again and again while it runs, and once when it has ended.
    """
    command = [sys.executable, "-m", AGENT, role, str(file), str(os.getpid())]
    with file.with_name(AGENT_LOG).open("wb") as log:
        agent = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment_of_ranks(threads_each(settings)),
            start_new_session=True,  # Ctrl-C reaches the command, which ends them in order
        )
    ranks: list[psutil.Process] = []
    try:
        while agent.poll() is None:
            if len(ranks) < settings.processes_of_a_node:
                ranks = _children(agent.pid)
            if look is not None:
                look()
            time.sleep(LOOK_SECONDS)
        if look is not None:
            look()
        return int(agent.returncode)
    finally:
        _end(agent, ranks)


def _end(agent: subprocess.Popen[bytes], ranks: list[psutil.Process]) -> None:
    ranks = [*ranks, *_children(agent.pid)]
    if agent.poll() is None:
        agent.terminate()
        with suppress(subprocess.TimeoutExpired):
            agent.wait(ASKED_SECONDS)
    if agent.poll() is None:
        agent.kill()
        agent.wait()
    for rank in ranks:  # each knows its start: a later process with its number is left alone
        with suppress(psutil.NoSuchProcess):
            rank.kill()
    psutil.wait_procs(ranks, timeout=ASKED_SECONDS)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def require_place(settings: DistributedConfig, device: str) -> None:
    """Refuse a training that this node has no GPUs for, or no way to the other nodes.

    Raises:
        ConfigError: says which, and what to set.
    """
    if settings.nnodes > 1 and settings.rdzv_endpoint is None:
        raise ConfigError(
            f"distributed.nnodes is {settings.nnodes}: give distributed.rdzv_endpoint, HOST:PORT "
            "of node 0 as the other nodes reach it, or PET_MASTER_ADDR and PET_MASTER_PORT"
        )
    place, wanted = choose_device(device), settings.processes_of_a_node
    if place.type != "cuda" or settings.processes == 1:
        return
    here = "distributed.processes" if settings.nnodes == 1 else "distributed.processes of a node"
    if place.index is not None:
        raise ConfigError(
            f"model.device is {device}, one GPU, and {here} is {wanted}: write cuda or auto, each "
            "process takes a GPU of its own"
        )
    if torch.cuda.device_count() < wanted:
        raise ConfigError(
            f"{here} is {wanted}, but this machine has {torch.cuda.device_count()} GPUs; take as "
            "many processes, or fewer"
        )


def _new_folder(parent: Path) -> Path:
    """Make the folder of a new attempt; the lines of earlier ones stay."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while (folder := parent / str(number)).exists():
        number += 1
    folder.mkdir()
    return folder
