"""The one logging configuration: a line per event, values as ``key=value``, on stderr."""

import logging
import logging.config

from rlhf_core.schema.shown import shown

FLOW_LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")


class FailureIsReportedOnce(logging.Filter):
    """Drop Prefect's own report of a failed run: the command line says it, in one place."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False for errors logged by Prefect's run engine."""
        return not (record.levelno >= logging.ERROR and record.name.startswith(FLOW_LOGGERS))


class ShowingFormatter(logging.Formatter):
    """Lines whose control characters are written out: what is logged may hold text from data."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line; a message of several lines stays one, so that none can be made up."""
        return shown(super().formatMessage(record), keep="\t").replace("\\x0a", "\\n")


def configure_logging(level: str) -> None:
    """Send the project's events of ``level`` and above to stderr, and warnings of libraries.

    Prefect finds a configured root logger when it is imported, leaves it alone, and adds the
    handler that carries the same lines to its server.
    """
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "line": {
                    "()": ShowingFormatter,
                    "fmt": "%(asctime)s %(levelname)-7s %(name)s %(message)s",
                    "datefmt": "%Y-%m-%d %H:%M:%S%z",
                }
            },
            "filters": {"once": {"()": FailureIsReportedOnce}},
            "handlers": {
                "terminal": {
                    "class": "logging.StreamHandler",
                    "formatter": "line",
                    "filters": ["once"],
                }
            },
            "root": {"level": "WARNING", "handlers": ["terminal"]},
            "loggers": {name: {"level": level.upper()} for name in ("rlhf_core", "rlhf_flows")}
            | {"huggingface_hub": {"propagate": False}},  # prints its lines itself
        }
    )
