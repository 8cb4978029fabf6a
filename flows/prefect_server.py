"""Whether the configured Prefect server answers: asked before anything is made or trained."""

import logging
import time

import requests

from rlhf_core.adapters.settings import load_settings, without_credentials
from rlhf_core.errors import OrchestrationError

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 10.0
FEW_SECONDS = 3.0
"""How long a command waits for a server that is just restarting."""
START_SECONDS = 60.0
"""How long `rlhf deploy` waits for one that is just starting."""
PAUSE_SECONDS = 0.5
NO_ENTRY = (401, 403)
"""Answers of a server that is there and wants to know who asks; Prefect's client tells it."""

logger = logging.getLogger(__name__)


def check_prefect(wait_seconds: float = FEW_SECONDS) -> None:
    """Make sure that the server of PREFECT_API_URL answers; without the variable, do nothing.

    Args:
        wait_seconds: how long to ask again before giving up.

    Raises:
        OrchestrationError: it did not answer in all that time; names the address.
    """
    url = load_settings().prefect_api_url
    if url is None:
        return
    deadline, where = time.monotonic() + wait_seconds, without_credentials(url)
    while problem := problem_of(url):
        if time.monotonic() + PAUSE_SECONDS > deadline:
            raise OrchestrationError(
                f"Prefect at {where} {problem}; start it (`make up`), correct PREFECT_API_URL (it "
                "ends with /api), or unset it to run without a server"
            )
        logger.info("prefect_not_yet url=%s problem=%r", where, problem)
        time.sleep(PAUSE_SECONDS)


def problem_of(url: str) -> str | None:
    """Ask the server at ``url`` once; None means that it is there."""
    try:
        answer = requests.get(
            f"{url.rstrip('/')}/health", timeout=(CONNECT_SECONDS, ANSWER_SECONDS)
        )
    except requests.ConnectionError:
        return "cannot be reached"
    except requests.Timeout:
        return f"did not answer within {ANSWER_SECONDS:.0f} s"
    except requests.RequestException as error:
        return f"cannot be asked ({type(error).__name__})"
    if answer.ok or answer.status_code in NO_ENTRY:
        return None
    return f"answers {answer.status_code} to /health, expected 200"
