import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from rlhf_core.adapters.registry import release_aliases
from rlhf_flows.engine import events, prefect_server, zombies

HOST = socket.gethostname()


@pytest.fixture(scope="module")
def dead_pid():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def flow_run(process, *, state="RUNNING", seconds=3600, labels=None, pid=None):
    since = datetime.now(UTC) - timedelta(seconds=seconds)
    return {
        "id": "1", "name": "one", "infrastructure_pid": pid,
        "labels": labels or ({zombies.PROCESS_LABEL: process} if process else {}),
        "state": {"type": state, "timestamp": since.isoformat()},
    }  # fmt: skip


@pytest.fixture
def marked(monkeypatch):
    """Sweep a server that has one flow run; returns the names that were marked."""

    def run(found):
        posted = []

        def post(url, path, body):
            posted.append(path)
            return [found] if path.endswith("filter") else {}

        for module in (zombies, prefect_server):
            monkeypatch.setattr(module, "ask", post)
        return zombies.mark_zombie_runs("http://server/api")

    return run


def test_a_run_whose_process_is_gone_is_marked(marked, dead_pid):
    assert marked(flow_run(f"{HOST}:{dead_pid}")) == ["one"]


def test_a_run_of_a_living_process_is_left_alone(marked):
    assert marked(flow_run(f"{HOST}:1", seconds=20)) == []


def test_a_process_number_given_to_a_later_process_does_not_save_a_run(marked):
    assert marked(flow_run(zombies.process_name(), seconds=10**7)) == ["one"]


def test_a_living_process_that_says_whose_it_is_is_left_alone_whatever_the_clock_says(marked):
    """A machine that was paused counts every process's start as later than it was."""
    variables = {**os.environ, zombies.WHOSE: "1"}
    waits = [sys.executable, "-c", "print(flush=True); input()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(waits, **pipes, env=variables) as child:
        child.stdout.readline()  # while it is being started it has no variables
        named = flow_run(f"{HOST}:{child.pid}", seconds=10**7)
        assert marked(named) == []
        assert marked({**named, "id": "another"}) == ["one"]
        child.communicate(b"\n")


def test_a_process_that_its_run_described_is_left_alone_whatever_the_clock_says(marked):
    """A command line's, or one with a flow within its flow: no variable names that run."""
    said = zombies.labels_of_this_process()
    assert marked(flow_run(None, seconds=10**7, labels=said)) == []
    other = said | {zombies.BEGAN_LABEL: "1.00"}
    assert marked(flow_run(None, seconds=10**7, labels=other)) == ["one"]


def test_a_run_that_was_retried_meanwhile_is_left_alone(monkeypatch, dead_pid):
    found = flow_run(f"{HOST}:{dead_pid}")
    retried = found | {"state": {"type": "SCHEDULED", "timestamp": found["state"]["timestamp"]}}
    answers = [[found], [retried]]
    for module in (zombies, prefect_server):
        monkeypatch.setattr(module, "ask", lambda url, path, body: answers.pop(0))
    assert zombies.mark_zombie_runs("http://server/api") == []


def test_all_runs_of_a_server_are_looked_at(monkeypatch, dead_pid):
    """It tells of 200 at once; what is paused or long at work stands before what died."""
    runs = [
        flow_run(zombies.process_name(), seconds=0) | {"id": str(number)}
        for number in range(prefect_server.PAGE)
    ]
    runs.append(flow_run(f"{HOST}:{dead_pid}") | {"id": "last"})

    def answer(url, path, body):
        if not path.endswith("filter"):
            return {}
        if "id" in body["flow_runs"]:
            return [run for run in runs if run["id"] in body["flow_runs"]["id"]["any_"]]
        return runs[body["offset"] :][: body["limit"]]

    for module in (zombies, prefect_server):
        monkeypatch.setattr(module, "ask", answer)
    assert zombies.mark_zombie_runs("http://server/api") == ["one"]


def test_a_run_of_another_machine_is_none_of_our_business(marked, dead_pid):
    assert marked(flow_run(f"elsewhere:{dead_pid}")) == []


def test_a_retry_has_time_to_write_its_own_process_number(marked, dead_pid):
    assert marked(flow_run(f"{HOST}:{dead_pid}", seconds=2)) == []
    assert marked(flow_run(f"{HOST}:{dead_pid}", state="PENDING", seconds=30)) == []


def test_a_run_that_never_spoke_is_known_by_its_worker(marked, dead_pid):
    labels = {"prefect.worker.name": f"{HOST}@rlhf"}
    run = flow_run(None, state="PENDING", labels=labels, pid=str(dead_pid))
    assert marked(run) == ["one"]
    assert marked(flow_run(None, labels=labels, pid="1", seconds=20)) == []


def test_a_pending_retry_is_not_taken_for_the_attempt_before_it(marked, dead_pid):
    labels = {"prefect.worker.name": f"{HOST}@rlhf", zombies.PROCESS_LABEL: f"{HOST}:{dead_pid}"}
    for pid in (None, str(dead_pid), str(os.getpid())):
        run = flow_run(None, state="PENDING", labels=labels, pid=pid, seconds=200)
        assert marked(run) == []


def test_a_retry_that_could_not_say_its_process_is_known_by_its_worker(marked, dead_pid):
    """The server was lost just then: its label names the first attempt for good."""
    labels = {"prefect.worker.name": f"{HOST}@rlhf", zombies.PROCESS_LABEL: f"{HOST}:{dead_pid}"}
    assert marked(flow_run(None, labels=labels, pid="1", seconds=20)) == []
    assert marked(flow_run(None, labels=labels, pid=str(dead_pid), seconds=20)) == ["one"]
    elsewhere = labels | {"prefect.worker.name": "elsewhere@rlhf"}
    assert marked(flow_run(None, labels=elsewhere, pid="7", seconds=20)) == []


def test_a_run_whose_worker_was_killed_before_it_started_a_process_is_marked(marked):
    labels = {"prefect.worker.name": f"{HOST}@rlhf"}
    assert marked(flow_run(None, state="PENDING", labels=labels)) == ["one"]
    elsewhere = {"prefect.worker.name": "elsewhere@rlhf"}
    assert marked(flow_run(None, state="PENDING", labels=elsewhere)) == []


def test_a_run_without_any_process_is_left_alone(marked):
    assert marked(flow_run(None)) == []


def test_a_promotion_that_the_sweep_completes_is_announced(monkeypatch):
    told = []
    monkeypatch.setattr(release_aliases, "recover_all", lambda: ["models:/rlhf-policy/2"])
    monkeypatch.setattr(events, "emit_event", lambda **event: told.append(event))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    zombies._complete_and_announce()
    payload = {"model": "models:/rlhf-policy/2", "champion": "models:/rlhf-policy/2"}
    resource = {"prefect.resource.id": "rlhf.model.rlhf-policy.2"}
    assert told == [{"event": "rlhf.promoted", "resource": resource, "payload": payload}]
