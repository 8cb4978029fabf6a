"""Prefect's command line, mended and closed: ``python -m flows.mended_prefect``.

Takes the arguments of ``prefect``; it matters for ``server start`` and ``worker start``.
"""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import lru_cache
from inspect import signature
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from flows.environment import close_prefect, prepare_service
from rlhf_core.config.permissions import FUNCTIONS, MODEL_CODE
from rlhf_core.errors import ConfigError, RlhfError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import WorkerFlowRunResponse
    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

_WRITER: ContextVar["asyncio.Task[Any] | None"] = ContextVar("writer", default=None)

_SECOND_REPORT = "Flow run infrastructure exited with non-zero status code"


def lock_before_reading() -> None:
    """Let every transaction of Prefect's server take SQLite's write lock when it begins.

    Prefect begins most of them DEFERRED. One that reads, is overtaken by another writer, and then
    writes itself fails at once with "database is locked": its snapshot is stale, and no time limit
    makes SQLite wait. The Late service, state changes and heartbeats all do so. With the lock taken
    first, writers queue up instead. A transaction inside another one of the same task is left as
    it is: it would wait for its own outer one.
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


def check_forms_once() -> None:
    """Let Prefect's server remember which schemas are valid ones, definition by definition.

    It checks a deployment's form twice when it is deployed and again with every run that is
    started. For the form of our settings that takes half a second each time, in which the server
    answers nobody. All forms have the same definitions.
    """
    from jsonschema import Draft202012Validator
    from prefect.utilities.schema_tools import validation

    for validator in (Draft202012Validator, validation._VALIDATOR):
        validator.check_schema = _remembering(validator.check_schema)


def _remembering(check: Callable[..., None]) -> Callable[..., None]:
    @lru_cache(maxsize=1024)
    def check_part(text: str) -> None:
        check(json.loads(text))

    def check_schema(schema: Any, **options: Any) -> None:
        if options or not isinstance(schema, dict):
            return check(schema, **options)
        definitions = schema.get("definitions")
        if not isinstance(definitions, dict):
            definitions = {}
        for part in (*definitions.values(), {**schema, "definitions": {}}):
            check_part(json.dumps(part, sort_keys=True))
        return None

    return check_schema


def leave_runs_that_have_not_ended() -> None:
    """Let a worker leave a run alone that still holds a place, until the place is free.

    A run that is retried or resumed while its last process is just ending is due again before its
    worker has let go of it. The worker then fails with "this borrower is already holding one of
    this CapacityLimiter's tokens", and takes all its other runs down with it.
    """
    from prefect.workers.base import BaseWorker

    submit = BaseWorker._submit_scheduled_flow_runs

    async def _submit_scheduled_flow_runs(
        self: "BaseWorker[Any, Any, Any]", flow_run_response: "list[WorkerFlowRunResponse]"
    ) -> "list[FlowRun]":
        held = set(self._limiter.statistics().borrowers) if self._limiter else set()
        due = [entry for entry in flow_run_response if entry.flow_run.id not in held]
        return await submit(self, due)

    BaseWorker._submit_scheduled_flow_runs = _submit_scheduled_flow_runs  # type: ignore[method-assign]


def report_a_death_once() -> None:
    """Let a process worker not say again, seconds later, that a run has crashed.

    What starts the process has said so at once. Somebody who retried the run in between would see
    the retry crash: the second report does not ask what has happened since.
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
            "foreign pages could reach; start one server, by `make up` or a service manager",
            code=2,
        )

    module.update(_run_in_foreground=run_in_foreground, _run_in_background=refuse_processes)


def let_the_server_pause_automations() -> None:
    """Give the client by which Prefect's server pauses automations the token it asks for.

    With CSRF protection the server refuses its own action: this client alone is made without.
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


def keep_permissions() -> None:
    """Let what a worker's environment allows hold for its runs, whatever a run's variables say.

    A run form may set environment variables of the run's process; these are not among them.
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
        check_forms_once()
        let_the_server_pause_automations()
    else:
        leave_runs_that_have_not_ended()
        report_a_death_once()
        keep_permissions()
    from prefect.cli import app

    app()


if __name__ == "__main__":
    main()
