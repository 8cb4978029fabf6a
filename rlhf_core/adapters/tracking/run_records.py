"""Results of the stages of a run, kept with MLflow: another machine fetches them.

Only records and reports travel so. Models go by the registry, datasets by their versions or from
the raw data of each clone, checkpoints as ``checkpoint_copies`` says.
"""

import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.adapters.settings import load_settings
from rlhf_core.adapters.tracking.earlier_run import experiment_id
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client, with_retries
from rlhf_core.config import PipelineConfig
from rlhf_core.schema import RunContext, StageName
from rlhf_core.storage.records import atomic_file

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

NOTE = "record.json"
"""File of a stage's folder that says which edition of its record this is, and whose paths."""
CONFIG, RESULT = "config.json", "result.json"
STAGE = "record"
"""Value of the tag ``rlhf.stage`` of the MLflow run that holds the records of a run."""
_OWN = ("checkpoints", "model")
"""What stays on the machine that made it."""


def keep_record(config: PipelineConfig, context: RunContext, stage: StageName) -> None:
    """Keep the result of a stage with MLflow, as the next edition of its record.

    With MLflow embedded nobody else could read it, and nothing is done.

    Raises:
        RegistryError: MLflow refuses, or stays lost.
    """
    folder = context.stage_directory(stage)
    note, result = folder / NOTE, folder / RESULT
    if note.exists() and note.stat().st_mtime_ns >= result.stat().st_mtime_ns:
        return
    _keep(config, context, stage, lambda target: _copy_records(folder, target))


def keep_absence(config: PipelineConfig, context: RunContext, stage: StageName) -> None:
    """Keep that a stage is to be done again: its earlier record no longer counts anywhere."""
    _keep(config, context, stage, lambda target: None)


def fetch_records(project: str | None, context: RunContext) -> list[str]:
    """Fetch the records of stages that another machine has done, or done again, since.

    Args:
        project: name of the experiment; None looks into all.
        context: the run.

    Returns:
        Stages that somebody has asked to be done again: what lies here of them no longer counts.

    Raises:
        RegistryError: MLflow refuses, or stays lost.
    """
    if load_settings().embedded:
        return []
    what = f"records of run {context.run_id}"
    run = with_retries(f"finding {what}", lambda: _record_run(project, context))
    if run is None:
        return []
    stages = with_retries(f"listing {what}", lambda: _kept_stages(run))
    with tempfile.TemporaryDirectory() as folder:
        withdrawn = [name for name in stages if _fetch_record(run, context, name, Path(folder))]
        target = context.directory / CONFIG
        if not target.exists():
            kept = _fetch(run, CONFIG, Path(folder))
            context.directory.mkdir(parents=True, exist_ok=True)
            _write(target, kept.read_bytes())
    return withdrawn


def is_recorded(context: RunContext) -> bool:
    """Return whether MLflow has records of a run, which a stage would bring here; look only.

    Raises:
        RegistryError: MLflow refuses, or stays lost.
    """
    if load_settings().embedded:
        return False
    what = f"looking for records of run {context.run_id}"
    return with_retries(what, lambda: _record_run(None, context)) is not None


def _keep(config: PipelineConfig, context: RunContext, stage: StageName, fill: Any) -> None:
    if load_settings().embedded:
        return
    what = f"keeping the record of {stage}"
    run = with_retries(
        what, lambda: _record_run(config.project, context) or _begin(config, context)
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        edition = with_retries(what, lambda: _edition_kept(run, stage, folder)) + 1
        target = folder / "new" / stage
        target.mkdir(parents=True)
        fill(target)
        done = any(target.iterdir())
        note = {"edition": edition, "home": str(Path.cwd()), "done": done}
        files = target.parent / "files"
        target.rename(files)
        if done:
            with_retries(
                what, lambda: mlflow_client().log_artifacts(run.info.run_id, str(files), stage)
            )
        # Last: until it is there, the edition before it counts.
        _write(folder / NOTE, json.dumps(note).encode())
        with_retries(
            what,
            lambda: mlflow_client().log_artifact(run.info.run_id, str(folder / NOTE), stage),
        )
    if done:
        _write(context.stage_directory(stage) / NOTE, json.dumps(note).encode())


def _record_run(project: str | None, context: RunContext) -> "Run | None":
    """Return the MLflow run of the records; of two that were begun at once the first counts."""
    query = f"tags.`rlhf.run_id` = '{context.run_id}' and tags.`rlhf.stage` = '{STAGE}'"
    client = mlflow_client()
    where = (
        [experiment_id(project)]
        if project
        else [str(each.experiment_id) for each in client.search_experiments()]
    )
    found = client.search_runs(where, query, order_by=["attributes.start_time ASC"], max_results=1)
    return found[0] if found else None


def _begin(config: PipelineConfig, context: RunContext) -> "Run":
    client = mlflow_client()
    tags = {"rlhf.run_id": context.run_id, "rlhf.stage": STAGE}
    name = f"{STAGE} {context.run_id}"
    made = client.create_run(experiment_id(config.project), run_name=name, tags=tags)
    run = _record_run(config.project, context) or made
    client.log_text(run.info.run_id, config.model_dump_json(indent=2), CONFIG)
    client.set_terminated(run.info.run_id, "FINISHED")
    return run


def _kept_stages(run: "Run") -> list[str]:
    entries = mlflow_client().list_artifacts(run.info.run_id)
    return [entry.path for entry in entries if entry.is_dir]


def _edition_kept(run: "Run", stage: str, folder: Path) -> int:
    if stage not in _kept_stages(run):
        return 0
    note = _read_note(_fetch(run, f"{stage}/{NOTE}", folder))
    return int(note.get("edition", 0))


def _fetch(run: "Run", path: str, folder: Path) -> Path:
    from mlflow.artifacts import download_artifacts

    def fetch() -> str:
        return str(
            download_artifacts(
                run_id=run.info.run_id,
                artifact_path=path,
                dst_path=str(folder),
                tracking_uri=load_settings().mlflow_tracking_uri,
            )
        )

    return Path(with_retries(f"fetching {path}", fetch))


def _fetch_record(run: "Run", context: RunContext, stage: str, folder: Path) -> bool:
    """Fetch one record if it is newer than what lies here; return whether it was withdrawn."""
    own = context.directory / stage
    kept = _read_note(_fetch(run, f"{stage}/{NOTE}", folder))
    if int(kept.get("edition", 0)) <= int(_read_note(own / NOTE).get("edition", 0)):
        return False
    if not kept["done"]:
        return (own / NOTE).exists()
    fetched = _fetch(run, stage, folder)
    for path in sorted(fetched.rglob("*"), key=lambda path: path.name == RESULT):
        if path.is_file() and path.name != NOTE:
            target = own / path.relative_to(fetched)
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(target, _moved(path, str(kept["home"])))
    _write(own / NOTE, json.dumps(kept).encode())
    logger.info("record_fetched stage=%s run=%s from=%s", stage, context.run_id, kept["home"])
    return False


def _moved(path: Path, home: str) -> bytes:
    """Return a file's bytes; in a record, paths below the other clone become those below ours."""
    content = path.read_bytes()
    if path.suffix != ".json" or home == str(Path.cwd()):
        return content
    return json.dumps(_relocated(json.loads(content), home), indent=2).encode()


def _relocated(value: Any, home: str) -> Any:
    if isinstance(value, dict):
        return {key: _relocated(item, home) for key, item in value.items()}
    if isinstance(value, list):
        return [_relocated(item, home) for item in value]
    if isinstance(value, str) and (value == home or value.startswith(f"{home}/")):
        return str(Path.cwd()) + value.removeprefix(home)
    return value


def _read_note(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return note


def _copy_records(folder: Path, target: Path) -> None:
    for path in folder.iterdir():
        if path.name in (*_OWN, NOTE) or path.name.startswith("."):
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as stream:
        stream.write(content)
