"""A training in several processes, seen from its stage: starts them, listens, ends them all.

The stage's child is torchrun's agent, whose children are the ranks. However the stage ends, in
order, by an error, a cancelled flow or Ctrl-C, they end with it: asked first, which takes the agent
up to half a minute where a rank does not listen, then killed one by one.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import joblib
import psutil
import torch

from rlhf_core import errors
from rlhf_core.adapters.settings import environment_of_ranks
from rlhf_core.adapters.stage_run import StageRun
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import ConfigError, ProcessError, RlhfError
from rlhf_core.models import choose_device
from rlhf_core.ports import Observer
from rlhf_core.stages.distributed.task import (
    FAILED,
    LINES,
    LOGS,
    TASK,
    TRAINED,
    RankFailures,
    RankTask,
)
from rlhf_core.stages.training_run import Trained, TrainingJob
from rlhf_core.storage.records import atomic_file, read_record

logger = logging.getLogger(__name__)

AGENT = "rlhf_core.stages.distributed.agent"
FOLDER = "processes"
"""In a stage's folder, with a folder of each attempt: the ranks' lines, and what they raised."""
ASKED_SECONDS = 40.0
"""The agent waits 30 s for ranks that do not listen, and kills them then."""
LOOK_SECONDS = 0.1
SECONDARY = "PeerLostError"
"""What the other ranks raise when one is gone."""


def train_in_processes(job: TrainingJob, run: StageRun, observer: Observer | None) -> Trained:
    """Train with several processes on this machine; return when all have ended.

    Raises:
        ConfigError: there are not as many GPUs.
        ProcessError: a rank died; names it and says how. What a rank raised on purpose is raised
            again, with its number.
    """
    settings = job.config.distributed_of(job.role)
    processes = settings.processes
    _require_devices(job.config, processes)
    folder = _new_folder(job.directory / FOLDER)
    task = RankTask(
        job=job,
        folder=folder,
        processes=processes,
        mlflow_run=run.run_id,
        lineage=run.lineage,
        resumed=run.resumed,
        log_level=logging.getLogger("rlhf_core").getEffectiveLevel(),
    )
    with atomic_file(folder / TASK) as stream:
        stream.write(task.model_dump_json().encode())
    threads = max(1, joblib.cpu_count() // processes)
    logger.info(
        "processes=%d shard=%s threads_each=%d lines=%s",
        processes,
        settings.shard,
        threads,
        folder / LOGS,
    )
    exit_code = _run_agent(task, threads, Told(folder / LINES, observer))
    if exit_code != 0:
        raise _reason(task, exit_code)
    return read_record(folder / TRAINED, Trained)


class Told:
    """Reads what the first rank tells, and passes it on to the stage's log and observer."""

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
                kind, *told = json.loads(line)
                self._pass(kind, told)

    def _pass(self, kind: str, told: list[Any]) -> None:
        if kind == "line":
            name, level, message, created = told
            values = {"name": name, "levelno": level, "levelname": logging.getLevelName(level)}
            line = logging.makeLogRecord({**values, "msg": message, "created": created})
            logging.getLogger(name).handle(line)
        elif self._observer is not None:
            getattr(self._observer, kind)(*told)


def _run_agent(task: RankTask, threads: int, told: Told) -> int:
    """Run torchrun's agent and its ranks, and end all of them whatever happens."""
    command = [sys.executable, "-m", AGENT, str(task.folder / TASK), str(os.getpid())]
    with (task.folder / "agent.log").open("wb") as log:
        agent = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment_of_ranks(threads),
            start_new_session=True,  # Ctrl-C reaches the stage, which ends them in order
        )
    ranks: list[psutil.Process] = []
    try:
        while agent.poll() is None:
            if len(ranks) < task.processes:
                ranks = _children(agent.pid)
            told.pass_on()
            time.sleep(LOOK_SECONDS)
        told.pass_on()
        return agent.returncode
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


def _require_devices(config: PipelineConfig, processes: int) -> None:
    device = choose_device(config.model.device)
    if device.type != "cuda":
        return
    if device.index is not None:
        raise ConfigError(
            f"model.device is {config.model.device}, one GPU, and distributed.processes is "
            f"{processes}: write cuda or auto, each process takes a GPU of its own"
        )
    if torch.cuda.device_count() < processes:
        raise ConfigError(
            f"distributed.processes is {processes}, but this machine has "
            f"{torch.cuda.device_count()} GPUs; take as many processes, or fewer"
        )


def _new_folder(parent: Path) -> Path:
    """Make the folder of a new attempt; the lines of earlier ones stay."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while (folder := parent / str(number)).exists():
        number += 1
    folder.mkdir()
    return folder


def _reason(task: RankTask, exit_code: int) -> RlhfError:
    """Say which rank failed first, and why.

    torchrun's own first cause is the rank it noticed first. A rank that lost another one is never
    the cause, and the one that was killed has raised nothing.
    """
    raised = dict(_raised(task))
    own = {rank: said for rank, said in raised.items() if not said.startswith(SECONDARY)}
    where = f"its lines are in {task.folder / LOGS}"
    if own:
        rank = min(own)
        name, _, message = own[rank].partition(": ")
        known = getattr(errors, name, None)
        of = f"rank {rank} of {task.processes}"
        if isinstance(known, type) and issubclass(known, RlhfError):
            return known(f"{of}: {message}")
        return ProcessError(f"{of} failed: {own[rank]}; {where}")
    failures = task.folder / FAILED
    if not failures.exists():
        return ProcessError(
            f"the {task.processes} processes ended with their launcher, which "
            f"{_how(exit_code)}; repeat the command, it goes on from the last checkpoint"
        )
    ended = {
        failure.rank: failure.exit_code
        for failure in read_record(failures, RankFailures).failures
        if failure.rank not in raised
    }
    silent = [rank for rank in range(task.processes) if rank not in raised]
    # The agent ends the others by SIGTERM as soon as it notices the first.
    rank = min(ended or silent or raised, key=lambda one: (ended.get(one) == -signal.SIGTERM, one))
    how = _how(ended[rank]) if ended else "left before the others"
    return ProcessError(
        f"rank {rank} of {task.processes} {how}; {where}; repeat the command, "
        "it goes on from the last checkpoint"
    )


def _raised(task: RankTask) -> Iterable[tuple[int, str]]:
    """Yield rank and ``Type: message`` of each that torchrun has an error file of."""
    for rank in range(task.processes):
        for path in (task.folder / LOGS).glob(f"*/attempt_0/{rank}/error.json"):
            with suppress(ValueError, KeyError, TypeError):
                said = json.loads(path.read_text(encoding="utf-8"))["message"]
                yield rank, str(said["message"] if isinstance(said, dict) else said)


def _how(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with exit status {exit_code}"
    try:
        return f"was ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was ended by signal {-exit_code}"
