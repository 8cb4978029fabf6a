"""Whether MLflow lets us do all that a run will need: asked before any work, and by the doctor."""

import tempfile
from pathlib import Path

from rlhf_core.adapters.earlier_run import experiment_id
from rlhf_core.adapters.mlflow_client import check_server, mlflow_client, patiently
from rlhf_core.adapters.settings import load_settings

ROLES = ("sft", "reward", "judge", "policy")
MARK = "rlhf.project"
"""Tag by which the right to write is tried: on the experiment, and on every registered model."""
PROBE = "rlhf-access.txt"
"""File by which the right to keep files is tried; each trial replaces it."""


def check_access(project: str, *, patience: float | None = None) -> None:
    """Try, on a server, everything that a run writes: experiment, models, files.

    Args:
        project: prefix of the registered names; its experiment is made if there is none.
        patience: seconds a lost server is waited for; None takes the setting.

    Raises:
        RegistryError: a password or permission is missing, the store of the files refuses, or
            nobody answers; names who was refused, and the variable.
    """
    if load_settings().embedded:
        check_server()
        return
    patiently("asking MLflow", check_server, patience=patience)
    what = f"project {project!r}"
    patiently(f"opening {what}", lambda: _write_tags(project), patience=patience)
    patiently(f"keeping files of {what}", lambda: _write_file(project), patience=patience)


def _write_tags(project: str) -> None:
    client = mlflow_client()
    client.set_experiment_tag(experiment_id(project), MARK, project)
    for role in ROLES:
        name = f"{project}-{role}"
        if client.search_registered_models(f"name = '{name}'"):
            client.set_registered_model_tag(name, MARK, project)


def _write_file(project: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    experiment = mlflow_client().get_experiment(experiment_id(project))
    store = get_artifact_repository(
        str(experiment.artifact_location), tracking_uri=load_settings().mlflow_tracking_uri
    )
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / PROBE
        probe.write_text("Whether files may be kept here is tried with this one.\n")
        store.log_artifact(str(probe))
