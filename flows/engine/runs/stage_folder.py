"""A stage's folder in a run's: made from which inputs, its result, its checkpoints, done once."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from rlhf_core.errors import CheckpointError, DataError
from rlhf_core.schema import Record, RunContext, StageName
from rlhf_core.storage.records import read_record, write_text
from rlhf_flows.engine.runs.folder import CHECKPOINTS, INPUTS, RESULT
from rlhf_flows.engine.runs.locks import hold_stage

logger = logging.getLogger(__name__)

RecordType = TypeVar("RecordType", bound=Record)


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


def is_made_from(context: RunContext, stage: StageName, inputs: Mapping[str, str]) -> bool:
    """Return whether a stage that has begun did so with these inputs; a damaged note says others.

    Args:
        context: the run.
        stage: folder the stage works in.
        inputs: name to digest of everything upstream that the stage reads.
    """
    path = context.stage_directory(stage) / INPUTS
    return path.is_file() and path.read_bytes() == _as_noted(inputs).encode()


def _as_noted(inputs: Mapping[str, str]) -> str:
    return json.dumps(dict(inputs), indent=2, sort_keys=True)


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
    stamp = directory / INPUTS
    with hold_stage(context, stage):
        _clear_leftovers(directory)
        same = is_made_from(context, stage, inputs)
        if stamp.exists() and not same:
            archive_stage(context, stage)
        elif reuse and same and (before := saved_result(context, stage, record)):
            logger.info("stage=%s reused run=%s", stage, context.run_id)
            return before
        directory.mkdir(parents=True, exist_ok=True)
        write_text(stamp, _as_noted(inputs))
        result = compute()
        write_text(directory / RESULT, result.model_dump_json(indent=2))
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
