"""Whether the configured Prefect server answers: asked before anything is made or trained."""

import logging
import time
from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

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
"""Answers of a server that is there and wants to know who asks."""
ENTRY = "set PREFECT_API_AUTH_STRING to the server's user:password"

FORBIDDEN = 403

logger = logging.getLogger(__name__)
_TOKENS: dict[str, dict[str, str]] = {}
"""By server, what proves to one with CSRF protection that no foreign page asks."""


def check_prefect(wait_seconds: float = FEW_SECONDS) -> None:
    """Make sure that the server of PREFECT_API_URL answers; without the variable, do nothing.

    Args:
        wait_seconds: how long to ask again before giving up.

    Raises:
        OrchestrationError: it did not answer in all that time, or does not let us in; names the
            address.
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
    try:
        ask(url, "work_pools/filter", {"limit": 1})
    except requests.RequestException as error:
        if refuses(error):
            raise OrchestrationError(f"Prefect at {where} does not let us in; {ENTRY}") from error


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


def refuses(error: requests.RequestException) -> bool:
    """Return whether the server is there and lets only those in whom it knows."""
    return error.response is not None and error.response.status_code in NO_ENTRY


def ask(url: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """Ask the API at ``url``, introduced as Prefect's own client is: GET, with a body POST.

    Raises:
        requests.RequestException: no answer, or none that could be used.
    """
    answer = _send(url, path, body)
    if answer.status_code == FORBIDDEN and "CSRF" in answer.text:
        _TOKENS[url] = _fetch_token(url)
        answer = _send(url, path, body)
    answer.raise_for_status()
    return answer.json()


def _send(url: str, path: str, body: Mapping[str, Any] | None) -> requests.Response:
    return requests.request(
        "GET" if body is None else "POST",
        f"{url.rstrip('/')}/{path}",
        json=body,
        headers=_introduction() | _TOKENS.get(url, {}),
        timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
    )


def _fetch_token(url: str) -> dict[str, str]:
    """Fetch what a POST has to bring where CSRF protection is on; it holds for an hour."""
    client = str(uuid4())
    answer = _send(url, f"csrf-token?client={client}", None)
    answer.raise_for_status()
    return {"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": answer.json()["token"]}


def _introduction() -> dict[str, str]:
    """Say who asks; a password comes before a key, as in Prefect's client."""
    settings = load_settings()
    headers = dict(settings.prefect_client_custom_headers)
    if login := settings.prefect_api_auth_string:
        coded = b64encode(login.get_secret_value().encode()).decode()
        headers["Authorization"] = f"Basic {coded}"
    elif key := settings.prefect_api_key:
        headers["Authorization"] = f"Bearer {key.get_secret_value()}"
    return headers
