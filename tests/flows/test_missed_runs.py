"""What a worker does with runs that were due while nobody listened."""

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest

from rlhf_flows.servers.patched_prefect import make_up_for_missed_runs_once

NIGHTLY, WEEKLY = uuid4(), uuid4()
DEPLOYMENT = uuid4()
LAST_NIGHT = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=3)


def scheduled(nights_ago, schedule=NIGHTLY, **others):
    """A run as Prefect's scheduler makes it."""
    from prefect.client.schemas.objects import CreatedBy, FlowRun

    made_for = LAST_NIGHT - timedelta(days=nights_ago)
    made = {
        "flow_id": uuid4(),
        "deployment_id": DEPLOYMENT,
        "auto_scheduled": True,
        "next_scheduled_start_time": made_for,
        "idempotency_key": f"scheduled {DEPLOYMENT} {schedule} {made_for}",
        "created_by": CreatedBy(id=schedule, type="SCHEDULE", display_value="nightly"),
    }
    return FlowRun(**made | others)


class WaitingRuns:
    """What a worker asks the server about runs that wait."""

    def __init__(self, runs, active, paused=False):
        self.runs = sorted(runs, key=lambda run: run.next_scheduled_start_time, reverse=True)
        schedules = [SimpleNamespace(id=id, active=on) for id, on in active.items()]
        self.deployment = SimpleNamespace(paused=paused, schedules=schedules)
        self.said = {}

    async def read_deployment(self, deployment):
        return self.deployment

    async def read_flow_runs(self, *, flow_run_filter, sort, limit, offset):
        assert flow_run_filter.deployment_id.any_ == [DEPLOYMENT]
        return self.runs[offset : offset + min(limit, 2)]

    async def set_flow_run_state(self, run, state):
        self.said[run] = state


@pytest.fixture
def begun(monkeypatch):
    """Let a worker that comes back see the runs; return those it begins, the oldest first."""
    from prefect.workers.base import BaseWorker
    from prefect.workers.process import ProcessWorker

    own = BaseWorker._submit_scheduled_flow_runs
    monkeypatch.setattr(BaseWorker, "_submit_scheduled_flow_runs", own)
    make_up_for_missed_runs_once()

    def begin(server, due=None):
        monkeypatch.setattr(ProcessWorker, "client", server, raising=False)

        async def submit():
            back = ProcessWorker(work_pool_name="rlhf", name="one")
            back._runs_task_group = SimpleNamespace(start_soon=lambda work, run: None)
            entries = [SimpleNamespace(flow_run=run) for run in due or server.runs]
            return await back._submit_scheduled_flow_runs(entries)

        return list(reversed(asyncio.run(submit())))

    return begin


def test_missed_nights_are_made_up_for_by_one_run_and_the_others_say_so(begun):
    missed = [scheduled(nights_ago) for nights_ago in range(5)]
    server = WaitingRuns(missed, {NIGHTLY: True})
    assert begun(server) == [missed[0]]
    assert set(server.said) == {run.id for run in missed[1:]}
    for state in server.said.values():
        assert (state.type.value, state.name) == ("CANCELLED", "Skipped")
        assert state.message == f"missed; the run of {LAST_NIGHT:%Y-%m-%d %H:%M} UTC replaces it"


def test_the_oldest_missed_run_alone_does_not_start_where_the_server_gives_one_at_a_time(begun):
    missed = [scheduled(nights_ago) for nights_ago in range(5)]
    server = WaitingRuns(missed, {NIGHTLY: True})
    assert begun(server, due=[missed[-1]]) == []
    assert len(server.said) == 4


@pytest.mark.parametrize(
    "off", [{"active": {NIGHTLY: False}}, {"active": {NIGHTLY: True}, "paused": True}]
)
def test_what_was_switched_off_meanwhile_does_not_run(begun, off):
    server = WaitingRuns([scheduled(0), scheduled(1)], **off)
    assert begun(server) == []
    assert {state.message for state in server.said.values()} == {
        "missed, and its schedule is switched off since"
    }


def test_each_schedule_makes_up_for_its_own(begun):
    nightly, weekly = scheduled(0), scheduled(2, WEEKLY)
    runs = [nightly, scheduled(1), weekly]
    assert begun(WaitingRuns(runs, {NIGHTLY: True, WEEKLY: True})) == [weekly, nightly]
    assert begun(WaitingRuns(runs, {NIGHTLY: True, WEEKLY: False})) == [nightly]


def test_a_schedule_that_a_deploy_made_anew_still_makes_up_for_what_it_missed(begun):
    missed = [scheduled(nights_ago, uuid4()) for nights_ago in range(3)]
    assert begun(WaitingRuns(missed, {NIGHTLY: True})) == [missed[0]]
    assert begun(WaitingRuns(missed, {NIGHTLY: False})) == []


@pytest.mark.parametrize(
    "asked_for",
    [
        {"auto_scheduled": False, "idempotency_key": None},
        {"run_count": 1},
        {"next_scheduled_start_time": LAST_NIGHT - timedelta(minutes=1)},
    ],
    ids=["by hand", "retried", "run now"],
)
def test_what_a_person_asked_for_runs_whatever_the_schedule_says(begun, asked_for):
    run = scheduled(2, **asked_for)
    server = WaitingRuns([run, scheduled(0)], {NIGHTLY: False})
    assert begun(server) == [run]
