import asyncio
import signal
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import anyio
import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from rlhf_flows.servers.patched_prefect import (
    end_when_asked,
    keep_permissions,
    let_the_server_pause_automations,
    lock_before_reading,
    remember_events_of_before,
    report_a_death_once,
)


@pytest.fixture
def database(tmp_path):
    """A counter in a SQLite file, as Prefect's server opens it."""
    from prefect.server.database.configurations import AioSqliteConfiguration

    return AioSqliteConfiguration(connection_url=f"sqlite+aiosqlite:///{tmp_path}/prefect.db")


@pytest.fixture
def patched(monkeypatch):
    from prefect.server.database.configurations import AioSqliteConfiguration

    # Restores the class after the test, whatever the product puts there.
    monkeypatch.setattr(
        AioSqliteConfiguration, "begin_transaction", AioSqliteConfiguration.begin_transaction
    )
    lock_before_reading()


class Counter:
    def __init__(self, database):
        self.database = database

    async def session(self):
        return await self.database.session(await self.database.engine())

    async def create(self):
        async with await self.session() as session, self.database.begin_transaction(session):
            await session.execute(sa.text("CREATE TABLE counter (value INTEGER)"))
            await session.execute(sa.text("INSERT INTO counter VALUES (0)"))

    async def read_then_add(self, pause):
        async with await self.session() as session, self.database.begin_transaction(session):
            value = (await session.execute(sa.text("SELECT value FROM counter"))).scalar_one()
            await pause()
            await session.execute(sa.text(f"UPDATE counter SET value = {value + 1}"))
        return value


async def overtaken(database):
    """One transaction reads; a second one reads and writes; then the first one writes."""
    counter = Counter(database)
    await counter.create()
    second = None

    async def start_second():
        nonlocal second
        second = asyncio.create_task(counter.read_then_add(lambda: asyncio.sleep(0)))
        await asyncio.wait([second], timeout=0.5)

    first = await counter.read_then_add(start_second)
    return sorted((first, await second))


def test_prefect_alone_fails_when_a_reader_is_overtaken(database):
    with pytest.raises(OperationalError, match="database is locked"):
        asyncio.run(overtaken(database))


def test_a_transaction_that_reads_first_is_not_overtaken(database, patched):
    assert asyncio.run(overtaken(database)) == [0, 1]


def test_a_transaction_inside_another_does_not_wait_for_it(database, patched):
    async def nested():
        counter = Counter(database)
        await counter.create()
        async with (
            await counter.session() as outer,
            database.begin_transaction(outer),
            await counter.session() as inner,
            database.begin_transaction(inner),
        ):
            return (await inner.execute(sa.text("SELECT value FROM counter"))).scalar_one()

    assert asyncio.run(asyncio.wait_for(nested(), 30)) == 0


@pytest.fixture
def worker(monkeypatch):
    """A worker with two places that only notes what it would start."""
    from prefect.client.schemas.objects import FlowRun
    from prefect.workers.base import BaseWorker
    from prefect.workers.process import ProcessWorker

    monkeypatch.setattr(
        BaseWorker, "_submit_scheduled_flow_runs", BaseWorker._submit_scheduled_flow_runs
    )

    async def submit(due):
        worker = ProcessWorker(work_pool_name="rlhf", limit=2, name="one")
        worker._limiter = anyio.CapacityLimiter(2)
        worker._runs_task_group = SimpleNamespace(start_soon=lambda work, run: None)
        for runs in due:
            entries = [SimpleNamespace(flow_run=FlowRun(id=run, flow_id=run)) for run in runs]
            await worker._submit_scheduled_flow_runs(entries)
            worker._submitting_flow_run_ids.clear()
        return set(worker._limiter.statistics().borrowers)

    return lambda *due: asyncio.run(submit(due))


def test_a_run_that_is_due_again_too_soon_waits_and_others_start(worker):
    """Since Prefect 3.9.1 by itself; before, the worker died of it with all its other runs."""
    first, second = uuid4(), uuid4()
    assert worker([first], [first, second]) == {first, second}


def test_a_death_is_reported_once(monkeypatch):
    """Prefect's worker reports a death that whoever started the process has reported before."""
    from prefect.client.schemas.objects import FlowRun
    from prefect.workers import base
    from prefect.workers.process import ProcessWorker

    reported = []

    async def propose(client, state, flow_run_id):
        reported.append(state.message)
        return state

    monkeypatch.setattr(base, "propose_state", propose)
    own = ProcessWorker._propose_crashed_state
    monkeypatch.setattr(ProcessWorker, "_propose_crashed_state", own)

    async def report():
        worker = ProcessWorker(work_pool_name="rlhf", name="one")
        worker._client = object()
        run = FlowRun(id=uuid4(), flow_id=uuid4())
        for message in (
            "Flow run infrastructure exited with non-zero status code -9.",
            "Failed to submit flow run to infrastructure: OSError",
        ):
            await worker._propose_crashed_state(run, message)

    asyncio.run(report())
    assert len(reported) == 2
    report_a_death_once()
    reported.clear()
    asyncio.run(report())
    assert reported == ["Failed to submit flow run to infrastructure: OSError"]


def test_a_worker_started_in_the_background_of_a_script_ends_when_asked():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        end_when_asked()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        own = signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGINT, own)
        end_when_asked()
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_form_does_not_change_what_the_worker_allows(monkeypatch):
    from prefect.client.schemas.objects import FlowRun
    from prefect.workers.base import BaseJobConfiguration
    from prefect.workers.process import ProcessJobConfiguration

    own = BaseJobConfiguration.prepare_for_flow_run
    monkeypatch.setattr(BaseJobConfiguration, "prepare_for_flow_run", own)
    forbidden = {"RLHF_ALLOWED_FUNCTIONS": "os.system", "RLHF_TRUSTED_CODE": "anything"}

    def environment():
        job = ProcessJobConfiguration(env=forbidden | {"KEPT": "yes"})
        job.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4()))
        return job.env

    assert environment().items() >= forbidden.items(), "Prefect alone hands them on"
    keep_permissions()
    assert environment()["KEPT"] == "yes"
    assert not environment().keys() & forbidden.keys()


@pytest.fixture
def closed_server(monkeypatch):
    """An API that takes no change without its token, and Prefect's own client inside it."""
    from prefect.server.api import server
    from prefect.server.events.clients import PrefectServerEventsAPIClient
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    def token(request):
        given = {"id": str(uuid4()), "client": request.query_params["client"], "token": "TOKEN"}
        return JSONResponse(
            given | {"expiration": (datetime.now(UTC) + timedelta(days=1)).isoformat()}
        )

    def pause(request):
        return JSONResponse({}, 200 if request.headers.get("Prefect-Csrf-Token") else 403)

    routes = [
        Route("/api/csrf-token", token),
        Route("/api/automations/{id}", pause, methods=["PATCH"]),
    ]
    monkeypatch.setattr(server, "create_app", lambda: Starlette(routes=routes))
    made = PrefectServerEventsAPIClient.__init__
    monkeypatch.setattr(PrefectServerEventsAPIClient, "__init__", made)

    async def pause_automation():
        async with PrefectServerEventsAPIClient() as client:
            try:
                return (await client.pause_automation(uuid4())).status_code
            except httpx.HTTPStatusError as error:
                return error.response.status_code

    return lambda: asyncio.run(pause_automation())


def test_the_server_pauses_automations_although_it_asks_for_tokens(closed_server):
    from prefect.settings import PREFECT_SERVER_CSRF_PROTECTION_ENABLED, temporary_settings

    with temporary_settings({PREFECT_SERVER_CSRF_PROTECTION_ENABLED: True}):
        assert closed_server() == 403, "Prefect alone refuses its own action"
        let_the_server_pause_automations()
        assert closed_server() == 200


@pytest.fixture
def events(database, monkeypatch):
    """Stores events as Prefect's server does, and says which have to wait for another one."""
    import prefect.server.database as prefect_database
    from prefect.server.database.interface import PrefectDBInterface
    from prefect.server.database.orm_models import AioSqliteORMConfiguration
    from prefect.server.database.query_components import AioSqliteQueryComponents
    from prefect.server.events.ordering.memory import CausalOrdering, EventArrivedEarly
    from prefect.server.events.schemas.events import ReceivedEvent

    interface = PrefectDBInterface(
        database_config=database,
        query_components=AioSqliteQueryComponents(),
        orm=AioSqliteORMConfiguration(),
    )
    monkeypatch.setattr(prefect_database, "provide_database_interface", lambda: interface)
    seen = CausalOrdering.event_has_been_seen
    monkeypatch.setattr(CausalOrdering, "event_has_been_seen", seen)

    def event(follows=None):
        return ReceivedEvent(
            occurred=datetime.now(UTC),
            event="prefect.flow-run.Suspended",
            resource={"prefect.resource.id": "prefect.flow-run.1"},
            follows=follows,
            id=uuid4(),
        )

    async def store(one):
        async with (await interface.engine()).begin() as connection:
            await connection.run_sync(interface.Event.__table__.create, checkfirst=True)
        row = interface.Event(
            **one.model_dump(include={"id", "occurred", "event", "follows", "received"}),
            resource_id=one.resource.id,
            resource=one.resource.model_dump(),
            related_resource_ids=[],
            related=[],
            payload={},
            recorded=one.received,
        )
        async with interface.session_context(begin_transaction=True) as session:
            session.add(row)
        return one

    async def waits(one):
        try:
            await CausalOrdering(scope="test").wait_for_leader(one)
        except EventArrivedEarly:
            return True
        return False

    return SimpleNamespace(event=event, store=store, waits=waits)


def test_events_that_a_server_stored_before_its_restart_hold_nothing_up(events):
    """The end of a run would be put aside for a quarter of an hour, and the run taken for dead."""

    async def restarted():
        running = await events.store(events.event())
        ended = events.event(running.id)
        alone = await events.waits(ended)
        remember_events_of_before()
        late = await events.store(events.event())  # of now: its own handling is still to come
        following = [ended, events.event(late.id), events.event(uuid4())]
        return alone, [await events.waits(one) for one in following]

    assert asyncio.run(restarted()) == (True, [False, True, True])
