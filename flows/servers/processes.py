"""Processes and how they end: identified for certain, ended with all they started."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

from rlhf_core.adapters.registry.processes_at_work import began_after_start, is_as_begun
from rlhf_core.schema import Record

STOP_SECONDS = 30.0
KEPT_IN = "RLHF_KEPT_IN"
"""Variable that servers, workers and all they start carry: the folder they were started for."""

_BECOME_PARENT_OF_ORPHANS = 36
"""PR_SET_CHILD_SUBREAPER of Linux."""


class Process(Record):
    """One process, distinguished from a later one with the same number by its start."""

    pid: int
    started: float
    """By the calendar, as it was then: it moves where the machine is paused or its clock is set."""
    began: float | None = None
    """Seconds after the machine's start, which stand still; earlier builds did not say them."""

    @classmethod
    def of(cls, pid: int) -> "Process":
        """Describe a living process."""
        found = psutil.Process(pid)
        return cls(pid=pid, started=found.create_time(), began=began_after_start(found))

    def find(self) -> psutil.Process | None:
        """Return the process if it is still the same one and alive."""
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.started) < 1.0 or self._is_as_begun(found)
            return found if same and found.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    def _is_as_begun(self, found: psutil.Process) -> bool:
        """Whether it is the same by the machine's start, and what `rlhf up` starts.

        After another start of the machine a stranger may have begun as soon, with the same number.
        """
        if self.began is None or not is_as_begun(found, self.began):
            return False
        try:
            return KEPT_IN in found.environ()
        except psutil.AccessDenied:
            return False


def end_tree(process: Process) -> bool:
    """End a process and all it started: asked first, killed after a while."""
    root = process.find()
    if root is None:
        return False
    try:
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return False
    end_all(family)
    return True


def end_all(processes: Iterable[psutil.Process]) -> None:
    """Ask processes to end, and kill after a while those that did not."""
    members = list(processes)
    for member in members:
        _signal(member, signal.SIGTERM)
    _, alive = psutil.wait_procs(members, timeout=STOP_SECONDS / 2)
    for member in alive:
        _signal(member, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=5)


def kept_in(folder: str) -> list[psutil.Process]:
    """Return every process that was started for ``folder``, whoever its parent is by now.

    A flow whose worker and supervisor were killed belongs to nobody; its environment still tells.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(KEPT_IN) == folder and process.pid != os.getpid():
                found.append(process)
        except (psutil.Error, OSError):
            continue  # another user's process, or one that has just ended
    return found


def left_by(leader: int, folder: str) -> list[psutil.Process]:
    """Return what a process that was started for ``folder`` in a session of its own has left."""
    found = []
    for process in kept_in(folder):
        with suppress(OSError):  # it has just ended
            if os.getsid(process.pid) == leader:
                found.append(process)
    return found


def become_subreaper() -> None:
    """Become the parent of every descendant whose own parent dies; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_BECOME_PARENT_OF_ORPHANS, 1, 0, 0, 0)


def reap_zombies(own: Iterable[int]) -> None:
    """Take note of the death of adopted processes, so that they do not stay as zombies.

    Args:
        own: children that somebody else waits for.
    """
    waited_for = set(own)
    for child in psutil.Process().children():
        try:
            if child.pid not in waited_for and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)
        except (psutil.NoSuchProcess, ChildProcessError):
            continue


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


class StopAskedError(Exception):
    """Somebody sent SIGTERM or SIGINT."""


class StopSignals:
    """SIGTERM and SIGINT as ``StopAskedError``, but never in the middle of ``undisturbed``."""

    def __init__(self) -> None:
        self._disturbable = True
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._heard)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if self._disturbable:
            raise StopAskedError(number)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Finish the block first; a stop that was asked for meanwhile is raised after it."""
        self._disturbable = False
        try:
            yield
        finally:
            self._disturbable = True
        if self._asked:
            raise StopAskedError

    def ignore(self) -> None:
        """Hear nothing from now on."""
        self._disturbable = False
