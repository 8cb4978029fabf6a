"""Whether the configured Prefect server answers: asked before anything is made or trained.

Prefect's own client asks, so that passwords, headers, certificates and CSRF tokens are those of the
work that follows.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rlhf_core.adapters.retries import backoff, retry_while
from rlhf_core.adapters.settings import load_settings, without_credentials
from rlhf_core.errors import OrchestrationError

if TYPE_CHECKING:
    import httpx

ANSWER_SECONDS = 10.0
FEW_SECONDS = 3.0
"""How long a command waits for a server that is just restarting."""
START_SECONDS = 60.0
"""How long `rlhf deploy` waits for one that is just starting."""
PAUSE_SECONDS = 0.5
PAGE = 200
"""The most flow runs that Prefect's server tells of at once."""

logger = logging.getLogger(__name__)


class PrefectLostError(OrchestrationError):
    """Prefect did not answer this time, or with a fault of its own; a later attempt may succeed."""


def check_prefect(wait_seconds: float = FEW_SECONDS) -> None:
    """Make sure that the server of PREFECT_API_URL answers; without the variable, do nothing.

    Args:
        wait_seconds: how long to ask again before giving up.

    Raises:
        OrchestrationError: it did not answer in all that time, or does not let us in; names the
            address and the variable.
    """
    url = load_settings().prefect_api_url
    if url is None:
        return
    try:
        retry_while(
            lambda error: isinstance(error, PrefectLostError),
            lambda: ask(url, "work_pools/filter", {"limit": 1}),
            patience=wait_seconds,
            announce=lambda error, _: logger.info("prefect_unavailable problem=%r", str(error)),
            waits=backoff(PAUSE_SECONDS, PAUSE_SECONDS),
        )
    except PrefectLostError as error:
        raise OrchestrationError(
            f"{error}; start it (`rlhf up`), correct PREFECT_API_URL (it ends with /api), "
            "or unset it to run without a server"
        ) from error


def ask(url: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """Ask the API at ``url`` once, as Prefect's own client does: GET, with a body POST.

    Raises:
        PrefectLostError: no answer, or one of 500 and above.
        OrchestrationError: the server refuses, its certificate is not trusted, or it is no Prefect.
    """
    import httpx

    where = without_credentials(url)
    try:
        return _request(url, path, body).json()
    except httpx.HTTPError as error:
        raise explain(error, where) from error
    except (httpx.InvalidURL, ValueError) as error:
        raise OrchestrationError(
            f"Prefect at {where} cannot be asked ({type(error).__name__}); correct PREFECT_API_URL "
            "(it ends with /api)"
        ) from error


def every_flow_run(url: str, states: Iterable[str]) -> list[dict[str, Any]]:
    """Return all flow runs in one of these states (as ``RUNNING``), page after page.

    Raises:
        OrchestrationError: as ``ask``.
    """
    wanted = {"state": {"type": {"any_": list(states)}}}
    found: list[dict[str, Any]] = []
    while True:
        body = {"flow_runs": wanted, "limit": PAGE, "offset": len(found)}
        page = ask(url, "flow_runs/filter", body)
        found += page
        if len(page) < PAGE:
            return found


def _request(url: str, path: str, body: Mapping[str, Any] | None) -> "httpx.Response":
    from prefect import settings as names
    from prefect.client.orchestration import get_client

    ours = load_settings()
    known = {
        names.PREFECT_API_URL: url,
        # Repeating is the caller's decision.
        names.PREFECT_CLIENT_MAX_RETRIES: 0,
        names.PREFECT_API_AUTH_STRING: ours.prefect_api_auth_string,
        names.PREFECT_API_KEY: ours.prefect_api_key,
        names.PREFECT_API_SSL_CERT_FILE: ours.prefect_api_ssl_cert_file,
    }
    given = {name: value for name, value in known.items() if value is not None}
    with (
        names.temporary_settings(given),
        get_client(sync_client=True, httpx_settings={"timeout": ANSWER_SECONDS}) as client,
    ):
        method: Any = "GET" if body is None else "POST"
        address: Any = f"/{path}"
        return client.request(method, address, json=body)


def explain(error: "httpx.HTTPError", where: str) -> OrchestrationError:
    """Say in one line what an error of Prefect's client means: who was refused, or what failed.

    Args:
        error: what Prefect's client raised.
        where: address, without credentials.

    Returns:
        A ``PrefectLostError`` where a later attempt may succeed.
    """
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return _explain_answer(error, where)
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return OrchestrationError(
            f"Prefect at {where} shows a certificate that is not trusted ({error}); set "
            "PREFECT_API_SSL_CERT_FILE to the file of your certificate authority"
        )
    if isinstance(error, httpx.TimeoutException):
        return PrefectLostError(f"Prefect at {where} did not answer in time")
    return PrefectLostError(f"Prefect at {where} cannot be reached ({error or type(error)})")


def _explain_answer(error: "httpx.HTTPStatusError", where: str) -> OrchestrationError:
    status = error.response.status_code
    if status in (401, 403):
        login = load_settings().prefect_api_auth_string
        user = login.get_secret_value().partition(":")[0] if login else ""
        who = f"user {user!r}" if user else "a client without a password"
        said = f": {' '.join(error.response.text.split())[:100]}" if status == 403 else ""
        return OrchestrationError(
            f"Prefect at {where} does not let {who} in ({status}{said}); set "
            "PREFECT_API_AUTH_STRING to the server's user:password"
        )
    answers = f"Prefect at {where} answers {status} to {error.request.url.path}"
    if status >= 500 or status in (408, 429):
        return PrefectLostError(answers)
    return OrchestrationError(f"{answers}; correct PREFECT_API_URL (it ends with /api)")
