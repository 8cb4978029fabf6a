"""Who works on a run: a stage is held by one process, a run is kept from deletion while in use."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rlhf_core.config.stages import STAGES
from rlhf_core.errors import BusyError, CheckpointError
from rlhf_core.schema import RunContext, StageName
from rlhf_core.storage.locks import is_held, locked
from rlhf_flows.engine.runs.folder import CONFIG

CLEANING = ".cleaning.lock"
"""Lock of a run's folder that whoever deletes it holds."""
_IN_USE: set[Path] = set()
"""Locks by which this process keeps runs; the process's number is in the name."""


@contextmanager
def hold_stage(context: RunContext, stage: StageName) -> Iterator[None]:
    """Keep every other process out of the stage until the block ends or this process dies.

    Raises:
        BusyError: another process is working on the same stage of the same run.
    """
    busy = BusyError(
        f"stage {stage} of run {context.run_id} is being worked on by another process; "
        "wait for it or stop it"
    )
    with locked(context.directory / f".{stage}.lock", busy=busy):
        yield


@contextmanager
def in_use(context: RunContext) -> Iterator[None]:
    """Keep the run from being cleaned away until the block ends or this process dies.

    Every process has a lock of its own, and looks for the other side's once it holds it: so does
    whoever deletes, and never both go on. A process may ask again for a run that it keeps.

    Raises:
        CheckpointError: it is being cleaned away now.
    """
    path = context.directory / f".in-use-{os.getpid()}.lock"
    if path in _IN_USE:
        yield
        return
    with locked(path):
        _IN_USE.add(path)
        try:
            if is_held(context.directory / CLEANING):
                raise CheckpointError(f"run {context.run_id} is being deleted; start a new one")
            if not (context.directory / CONFIG).exists():
                raise CheckpointError(f"run {context.run_id} was deleted; start a new one")
            yield
        finally:
            _IN_USE.discard(path)
            path.unlink(missing_ok=True)


def is_worked_on(context: RunContext) -> bool:
    """Return whether a process of this machine works on the run or on a stage of it."""
    found = context.directory.glob(".*.lock")
    return any(is_held(path) for path in found if path.name != CLEANING)


@contextmanager
def hold_run(context: RunContext) -> Iterator[None]:
    """Keep every process out of a run and of each of its stages, for as long as the block lasts.

    Raises:
        CheckpointError: a process works on the run, or it is gone.
    """
    directory = context.directory
    busy = BusyError("a process is working on it")
    if not directory.is_dir():
        raise CheckpointError("it is gone")
    with ExitStack() as locks:
        locks.enter_context(locked(directory / CLEANING, busy=busy))
        if is_worked_on(context):
            raise busy
        for stage in STAGES:
            locks.enter_context(locked(directory / f".{stage}.lock", busy=busy))
        yield
