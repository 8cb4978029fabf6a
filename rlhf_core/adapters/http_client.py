"""JSON over HTTP to those who label, judge, score or sample: asked again while busy or lost."""

import logging
import random
import re
import threading
from collections.abc import Generator, Mapping
from contextlib import suppress
from typing import Any

import httpx
from pydantic import SecretStr
from tenacity import RetryCallState

from rlhf_core.adapters.retries import backoff, error_of, retry_while
from rlhf_core.adapters.retry_headers import BUSY, asked_to_wait
from rlhf_core.adapters.settings import without_credentials
from rlhf_core.errors import ConfigError, LabelError, QuestionRefusedError

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
_TOO_LARGE, _FAILED = 413, 500
_UNFIT = (400, 413, 422)
"""Answers that may be about what was sent, and not about who sends."""
_TOO_LONG = re.compile(
    r"context[ _](?:length|window|size)|maximum (?:input|prompt|sequence|model) length"
    r"|too (?:long|large)|must (?:be|have) .*tokens|content[ _](?:filter|management)",
    re.IGNORECASE,
)
_ACCOUNT = re.compile(r"budget|quota|credit|billing|balance|rate.?limit|payment", re.IGNORECASE)
_NO_SYSTEM = re.compile(
    r"system role|role\W{1,3}system|system (?:message|prompt)s? (?:is|are|not)"
    r"|roles must alternate",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"api[ _-]?key|authenti|authori[sz]|\bauth\b|credential|forbidden|access denied|permission"
    r"|bearer|(?:invalid|expired|missing|no) token|token (?:is )?(?:invalid|expired|missing)"
    r"|user not found|no[ _]connected[ _]db|no_db_connection",
    re.IGNORECASE,
)
"""What refusals of a key say, whatever their status. litellm looks for a key that is not its own in
a database, and where it has none it says so, with status 400."""
_EXCERPT = 200


class SystemRoleRefusedError(LabelError):
    """The model's template knows no system role."""


class _PassingError(LabelError):
    """What a later attempt may not meet."""

    def __init__(self, problem: str, answer: httpx.Response | None) -> None:
        super().__init__(problem)
        self.asked_to_wait = 0.0 if answer is None else asked_to_wait(answer)
        self.status = None if answer is None else answer.status_code


class FixedKey(httpx.Auth):
    """A key that is sent as it is."""

    def __init__(self, scheme: str, key: str) -> None:
        self._value = f"{scheme} {key}"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Put the key on the request."""
        request.headers["Authorization"] = self._value
        yield request


def readable_key(variable: str, key: SecretStr) -> str:
    """Return a key without the line break that a file of secrets often ends with.

    Raises:
        ConfigError: no header can hold it. The error of the client would show it.
    """
    text = key.get_secret_value().strip()
    if not (text.isascii() and text.isprintable()):
        raise ConfigError(f"{variable}: expected one line of ASCII; set the key again")
    return text


class JsonClient:
    """One server, with its credentials; may be used from several threads."""

    def __init__(
        self,
        url: str,
        *,
        auth: httpx.Auth | None,
        variable: str | None,
        timeout: float,
        patience: float,
    ) -> None:
        """Connect to nothing yet.

        Args:
            url: address that paths are appended to.
            auth: who asks; None where no key is set.
            variable: of the environment that the key is read from, for messages; None where the
                server is never sent one.
            timeout: seconds one answer is waited for.
            patience: seconds after the first failure of a request to give up.
        """
        self.url = url.rstrip("/")
        self.place = without_credentials(self.url)
        self._client = httpx.Client(auth=auth, timeout=timeout)
        self._variable, self._has_key = variable, auth is not None
        self._patience = patience
        self._stopped = threading.Event()

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        repeat: bool = True,
    ) -> Any:
        """Send a request and return the JSON of its answer.

        Args:
            method: of HTTP.
            path: below the server's address; empty for the address itself.
            json: body.
            params: what follows the question mark.
            repeat: False for what would be done twice if only its answer was lost.

        Raises:
            QuestionRefusedError: this one request is refused.
            LabelError: the server refuses, stays busy or lost, or answers with something else.
        """

        def attempt() -> Any:
            if self._stopped.is_set():
                raise LabelError(f"{self.place}: not asked any more; repeat the command to go on")
            answer, problem = self._try(method, path, json, params)
            if answer is not None and not _may_pass(answer):
                return self._content(answer)
            # What is too many was not done; whether what was lost was, nobody knows.
            if repeat or (answer is not None and answer.status_code == BUSY):
                raise _PassingError(problem, answer)
            raise _answered(
                answer,
                LabelError(f"{self.place}: {problem}; repeat the command to go on from here"),
            )

        try:
            return retry_while(
                lambda error: isinstance(error, _PassingError),
                attempt,
                patience=self._patience,
                announce=self._announce,
                waits=_waits,
                sleep=self._stopped.wait,
            )
        except _PassingError as error:
            lost = LabelError(
                f"{self.place}: {error} (patience_seconds {self._patience:g}); repeat the command"
                " to go on from here"
            )
            lost.status = error.status
            raise lost from error

    def _announce(self, _: BaseException, wait: float) -> None:
        logger.warning("endpoint_unavailable where=%s retry_in_seconds=%.1f", self.place, wait)

    def stop(self) -> None:
        """Let requests that wait for another attempt end at once."""
        self._stopped.set()

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def __enter__(self) -> "JsonClient":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _try(
        self, method: str, path: str, json: Any, params: Mapping[str, Any] | None
    ) -> tuple[httpx.Response | None, str]:
        """Return the answer, if there is one, and what to say if it is the last."""
        below = f"/{path}" if path else ""
        try:
            answer = self._client.request(method, self.url + below, json=json, params=params)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise LabelError(f"{self.place}: not an address: {error}") from error
        except httpx.HTTPError as error:
            return None, f"{type(error).__name__}: {without_credentials(str(error))}"
        advice = "" if answer.is_success else self.advice(answer.status_code, answer.text)
        said = f"{below or 'it'} answers {answer.status_code}: {_excerpt(answer)}{advice}"
        return answer, said

    def advice(self, code: Any, said: str) -> str:
        """Return what to do about a refusal that is about the key; empty for any other.

        Args:
            code: the status, or the code inside of an error that came with another status.
            said: the error as it came.
        """
        worded = _DENIED.search(said) and not _ACCOUNT.search(said)
        denied = worded or str(code) in ("401", "403")
        if self._variable is None:
            return ""
        if self._has_key:
            return f"; check the key in {self._variable}" if denied else ""
        # A proxy that wants a key and gets none may fail without a word.
        return f"; no key was sent: set {self._variable}" if denied or code == _FAILED else ""

    def _content(self, answer: httpx.Response) -> Any:
        path = answer.request.url.path
        if not answer.is_success:  # nor a redirect: a POST would not survive it
            said = _excerpt(answer)
            kind = refusal_of(said) if answer.status_code in _UNFIT else LabelError
            if kind is LabelError and _NO_SYSTEM.search(answer.text):
                kind = SystemRoleRefusedError
            if answer.status_code == _TOO_LARGE:
                kind = QuestionRefusedError
            advice = self.advice(answer.status_code, answer.text) if kind is LabelError else ""
            raise _answered(
                answer, kind(f"{self.place}: {path} answers {answer.status_code}: {said}{advice}")
            )
        try:
            return answer.json() if answer.content else None
        except ValueError as error:
            unreadable = LabelError(
                f"{self.place}: {path} answers no JSON: {_excerpt(answer)}; is this the address of"
                " the API?"
            )
            raise _answered(answer, unreadable) from error


def _answered(answer: httpx.Response | None, error: LabelError) -> LabelError:
    """Return the error with the status of the answer that it is about."""
    error.status = None if answer is None else answer.status_code
    return error


def _waits(state: RetryCallState) -> float:
    """Back off exponentially with jitter, and at least as long as the server asks."""
    error = error_of(state)
    asked = error.asked_to_wait if isinstance(error, _PassingError) else 0.0
    pause = backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)(state)
    return max(pause * random.uniform(0.5, 1.0), asked)


def refusal_of(said: str) -> type[LabelError]:
    """Return whose fault a refusal is, by its words: only a question too long or unfit is its own.

    Budgets, permissions and settings come with the same statuses as a question that is too long
    (litellm says 422 when a budget is used up); no pair may be lost to them.
    """
    if _TOO_LONG.search(said) and not _ACCOUNT.search(said):
        return QuestionRefusedError
    return SystemRoleRefusedError if _NO_SYSTEM.search(said) else LabelError


def _may_pass(answer: httpx.Response) -> bool:
    """Say whether the same request may succeed later, be the trouble in a status or in a 200."""
    if answer.is_success:
        return _passing_code(answer)
    # Some servers answer 500 where a template raises.
    lasting = _NO_SYSTEM.search(answer.text)
    return answer.status_code == BUSY or (answer.is_server_error and not lasting)


def _passing_code(answer: httpx.Response) -> bool:
    """Whether a 200 holds an error with a code of those that pass, as gateways send them on."""
    with suppress(ValueError):
        content = answer.json()
        error = content.get("error") if isinstance(content, dict) else None
        code = str(error.get("code")) if isinstance(error, dict) else ""
        return code == str(BUSY) or (len(code) == 3 and code.isdigit() and code[0] == "5")
    return False


def _excerpt(answer: httpx.Response) -> str:
    """Return what an answer says, the part meant for people where it has one."""
    text = answer.text
    with suppress(ValueError):
        content = answer.json()
        if isinstance(content, dict):
            said = [
                error_text(content[key])
                for key in ("detail", "error", "validation_errors")
                if content.get(key)
            ]
            text = "; ".join(said) or text
    return " ".join(text.split())[:_EXCERPT] or "nothing"


def error_text(error: Any) -> str:
    """Return what an error says to people: its message, where it has one."""
    return str((isinstance(error, dict) and error.get("message")) or error)
