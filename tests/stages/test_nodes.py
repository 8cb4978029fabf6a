"""Nodes that train together: two launchers on this machine stand for two machines."""

import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from rlhf_core.config import config_digest
from rlhf_core.errors import ConfigError, ProcessError
from rlhf_core.stages.distributed import agent, launch, nodes
from rlhf_core.stages.distributed.failures import first_failure
from rlhf_core.stages.distributed.peers import note_peers_notified, notifying_peers
from rlhf_core.stages.distributed.task import (
    FAILED,
    LOGS,
    NODES,
    NodesLost,
    NodeTask,
    RankFailure,
    RankFailures,
    RankTask,
)
from rlhf_core.stages.training.job import TrainingJob
from rlhf_core.storage.records import read_record, write_record

ROOT = Path(__file__).parents[2]


@pytest.fixture
def task(as_node, stage_config, stage_context, small_splits):
    """What node 0 gives the others, on disk."""
    config = stage_config().model_copy(update={"distributed": as_node()})
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
def other(as_node, task):
    """What another node was started with."""
    made = NodeTask(
        distributed=as_node(1), role="sft", digest=config_digest(task.job.config), run=None
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


def test_nodes_meet_train_and_part(as_node):
    heard = in_thread(lambda: nodes.join(as_node(1)).receive())
    rendezvous = nodes.host(as_node())
    ready = in_thread(rendezvous.gather, "the task")
    assert heard() == "the task"
    node = nodes.Rendezvous(rendezvous._keep, as_node(1))
    node.answer()
    ready()
    node.report_end(nodes.FINISHED)
    assert rendezvous.wait_for_ends() == {}


def test_a_node_that_never_comes_is_named(as_node):
    rendezvous = nodes.host(as_node(rdzv_timeout=1))
    with pytest.raises(ProcessError, match=r"node 1 of 2 was not there within 1 s .*node_rank=1"):
        rendezvous.gather("the task")


def test_a_node_0_that_never_comes_is_said(as_node):
    with pytest.raises(ProcessError, match=r"node 0 did not listen at 127\S+ within 1 s"):
        nodes.join(as_node(1, rdzv_timeout=1))


def test_two_nodes_of_one_number_are_refused(as_node):
    rendezvous = nodes.host(as_node())
    rendezvous._store.set("task", "the task")
    first, second = nodes.join(as_node(1)), nodes.join(as_node(1))
    assert first.receive() == "the task"
    rendezvous._store.set("node/1", "elsewhere process 7")
    with pytest.raises(ProcessError, match=r"node 1 is there already \(elsewhere process 7\)"):
        second.receive()


def test_what_keeps_one_node_from_training_ends_all(as_node):
    rendezvous = nodes.host(as_node())
    ready = in_thread(rendezvous.gather, "the task")
    node = nodes.join(as_node(1))
    node.receive()
    with pytest.raises(ProcessError, match="no disk"):
        node.answer("node 1 has no disk")
    with pytest.raises(ProcessError, match="node 1 has no disk"):
        ready()


def test_a_node_that_ends_before_it_is_ready_ends_node_0_though_others_have_not_come(as_node):
    rendezvous = nodes.host(as_node(nnodes=3))
    rendezvous._store.set("ended/2", "node 2 was ended with its command")
    with pytest.raises(ProcessError, match="node 2 was ended with its command"):
        rendezvous.gather("the task")


@pytest.mark.parametrize(
    ("lost", "says"),
    [("build", "node 1 cannot read node 0's task: install"), ("disk", "node 1 cannot write to")],
)
def test_a_node_says_to_node_0_why_it_cannot_take_part(lost, says, other, as_node, task, tmp_path):
    said = "{}" if lost == "build" else (task.folder / "task.json").read_text()
    if lost == "disk":
        task.folder_of(1).touch()
    rendezvous = nodes.host(as_node())
    ready = in_thread(rendezvous.gather, said)
    with pytest.raises(ProcessError, match=says):
        agent._join(other(), nodes.join(as_node(1)), tmp_path / "joined.json")
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
def test_every_node_is_started_for_the_same(change, says, other, task, as_node):
    said = (task.folder / "task.json").read_text()
    if "distributed" in change:
        change = {"distributed": as_node(1, **change["distributed"])}
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
def test_an_endpoint_that_node_0_cannot_have_is_one_line(which, as_node):
    at, says = as_node(), "another program listens there"
    if which == "foreign":
        at, says = as_node(rdzv_endpoint="192.0.2.1:29400"), "no address of this machine"
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
        notifying_peers(task.job.config, "sft"),
    ):
        if error:
            raise ConfigError(error)
    assert follows() == (1 if error else 0)
    lost = tmp_path / NODES
    assert (read_record(lost, NodesLost).lines if lost.exists() else None) == nodes_lost


def test_nobody_is_told_of_an_end_after_the_training_or_before_it(task, monkeypatch):
    monkeypatch.setattr(nodes, "host", lambda _: pytest.fail("the other nodes are called"))
    with notifying_peers(task.job.config, "sft", trains_after=True):
        pass
    with notifying_peers(task.job.config, "sft"):
        note_peers_notified("sft")


def test_a_training_before_keeps_no_later_one_from_being_told_of(task, monkeypatch):
    with notifying_peers(task.job.config, "sft"):
        note_peers_notified("sft")
    calls = []
    monkeypatch.setattr(
        nodes, "host", lambda _: calls.append(1) or SimpleNamespace(report_untrained=str)
    )
    with pytest.raises(ConfigError), notifying_peers(task.job.config, "sft"):
        raise ConfigError("no data")
    assert calls == [1]


def test_node_0_hears_of_nodes_that_end_and_of_those_that_fall_silent(as_node, monkeypatch):
    monkeypatch.setattr(nodes, "GRACE_SECONDS", 0.0)
    for said, line in (("node 1 was ended", "node 1 was ended"), (None, "node 1 has been silent")):
        monkeypatch.setattr(nodes, "SILENT_SECONDS", 60.0 if said else 0.3)
        rendezvous = nodes.host(as_node())
        if said:
            rendezvous._store.set("ended/1", said)
        heard = threading.Event()
        lines = []
        with rendezvous.watched(lambda found, h=heard, to=lines: (to.append(found), h.set())):
            heard.wait()
        assert lines[0].startswith(line)
        del rendezvous


def test_another_node_hears_of_the_end_of_node_0(as_node):
    rendezvous = nodes.host(as_node())
    node = nodes.join(as_node(1))
    heard, lines = threading.Event(), []
    with node.watched(lambda found: (lines.append(found), heard.set())):
        rendezvous.report_end("node 0 has failed")
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
def test_the_rank_or_node_that_failed_first_is_named(raised, codes, lost, says, task, as_node):
    distributed = as_node(processes=4)
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
    assert str(first_failure(task, 1, task.folder)).startswith(says)


def test_nodes_need_a_place_to_meet(as_node):
    with pytest.raises(ConfigError, match=r"give distributed.rdzv_endpoint, HOST:PORT of node 0"):
        launch.require_place(as_node(rdzv_endpoint=None), "cpu")
