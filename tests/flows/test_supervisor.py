"""The process that owns servers and workers, and what must not end them."""

import os
import signal
import subprocess
import time
from types import SimpleNamespace

import psutil
import pytest

from rlhf_core.errors import StorageError
from rlhf_flows.servers import supervisor as module
from rlhf_flows.servers.processes import Process, StopSignals, end_tree
from rlhf_flows.servers.servers import LOGS, read_servers
from rlhf_flows.servers.supervisor import Supervisor


@pytest.fixture
def clock(monkeypatch):
    """Time passes only where a test says so."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


@pytest.fixture
def supervisor(tmp_path, monkeypatch, clock):
    """A supervisor of one child that lives and one that has just died."""
    monkeypatch.chdir(tmp_path)
    LOGS.mkdir(parents=True)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    made = Supervisor(4200, 5000, StopSignals())
    for name in ("mlflow", "prefect"):
        made.start(name, ["sleep", "600"])
    made.children["prefect"].kill()
    made.children["prefect"].wait()
    yield made
    # Not made.end(): it ends whatever else descends from this process, other tests' server too.
    for child in made.children.values():
        child.kill()
        child.wait()
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
        signal.signal(number, handler)


def living(supervisor):
    return {name for name, child in supervisor.children.items() if child.poll() is None}


def restart(supervisor, clock):
    """Look twice, a minute apart: a death is seen first and fixed later."""
    supervisor.restart_dead()
    clock.seconds += 60
    supervisor.restart_dead()


def test_a_full_disk_ends_nothing_and_the_record_is_written_later(supervisor, clock, monkeypatch):
    def refuse(servers):
        raise StorageError("servers.json: disk full")

    with monkeypatch.context() as full:
        full.setattr(module, "write_servers", refuse)
        restart(supervisor, clock)
    assert living(supervisor) == {"mlflow", "prefect"}
    supervisor.restart_dead()
    assert read_servers().children["prefect"].pid == supervisor.children["prefect"].pid


def test_a_child_that_cannot_be_started_again_is_tried_later(supervisor, clock, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("prefect.log: disk full")

    with monkeypatch.context() as full:
        full.setattr(subprocess, "Popen", refuse)
        restart(supervisor, clock)
        assert living(supervisor) == {"mlflow"}
    restart(supervisor, clock)
    assert living(supervisor) == {"mlflow", "prefect"}


LEAVES_ONE = "sleep 600 & echo $! > by-$0.tmp; mv by-$0.tmp by-$0; wait"


def test_what_a_killed_server_leaves_ends_before_the_next_and_runs_of_a_worker_go_on(
    supervisor, clock, tmp_path
):
    """MLflow killed for its memory leaves the process that holds its port."""
    left = {}
    for name in ("mlflow", "worker-rlhf"):
        if name in supervisor.children:
            supervisor.children[name].kill()
            supervisor.children[name].wait()
        supervisor.start(name, ["sh", "-c", LEAVES_ONE, name])
        while not (tmp_path / f"by-{name}").exists():
            time.sleep(0.05)
        left[name] = psutil.Process(int((tmp_path / f"by-{name}").read_text()))
        supervisor.children[name].kill()
        supervisor.children[name].wait()
    restart(supervisor, clock)
    try:
        assert living(supervisor) == {"mlflow", "prefect", "worker-rlhf"}
        assert {name: is_alive(process) for name, process in left.items()} == {
            "mlflow": False,
            "worker-rlhf": True,
        }
    finally:
        left["worker-rlhf"].kill()
        for child in supervisor.children.values():  # the new ones leave nothing
            end_tree(Process.of(child.pid))


def is_alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_the_first_start_says_that_the_disk_is_full(supervisor, monkeypatch):
    def refuse(servers):
        raise StorageError("servers.json: disk full")

    monkeypatch.setattr(module, "write_servers", refuse)
    with pytest.raises(StorageError, match="disk full"):
        supervisor.start("worker", ["sleep", "600"])


def test_what_servers_write_is_their_owner_s_alone_and_what_runs_make_is_not(supervisor, tmp_path):
    before = os.umask(0o022)
    try:
        for name in ("mlflow", "worker-rlhf"):
            supervisor.start(name, ["touch", f"by-{name}"])
            supervisor.children[name].wait()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("by-*")}
    assert modes == {"by-mlflow": 0o600, "by-worker-rlhf": 0o644}
    logs = {path.name: path.stat().st_mode & 0o777 for path in LOGS.glob("*.log")}
    assert set(logs.values()) == {0o600}
