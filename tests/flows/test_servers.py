import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from rlhf_core.errors import ConfigError, RlhfError
from rlhf_flows.engine.environment import HEARTBEAT_SECONDS, SILENT_SECONDS
from rlhf_flows.servers import servers
from rlhf_flows.servers.processes import KEPT_IN, Process, StopAskedError, StopSignals, end_tree
from rlhf_flows.servers.servers import (
    HOST,
    STATE,
    Servers,
    child_environment,
    choose_ports,
    read_servers,
    start_servers,
    stop_servers,
    write_servers,
)
from rlhf_flows.servers.supervisor import _mlflow


@pytest.fixture
def taken():
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_a_wanted_port_that_is_taken_is_refused(taken):
    with pytest.raises(RlhfError, match=f"port {taken} is taken"):
        choose_ports(0, taken)


def test_a_taken_usual_port_gives_way_to_a_free_one(taken):
    with ExitStack() as held:
        assert servers._hold_port(held, None, taken) not in (0, taken)


def test_the_two_servers_never_get_the_same_port():
    prefect, mlflow = choose_ports(0, 0)
    assert prefect != mlflow
    with pytest.raises(RlhfError, match="is taken"):
        choose_ports(prefect, prefect)


def test_children_know_their_folder_and_speak_often_enough(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = child_environment(1, 2)
    assert environment[KEPT_IN] == str(tmp_path / STATE)
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == str(HEARTBEAT_SECONDS)
    assert 2 * HEARTBEAT_SECONDS < SILENT_SECONDS, "one lost heartbeat is not a death"


def test_the_database_of_mlflow_is_no_argument_that_everybody_sees(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_BACKEND_STORE_URI", raising=False)
    usual = child_environment(1, 2)["MLFLOW_BACKEND_STORE_URI"]
    assert usual == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://user:SECRET@host/mlflow")
    environment = child_environment(1, 2)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql://user:SECRET@host/mlflow"
    assert "SECRET" not in " ".join(_mlflow(2, environment))


def test_a_second_start_from_the_same_folder_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prefect.yaml").symlink_to(ROOT / "prefect.yaml")
    with servers._alone(), pytest.raises(RlhfError, match="just starting"):
        start_servers(0, 0)


def test_a_start_where_there_is_no_project_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"prefect\.yaml: no such file"):
        start_servers(0, 0)


@pytest.fixture
def signals():
    """Stop signals heard by this process, and as they were afterwards."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield StopSignals()
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
        signal.signal(number, handler)


def test_a_stop_asked_for_while_a_child_starts_comes_after_it(signals):
    done = []

    def start_child():
        with signals.undisturbed():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("remembered")

    with pytest.raises(StopAskedError):
        start_child()
    assert done == ["remembered"]
    with pytest.raises(StopAskedError):
        os.kill(os.getpid(), signal.SIGINT)
    signals.ignore()
    os.kill(os.getpid(), signal.SIGTERM)


ROOT = Path(__file__).parents[2]


def start_family(tmp_path, environment=None):
    """A process with a child of its own; returns it and the child's number."""
    note = tmp_path / "child"
    code = (
        "import subprocess, sys, pathlib, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, env=environment)
    while not (note.exists() and note.read_text()):
        time.sleep(0.05)
    return parent, int(note.read_text())


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().split()[2] == "Z"


def test_a_process_is_ended_with_all_it_started(tmp_path):
    parent, child = start_family(tmp_path)
    assert end_tree(Process.of(parent.pid))
    assert is_gone(parent.pid)
    assert is_gone(child)


def test_a_later_process_with_the_same_number_is_not_ended():
    own = Process.of(os.getpid())
    stranger = Process(pid=own.pid, started=own.started - 3600, began=own.began - 3600)
    assert not end_tree(stranger)


@pytest.mark.skipif(sys.platform != "linux", reason="starts are told otherwise there")
@pytest.mark.parametrize("ours", [True, False])
def test_servers_are_known_after_a_pause_of_the_machine(tmp_path, monkeypatch, ours):
    """By the calendar they began later then, as a stranger did after another start of it."""
    parent, _ = start_family(tmp_path, {**os.environ, KEPT_IN: "here"} if ours else None)
    known = Process.of(parent.pid)
    platform = psutil._psplatform
    started = platform.boot_time()
    monkeypatch.setattr(platform, "boot_time", lambda: started + 3600)
    assert (known.find() is not None) == ours
    monkeypatch.undo()
    assert end_tree(known)


def test_down_after_the_supervisor_was_killed_ends_what_it_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parent, child = start_family(tmp_path)
    gone = Process(pid=parent.pid, started=1.0)
    write_servers(
        Servers(
            prefect_port=1, mlflow_port=2, supervisor=gone, children={"w": Process.of(parent.pid)}
        )
    )
    assert stop_servers() == ["w"]
    parent.wait(timeout=10)
    assert is_gone(child)
    assert read_servers() is None
    assert stop_servers() == []


@pytest.mark.parametrize("record", ["{", "{}", b"\xff"])
def test_down_does_without_a_record_that_cannot_be_read(tmp_path, monkeypatch, record):
    monkeypatch.chdir(tmp_path)
    parent, child = start_family(tmp_path, {**os.environ, KEPT_IN: str(STATE.absolute())})
    STATE.mkdir(exist_ok=True)
    servers.STATE_FILE.write_bytes(record if isinstance(record, bytes) else record.encode())
    assert stop_servers() == ["orphans"]
    parent.wait(timeout=10)
    assert is_gone(child)
    assert not servers.STATE_FILE.exists()


def test_servers_that_an_earlier_build_started_are_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = Process.of(os.getpid())
    write_servers(Servers(prefect_port=1, mlflow_port=2, supervisor=own))
    text = servers.STATE_FILE.read_text()
    servers.STATE_FILE.write_text(text.replace('"supervisor"', '"keeper"'))
    assert read_servers().supervisor == own


def test_up_ends_what_runs_behind_a_record_that_cannot_be_read(tmp_path, monkeypatch):
    class EndedError(Exception):
        pass

    def stop():
        raise EndedError

    monkeypatch.chdir(tmp_path)
    (tmp_path / "prefect.yaml").symlink_to(ROOT / "prefect.yaml")
    STATE.mkdir()
    servers.STATE_FILE.write_text("{")
    monkeypatch.setattr(servers, "stop_servers", stop)
    with pytest.raises(EndedError):
        start_servers(0, 0)


def test_down_ends_what_belongs_to_nobody_any_more(tmp_path, monkeypatch):
    """A flow whose worker and supervisor were killed is still known by its environment."""
    monkeypatch.chdir(tmp_path)
    parent, child = start_family(tmp_path, {**os.environ, KEPT_IN: str(STATE.absolute())})
    parent.kill()
    parent.wait(timeout=10)
    assert not is_gone(child)
    assert stop_servers() == ["orphans"]
    assert is_gone(child)


def test_state_and_the_embedded_database_are_their_owner_s_alone(tmp_path, forked):
    (tmp_path / ".rlhf").mkdir(mode=0o755)
    code = (
        "import os; os.umask(0o022)\n"
        "from rlhf_flows.engine.environment import prepare_environment\n"
        "prepare_environment()\n"
        "from rlhf_core.adapters.tracking.mlflow_client import mlflow_client\n"
        "mlflow_client().create_experiment('one')\n"
    )
    kept = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}
    kept.pop("PREFECT_HOME", None)
    assert forked.run("-c", code, cwd=tmp_path, env=kept).returncode == 0
    modes = {
        str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777
        for path in (tmp_path / ".rlhf", tmp_path / ".rlhf/prefect", tmp_path / "mlflow.db")
    }
    assert modes == {".rlhf": 0o700, ".rlhf/prefect": 0o700, "mlflow.db": 0o600}
