"""Servers and the supervisor that go away while work is under way, and what is left afterwards."""

import os
import signal
import time

import pytest

from rlhf_flows.servers.processes import kept_in
from rlhf_flows.servers.servers import STATE
from tests.flows.served import CONFIG, SETTINGS, Served, until

pytestmark = [pytest.mark.nightly, pytest.mark.xdist_group("outages")]

ANSWER_SECONDS = 20
"""How long Prefect's clients wait for an answer here; a minute by default."""
STAGES = ["prepare", "sft", "reward"]
"""What a pipeline does here: the reward model's gate says no. All of its stages are in
``tests/served``.
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    made = Served.prepare(
        tmp_path_factory.mktemp("outages") / "work",
        PREFECT_API_REQUEST_TIMEOUT=str(ANSWER_SECONDS),
    )
    (made.path / "config.yaml").write_text(CONFIG)
    (made.path / "verdict-reward").write_text("REJECT")
    with made.running():
        yield made


def start_slow_stage(served):
    """A run whose SFT will not end by itself."""
    (served.path / "slow-sft").write_text("3600")
    run = served.trigger("rlhf-sft/sft", settings=SETTINGS)
    served.wait_for_call("sft")
    return run


def test_a_killed_pipeline_is_retried_and_finds_the_stage_that_went_on_without_it(served):
    (served.path / "slow-sft").write_text("20")
    run = served.trigger("rlhf-pipeline/manual", settings=SETTINGS)
    called = []
    until(lambda: called.extend(served.calls()) or "sft" in called, "sft was called")
    os.kill(served.process_of(run), signal.SIGKILL)
    assert served.wait(run)["state"]["type"] == "CRASHED"
    served.retry(run)
    assert served.wait(run)["state"]["type"] == "COMPLETED", served.logs()
    assert called + served.calls() == STAGES
    (served.path / "slow-sft").unlink()


def restart(served):
    before = served.servers.children["prefect"].pid
    os.kill(before, signal.SIGKILL)
    until(lambda: served.servers.children["prefect"].pid != before, "a new Prefect server")
    until(served.is_answering, lambda: f"an answer of the new Prefect server\n{served.logs()}")


def fall_silent(served):
    """Connections are taken and nothing is answered, for longer than a client waits."""
    server = served.servers.children["prefect"].pid
    os.kill(server, signal.SIGSTOP)
    time.sleep(ANSWER_SECONDS + 5)
    os.kill(server, signal.SIGCONT)
    assert served.servers.children["prefect"].pid == server


@pytest.mark.parametrize("disturb", [restart, fall_silent])
def test_a_pipeline_outlives_a_prefect_server_that_is_lost(served, disturb):
    (served.path / "slow-sft").write_text("20")
    run = served.trigger("rlhf-pipeline/manual", settings=SETTINGS)
    called = []
    until(lambda: called.extend(served.calls()) or "sft" in called, "sft was called")
    disturb(served)
    ended = served.wait(run)
    assert ended["state"]["type"] == "COMPLETED", served.logs()
    assert ended["run_count"] == 1, "it went on, nobody had to retry it"
    assert called + served.calls() == STAGES
    (served.path / "slow-sft").unlink()


def test_down_during_a_run_leaves_nothing_and_the_run_goes_on_after_up(served):
    run = start_slow_stage(served)
    served.down()
    served.up()
    served.finish_after_death(run)


def test_a_killed_supervisor_leaves_nothing_to_the_next_up(served):
    run = start_slow_stage(served)
    supervisor, worker = served.servers.supervisor, served.servers.children["worker-rlhf-training"]
    for process in (supervisor, worker):  # the stage belongs to nobody now
        os.kill(process.pid, signal.SIGKILL)
    left = {process.pid for process in kept_in(str(served.path / STATE))}
    assert served.process_of(run) in left
    served.up()
    now = {process.pid for process in kept_in(str(served.path / STATE))}
    assert not left & now
    served.finish_after_death(run)
