from contextlib import nullcontext
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.exceptions import Abort

from rlhf_flows.engine.environment import WORKER_FOLDER
from rlhf_flows.servers import installation
from rlhf_flows.servers.installation import (
    describe_code,
    installed_code,
    module_entrypoint,
    work_here,
)


@pytest.fixture
def run(monkeypatch):
    """A flow run that begins; returns the states that its server is told."""
    states = []
    client = SimpleNamespace(set_flow_run_state=lambda run, state, force: states.append(state))
    monkeypatch.setattr(
        "prefect.client.orchestration.get_client", lambda sync_client: nullcontext(client)
    )
    monkeypatch.setattr("prefect.runtime.flow_run", SimpleNamespace(id=str(uuid4())))
    return states


def test_a_run_of_the_deployed_code_begins_where_its_worker_was_started(run, monkeypatch):
    monkeypatch.setenv(WORKER_FOLDER, "/somewhere/else")
    assert work_here(installed_code(), describe_code()) == {"directory": "/somewhere/else"}
    assert run == []


def test_a_run_of_other_code_is_failed_in_one_line_without_a_traceback(run):
    with pytest.raises(Abort):  # Prefect's own signal: the process ends, nothing more is reported
        work_here("0123456789abcdef", "0.1.0 at 0123456789")
    (state,) = run
    assert state.is_failed()
    assert "this worker runs other code" in state.message
    assert "0.1.0 at 0123456789" in state.message
    assert "\n" not in state.message


def test_the_digest_is_that_of_the_sources_wherever_they_lie(tmp_path, monkeypatch):
    def digest_of(content, place):
        for room in ("rlhf_flows", "rlhf_core"):
            (tmp_path / place / room).mkdir(parents=True)
            (tmp_path / place / room / "__init__.py").write_text(content)
        core = SimpleNamespace(__file__=str(tmp_path / place / "rlhf_core" / "__init__.py"))
        monkeypatch.setattr(installation, "rlhf_core", core)
        return installed_code.__wrapped__()

    assert digest_of("a = 1\n", "clone") == digest_of("a = 1\n", "site-packages")
    assert digest_of("a = 1\n", "third") != digest_of("a = 2\n", "fourth")


def test_an_entry_point_is_a_path_of_modules():
    assert module_entrypoint("flows/stages.py:sft_stage") == "rlhf_flows.stages.sft_stage"
    assert module_entrypoint("rlhf_flows.stages.sft_stage") == "rlhf_flows.stages.sft_stage"
