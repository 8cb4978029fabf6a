"""A stage with several processes: the same model, one who tells, and an end for all of them."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from rlhf_core import processes
from rlhf_core.adapters.tracking.tracking import look_up_run, open_run, stage_inputs
from rlhf_core.config import DistributedConfig
from rlhf_core.errors import ConfigError, KlLimitError, PeerLostError, ProcessError
from rlhf_core.stages import sft
from rlhf_core.stages.distributed import agent, launch
from rlhf_core.stages.distributed.failures import first_failure
from rlhf_core.stages.distributed.task import FAILED, LOGS, RankFailure, RankFailures, RankTask
from rlhf_core.stages.training.job import TrainingJob
from rlhf_core.stages.training.run import train
from tests.flows.served import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
SETTINGS = {"batch_size": 4, "num_epochs": 20, "checkpoint_every": 1}
NUM_STEPS = 60


class Steps:
    """An observer that remembers."""

    def __init__(self):
        self.seen = []

    def step(self, trainer, done, total, metrics):
        self.seen.append((trainer, done, total))


@pytest.fixture
def training(mlflow_home, stage_config, stage_context, small_splits):
    """Train the SFT stage's model with so many processes; return what the stage gets."""

    def run(processes, observer=None, run_id="one", shard="none", **changes):
        context = stage_context.model_copy(
            update={"run_id": run_id, "directory": mlflow_home / run_id}
        )
        directory = context.stage_directory("sft")
        config = stage_config()
        settings = config.sft.model_copy(update={**SETTINGS, **changes})
        distributed = config.distributed.model_copy(update={"processes": processes, "shard": shard})
        config = config.model_copy(update={"sft": settings, "distributed": distributed})
        directory.mkdir(parents=True, exist_ok=True)
        job = TrainingJob(
            role="sft", config=config, splits=small_splits, directory=directory,
            checkpoints=directory / "checkpoints",
        )  # fmt: skip
        with open_run(config, context, "sft", inputs=stage_inputs(small_splits)) as tracked:
            trained = train(job, sft.fit, tracked, observer)
        return trained, directory, look_up_run(tracked.run_id)[1]

    return run


def living_ranks(directory):
    """Processes of a training below ``directory`` that still run."""
    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "stages.distributed" in words and str(directory) in words:
            found.append(process)
    return [one for one in found if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def kill_when_training(directory, of, number=signal.SIGKILL):
    """Kill one process of a training, ``agent`` or ``rank``, once there is a checkpoint."""
    while not list((directory / "checkpoints").glob("step-*")):
        time.sleep(0.05)
    chosen = [one for one in living_ranks(directory) if f".{of}" in " ".join(one.cmdline())]
    chosen[-1].send_signal(number)


def after(directory, of):
    thread = threading.Thread(target=kill_when_training, args=(directory, of), daemon=True)
    thread.start()


@pytest.mark.slow
def test_a_killed_rank_ends_all_and_the_stage_goes_on_with_one_process(
    training, mlflow_home, caplog
):
    caplog.set_level(logging.INFO, "rlhf_core")
    directory = mlflow_home / "one" / "sft"
    after(directory, "rank")
    with pytest.raises(ProcessError, match=r"rank [01] of 2 was ended by SIGKILL; its lines are"):
        training(2, steps := Steps())
    assert living_ranks(directory) == []
    assert steps.seen[0] == ("sft", 1, NUM_STEPS), "nobody was told of the first rank's steps"
    assert any("OMP_WAIT_POLICY" in line for line in caplog.messages[1:]), "nor of its lines"
    (log,) = (directory / "processes/1" / LOGS).glob("*/attempt_0/1/stderr.log")
    assert "rlhf_core" in log.read_text(), "the second rank has lines of its own"
    trained, _, metrics = training(1, steps := Steps())
    assert steps.seen[0][1] > 1, "it began again"
    assert trained.num_steps == NUM_STEPS
    assert "sft/loss" in metrics


@pytest.mark.nightly
def test_a_stage_with_two_processes_hands_on_what_one_trains(training, mlflow_home):
    for count, name, shard in ((1, "one", "none"), (2, "two", "none"), (2, "divided", "layers")):
        training(count, run_id=name, shard=shard, num_epochs=2)
    theirs, *others = (
        load_file(mlflow_home / name / "sft/model/model.safetensors")
        for name in ("one", "two", "divided")
    )
    for ours in others:
        assert ours.keys() == theirs.keys()
        worst = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
        assert worst < 1e-5


@pytest.mark.nightly
def test_a_rank_that_is_killed_between_layers_is_the_one_that_is_named(training, mlflow_home):
    """The others notice in the middle of FSDP, not in a sum of ours."""
    directory = mlflow_home / "one" / "sft"
    after(directory, "rank")
    with pytest.raises(ProcessError, match=r"rank [01] of 2 was ended by SIGKILL; its lines are"):
        training(2, shard="layers")
    assert living_ranks(directory) == []
    trained, _, _ = training(1)
    assert trained.num_steps == NUM_STEPS


@pytest.mark.nightly
def test_ranks_end_when_their_launcher_is_killed(training, mlflow_home):
    directory = mlflow_home / "one" / "sft"
    after(directory, "agent")
    with pytest.raises(
        ProcessError, match="2 processes ended with their launcher, which was ended by"
    ):
        training(2)
    assert living_ranks(directory) == []


@pytest.mark.nightly
def test_a_rank_whose_launcher_was_killed_while_it_was_imported_ends(tmp_path):
    """Its parent is another process by then."""
    task = tmp_path / "task.json"
    os.mkfifo(task)  # reading it lasts for ever
    rank = [sys.executable, "-m", agent.RANK, str(task), str(os.getppid())]
    assert subprocess.run(rank, cwd=ROOT, timeout=PATIENCE_SECONDS).returncode == -signal.SIGKILL


@pytest.mark.nightly
def test_an_interrupted_stage_ends_its_processes(training, mlflow_home, monkeypatch):
    """Ctrl-C and a cancelled flow are exceptions in the thread that waits."""

    def interrupt(told):
        if list((mlflow_home / "one/sft/checkpoints").glob("step-*")):
            raise KeyboardInterrupt

    monkeypatch.setattr(launch.EventReader, "pass_on", interrupt)
    with pytest.raises(KeyboardInterrupt):
        training(2)
    assert living_ranks(mlflow_home / "one" / "sft") == []


@pytest.fixture
def ended(tmp_path, stage_config):
    """What the stage says when ranks left these error files and exit codes."""
    config = stage_config().model_copy(update={"distributed": DistributedConfig(processes=3)})
    job = TrainingJob.model_construct(role="sft", config=config)

    def reason(raised, exit_codes=None, agent=1):
        task = RankTask.model_construct(folder=tmp_path, processes=3, job=job)
        for rank, message in raised.items():
            place = tmp_path / LOGS / "run" / "attempt_0" / str(rank)
            place.mkdir(parents=True)
            said = {"message": {"message": message, "extraInfo": {"timestamp": "1"}}}
            (place / "error.json").write_text(json.dumps(said))
        if exit_codes is not None:
            failures = [
                RankFailure(rank=rank, pid=1, exit_code=code) for rank, code in exit_codes.items()
            ]
            record = RankFailures(failures=tuple(failures))
            (tmp_path / FAILED).write_text(record.model_dump_json())
        return first_failure(task, agent, tmp_path)

    return reason


LOST = "PeerLostError: another process of the training is gone: Connection closed by peer"


@pytest.mark.parametrize(
    ("raised", "exit_codes", "kind", "says"),
    [
        ({0: LOST, 2: LOST}, {0: 1, 1: -9, 2: 1}, ProcessError, "rank 1 of 3 was ended by SIGKILL"),
        ({0: LOST, 1: "KlLimitError: KL 3"}, {0: 1}, KlLimitError, "rank 1 of 3: KL 3"),
        ({2: "ValueError: bad"}, {2: 1}, ProcessError, "rank 2 of 3 failed: ValueError: bad; its"),
        ({0: LOST, 1: LOST}, {0: 1, 1: 1}, ProcessError, "rank 2 of 3 left before the others"),
        ({}, {0: -15, 1: -9}, ProcessError, "rank 1 of 3 was ended by SIGKILL"),
        (
            {},
            None,
            ProcessError,
            "the 3 processes ended with their launcher, which was ended by SIGKILL",
        ),
    ],
)
def test_the_stage_names_the_rank_that_failed_first(raised, exit_codes, kind, says, ended):
    error = ended(raised, exit_codes, agent=-9)
    assert type(error) is kind
    assert str(error).startswith(says)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (RuntimeError("[/src/gloo/transport/tcp/pair.cc:547] Connection closed"), PeerLostError),
        (torch.distributed.DistBackendError("NCCL error"), PeerLostError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError),
        (ProcessError("the processes differ"), ProcessError),
    ],
)
def test_what_a_library_says_of_a_lost_process_is_no_cause(raised, told):
    with pytest.raises(told) as caught, processes.lost_processes_reported():
        raise raised
    assert type(caught.value) is told


@pytest.mark.parametrize(
    ("device", "gpus", "says"),
    [
        ("cuda:1", 4, "model.device is cuda:1, one GPU, and distributed.processes is 2"),
        ("cuda", 1, "distributed.processes is 2, but this machine has 1 GPUs"),
    ],
)
def test_a_gpu_each_or_one_line(device, gpus, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ConfigError, match=says):
        launch.require_place(DistributedConfig(processes=2), device)
