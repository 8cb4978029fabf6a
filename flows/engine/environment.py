"""What must stand in the environment before Prefect or MLflow is imported.

Both libraries read their settings once, at import, so this runs first in every entry point. Values
that the person has set are never overwritten.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import rlhf_flows
from rlhf_core.adapters.settings import set_environment_defaults
from rlhf_core.errors import ConfigError
from rlhf_core.storage.records import keep_private
from rlhf_flows.servers.own_pages import HOSTS, App, OwnPages, host_names

PREFECT_DEFAULTS = {
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "rlhf_core,rlhf_flows",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_CLI_PROMPT": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""Training logs go to Prefect as well; the libraries' own chatter does not reach the terminal."""

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
CSRF = ("PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED", "PREFECT_SERVER_CSRF_PROTECTION_ENABLED")
PAGES = ("PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS")
"""Both names that Prefect gives each setting; it reads the first before the second."""
ADDRESSES = ("PREFECT_API_URL", "PREFECT_UI_API_URL")

HEARTBEAT_SECONDS = 30
"""How often a run says that it lives."""
SILENT_SECONDS = 3 * HEARTBEAT_SECONDS
"""A run that sends no heartbeat for so long is taken for dead."""
SILENT_RUNS = "rlhf: silent runs are crashed"
"""The automation that does so."""
CLIENT_RETRIES = 7
"""How often a worker or flow repeats a call to a lost Prefect server: about four minutes."""
HEARTBEAT_VARIABLE = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"

RELIED_ON = {
    HEARTBEAT_VARIABLE: str(HEARTBEAT_SECONDS),
    "PREFECT_CLIENT_MAX_RETRIES": str(CLIENT_RETRIES),
    # What a server answers whose database is just restarting; 502 and 503 are repeated anyway.
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500,504",
}
"""What commands, workers and every deployed flow run with, whoever starts them."""

LOGGING = Path(rlhf_flows.__file__).with_name("logging.yml")
"""How servers, workers and the flows they run write their lines."""
STATE = Path(".rlhf")
"""Everything the project keeps for itself on this machine, in the working directory."""


def prepare_environment() -> None:
    """Fill in what is unset: no telemetry, Prefect's database in the working directory.

    Raises:
        ConfigError: Prefect's folder cannot be made, or live runs would be taken for dead.
    """
    set_environment_defaults()
    rely_on()
    for name, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    home = Path(os.environ.setdefault("PREFECT_HOME", str((STATE / "prefect").absolute())))
    try:
        keep_private(STATE, folder=True)
        keep_private(home, folder=True)
    except OSError as error:
        raise ConfigError(
            f"{home}: Prefect's folder cannot be made ({error.strerror}); "
            "change to a writable directory or set PREFECT_HOME"
        ) from error


def prefect_home() -> Path:
    """Return the folder in which Prefect keeps what it knows on this machine."""
    return Path(os.environ.get("PREFECT_HOME") or STATE / "prefect")


def close_prefect(port: int) -> tuple[dict[str, str], Callable[[App], OwnPages]]:
    """Close the Prefect server that this process is about to start to foreign pages and names.

    It is called by this machine's loopback, the hosts of its addresses in the environment, and what
    ``RLHF_PREFECT_HOSTS`` lists. Variables that the person has set keep their value.

    Args:
        port: of the server.

    Returns:
        Prefect's settings, which stand in the environment too, and what wraps its application.

    Raises:
        ConfigError: a list would let every page in, or is none.
    """
    named = [[name for name in names if name in os.environ] or names[1:] for names in (CSRF, PAGES)]
    (csrf, *_), (pages, *_) = named
    os.environ.setdefault(csrf, "true")
    own = [f"http://{host}:{port}" for host in LOOPBACK]
    own += [f"{scheme}://{host}" for scheme, host in _addresses()]
    origins = os.environ.setdefault(pages, ",".join(dict.fromkeys(own)))
    if "*" in origins:
        raise ConfigError(
            f"{pages}: '*' would let every page of a browser start runs; list the addresses of "
            "the pages that may, e.g. https://prefect.example.org, or unset it"
        )
    try:
        names = host_names(os.environ.get(HOSTS, ""))
    except ValueError as error:
        raise ConfigError(f"{HOSTS}: {error}") from error
    hosts = {*LOOPBACK, *names, *(host for _, host in _addresses())}
    settings = {name: os.environ[name] for name in (csrf, pages)}
    return settings, lambda app: OwnPages(app, hosts, [page.strip() for page in origins.split(",")])


def _addresses() -> Iterator[tuple[str, str]]:
    """Yield scheme and ``host[:port]`` of the server's addresses, without user and password."""
    for name in ADDRESSES:
        parts = urlsplit(os.environ.get(name, ""))
        if parts.scheme in ("http", "https") and parts.hostname:
            yield parts.scheme, parts.netloc.rpartition("@")[2].lower()


WORKER_FOLDER = "RLHF_WORKER_FOLDER"
"""Variable that a worker hands to its flows: where it was started."""


def worker_folder() -> Path:
    """Return the folder in which a run works: its worker's, else that of the clone."""
    given = os.environ.get(WORKER_FOLDER)
    clone = Path(rlhf_flows.__file__).parent.parent
    if given:
        return Path(given)
    return clone if (clone / "prefect.yaml").is_file() else Path.cwd()


def prepare_service() -> None:
    """Fill in what is unset for a server or worker, and for the flows it runs.

    Raises:
        ConfigError: a value would have live runs taken for dead.
    """
    set_environment_defaults()
    rely_on()
    os.environ.setdefault("PREFECT_LOGGING_SETTINGS_PATH", str(LOGGING))
    os.environ[WORKER_FOLDER] = str(Path.cwd())


def rely_on() -> None:
    """Fill in what the product relies on.

    Raises:
        ConfigError: heartbeats would come so seldom that live runs are taken for dead.
    """
    for name, value in RELIED_ON.items():
        if not os.environ.get(name):
            os.environ[name] = value
    found = os.environ[HEARTBEAT_VARIABLE]
    if not (found.isdigit() and 0 < 2 * int(found) <= SILENT_SECONDS):
        raise ConfigError(
            f"{HEARTBEAT_VARIABLE}={found}: a run without a heartbeat for {SILENT_SECONDS} s is "
            f"taken for dead; unset it, or set {HEARTBEAT_SECONDS} or less"
        )
