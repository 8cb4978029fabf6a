"""A published dataset version is told to Prefect by its name, so that training can start on it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlhf_core.stages.versions import publish as data_publish
from rlhf_core.stages.versions.publish import BatchResult
from rlhf_core.stages.versions.versions import DataVersion
from rlhf_flows.commands.data import data_app
from rlhf_flows.engine import events

RESULT = BatchResult(
    version=DataVersion(
        version="data-v7", commit="c" * 40, date="2026-01-02", batch="batch-0003.jsonl", rows=9,
        pairs=8, alpha=0.5, came=3, went=0, relabelled=1, sha256="a" * 64, dvc_md5="b" * 32,
    ),
    directory=Path("/data/b"), set_aside={}, branch_moved=True,
)  # fmt: skip


@pytest.fixture
def sent(monkeypatch):
    found = []
    monkeypatch.setattr(events, "emit_event", lambda **event: found.append(event))
    monkeypatch.setattr(data_publish, "publish", lambda *_, **__: RESULT)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    return found


@pytest.mark.parametrize("command", [["add", "votes.jsonl"], ["publish"]])
def test_the_event_names_the_version(sent, command):
    done = CliRunner().invoke(data_app, command)
    assert done.exit_code == 0, done.output
    (event,) = sent
    assert event["event"] == "rlhf.data-version"
    assert event["resource"] == {"prefect.resource.id": "rlhf.dataset.aaaaaaaaaaaa"}
    assert event["payload"]["version"] == "data-v7"
    assert event["payload"]["directory"] == "/data/b"
    assert event["payload"]["commit"] == "c" * 40


def test_without_a_server_there_is_nobody_to_tell(sent, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL")
    assert CliRunner().invoke(data_app, ["publish"]).exit_code == 0
    assert not sent
