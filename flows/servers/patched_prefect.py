"""Prefect's command line, patched and closed: ``python -m rlhf_flows.servers.patched_prefect``.

Takes the arguments of ``prefect``; it matters for ``server start`` and ``worker start``.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from inspect import signature
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from rlhf_core.config.permissions import FUNCTIONS, MODEL_CODE
from rlhf_core.errors import ConfigError, RlhfError
from rlhf_flows.engine.environment import prepare_service
from rlhf_flows.servers.own_pages import close_prefect

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import WorkerFlowRunResponse
    from prefect.server.events.schemas.events import Event
    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

_WRITER: ContextVar["asyncio.Task[Any] | None"] = ContextVar("writer", default=None)

PAGE = 200
"""Most runs that Prefect's server returns at once."""
_SECOND_REPORT = "Flow run infrastructure exited with non-zero status code"


def lock_before_reading() -> None:
    """Let every transaction of Prefect's server take SQLite's write lock when it begins.

    Prefect begins most of them DEFERRED. One that reads, is overtaken by another writer, and then
    writes itself fails at once with "database is locked": its snapshot is stale, and no time limit
    makes SQLite wait. The Late service, state changes and heartbeats all do so. With the lock taken
    first, writers queue up instead. A transaction inside another one of the same task is left as
    it is: it would wait for its own outer one.

    Of Prefect 3.9.1; no thread asks for it. The nearest, https://github.com/PrefectHQ/prefect/pull/13867,
    opened fewer transactions and left their kind as it was.
    """
    from prefect.server.database.configurations import AioSqliteConfiguration

    begin: Callable[..., Any] = AioSqliteConfiguration.begin_transaction

    @asynccontextmanager
    async def begin_transaction(
        self: AioSqliteConfiguration, session: "AsyncSession", with_for_update: bool = False
    ) -> "AsyncGenerator[AsyncSessionTransaction, None]":
        task = asyncio.current_task()
        nested = _WRITER.get() is task
        token = _WRITER.set(task)
        try:
            async with begin(
                self, session, with_for_update=with_for_update or not nested
            ) as transaction:
                yield transaction
        finally:
            _WRITER.reset(token)

    AioSqliteConfiguration.begin_transaction = begin_transaction  # type: ignore[method-assign]


def make_up_for_missed_runs_once() -> None:
    """Let a worker run what a schedule missed once, and not at all where it is switched off.

    While no worker listens, every time of a schedule leaves a run that waits. Prefect runs them all
    when a worker comes back, those of a schedule that was switched off meanwhile too.

    Waits for https://github.com/PrefectHQ/prefect/issues/15886 (only the newest of the late runs).
    """
    from prefect.workers.base import BaseWorker

    submit = BaseWorker._submit_scheduled_flow_runs

    async def _submit_scheduled_flow_runs(
        self: "BaseWorker[Any, Any, Any]", flow_run_response: "list[WorkerFlowRunResponse]"
    ) -> "list[FlowRun]":
        new = [
            entry.flow_run
            for entry in flow_run_response
            if entry.flow_run.auto_scheduled
            and entry.flow_run.id not in self._submitting_flow_run_ids
        ]
        dropped: set[UUID] = set()
        for deployment in {run.deployment_id for run in new if run.deployment_id}:
            dropped |= await _drop_missed(self.client, deployment, self._submitting_flow_run_ids)
        kept = [entry for entry in flow_run_response if entry.flow_run.id not in dropped]
        return await submit(self, kept)

    BaseWorker._submit_scheduled_flow_runs = _submit_scheduled_flow_runs  # type: ignore[method-assign]


async def _drop_missed(client: "PrefectClient", deployment: UUID, begun: set[UUID]) -> set[UUID]:
    """Cancel a deployment's missed runs but the newest of each schedule that is on.

    Args:
        client: of the worker.
        deployment: id.
        begun: runs that the worker is starting; they are left alone.

    Returns:
        Those that must not start.
    """
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Cancelled

    try:
        found = await client.read_deployment(deployment)
    except ObjectNotFound:
        return set()  # deleted meanwhile, and its runs with it
    active = {} if found.paused else {one.id: one.active for one in found.schedules}
    dropped: set[UUID] = set()
    newest: dict[UUID | None, FlowRun] = {}
    for run in await _missed(client, deployment):
        # A schedule without a slug is made anew with every deploy, and has another id then.
        known = run.created_by.id if run.created_by and run.created_by.id in active else None
        later = newest.setdefault(known, run)
        if not (active[known] if known else any(active.values())):
            why = "missed, and its schedule is switched off since"
        elif later is not run:
            when = f"{later.next_scheduled_start_time:%Y-%m-%d %H:%M %Z}"
            why = f"missed; the run of {when} replaces it"
        else:
            continue
        if run.id not in begun:
            await client.set_flow_run_state(run.id, Cancelled(name="Skipped", message=why))
            dropped.add(run.id)
    return dropped


async def _missed(client: "PrefectClient", deployment: UUID) -> "list[FlowRun]":
    """Return what a deployment's schedules made, is due and never began, the newest first."""
    from prefect.client.schemas import filters, sorting

    due = filters.FlowRunFilter(
        deployment_id=filters.FlowRunFilterDeploymentId(any_=[deployment]),
        state=filters.FlowRunFilterState(
            name=filters.FlowRunFilterStateName(any_=["Scheduled", "Late"])
        ),
        next_scheduled_start_time=filters.FlowRunFilterNextScheduledStartTime(
            before_=datetime.now(UTC)
        ),
    )
    order = sorting.FlowRunSort.EXPECTED_START_TIME_DESC
    found: list[FlowRun] = []
    while page := await client.read_flow_runs(
        flow_run_filter=due, sort=order, limit=PAGE, offset=len(found)
    ):
        found += page
    return [run for run in found if _is_left_to_its_schedule(run)]


def _is_left_to_its_schedule(run: "FlowRun") -> bool:
    """Return whether nobody has begun the run, nor asked for it at another time."""
    *_, day, time = (run.idempotency_key or "no time").split(" ")
    try:
        made_for = datetime.fromisoformat(f"{day} {time}")
    except ValueError:
        return False
    return run.auto_scheduled and run.run_count == 0 and run.next_scheduled_start_time == made_for


def report_a_death_once() -> None:
    """Let a process worker not say again, seconds later, that a run has crashed.

    What starts the process has said so at once. Somebody who retried the run in between would see
    the retry crash: the second report does not ask what has happened since.

    Of Prefect 3.9.1. https://github.com/PrefectHQ/prefect/pull/18453 would have asked whether the
    run is still running; it was closed without being merged, and no other thread was found.
    """
    from prefect.workers.process import ProcessWorker

    propose = ProcessWorker._propose_crashed_state

    async def _propose_crashed_state(
        self: ProcessWorker, flow_run: "FlowRun", message: str, **options: Any
    ) -> None:
        if not message.startswith(_SECOND_REPORT):
            await propose(self, flow_run, message, **options)

    ProcessWorker._propose_crashed_state = _propose_crashed_state  # type: ignore[method-assign, assignment]


def answer_own_pages_only() -> None:
    """Let a server that is started here refuse foreign names and pages.

    Only what comes from the network is looked at: the server asks itself by a name of its own.

    No thread asks for names or WebSockets; CORS has had settings since
    https://github.com/PrefectHQ/prefect/issues/15074, and they are used.
    """
    import uvicorn
    from prefect.cli import _server_utils
    from prefect.cli._utilities import exit_with_error

    module = vars(_server_utils)
    serve: Callable[..., None] = module["_run_in_foreground"]

    def run_in_foreground(*arguments: Any, **options: Any) -> None:
        given = signature(serve).bind(*arguments, **options).arguments
        if given["workers"] != 1:
            refuse_processes()
        try:
            closing, closed = close_prefect(given["port"])
        except ConfigError as error:
            exit_with_error(error, code=2)
        module["uvicorn"] = SimpleNamespace(
            run=lambda app, **others: uvicorn.run(closed(app), **others)
        )
        serve(**given | {"server_settings": given["server_settings"] | closing})

    def refuse_processes(*arguments: Any, **options: Any) -> None:
        exit_with_error(
            "prefect server start: --background and --workers start processes of their own, which "
            "foreign pages could reach; start one server, by `rlhf up` or a service manager",
            code=2,
        )

    module.update(_run_in_foreground=run_in_foreground, _run_in_background=refuse_processes)


def let_the_server_pause_automations() -> None:
    """Give the client by which Prefect's server pauses automations the token it asks for.

    With CSRF protection the server refuses its own action: this client alone is made without.

    Waits for a client like the one that https://github.com/PrefectHQ/prefect/pull/18157 made for
    https://github.com/PrefectHQ/prefect/issues/18045: that one cancels, this one pauses.
    """
    from prefect.server.events.clients import PrefectServerEventsAPIClient
    from prefect.settings import get_current_settings

    make = PrefectServerEventsAPIClient.__init__

    def __init__(
        self: PrefectServerEventsAPIClient, additional_headers: dict[str, str] | None = None
    ) -> None:
        make(self, additional_headers or {})
        closed = get_current_settings().server.api.csrf_protection_enabled
        self._http_client.enable_csrf_support = closed

    PrefectServerEventsAPIClient.__init__ = __init__  # type: ignore[method-assign]


def remember_events_of_before() -> None:
    """Let Prefect's server take events that it stored before it was started for seen.

    What it has seen it keeps in memory alone. After a restart the next event of a run follows one
    that nobody remembers, and is put aside for 15 minutes: automations miss that the run has ended
    or waits for a person, take it for dead and crash it, and notifications come late.

    Of Prefect 3.9.1; no thread was found.
    """
    import sqlalchemy as sa
    from prefect.server.database import provide_database_interface
    from prefect.server.events.ordering.memory import CausalOrdering

    started, has_seen = datetime.now(UTC), CausalOrdering.event_has_been_seen

    async def event_has_been_seen(self: CausalOrdering, event: "UUID | Event") -> bool:
        if await has_seen(self, event):
            return True
        database, number = provide_database_interface(), getattr(event, "id", event)
        stored = sa.select(database.Event.received).where(database.Event.id == number)
        async with database.session_context() as session:
            received = await session.scalar(stored)
        return received is not None and received < started

    CausalOrdering.event_has_been_seen = event_has_been_seen  # type: ignore[method-assign]


def keep_permissions() -> None:
    """Let what a worker's environment allows hold for its runs, whatever a run's variables say.

    A run form may set environment variables of the run's process; these are not among them.

    A rule of this product: Prefect means job variables to win, and no thread asks otherwise.
    """
    from prefect.workers.base import BaseJobConfiguration

    prepare = BaseJobConfiguration.prepare_for_flow_run

    def prepare_for_flow_run(
        self: BaseJobConfiguration, flow_run: "FlowRun", *others: Any, **options: Any
    ) -> None:
        prepare(self, flow_run, *others, **options)
        for name in (FUNCTIONS, MODEL_CODE):
            self.env.pop(name, None)

    BaseJobConfiguration.prepare_for_flow_run = prepare_for_flow_run  # type: ignore[method-assign]


def end_when_asked() -> None:
    """Let a worker that a script started in the background end by SIGTERM.

    It inherits from the shell that SIGINT is ignored, which is what Prefect turns a SIGTERM into.

    So since https://github.com/PrefectHQ/prefect/pull/9530. No thread reports it; it can go when
    workers start in the background by themselves
    (https://github.com/PrefectHQ/prefect/issues/12109).
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    """Do what ``prefect`` does with the same arguments, and with what the product relies on."""
    try:
        prepare_service()
    except RlhfError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from error
    if sys.argv[1:2] == ["server"]:
        answer_own_pages_only()
        lock_before_reading()
        let_the_server_pause_automations()
        remember_events_of_before()
    else:
        end_when_asked()
        make_up_for_missed_runs_once()
        report_a_death_once()
        keep_permissions()
    from prefect.cli import app

    app()


if __name__ == "__main__":
    main()
