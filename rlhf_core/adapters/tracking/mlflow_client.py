"""How the project talks to MLflow: one client, one kind of error, one place that retries."""

import logging
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import requests

from rlhf_core.adapters.retries import retry_while
from rlhf_core.adapters.settings import (
    Settings,
    load_settings,
    mlflow_address,
    set_environment_defaults,
    without_credentials,
)
from rlhf_core.adapters.tracking.store_errors import explain_store_error
from rlhf_core.errors import RegistryError, RlhfError
from rlhf_core.storage.full_disk import refused_write, storage_error
from rlhf_core.storage.locks import locked
from rlhf_core.storage.records import keep_private

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.entities.paged_list import PagedList

Result = TypeVar("Result")

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 5.0

_FILE = "sqlite:///"
_RACES = (
    "Giving up after",
    "UNIQUE constraint failed",
    "UniqueViolation",
    "expected to delete",
    "expected to update",
)
"""What MLflow says where two write the same version, alias or tag at once: one of them repeats."""

logger = logging.getLogger(__name__)


class LostServerError(RegistryError):
    """MLflow did not answer this time; a later attempt may succeed."""


def mlflow_client() -> "MlflowClient":
    """Return the client of the tracking server and registry that the environment names.

    Raises:
        RegistryError: the address or database cannot be used.
    """
    return _client(load_settings().mlflow_tracking_uri)


def has_store() -> bool:
    """Return whether there is anything to ask: a server, or the file of an embedded database.

    To look into a database that is not there would make it.
    """
    uri = load_settings().mlflow_tracking_uri
    return not uri.startswith(_FILE) or Path(uri.removeprefix(_FILE)).exists()


@lru_cache(maxsize=8)
def _client(uri: str) -> "MlflowClient":
    set_environment_defaults()
    from mlflow import MlflowClient

    if uri.startswith("sqlite:///"):
        _keep_private(Path(uri.removeprefix("sqlite:///")))
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Of a statement that fails it logs the traceback, and raises what registry_errors explains.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    with registry_errors(f"MLflow at {without_credentials(uri)}"), _one_at_a_time(uri):
        client = _without_prompts(MlflowClient)(tracking_uri=uri, registry_uri=uri)
        if uri.startswith(_FILE):
            client.search_experiments(max_results=1)  # makes the tables, or brings them up to date
        return client


def _without_prompts(kind: "type[MlflowClient]") -> "type[MlflowClient]":
    """Return a client that takes its registered models for models.

    MLflow's own asks the server at every write, and at every look at a version, whether the name
    is that of a prompt, which makes two requests of each. No public thread asks for another way.
    """

    class ModelClient(kind):  # type: ignore[valid-type, misc]
        def _raise_if_prompt(self, name: str) -> None:
            pass

    return ModelClient


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Let one process make the tables of a database file; the others wait for it.

    MLflow's migrations do not exclude each other: of several commands that are the first in a
    folder all but one would end in "duplicate column name".
    """
    if not uri.startswith(_FILE):
        yield
        return
    path = Path(uri.removeprefix(_FILE))
    with locked(path.with_name(f".{path.name}.lock")):
        yield


def create_unless_there(create: Callable[[], object]) -> None:
    """Create something by name; that another process did so at the same moment is as good."""
    from mlflow.exceptions import MlflowException

    try:
        create()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def ensure_registered_model(
    name: str, tags: dict[str, str] | None = None, description: str | None = None
) -> None:
    """Make a registered model, unless it is there."""
    client = mlflow_client()
    if not client.search_registered_models(f"name = '{name}'"):
        create_unless_there(lambda: client.create_registered_model(name, tags, description))


@contextmanager
def registry_errors(what: str) -> Iterator[None]:
    """Turn what MLflow or its artifact store raises into one line.

    Raises:
        LostServerError: nobody answered, or with a fault of the server's own; a retry may help.
        RegistryError: we were refused, or something is missing; the line says what to set. Or the
            disk of a server is full.
        StorageError: a disk of this machine is full; names the file.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except RlhfError:
        raise
    except MlflowException as error:
        full = _explain_full(what, error)
        raise full or _explain(what, error, error.get_http_status_code()) from error
    except requests.RequestException as error:
        status = error.response.status_code if error.response is not None else None
        raise _explain_full(what, error) or _explain(what, error, status) from error
    except Exception as error:
        if local := storage_error(error, load_settings().mlflow_places):
            raise local from error
        explained = explain_store_error(what, error)
        if explained is None:
            raise
        lost, line = explained
        raise (LostServerError if lost else RegistryError)(line) from error


def _explain_full(what: str, error: Exception) -> RlhfError | None:
    """Return the error to raise where MLflow's own disk is full: waiting does not fix that."""
    settings, refusal = load_settings(), refused_write(error)
    if refusal is None:
        return None
    if settings.embedded:
        return storage_error(error, settings.mlflow_places)
    return RegistryError(
        f"{what}: MLflow at {without_credentials(settings.mlflow_tracking_uri)} cannot write:"
        f" {refusal.strerror}; free space on its disk, or that of its database, then repeat the"
        " command"
    )


def _explain(what: str, error: Exception, status: int | None) -> RegistryError:
    """Return the error to raise: what waiting does not fix names the variable instead."""
    text, where = _first_line(error), mlflow_address()
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return RegistryError(
            f"{what}: MLflow at {where} shows a certificate that is not trusted; set "
            "MLFLOW_TRACKING_SERVER_CERT_PATH to the file of your certificate authority"
        )
    if status == 401:
        return RegistryError(
            f"{what}: MLflow at {where} does not let {_who()} in (401); set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if status == 403:
        said = str(error).rpartition("Response body: ")[2].strip("'\" \n")[:100]
        return RegistryError(
            f"{what}: MLflow at {where} refuses {_who()} (403: {said}); have its administrator "
            "give that user the permission EDIT or more, or name another one in "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    lost = _is_transient(error, status)
    return (LostServerError if lost else RegistryError)(f"{what}: {text}")


def signs_in() -> bool:
    """Return whether MLflow's client says to the server who it is, and so has rights there.

    By its settings, by a plug-in's header, or as requests does: from the address or ``.netrc``.
    """
    from mlflow.tracking.request_header.registry import resolve_request_headers
    from mlflow.utils.credentials import get_default_host_creds
    from requests.utils import get_auth_from_url, get_netrc_auth

    uri = load_settings().mlflow_tracking_uri
    sent = get_default_host_creds(uri)
    if any((sent.username, sent.token, sent.auth, sent.aws_sigv4, sent.client_cert_path)):
        return True
    if not uri.startswith(("http://", "https://")):
        return False
    named = any(get_auth_from_url(uri)) or get_netrc_auth(uri) is not None
    return named or "Authorization" in resolve_request_headers()


def _who() -> str:
    """Name who asks, as MLflow's client says it to the server."""
    from mlflow.utils.credentials import read_mlflow_creds

    name = read_mlflow_creds().username
    return f"user {name!r}" if name else "a client without a user name"


def _is_transient(error: Exception, status: int | None) -> bool:
    """Return whether the server was not reached, or failed by itself."""
    from mlflow.exceptions import RestException

    text = str(error)
    if any(race in text for race in _RACES):
        return True
    if "error code" in text and "API request to endpoint" in text and status is not None:
        return _may_pass(status)
    if isinstance(error, (RestException, requests.HTTPError)):
        return status is not None and _may_pass(status)
    if isinstance(error, requests.RequestException):
        return True
    signs = ("API request to", "Connection", "Timed out", "database is locked")
    return status in (429, 503) or any(sign in text for sign in signs)


def _may_pass(status: int) -> bool:
    return status >= 500 or status in (408, 429)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return without_credentials(lines[0])[:400]


def with_retries(what: str, call: Callable[[], Result], *, patience: float | None = None) -> Result:
    """Run ``call`` until it succeeds, with exponential backoff while the server is lost.

    Args:
        what: beginning of the error message, e.g. ``registering rlhf-sft``.
        call: must be safe to repeat.
        patience: seconds after the first failure to give up; None takes the setting.

    Raises:
        RegistryError: the server refused, or stayed lost for longer than ``patience``.
    """
    limit = load_settings().rlhf_tracking_patience if patience is None else patience

    def attempt() -> Result:
        with registry_errors(what):
            return call()

    def announce(_: BaseException, pause: float) -> None:
        logger.warning("mlflow_lost what=%r retry_in_seconds=%.1f", what, pause)

    try:
        return retry_while(_is_lost, attempt, patience=limit, announce=announce)
    except LostServerError as error:
        waited = f"; gave up after {limit:.0f} s" if limit else ""
        raise RegistryError(f"{error}{waited}") from error


def every_page(what: str, search: Callable[..., "PagedList[Result]"]) -> Iterator[Result]:
    """Yield what a search of MLflow finds, page after page.

    Args:
        what: beginning of the error message, as of ``with_retries``.
        search: takes ``page_token``.

    Raises:
        RegistryError: as ``with_retries``.
    """
    token: str | None = None
    while True:
        page = with_retries(what, partial(search, page_token=token))
        yield from page
        token = page.token
        if not token:
            return


def _is_lost(error: BaseException) -> bool:
    return isinstance(error, LostServerError)


def check_server(settings: Settings | None = None) -> None:
    """Make sure, within ten seconds, that MLflow can be used.

    Raises:
        RegistryError: no server answers at the address, or the database file cannot be opened.
    """
    settings = settings or load_settings()
    uri = settings.mlflow_tracking_uri
    if uri.startswith(("http://", "https://")):
        _check_health(uri)
    elif settings.embedded:
        _check_database(Path(uri.removeprefix(_FILE)))


def _check_health(uri: str) -> None:
    """Ask the server as MLflow's own client does, with its certificates and credentials."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    advice = "start it (`rlhf up`), or unset MLFLOW_TRACKING_URI to use a local file"
    where = without_credentials(uri)
    try:
        with registry_errors("asking for its health"):
            answer = http_request(
                get_default_host_creds(uri),
                "/health",
                "GET",
                timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
                max_retries=0,
                raise_on_status=False,
            )
    except LostServerError as error:
        raise LostServerError(
            f"MLflow at {where} cannot be reached ({_cause(error)}); {advice}"
        ) from error
    if not answer.ok:
        kind = LostServerError if _may_pass(answer.status_code) else RegistryError
        raise kind(
            f"MLflow at {where} answers {answer.status_code} to /health, expected 200; {advice}"
        )


def _cause(error: Exception) -> str:
    """Say in a word why nobody answered; what urllib3 says of it is long and names objects."""
    text = str(error)
    found = re.search(r"\[Errno -?\d+\] ([^'\")(]+)", text) or re.search(
        r"(timed out|refused|timeout)", text
    )
    return found[1].strip() if found else text.rpartition("exception ")[2][:100]


def _keep_private(database: Path) -> None:
    """Settings, texts of runs and addresses are in it; SQLite makes its other files alike."""
    try:
        keep_private(database)
    except OSError as error:
        raise RegistryError(f"MLFLOW_TRACKING_URI: {database}: {error.strerror}") from error


def _check_database(path: Path) -> None:
    if not path.parent.is_dir():
        raise RegistryError(f"MLFLOW_TRACKING_URI: folder {path.parent} does not exist")
    _keep_private(path)
    try:
        connection = sqlite3.connect(path, timeout=CONNECT_SECONDS)
        try:
            connection.execute("PRAGMA schema_version").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise RegistryError(f"MLFLOW_TRACKING_URI: {path}: {error}") from error
