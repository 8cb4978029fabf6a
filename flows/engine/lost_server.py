"""A Prefect server that is lost: what the work needs is repeated, the rest costs a warning."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx

from rlhf_core.adapters.settings import load_settings, without_credentials
from rlhf_flows.servers.prefect_server import PrefectLostError, explain

Result = TypeVar("Result")

PATIENCE_SECONDS = 240.0
"""About as long as a client that was once connected repeats a call; see
``environment.CLIENT_RETRIES``."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0

logger = logging.getLogger(__name__)


@contextmanager
def at_the_cost_of_a_warning(event: str) -> Iterator[None]:
    """Do the block as far as it goes; whatever the lost server did to it is logged and forgotten.

    Args:
        event: what was not done, as the line says it: ``progress_not_shown``, or
            ``event_not_sent event=rlhf.promoted``.
    """
    try:
        yield
    except Exception as error:  # the server's own faults have many types; none may stop the work
        logger.warning("%s error=%s: %s", event, type(error).__name__, error)


def patiently(what: str, call: Callable[[], Result]) -> Result:
    """Run ``call`` until the server answers, pausing ever longer, for about four minutes.

    Prefect's client repeats a refused connection only after its first success, so that a new one
    fails at once where an older one would outlive a restart of the server. An answer of 500 and
    above, which a server gives whose database is gone, is waited for alike.

    Args:
        what: said in the log line, e.g. ``reading_answers``.
        call: opens a client of its own, and must be safe to repeat.

    Raises:
        OrchestrationError: the server refuses.
        httpx.HTTPError: it stayed lost, or answered nothing but 500 and above.
    """
    started, pause = time.monotonic(), FIRST_PAUSE_SECONDS
    while True:
        try:
            return call()
        except httpx.HTTPError as error:
            _raise_what_stays(error)
            if time.monotonic() - started + pause > PATIENCE_SECONDS:
                raise
            logger.warning(
                "prefect_lost what=%s error=%s retry_in_seconds=%.1f",
                what,
                type(error).__name__,
                pause,
            )
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _raise_what_stays(error: httpx.HTTPError) -> None:
    """Raise what waiting does not fix: a refusal in one line, a wrong request as it is."""
    explained = explain(error, without_credentials(load_settings().prefect_api_url or "its server"))
    if isinstance(explained, PrefectLostError):
        return
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code not in (401, 403):
        raise error
    raise explained from error
