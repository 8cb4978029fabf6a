"""Processes that are moving aliases: how they name themselves, and whether they still are there."""

import os
import socket
from datetime import UTC, datetime, timedelta

import psutil

SILENCE = timedelta(minutes=10)
"""A process of another machine that has been moving aliases for so long is taken for dead."""


def this_process() -> str:
    """Return this process as ``host:pid:began|time``."""
    began = int(psutil.Process().create_time())
    return f"{socket.gethostname()}:{os.getpid()}:{began}|{datetime.now(UTC).isoformat()}"


def is_gone(who: str) -> bool:
    """Return whether a process that is moving aliases has ended, or been silent for too long."""
    process, _, said = who.partition("|")
    host, _, rest = process.partition(":")
    number, _, began = rest.partition(":")
    if host != socket.gethostname():
        return datetime.now(UTC) - datetime.fromisoformat(said) > SILENCE
    try:
        return int(psutil.Process(int(number)).create_time()) != int(began)
    except psutil.NoSuchProcess:
        return True
