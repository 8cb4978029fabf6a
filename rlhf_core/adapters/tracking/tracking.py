"""One MLflow run per stage, with its lineage in tags; a killed stage goes on in the same run."""

import json
import logging
import math
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.adapters.datasets.versioning import git_revision
from rlhf_core.adapters.settings import load_settings
from rlhf_core.adapters.tracking.earlier_run import go_on_or_begin
from rlhf_core.adapters.tracking.mlflow_client import (
    check_server,
    mlflow_client,
    registry_errors,
    with_retries,
)
from rlhf_core.adapters.tracking.stage_run import StageRun, run_url
from rlhf_core.config import GATED_STAGES, RESULT_NEUTRAL, PipelineConfig, config_digest
from rlhf_core.errors import RegistryError, StorageError
from rlhf_core.schema import DatasetSplits, ModelRef, RunContext, StageName

if TYPE_CHECKING:
    from mlflow.entities import Run

__all__ = ["StageRun", "check_server", "open_run", "run_url", "stage_inputs"]

logger = logging.getLogger(__name__)

PLACE = "checkpoints.place"
"""Tag of a stage's run: machine and folder that work on it."""


def stage_inputs(splits: DatasetSplits | None = None, **models: ModelRef) -> dict[str, str]:
    """What a stage was given, as tags: the dataset version and ``upstream.<role>`` models."""
    tags = {f"upstream.{role}": model.uri for role, model in models.items()}
    if splits is not None:
        tags |= {
            "dataset_sha256": splits.sha256,
            "dataset_dvc_md5": splits.dvc_md5,
            "dataset_path": str(splits.directory),
        }
        if splits.split:
            tags["dataset_split"] = splits.split
        if splits.git_revision:
            tags["dataset_git_revision"] = splits.git_revision
    return tags


@contextmanager
def open_run(
    config: PipelineConfig, context: RunContext, stage: StageName, *, inputs: Mapping[str, str]
) -> Iterator[StageRun]:
    """Open the stage's MLflow run, or go on with the one that a killed attempt had.

    A folder of the stage has one run. That of an attempt that was killed after the run had ended,
    before its result was written, is known by a note in the folder.

    The run carries every setting as a parameter and, as tags ``rlhf.*``, the stage, pipeline run,
    git commit, config sha256 and ``inputs`` (see ``stage_inputs``). It ends FINISHED, FAILED on
    an exception, KILLED on an interrupt; after SIGKILL it stays RUNNING until it is resumed.

    Raises:
        RegistryError: MLflow does not answer.
    """
    _wait_for_server(f"opening the {stage} run")
    tags = _lineage_tags(config, context, stage, inputs)
    folder = context.stage_directory(stage)
    opened, resumed = with_retries(
        f"opening the {stage} run", lambda: go_on_or_begin(config, folder, tags)
    )
    patience = load_settings().rlhf_tracking_patience
    lineage = {name: value for name, value in tags.items() if name.startswith("rlhf.")}
    run = StageRun(opened, lineage, resumed=resumed, patience=patience)
    _say_what_lies_elsewhere(opened, folder)
    try:
        run.log_tags({PLACE: _place(folder), **_processes(config, stage)})
        run.log_settings(config.model_dump(mode="json"))
        # A parameter is written once, and these may change when a run is resumed.
        run.log_params(_flatten(config.model_dump(mode="json", exclude=RESULT_NEUTRAL)))
        yield run
        run.flush()
    except KeyboardInterrupt:
        _terminate(run, "KILLED")
        raise
    except BaseException:
        _terminate(run, "FAILED")
        raise
    with_retries(
        f"closing the {stage} run",
        lambda: mlflow_client().set_terminated(run.run_id, "FINISHED"),
    )


def _processes(config: PipelineConfig, stage: StageName) -> dict[str, str]:
    """How many processes train the stage now: a tag, for they may change with the next attempt."""
    if stage not in GATED_STAGES:
        return {}
    settings = config.distributed_of(stage)
    return {
        "distributed.processes": str(settings.processes),
        "distributed.nnodes": str(settings.nnodes),
        "distributed.shard": settings.shard,
    }


@contextmanager
def rejoin_run(run_id: str, lineage: Mapping[str, str], *, resumed: bool) -> Iterator[StageRun]:
    """Give an open run to a process that the stage started; the stage itself ends the run.

    At the end of the block all that was logged is sent, also where an error ends it: the last steps
    say why a training diverged.
    """
    found = with_retries("rejoining the run", lambda: mlflow_client().get_run(run_id))
    patience = load_settings().rlhf_tracking_patience
    run = StageRun(found, lineage, resumed=resumed, patience=patience)
    try:
        yield run
        run.flush()
    except BaseException:
        with _hiding_no_error(run):
            run.send()
        raise


def _wait_for_server(what: str) -> None:
    """Wait for a server that is lost for a while; a database file is there or it is not."""
    if load_settings().embedded:
        check_server()
    else:
        with_retries(what, check_server)


def _place(folder: Path) -> str:
    return f"{socket.gethostname()}:{folder.absolute()}"


def _say_what_lies_elsewhere(opened: "Run", folder: Path) -> None:
    """Say why a stage that another machine has begun starts from the beginning here."""
    before = opened.data.tags.get(PLACE)
    if before in (None, _place(folder)) or load_settings().rlhf_share_checkpoints:
        return
    if not any((folder / "checkpoints").glob("step-*")):
        logger.warning(
            "starts_over: the checkpoints of this stage lie in %s and nowhere else; give the run "
            "back to that machine to go on from them, or set RLHF_SHARE_CHECKPOINTS=true on all "
            "machines to have them copied to MLflow",
            before,
        )


def keep_file(run_id: str, path: Path, folder: str = "") -> str | None:
    """Keep a file or folder with a run that has ended; return where a browser finds it.

    Returns:
        Address in the MLflow UI; None where MLflow is a local database that nobody serves.
    """
    client = mlflow_client()
    log = client.log_artifacts if path.is_dir() else client.log_artifact
    with_retries(f"storing {path.name}", lambda: log(run_id, str(path), folder or None))
    url, _ = look_up_run(run_id)
    inside = f"{folder}/{path.name}" if folder and path.is_file() else folder or path.name
    return f"{url}/artifacts/{inside}" if url.startswith("http") else None


def look_up_run(run_id: str) -> tuple[str, dict[str, float]]:
    """Return where a person looks at a run of which only the id is known, and its last metrics."""
    run = with_retries(f"finding run {run_id}", lambda: mlflow_client().get_run(run_id))
    metrics = {name: _unbounded(value) for name, value in run.data.metrics.items()}
    return run_url(run.info.experiment_id, run_id), metrics


def _unbounded(value: float) -> float:
    """Return infinity for what MLflow's databases keep in its place, the largest number."""
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else value


def _terminate(run: StageRun, status: str) -> None:
    """Mark a run that did not finish."""
    with _hiding_no_error(run):
        run.send()
        mlflow_client().set_terminated(run.run_id, status)


@contextmanager
def _hiding_no_error(run: StageRun) -> Iterator[None]:
    """Only log what MLflow refuses: what has ended the run is what is to be told."""
    try:
        with registry_errors(f"closing the {run.stage} run"):
            yield
    except (RegistryError, StorageError) as error:
        logger.warning("run_not_closed run_id=%s %s", run.run_id, error)


def _lineage_tags(
    config: PipelineConfig, context: RunContext, stage: StageName, inputs: Mapping[str, str]
) -> dict[str, str]:
    tags = {
        "rlhf.run_id": context.run_id,
        "rlhf.stage": stage,
        "rlhf.config_sha256": config_digest(config),
        **{f"rlhf.{name}": value for name, value in inputs.items()},
    }
    commit = git_revision(Path.cwd())
    if commit:
        tags["rlhf.git_commit"] = tags["mlflow.source.git.commit"] = commit
        tags["rlhf.git_dirty"] = _uncommitted_changes()
    if context.flow_run_id:
        tags["prefect.flow_run_id"] = context.flow_run_id
    return tags


def _uncommitted_changes() -> str:
    """``true`` where the commit does not tell the whole code: tracked files differ from it."""
    answer = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"],
        capture_output=True,
        text=True,
        check=False,
    )
    return str(bool(answer.stdout.strip())).lower()


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """``{"sft": {"num_epochs": 3}}`` to ``{"sft.num_epochs": 3}``; lists become JSON."""
    flat: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.dumps(value) if isinstance(value, list) else value
    return flat
