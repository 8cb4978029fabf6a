"""What must stand in the environment before Prefect or MLflow is imported.

Both libraries read their settings once, at import, so this runs first in every entry point. Values
that the person has set are never overwritten.
"""

import os
from pathlib import Path

from rlhf_core.adapters.settings import quiet_environment
from rlhf_core.errors import ConfigError

CALM = {
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "rlhf_core,flows",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_CLI_PROMPT": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""Training logs go to Prefect as well; the libraries' own chatter does not reach the terminal."""

STATE = Path(".rlhf")
"""Everything the project keeps for itself on this machine, in the working directory."""


def prepare_environment() -> None:
    """Fill in what is unset: no telemetry, Prefect's database in the working directory.

    Raises:
        ConfigError: Prefect's folder cannot be made.
    """
    quiet_environment()
    for name, value in CALM.items():
        os.environ.setdefault(name, value)
    home = Path(os.environ.setdefault("PREFECT_HOME", str((STATE / "prefect").absolute())))
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{home}: Prefect's folder cannot be made ({error.strerror}); "
            "change to a writable directory or set PREFECT_HOME"
        ) from error
