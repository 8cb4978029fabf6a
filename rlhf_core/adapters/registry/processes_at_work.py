"""Processes that are moving aliases: how they name themselves, and whether they still are there."""

import os
import socket
from datetime import UTC, datetime, timedelta

import psutil

SILENCE = timedelta(minutes=10)
"""A process of another machine that has been moving aliases for so long is taken for dead."""
_UNSURE_SECONDS = 2.0
"""Whole seconds are what a machine tells of its start, rounded now one way, now the other."""


def this_process() -> str:
    """Return this process as ``host:pid:began|time``."""
    began = began_after_start(psutil.Process())
    return f"{socket.gethostname()}:{os.getpid()}:{began:.2f}|{datetime.now(UTC).isoformat()}"


def began_after_start(process: psutil.Process) -> float:
    """Return how many seconds after the machine's start a process began.

    By the calendar it seems to have begun later where the machine was paused meanwhile or its clock
    was set forward, and another time a second earlier or later.
    """
    return float(process.create_time() - psutil.boot_time())


def is_as_begun(process: psutil.Process, began: float) -> bool:
    """Return whether a process is the one that began so long after the machine's start."""
    return abs(began_after_start(process) - began) < _UNSURE_SECONDS


def is_gone(who: str) -> bool:
    """Return whether a process that is moving aliases has ended, or been silent for too long."""
    process, _, said = who.partition("|")
    host, _, rest = process.partition(":")
    number, _, began = rest.partition(":")
    if host != socket.gethostname():
        return datetime.now(UTC) - datetime.fromisoformat(said) > SILENCE
    try:
        return not is_as_begun(psutil.Process(int(number)), float(began))
    except psutil.NoSuchProcess:
        return True
