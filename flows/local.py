"""Flows in this process against Prefect's ephemeral server."""

from collections.abc import Iterator
from contextlib import contextmanager

from flows.temporary_server import end_with_this_process
from rlhf_core.adapters.settings import load_settings


@contextmanager
def in_this_process() -> Iterator[None]:
    """Run the block's flows without heartbeats unless a Prefect server is configured.

    The temporary server that Prefect starts then ends with this process, killed or not.
    Only a server that outlives the process can notice that heartbeats stop, and ending the
    heartbeat thread costs each flow a second.
    """
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    if load_settings().prefect_api_url:
        yield
        return
    end_with_this_process()
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield
