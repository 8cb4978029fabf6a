"""Whether MLflow lets us do all that a run will need: asked before any work, and by the doctor."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_core.adapters.registry.release_aliases import champion_aliases, wanted_aliases
from rlhf_core.adapters.registry.releases import ROLES, Release
from rlhf_core.adapters.settings import load_settings
from rlhf_core.adapters.tracking.earlier_run import experiment_id
from rlhf_core.adapters.tracking.mlflow_client import check_server, mlflow_client, with_retries
from rlhf_core.errors import RegistryError

if TYPE_CHECKING:
    from mlflow import MlflowClient

MARK = "rlhf.project"
"""Tag by which the right to write is tried: on the experiment, and on every registered model."""
NOTHING = "rlhf-nothing"
"""Name of a tag and an alias that nobody has."""
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
    with_retries("asking MLflow", check_server, patience=patience)
    what = f"project {project!r}"
    with_retries(f"opening {what}", lambda: _write_tags(project), patience=patience)
    with_retries(f"keeping files of {what}", lambda: _write_file(project), patience=patience)


def require_release_rights(project: str, releases: tuple[Release, ...] = ()) -> None:
    """Ask MLflow, before a release moves, for every right that the move needs.

    A server with users is asked by requests that need those rights and change nothing: taking away
    a tag or an alias that is not there. MLflow tells a user's permissions only to who may manage.

    Args:
        project: prefix of the registered model names.
        releases: the one that comes into force, then those before it; empty where it is not known
            yet. Where one takes an alias away it needs more than where it moves it.

    Raises:
        RegistryError: one is missing; nothing has been changed.
    """
    if load_settings().embedded:
        return
    client = mlflow_client()
    names = [f"{project}-{role}" for role in ROLES]
    try:
        for name in [*names, f"{project}-release"]:
            what = f"moving a release, which changes {name}"
            with_retries(what, lambda n=name: _ask_to_change(client, n))  # type: ignore[misc]
        for role in _without_alias(project, releases):
            name = f"{project}-{role}"
            what = f"moving a release, which takes an alias of {name} away (permission MANAGE)"
            with_retries(what, lambda n=name: client.delete_registered_model_alias(n, NOTHING))  # type: ignore[misc]
    except RegistryError as error:
        raise RegistryError(f"{error}; nothing was changed") from error


def _without_alias(project: str, releases: tuple[Release, ...]) -> list[str]:
    """Return the roles of which a move takes an alias away."""
    if not releases:
        return []
    aliases = champion_aliases(project)
    wanted = wanted_aliases(project, releases, aliases)
    return [role for (role, alias), to in wanted.items() if to is None and alias in aliases[role]]


def _ask_to_change(client: "MlflowClient", name: str) -> None:
    if client.search_registered_models(f"name = '{name}'"):
        client.delete_registered_model_tag(name, NOTHING)


def _write_tags(project: str) -> None:
    client = mlflow_client()
    client.set_experiment_tag(experiment_id(project), MARK, project)
    for role in (*ROLES, "looks"):
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
