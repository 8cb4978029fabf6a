"""The MLflow run that an earlier attempt of a stage left behind, or else a new one."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_core.adapters.settings import load_settings
from rlhf_core.adapters.tracking.mlflow_client import create_unless_there, mlflow_client
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import RegistryError, StorageError
from rlhf_core.storage.records import write_text

if TYPE_CHECKING:
    from mlflow.entities import Run

RUN_NOTE = "mlflow-run"
"""File in a stage's folder that names its MLflow run."""


def go_on_or_begin(
    config: PipelineConfig, folder: Path, tags: Mapping[str, str]
) -> tuple["Run", bool]:
    """Return the run and whether it was there before.

    Both questions together: if only the answer to the second one is lost, the repeated first one
    finds the run that was made.

    Args:
        config: settings of the run.
        folder: where the stage works; where it is there, the run is noted in it.
        tags: of the run; earlier ones with the same are resumed.
    """
    note = folder / RUN_NOTE
    earlier = _unfinished_run(config, tags) or _noted_run(config, note, tags)
    run = earlier or _create_run(config, tags)
    if folder.is_dir():
        try:
            write_text(note, run.info.run_id)
        except StorageError:
            mlflow_client().set_terminated(run.info.run_id, "FAILED")
            raise
    return run, earlier is not None


def experiment_id(name: str) -> str:
    """Return the id of the project's experiment, which is made if there is none.

    Raises:
        RegistryError: it was deleted.
    """
    client, settings = mlflow_client(), load_settings()
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        if experiment.lifecycle_stage != "active":
            raise RegistryError(f"MLflow experiment {name!r} is deleted; restore it or rename it")
        return str(experiment.experiment_id)
    location = settings.artifact_root.resolve().as_uri() if settings.embedded else None
    create_unless_there(lambda: client.create_experiment(name, artifact_location=location))
    made = client.get_experiment_by_name(name)
    if made is None:
        raise RegistryError(f"MLflow experiment {name!r} was deleted while it was made")
    return str(made.experiment_id)


def _unfinished_run(config: PipelineConfig, tags: Mapping[str, str]) -> "Run | None":
    """The stage's newest run that did not finish, with the same settings and inputs.

    Runs that a changed configuration left RUNNING for ever are marked KILLED.
    """
    client = mlflow_client()
    query = " and ".join(
        f"tags.`{name}` = '{tags[name]}'" for name in ("rlhf.run_id", "rlhf.stage")
    )
    runs = client.search_runs(
        [experiment_id(config.project)],
        f"{query} and attributes.status != 'FINISHED'",
        order_by=["attributes.start_time DESC"],
    )
    same = [run for run in runs if _agrees(run, tags)]
    for run in runs:
        if run.info.status == "RUNNING" and run not in same[:1]:
            client.set_terminated(run.info.run_id, "KILLED")
    if not same:
        return None
    client.update_run(same[0].info.run_id, status="RUNNING")
    return same[0]


def _noted_run(config: PipelineConfig, note: Path, tags: Mapping[str, str]) -> "Run | None":
    """The run of this folder of the stage, whatever became of it, if settings and inputs agree."""
    if not note.exists():
        return None
    client, run_id = mlflow_client(), note.read_text(encoding="utf-8")
    found = client.search_runs([experiment_id(config.project)], f"attributes.run_id = '{run_id}'")
    if not found or not _agrees(found[0], tags):
        return None
    client.update_run(run_id, status="RUNNING")
    return found[0]


def _agrees(run: "Run", tags: Mapping[str, str]) -> bool:
    """Whether a run has the same settings and inputs."""
    keys = [name for name in tags if name.startswith("rlhf.") and "git_" not in name]
    keys = [name for name in keys if name != "rlhf.dataset_path"]  # a matter of the machine
    return all(run.data.tags.get(key) == tags[key] for key in keys)


def _create_run(config: PipelineConfig, tags: Mapping[str, str]) -> "Run":
    client = mlflow_client()
    name = f"{tags['rlhf.stage']} {tags['rlhf.run_id']}"
    return client.create_run(experiment_id(config.project), run_name=name, tags=dict(tags))
