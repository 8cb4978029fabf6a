"""Flows in this process against a server of its own."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rlhf_core.adapters.settings import load_settings
from rlhf_flows.servers.temporary_server import temporary_server

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 10.0
_HAS_SERVER = ContextVar("has_server", default=False)
"""Whether a block around this one has started a server."""


@contextmanager
def in_this_process() -> Iterator[None]:
    """Run the block's flows against a server that ends with it, unless there is one already.

    There are no heartbeats then: only a server that outlives the process can notice that they
    stop, and ending the heartbeat thread costs each flow a second.
    """
    if load_settings().prefect_api_url or _HAS_SERVER.get():
        yield
        return
    logger.info("starting Prefect's temporary server, which ends with this command")
    with temporary_server() as server:
        from prefect.settings import (
            PREFECT_API_URL,
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
            temporary_settings,
        )

        import rlhf_flows.pipeline  # noqa: F401 - takes seconds, in which the server starts

        with temporary_settings(
            {PREFECT_API_URL: server.wait(), PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
        ):
            served = _HAS_SERVER.set(True)
            try:
                yield
            finally:
                _HAS_SERVER.reset(served)
                _send_what_is_left()


def _send_what_is_left() -> None:
    """Give the server the last logs and events: at the end of the process it is gone."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=FLUSH_SECONDS)
