"""A Prefect server that is lost: what the work needs is repeated, the rest costs a warning."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx

from rlhf_core.adapters.retries import retry_while
from rlhf_core.adapters.settings import load_settings, without_credentials
from rlhf_core.errors import OrchestrationError
from rlhf_flows.engine.prefect_server import PrefectLostError, explain

Result = TypeVar("Result")

PATIENCE_SECONDS = 240.0
"""About as long as a client that was once connected repeats a call; see
``environment.CLIENT_RETRIES``."""

logger = logging.getLogger(__name__)


@contextmanager
def best_effort(event: str) -> Iterator[None]:
    """Do the block as far as it goes; whatever the lost server did to it is logged and forgotten.

    Args:
        event: what was not done, as the line says it: ``progress_not_shown``, or
            ``event_not_sent event=rlhf.promoted``.
    """
    try:
        yield
    except Exception as error:  # the server's own faults have many types; none may stop the work
        logger.warning("%s error=%s: %s", event, type(error).__name__, error)


def until_prefect_answers(what: str, call: Callable[[], Result]) -> Result:
    """Run ``call`` until the server answers, with exponential backoff, for about four minutes.

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

    def announce(error: BaseException, pause: float) -> None:
        name = type(error).__name__
        logger.warning("prefect_lost what=%s error=%s retry_in_seconds=%.1f", what, name, pause)

    try:
        return retry_while(_is_lost, call, patience=PATIENCE_SECONDS, announce=announce)
    except httpx.HTTPError as error:
        if _is_lost(error) or _is_wrong(error):
            raise
        raise _explained(error) from error


def _is_wrong(error: httpx.HTTPError) -> bool:
    """Whether the server refuses what is asked, and not who asks."""
    if not isinstance(error, httpx.HTTPStatusError):
        return False
    return error.response.status_code not in (401, 403)


def _is_lost(error: BaseException) -> bool:
    return isinstance(error, httpx.HTTPError) and isinstance(_explained(error), PrefectLostError)


def _explained(error: httpx.HTTPError) -> OrchestrationError:
    where = without_credentials(load_settings().prefect_api_url or "its server")
    return explain(error, where)
