"""A run's folder: who may write to it, what it was started with, which stages are finished."""

import difflib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from rlhf_core.config import PipelineConfig, config_digest
from rlhf_core.errors import CheckpointError, ConfigError, DataError
from rlhf_core.schema import Record, RunContext, StageName
from rlhf_core.storage.locks import is_held, locked
from rlhf_core.storage.records import read_record
from rlhf_flows.engine.files import write_atomically

logger = logging.getLogger(__name__)

CONFIG = "config.json"
RESULT = "result.json"
ROUNDS, ROUNDS_PICTURE = "rounds.json", "rounds.png"
"""In the folder of the first run of ``rlhf rounds``: how far they are, and their win rates."""
CHECKPOINTS = "checkpoints"
"""Folder of a stage's folder, with ``step-*`` in it."""

CLEANING = ".cleaning.lock"
"""Lock of a run's folder that whoever deletes it holds."""
MARK = ".deleting"
"""In the folder of a run while it is deleted: what a kill leaves of it is no run any more."""
_IN_USE: set[Path] = set()
"""Locks by which this process keeps runs; the process's number is in the name."""

RecordType = TypeVar("RecordType", bound=Record)


def new_run_id() -> str:
    """Return a name that sorts by time and does not repeat."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def open_run(config: PipelineConfig, run: str | None) -> RunContext:
    """Start a run's folder, or come back to one started with the same settings.

    Raises:
        ConfigError: the run exists and was started with other settings; names the keys. Or its
            folder is somebody else's.
    """
    context = locate_run(run or new_run_id(), config.runs)
    kept, text = context.directory / CONFIG, config.model_dump_json(indent=2)
    if not kept.exists():
        _require_unused(context.directory)
        context.directory.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, text)
        return context
    _require_whole(context)
    if kept.read_bytes() != text.encode():
        require_same_settings(context, config)
    return context


def require_same_settings(context: RunContext, config: PipelineConfig) -> bool:
    """Refuse settings that are not those a run was begun with; return whether there is the run.

    Raises:
        ConfigError: they differ; names the keys. Or the folder is somebody else's, or damaged.
    """
    if not (context.directory / CONFIG).exists():
        _require_unused(context.directory)
        return False
    before = settings_of_run(context)
    if config_digest(before) != config_digest(config):
        changed = ", ".join(_differing_keys(before.model_dump(), config.model_dump()))
        raise ConfigError(
            f"run {context.run_id} was started with other settings (changed: {changed}); "
            "give the same ones, or start a new run"
        )
    return True


def _require_unused(directory: Path) -> None:
    """Refuse to make a run of a folder in which something lies that no run left there."""
    if not directory.is_dir():
        if directory.exists() or directory.is_symlink():
            raise ConfigError(f"{directory}: is a file; give the run another id")
        return
    foreign = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    if foreign:
        raise ConfigError(
            f"{directory}: no run, it holds {foreign[0]!r} and no {CONFIG}; give the run another id"
        )


def locate_run(run: str, runs: Path) -> RunContext:
    """Return where a run keeps its files, whether it exists or not.

    Args:
        run: id, a folder name under ``runs``; or the folder itself, as an absolute path.
        runs: folder of all runs.

    Raises:
        ConfigError: neither a plain name nor an absolute path.
    """
    path = Path(run)
    if path.is_absolute():
        return RunContext(run_id=path.name, directory=path)
    if path.name != run or run in {".", ".."}:
        raise ConfigError(f"run {run!r}: expected a plain name, or an absolute path")
    return RunContext(run_id=run, directory=(runs / run).absolute())


def require_run(context: RunContext) -> None:
    """Refuse a run that was never started.

    Raises:
        ConfigError: there is no such run.
    """
    if not (context.directory / CONFIG).exists():
        others = [path.parent.name for path in context.directory.parent.glob(f"*/{CONFIG}")]
        near = difflib.get_close_matches(context.run_id, sorted(others), n=1)
        meant = f"did you mean {near[0]}? If not, " if near else ""
        raise ConfigError(
            f"{context.directory}: no such run here, and MLflow has no record of it; {meant}look "
            "at MLFLOW_TRACKING_URI, or start a new run (rlhf run, rlhf sft, --new-run; in a form, "
            "new_run)"
        )
    _require_whole(context)


def _require_whole(context: RunContext) -> None:
    """Refuse what a deletion that was stopped has left: it would be deleted with what is new."""
    if (context.directory / MARK).exists():
        raise ConfigError(
            f"{context.directory}: a deletion of this run was stopped before its end, and files "
            "are gone; rlhf runs clean deletes the rest; start a new run"
        )


def settings_of_run(context: RunContext) -> PipelineConfig:
    """Return what a run was started with.

    Raises:
        ConfigError: there is no such run.
    """
    require_run(context)
    try:
        return read_record(context.directory / CONFIG, PipelineConfig)
    except DataError as error:
        raise ConfigError(
            f"{error}; the run's folder is damaged: bring the file back, or start a new run"
        ) from error


@contextmanager
def hold_stage(context: RunContext, stage: StageName) -> Iterator[None]:
    """Keep every other process out of the stage until the block ends or this process dies.

    Raises:
        CheckpointError: another process is working on the same stage of the same run.
    """
    busy = CheckpointError(
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


def saved_result(
    context: RunContext, stage: StageName, record: type[RecordType]
) -> RecordType | None:
    """Return the result of ``stage`` of this run, or None if it has not finished."""
    path = context.stage_directory(stage) / RESULT
    if not path.exists():
        return None
    try:
        return read_record(path, record)
    except DataError as error:
        raise CheckpointError(
            f"{error}; delete the folder {path.parent} to repeat the stage"
        ) from error


def run_once(
    context: RunContext,
    stage: StageName,
    inputs: Mapping[str, str],
    compute: Callable[[], RecordType],
    *,
    record: type[RecordType],
    reuse: bool = True,
) -> RecordType:
    """Return the stage's saved result if its inputs are the same, else compute and save it.

    The inputs are written before the work starts: a stage that was killed finds its own
    checkpoints again, and one whose inputs changed finds an empty folder, the old one moved away.

    Args:
        context: the run.
        stage: folder the stage works in.
        inputs: name to digest of everything upstream that the stage reads.
        compute: does the work.
        record: type of the result.
        reuse: False where the result is about the world outside, which may have changed since.

    Returns:
        What the stage returns.
    """
    directory = context.stage_directory(stage)
    stamp = directory / "inputs.json"
    key = json.dumps(dict(inputs), indent=2, sort_keys=True)
    with hold_stage(context, stage):
        _clear_leftovers(directory)
        if stamp.exists() and stamp.read_text(encoding="utf-8") != key:
            archive_stage(context, stage)
        elif reuse and stamp.exists() and (before := saved_result(context, stage, record)):
            logger.info("stage=%s reused run=%s", stage, context.run_id)
            return before
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(stamp, key)
        result = compute()
        write_atomically(directory / RESULT, result.model_dump_json(indent=2))
        return result


def _clear_leftovers(directory: Path) -> None:
    """Remove what killed attempts were writing or replacing.

    The lock on the stage says that nobody else is.
    """
    for path in (*directory.glob(".*.tmp"), *directory.glob(".*.old")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def discard_checkpoints(context: RunContext, stage: StageName) -> bool:
    """Delete the checkpoints of a finished stage: nothing goes on from them any more.

    Whether it is finished is looked up under the stage's lock; nothing but checkpoints goes.

    Returns:
        Whether the stage has none now.
    """
    directory = context.stage_directory(stage)
    if not directory.is_dir():
        return True
    try:
        with hold_stage(context, stage):
            if not (directory / RESULT).exists():
                return False
            found: list[Path] = []
            for folder in (directory / CHECKPOINTS / "kept", directory / CHECKPOINTS):
                own = sorted((*folder.glob("step-*"), *folder.glob(".step-*")))
                for path in own:
                    shutil.rmtree(path)
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
                found += own
    except (CheckpointError, OSError) as error:
        logger.warning("checkpoints_kept stage=%s run=%s: %s", stage, context.run_id, error)
        return False
    if found:
        logger.info("checkpoints_deleted stage=%s run=%s", stage, context.run_id)
    return True


def archive_stage(context: RunContext, stage: StageName) -> None:
    """Move a stage's folder out of the way, so that the stage starts from nothing; keep it."""
    directory = context.stage_directory(stage)
    if not directory.exists():
        return
    number = 1
    while (target := directory.with_name(f"{stage}.{number}")).exists():
        number += 1
    directory.rename(target)
    logger.info("stage=%s archived=%s", stage, target)


def discard_unstarted(context: RunContext) -> bool:
    """Remove a run's folder if no stage of it has finished or begun to train; say whether.

    A run refused because of its input leaves nothing behind.
    """
    stages = {path.name for path in context.directory.iterdir() if path.is_dir()}
    if stages - {"prepare"} or (context.stage_directory("prepare") / RESULT).exists():
        return False
    shutil.rmtree(context.directory)
    return True


def _differing_keys(before: object, after: object, prefix: str = "") -> list[str]:
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [prefix]
    return [
        key
        for name in sorted({*before, *after})
        for key in _differing_keys(
            before.get(name), after.get(name), f"{prefix}.{name}" if prefix else name
        )
    ]
