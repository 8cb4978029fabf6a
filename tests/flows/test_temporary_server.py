"""The server of one command answers at once, and leaves with it, even if the command is killed."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psutil
import pytest

from rlhf_core.errors import OrchestrationError
from rlhf_flows.commands import local
from rlhf_flows.servers.temporary_server import _environment, temporary_server
from tests.flows.served import ROOT

CODE = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from rlhf_flows.engine.environment import prepare_environment
prepare_environment()
from rlhf_flows.servers.temporary_server import temporary_server
with temporary_server() as server:
    assert server.wait().endswith("/api")
    try:
        print(server.process.pid, flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        print(server.wait(), flush=True)
        time.sleep(600)
"""


@pytest.mark.slow
def test_a_temporary_server_ends_with_its_command_and_not_before(prefect_database, tmp_path):
    """Ctrl-C goes to a terminal's whole foreground group, and what stops a service or a job asks
    all its processes: the command still has a server then.

    Killed, the command cannot end it. One that ends as it should is in all tests of commands.
    """
    home = tmp_path / ".rlhf/prefect"
    home.mkdir(parents=True)
    shutil.copy(prefect_database, home)
    command = subprocess.Popen(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    server = psutil.Process(int(command.stdout.readline()))
    # A server that got the signal too would still answer once, and then no more.
    assert os.getpgid(server.pid) != os.getpgid(command.pid)
    server.send_signal(signal.SIGTERM)
    time.sleep(1)  # a server that heeds it is gone by then
    os.killpg(command.pid, signal.SIGINT)
    assert command.stdout.readline().strip().endswith("/api")
    os.killpg(command.pid, signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    _, alive = psutil.wait_procs([server], timeout=300)
    assert not alive


def test_events_are_looked_at_where_there_are_automations_alone(tmp_path, monkeypatch):
    """Or may be: in a database that cannot be looked into."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))

    def off():
        return _environment().get("PREFECT_API_SERVICES_TRIGGERS_ENABLED")

    assert off() == "false"
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://team/prefect")
    assert off() is None
    monkeypatch.delenv("PREFECT_API_DATABASE_CONNECTION_URL")
    (tmp_path / "prefect.db").touch()
    assert off() is None
    with closing(sqlite3.connect(tmp_path / "prefect.db")) as database:
        database.execute("CREATE TABLE automation (id)")
        assert off() == "false"
        database.execute("INSERT INTO automation VALUES (1)")
        database.commit()
    assert off() is None
    (tmp_path / "prefect.db").unlink()
    monkeypatch.setenv("PREFECT_API_SERVICES_TRIGGERS_ENABLED", "true")
    assert off() == "true"


def test_a_server_that_does_not_start_is_said_in_one_line(tmp_path, forked_prefect, monkeypatch):
    database = f"sqlite+aiosqlite:///{tmp_path}/no/such/folder/prefect.db"
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", database)
    with (
        temporary_server() as server,
        pytest.raises(OrchestrationError, match="temporary server did not start"),
    ):
        server.wait()


def test_blocks_within_each_other_share_one_server(prefect_server, monkeypatch):
    monkeypatch.setattr(local, "temporary_server", None)
    with local.in_this_process():
        pass


@pytest.mark.slow
def test_several_commands_may_be_the_first_in_a_folder(tmp_path, forked_prefect, monkeypatch):
    """Prefect's database is made by one of their servers; the others wait for it."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)

    def first_command(_):
        with temporary_server() as server:
            return server.wait()

    with ThreadPoolExecutor() as people:
        assert len(set(people.map(first_command, range(2)))) == 2
