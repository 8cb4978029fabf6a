"""Servers that run here and that a command in another shell does not know of."""

import os

import pytest
from typer.testing import CliRunner

from rlhf_flows.commands.cli import app
from rlhf_flows.commands.options import begin
from rlhf_flows.servers.processes import Process
from rlhf_flows.servers.servers import STATE_FILE, Servers, write_servers

PREFECT = "PREFECT_API_URL=http://127.0.0.1:4300/api"
MLFLOW = "MLFLOW_TRACKING_URI=http://127.0.0.1:5100"


@pytest.fixture
def begun(tmp_path, monkeypatch, capsys):
    """Begin a command where servers run; returns what it says."""
    monkeypatch.chdir(tmp_path)
    for export in (PREFECT, MLFLOW):
        monkeypatch.delenv(export.partition("=")[0], raising=False)

    def run(supervisor=None, **variables):
        supervisor = supervisor or Process.of(os.getpid())
        write_servers(Servers(prefect_port=4300, mlflow_port=5100, supervisor=supervisor))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        begin("error")
        return capsys.readouterr().err

    return run


def test_a_command_names_the_exports_in_one_line(begun):
    warning = begun()
    assert warning.endswith(f"export {PREFECT} {MLFLOW}\n")
    assert warning.count("\n") == 1


def test_only_what_is_unset_is_named(begun):
    assert begun(MLFLOW_TRACKING_URI="sqlite:///own.db").endswith(f"export {PREFECT}\n")
    assert begun(PREFECT_API_URL="http://elsewhere/api") == ""


def test_servers_that_do_not_run_are_not_named(begun):
    assert begun(Process(pid=os.getpid(), started=1.0)) == ""


def test_a_record_that_cannot_be_read_stops_no_command(begun, capsys):
    begun()
    STATE_FILE.write_text("{")
    begin("error")
    assert "export" not in capsys.readouterr().err


@pytest.mark.parametrize(("command", "warned"), [(("data", "log"), True), (("down",), False)])
def test_only_commands_with_a_use_for_servers_warn(begun, monkeypatch, command, warned):
    begun()
    monkeypatch.setattr("rlhf_flows.servers.servers.stop_servers", lambda: [])
    done = CliRunner().invoke(app, command)
    assert ("servers run here" in done.stderr) is warned


def test_a_command_with_no_use_for_them_leaves_nothing_where_it_is_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin("error", uses_servers=False)
    assert list(tmp_path.iterdir()) == []
    begin("error")
    assert [path.name for path in tmp_path.iterdir()] == [".rlhf"]
