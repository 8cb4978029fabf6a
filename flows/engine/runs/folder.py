"""A run's folder: where it is, whether it may be used, and the settings that it was begun with.

What lies in a stage's folder below it is ``stage_folder``'s.
"""

import difflib
import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path

from rlhf_core.config import PipelineConfig, config_digest
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.schema import RunContext
from rlhf_core.storage.records import read_record, write_text

CONFIG = "config.json"
"""The settings; a folder that has them is a run."""
ROUNDS, ROUNDS_PICTURE = "rounds.json", "rounds.png"
"""In the folder of the first run of ``rlhf rounds``: how far they are, and their win rates."""
INPUTS, RESULT, CHECKPOINTS = "inputs.json", "result.json", "checkpoints"
"""In a stage's folder: digests of what it reads; what it returned; a folder of ``step-*``."""
MARK = ".deleting"
"""In the folder of a run while it is deleted: what a kill leaves of it is no run any more."""


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
        write_text(kept, text)
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
            "at MLFLOW_TRACKING_URI, or start a new run: rlhf run or rlhf sft without --run-id, "
            "another stage with --new-run; in a form, new_run"
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
