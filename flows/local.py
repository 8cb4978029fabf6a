"""Flows in this process against a server of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

from flows.temporary_server import temporary_server
from rlhf_core.adapters.settings import load_settings


@contextmanager
def in_this_process() -> Iterator[None]:
    """Run the block's flows against a server that ends with it, unless one is configured.

    There are no heartbeats then: only a server that outlives the process can notice that they
    stop, and ending the heartbeat thread costs each flow a second.
    """
    if load_settings().prefect_api_url:
        yield
        return
    with temporary_server() as server:
        from prefect.settings import (
            PREFECT_API_URL,
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
            temporary_settings,
        )

        import flows.pipeline  # noqa: F401 - takes seconds, in which the server starts

        with temporary_settings(
            {PREFECT_API_URL: server.wait(), PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
        ):
            yield
