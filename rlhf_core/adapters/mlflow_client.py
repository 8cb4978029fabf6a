"""How the project talks to MLflow: one client, one kind of error, one place that retries."""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import requests

from rlhf_core.adapters.settings import (
    Settings,
    load_settings,
    quiet_environment,
    without_credentials,
)
from rlhf_core.errors import RegistryError

if TYPE_CHECKING:
    from mlflow import MlflowClient

Result = TypeVar("Result")

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 5.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0

logger = logging.getLogger(__name__)


class LostServerError(RegistryError):
    """MLflow did not answer this time; a later attempt may succeed."""


def mlflow_client() -> "MlflowClient":
    """Return the client of the tracking server and registry that the environment names.

    Raises:
        RegistryError: the address or database cannot be used.
    """
    return _client(load_settings().mlflow_tracking_uri)


@lru_cache(maxsize=8)
def _client(uri: str) -> "MlflowClient":
    quiet_environment()
    from mlflow import MlflowClient

    for noisy in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with registry_errors(f"MLflow at {without_credentials(uri)}"):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def registry_errors(what: str) -> Iterator[None]:
    """Turn what MLflow raises into one line: ``LostServerError`` if a retry may help."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        kind = LostServerError if _is_transient(error) else RegistryError
        raise kind(f"{what}: {_first_line(error)}") from error
    except requests.RequestException as error:
        raise LostServerError(f"{what}: {_first_line(error)}") from error


def _is_transient(error: Exception) -> bool:
    code = str(getattr(error, "error_code", ""))
    return code in {"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"} or any(
        sign in str(error)
        for sign in ("API request to", "Connection", "Timed out", "database is locked")
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return without_credentials(lines[0])[:300]


def patiently(what: str, call: Callable[[], Result], *, patience: float | None = None) -> Result:
    """Run ``call`` until it succeeds, pausing ever longer while the server is lost.

    Args:
        what: beginning of the error message, e.g. ``registering rlhf-sft``.
        call: must be safe to repeat.
        patience: seconds after the first failure to give up; None takes the setting.

    Raises:
        RegistryError: the server refused, or stayed lost for longer than ``patience``.
    """
    limit = load_settings().rlhf_tracking_patience if patience is None else patience
    started, pause = time.monotonic(), FIRST_PAUSE_SECONDS
    while True:
        try:
            with registry_errors(what):
                return call()
        except LostServerError as error:
            if time.monotonic() - started + pause > limit:
                raise RegistryError(f"{error}; gave up after {limit:.0f} s") from error
            logger.warning("mlflow_lost what=%r retry_in_seconds=%.1f", what, pause)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


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
        _check_database(Path(uri.removeprefix("sqlite:///")))


def _check_health(uri: str) -> None:
    advice = "start it (`make up`), or unset MLFLOW_TRACKING_URI to use a local file"
    where = without_credentials(uri)
    try:
        answer = requests.get(
            f"{uri.rstrip('/')}/health", timeout=(CONNECT_SECONDS, ANSWER_SECONDS)
        )
    except requests.ConnectionError as error:
        raise RegistryError(f"MLflow at {where} cannot be reached; {advice}") from error
    except requests.Timeout as error:
        raise RegistryError(
            f"MLflow at {where} did not answer within {ANSWER_SECONDS:.0f} s; {advice}"
        ) from error
    except requests.RequestException as error:
        raise RegistryError(f"MLFLOW_TRACKING_URI={where}: {_first_line(error)}") from error
    if not answer.ok:
        raise RegistryError(
            f"MLflow at {where} answers {answer.status_code} to /health, expected 200; {advice}"
        )


def _check_database(path: Path) -> None:
    if not path.parent.is_dir():
        raise RegistryError(f"MLFLOW_TRACKING_URI: folder {path.parent} does not exist")
    try:
        connection = sqlite3.connect(path, timeout=CONNECT_SECONDS)
        try:
            connection.execute("PRAGMA schema_version").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise RegistryError(f"MLFLOW_TRACKING_URI: {path}: {error}") from error
