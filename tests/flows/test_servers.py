import os
import socket
import subprocess
import sys
import time

import pytest

from flows.servers import (
    HOST,
    Process,
    Servers,
    choose_port,
    end_tree,
    read_servers,
    stop_servers,
    write_servers,
)
from rlhf_core.errors import RlhfError


@pytest.fixture
def taken():
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_a_wanted_port_that_is_taken_is_refused(taken):
    with pytest.raises(RlhfError, match=f"port {taken} is taken"):
        choose_port(taken, 4200)


def test_a_taken_usual_port_gives_way_to_a_free_one(taken):
    assert choose_port(None, taken) not in (0, taken)


def test_zero_asks_for_any_free_port(taken):
    assert choose_port(0, taken) not in (0, taken)


def start_family(tmp_path):
    """A process with a child of its own; returns it and the child's number."""
    note = tmp_path / "child"
    code = (
        "import subprocess, sys, pathlib, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
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
    stranger = own.model_copy(update={"started": own.started - 3600})
    assert not end_tree(stranger)


def test_down_after_the_keeper_was_killed_ends_what_it_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parent, child = start_family(tmp_path)
    gone = Process(pid=parent.pid, started=1.0)
    write_servers(
        Servers(prefect_port=1, mlflow_port=2, keeper=gone, children={"w": Process.of(parent.pid)})
    )
    assert stop_servers() == ["w"]
    parent.wait(timeout=10)
    assert is_gone(child)
    assert read_servers() is None
    assert stop_servers() == []
