"""What must stand in the environment before Prefect or MLflow is imported.

Both libraries read their settings once, at import, so this runs first in every entry point. Values
that the person has set are never overwritten.
"""

import os
from pathlib import Path

import rlhf_flows
from rlhf_core.adapters.settings import set_environment_defaults
from rlhf_core.errors import ConfigError
from rlhf_core.storage.records import keep_private

PREFECT_DEFAULTS = {
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "rlhf_core,rlhf_flows",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_CLI_PROMPT": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""Training logs go to Prefect as well; the libraries' own chatter does not reach the terminal."""

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
