"""Nodes that train together: two launchers on this machine stand for two machines."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from rlhf_core.adapters.mlflow_client import mlflow_client
from rlhf_core.adapters.tracking import look_up_run, open_run, stage_inputs
from rlhf_core.config import DistributedConfig, config_digest
from rlhf_core.errors import ConfigError, ProcessError
from rlhf_core.stages import sft
from rlhf_core.stages.distributed import agent, launch, nodes
from rlhf_core.stages.distributed.task import (
    FAILED,
    LOGS,
    NODES,
    NodesLost,
    NodeTask,
    RankFailure,
    RankFailures,
    RankTask,
    write_record,
)
from rlhf_core.stages.training_run import TrainingJob, train
from rlhf_core.storage.records import read_record
from rlhf_flows.commands.nodes import others_told
from tests.stages.test_several_processes import living_ranks

ROOT = Path(__file__).parents[2]

COMMAND = """
import json, sys
from pathlib import Path
from rlhf_core.adapters.tracking import open_run, stage_inputs
from rlhf_core.config import PipelineConfig
from rlhf_core.schema import DatasetSplits, RunContext
from rlhf_core.stages import sft
from rlhf_core.stages.distributed.launch import follow_node_0
from rlhf_core.stages.training_run import TrainingJob, train
from rlhf_flows.commands import start
import signal

signal.signal(signal.SIGTERM, start._terminate)
given = json.loads(Path(sys.argv[1]).read_text())
config = PipelineConfig.model_validate(given["config"])
try:
    if config.distributed.node_rank:
        follow_node_0(config, "sft", None)
    else:
        splits = DatasetSplits.model_validate(given["splits"])
        context = RunContext.model_validate(given["context"])
        directory = context.stage_directory("sft")
        directory.mkdir(parents=True, exist_ok=True)
        job = TrainingJob(
            role="sft", config=config, splits=splits, directory=directory,
            checkpoints=directory / "checkpoints",
        )
        with open_run(config, context, "sft", inputs=stage_inputs(splits)) as run:
            train(job, sft.fit, run, None)
except KeyboardInterrupt:
    sys.exit("stopped")
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
"""What `rlhf sft` does on a node, without Prefect."""


@pytest.fixture
def endpoint():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def settings(endpoint):
    def make(node_rank=0, nnodes=2, **changes):
        given = {"processes": nnodes, "nnodes": nnodes, "node_rank": node_rank}
        return DistributedConfig(**{**given, "rdzv_endpoint": endpoint, **changes})

    return make


@pytest.fixture
def task(settings, stage_config, stage_context, small_splits):
    """What node 0 gives the others, on disk."""
    config = stage_config().model_copy(update={"distributed": settings()})
    directory = stage_context.stage_directory("sft")
    folder = directory / "processes/1"
    folder.mkdir(parents=True)
    made = RankTask(
        job=TrainingJob(
            role="sft", config=config, splits=small_splits, directory=directory,
            checkpoints=directory / "checkpoints",
        ),
        folder=folder, processes=2, mlflow_run="one", lineage={}, resumed=False, log_level=20,
    )  # fmt: skip
    write_record(folder / "task.json", made)
    return made


@pytest.fixture
def other(settings, task):
    """What another node was started with."""
    made = NodeTask(
        distributed=settings(1), role="sft", digest=config_digest(task.job.config), run=None
    )
    return lambda **changes: made.model_copy(update=changes)


def in_thread(function, *args):
    """Run beside the test; the result or what was raised comes from the function returned."""
    found = []

    def run():
        try:
            found.append((function(*args), None))
        except Exception as error:
            found.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def end():
        thread.join()
        result, error = found[0]
        if error is not None:
            raise error
        return result

    return end


def test_nodes_meet_train_and_part(settings):
    heard = in_thread(lambda: nodes.join(settings(1)).receive())
    meeting = nodes.host(settings())
    ready = in_thread(meeting.gather, "the task")
    assert heard() == "the task"
    node = nodes.Meeting(meeting._keep, settings(1))
    node.answer()
    ready()
    node.leave(nodes.WELL)
    assert meeting.farewell() == {}


def test_a_node_that_never_comes_is_named(settings):
    meeting = nodes.host(settings(rdzv_timeout=1))
    with pytest.raises(ProcessError, match=r"node 1 of 2 was not there within 1 s .*node_rank=1"):
        meeting.gather("the task")


def test_a_node_0_that_never_comes_is_said(settings):
    with pytest.raises(ProcessError, match=r"node 0 did not listen at 127\S+ within 1 s"):
        nodes.join(settings(1, rdzv_timeout=1))


def test_two_nodes_of_one_number_are_refused(settings):
    meeting = nodes.host(settings())
    meeting._store.set("task", "the task")
    first, second = nodes.join(settings(1)), nodes.join(settings(1))
    assert first.receive() == "the task"
    meeting._store.set("node/1", "elsewhere process 7")
    with pytest.raises(ProcessError, match=r"node 1 is there already \(elsewhere process 7\)"):
        second.receive()


def test_what_keeps_one_node_from_training_ends_all(settings):
    meeting = nodes.host(settings())
    ready = in_thread(meeting.gather, "the task")
    node = nodes.join(settings(1))
    node.receive()
    with pytest.raises(ProcessError, match="no disk"):
        node.answer("node 1 has no disk")
    with pytest.raises(ProcessError, match="node 1 has no disk"):
        ready()


def test_a_node_that_ends_before_it_is_ready_ends_node_0_though_others_have_not_come(settings):
    meeting = nodes.host(settings(nnodes=3))
    meeting._store.set("ended/2", "node 2 was ended with its command")
    with pytest.raises(ProcessError, match="node 2 was ended with its command"):
        meeting.gather("the task")


@pytest.mark.parametrize(
    ("lost", "says"),
    [("build", "node 1 cannot read node 0's task: install"), ("disk", "node 1 cannot write to")],
)
def test_a_node_says_to_node_0_why_it_cannot_take_part(lost, says, other, settings, task, tmp_path):
    said = "{}" if lost == "build" else (task.folder / "task.json").read_text()
    if lost == "disk":
        task.folder_of(1).touch()
    meeting = nodes.host(settings())
    ready = in_thread(meeting.gather, said)
    with pytest.raises(ProcessError, match=says):
        agent._join(other(), nodes.join(settings(1)), tmp_path / "joined.json")
    with pytest.raises(ProcessError, match=says):
        ready()


@pytest.mark.nightly
def test_a_killed_command_of_another_node_leaves_no_folder(other, tmp_path):
    folder = tmp_path / "rlhf-node-1"
    folder.mkdir()
    write_record(folder / "node.json", other())
    start = "import os, subprocess, sys; subprocess.Popen([*sys.argv[1:], str(os.getpid())]).wait()"
    follow = [sys.executable, "-m", launch.AGENT, "follow", str(folder / "node.json")]
    command = subprocess.Popen(
        [sys.executable, "-c", start, *follow], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    while not psutil.Process(command.pid).children():
        time.sleep(0.05)
    (began,) = psutil.Process(command.pid).children()
    command.kill()
    command.wait()
    psutil.wait_procs([began])
    assert not folder.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"distributed": {"processes": 4}}, "distributed.processes is 4 on node 1 and 2 on node 0"),
        ({"role": "reward"}, "node 1 was started for reward and node 0 for sft"),
        ({"digest": "0"}, "node 1 has other settings than node 0"),
        ({"run": Path("runs/other")}, r"node 1 was started for the run runs/other and node 0"),
    ],
)
def test_every_node_is_started_for_the_same(change, says, other, task, settings):
    said = (task.folder / "task.json").read_text()
    if "distributed" in change:
        change = {"distributed": settings(1, **change["distributed"])}
    found = agent._difference(other(**change), task, said)
    assert found.startswith(says)
    assert bool(found) == bool(change)


@pytest.mark.parametrize("lost", ["absent", "old"])
def test_a_run_folder_that_is_not_shared_is_one_line(lost, other, task):
    marker = task.folder / "task.json"
    said = marker.read_text()
    marker.unlink() if lost == "absent" else marker.write_text("{}")
    found = agent._difference(other(), task, said)
    assert found.startswith(f"node 1 does not see {marker}, which node 0 wrote")


@pytest.mark.parametrize("which", ["taken", "foreign"])
def test_an_endpoint_that_node_0_cannot_have_is_one_line(which, settings):
    at, says = settings(), "another program listens there"
    if which == "foreign":
        at, says = settings(rdzv_endpoint="192.0.2.1:29400"), "no address of this machine"
    else:
        host, port = at.rdzv_endpoint.split(":")
        taken = socket.create_server((host, int(port)))
    with pytest.raises(ProcessError, match=says):
        nodes.host(at)
    if which == "taken":
        taken.close()


@pytest.mark.parametrize(
    ("error", "nodes_lost"),
    [("no data", {1: "node 0 has ended before it trained: no data"}), ("", None)],
)
def test_another_node_hears_that_there_is_nothing_to_train(
    error, nodes_lost, other, task, tmp_path
):
    write_record(tmp_path / "node.json", other())
    follows = in_thread(agent.follow, tmp_path / "node.json")
    with (
        pytest.raises(ConfigError) if error else nullcontext(),
        others_told(task.job.config, "sft"),
    ):
        if error:
            raise ConfigError(error)
    assert follows() == (1 if error else 0)
    lost = tmp_path / NODES
    assert (read_record(lost, NodesLost).lines if lost.exists() else None) == nodes_lost


def test_nobody_is_told_of_an_end_after_the_training_or_before_it(task, monkeypatch):
    monkeypatch.setattr(nodes, "host", lambda _: pytest.fail("the other nodes are called"))
    with others_told(task.job.config, "sft", goes_on=True):
        pass
    monkeypatch.setattr(launch, "_MET", {"sft"})
    with others_told(task.job.config, "sft"):
        pass


def test_node_0_hears_of_nodes_that_end_and_of_those_that_fall_silent(settings, monkeypatch):
    monkeypatch.setattr(nodes, "GRACE_SECONDS", 0.0)
    for said, line in (("node 1 was ended", "node 1 was ended"), (None, "node 1 has been silent")):
        monkeypatch.setattr(nodes, "SILENT_SECONDS", 60.0 if said else 0.3)
        meeting = nodes.host(settings())
        if said:
            meeting._store.set("ended/1", said)
        heard = threading.Event()
        lines = []
        with meeting.watched(lambda found, h=heard, to=lines: (to.append(found), h.set())):
            heard.wait()
        assert lines[0].startswith(line)
        del meeting


def test_another_node_hears_of_the_end_of_node_0(settings):
    meeting = nodes.host(settings())
    node = nodes.join(settings(1))
    heard, lines = threading.Event(), []
    with node.watched(lambda found: (lines.append(found), heard.set())):
        meeting.leave("node 0 has failed")
        heard.wait()
    assert lines == ["node 0 has failed"]
    with pytest.raises(ProcessError, match="node 0 has failed"):
        node.receive()


@pytest.mark.parametrize(
    ("raised", "codes", "lost", "says"),
    [
        ({3: "ValueError: bad"}, {}, {}, "rank 3 of 4 failed: ValueError: bad; its lines are in"),
        ({}, {1: {1: -9}}, {1: "node 1 has failed"}, "rank 3 of 4 was ended by SIGKILL; its lines"),
        ({0: "PeerLostError: gone"}, {0: {0: 1}}, {1: "node 1 was ended"}, "node 1 was ended; "),
        ({}, {0: {0: -15}}, {1: "node 1 has been silent"}, "node 1 has been silent; repeat"),
    ],
)
def test_the_rank_or_node_that_failed_first_is_named(raised, codes, lost, says, task, settings):
    distributed = settings(processes=4)
    config = task.job.config.model_copy(update={"distributed": distributed})
    job = task.job.model_copy(update={"config": config})
    task = task.model_copy(update={"job": job, "processes": 4})
    for rank, message in raised.items():
        node, own = divmod(rank, 2)
        place = task.folder_of(node) / LOGS / "run/attempt_0" / str(own)
        place.mkdir(parents=True)
        (place / "error.json").write_text(json.dumps({"message": {"message": message}}))
    for node, ended in codes.items():
        task.folder_of(node).mkdir(exist_ok=True)
        failures = tuple(RankFailure(rank=own, pid=1, exit_code=ended[own]) for own in ended)
        write_record(task.folder_of(node) / FAILED, RankFailures(failures=failures))
    write_record(task.folder / NODES, NodesLost(lines=lost))
    assert str(launch._reason(task, 1, task.folder)).startswith(says)


def test_nodes_need_a_place_to_meet(settings):
    with pytest.raises(ConfigError, match=r"give distributed.rdzv_endpoint, HOST:PORT of node 0"):
        launch._require_place(settings(rdzv_endpoint=None), "cpu")


@pytest.fixture
def stage(mlflow_home, stage_config, stage_context, small_splits, settings):
    """Train as node 0 in this process; and how to start any node as a command of its own."""
    short = {"batch_size": 4, "num_epochs": 1, "checkpoint_every": 1}

    class Stage:
        directory = mlflow_home / "one" / "sft"

        def config(self, distributed, **changes):
            config = stage_config()
            own = config.sft.model_copy(update={**short, **changes})
            return config.model_copy(update={"sft": own, "distributed": distributed})

        def context(self, name):
            changes = {"run_id": name, "directory": mlflow_home / name}
            return stage_context.model_copy(update=changes)

        def train(self, distributed, name="one", **changes):
            config, context = self.config(distributed, **changes), self.context(name)
            directory = context.stage_directory("sft")
            directory.mkdir(parents=True, exist_ok=True)
            job = TrainingJob(
                role="sft", config=config, splits=small_splits, directory=directory,
                checkpoints=directory / "checkpoints",
            )  # fmt: skip
            with open_run(config, context, "sft", inputs=stage_inputs(small_splits)) as tracked:
                trained = train(job, sft.fit, tracked, None)
            return trained, tracked.run_id

        def command(self, distributed, **changes):
            given = {
                "config": self.config(distributed, **changes).model_dump(mode="json"),
                "splits": small_splits.model_dump(mode="json"),
                "context": self.context("one").model_dump(mode="json"),
            }
            file = mlflow_home / f"node-{distributed.node_rank}.json"
            file.write_text(json.dumps(given))
            return subprocess.Popen(
                [sys.executable, "-c", COMMAND, str(file)],
                cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )  # fmt: skip

        def trained_on_two(self, name="one", shard="none", processes=2, **changes):
            first, second = (settings(node, shard=shard, processes=processes) for node in (0, 1))
            follows = in_thread(
                launch.follow_node_0, self.config(second, **changes), "sft", mlflow_home / name
            )
            trained, run_id = self.train(first, name, **changes)
            assert follows() == trained
            return run_id

        def weights(self, name):
            return load_file(mlflow_home / name / "sft/model/model.safetensors")

    return Stage()


@pytest.mark.slow
def test_two_nodes_train_one_model(stage):
    run_id = stage.trained_on_two()
    assert "sft/loss" in look_up_run(run_id)[1]
    assert mlflow_client().get_run(run_id).data.tags["distributed.nnodes"] == "2"
    assert living_ranks(stage.directory) == []
    assert len(list((stage.directory / "processes/1/node-1" / LOGS).glob("*/*/0/stderr.log"))) == 1


@pytest.mark.nightly
@pytest.mark.parametrize("shard", ["none", "layers"])
def test_two_nodes_end_in_the_bits_of_one_with_as_many_processes(shard, stage):
    stage.train(DistributedConfig(processes=4, shard=shard), "together")
    stage.trained_on_two("apart", shard, processes=4)
    ours, theirs = stage.weights("apart"), stage.weights("together")
    assert ours.keys() == theirs.keys()
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)


def kill_in_training(stage, command, number):
    """Send a signal to a node's command as soon as there is a checkpoint."""
    while not list((stage.directory / "checkpoints").glob("step-*")):
        assert command.poll() is None, command.stderr.read()
        time.sleep(0.05)
    command.send_signal(number)


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("node", [0, 1])
def test_all_nodes_end_with_one_that_is_stopped_and_go_on_later(node, number, stage, settings):
    many = {"num_epochs": 40}
    commands = [stage.command(settings(each), **many) for each in (0, 1)]
    kill_in_training(stage, commands[node], number)
    said = [command.communicate()[1].strip().splitlines()[-1:] for command in commands]
    assert all(command.returncode != 0 for command in commands)
    assert said[1 - node][0].startswith(f"ProcessError: node {node} was ended with its command"), (
        said
    )
    while living_ranks(stage.directory):  # a killed command's agent looks for it every half second
        time.sleep(0.1)
    trained, _ = stage.train(DistributedConfig(), **many)
    assert trained.num_steps == 3 * many["num_epochs"]
