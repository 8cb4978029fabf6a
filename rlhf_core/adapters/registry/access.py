"""Whether MLflow lets us do all that a run will need: asked before any work, and by the doctor."""

import tempfile
from pathlib import Path

from rlhf_core.adapters.registry.release_aliases import (
    Aliases,
    ProjectState,
    champion_aliases,
    project_models,
    wanted_aliases,
)
from rlhf_core.adapters.registry.releases import ROLES, Release
from rlhf_core.adapters.settings import load_settings
from rlhf_core.adapters.tracking.earlier_run import experiment_id
from rlhf_core.adapters.tracking.mlflow_client import (
    check_server,
    mlflow_client,
    signs_in,
    with_retries,
)
from rlhf_core.errors import RegistryError

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


def require_release_rights(
    project: str, releases: tuple[Release, ...] = (), state: ProjectState | None = None
) -> None:
    """Ask MLflow, before a release moves, for every right that the move needs.

    A server with users is asked by requests that need those rights and change nothing: taking away
    a tag or an alias that is not there. MLflow tells a user's permissions only to who may manage.
    A server that we do not sign in to has no rights of ours to tell.

    Args:
        project: prefix of the registered model names.
        releases: the one that comes into force, then those before it; empty where it is not known
            yet. Where one takes an alias away it needs more than where it moves it.
        state: the project as it was just read.

    Raises:
        RegistryError: one is missing; nothing has been changed.
    """
    if load_settings().embedded or not signs_in():
        return
    client = mlflow_client()
    models = project_models(project) if state is None else state.models
    try:
        for name in (f"{project}-{part}" for part in (*ROLES, "release")):
            if name in models:
                what = f"moving a release, which changes {name}"
                with_retries(what, lambda n=name: client.delete_registered_model_tag(n, NOTHING))  # type: ignore[misc]
        for role in _without_alias(project, releases, champion_aliases(project, models)):
            name = f"{project}-{role}"
            what = f"moving a release, which takes an alias of {name} away (permission MANAGE)"
            with_retries(what, lambda n=name: client.delete_registered_model_alias(n, NOTHING))  # type: ignore[misc]
    except RegistryError as error:
        raise RegistryError(f"{error}; nothing was changed") from error


def _without_alias(project: str, releases: tuple[Release, ...], aliases: Aliases) -> list[str]:
    """Return the roles of which a move takes an alias away."""
    if not releases:
        return []
    parts = [uri for uri in releases[0].parts().values() if uri]
    wanted = wanted_aliases(project, releases, aliases, known=parts)
    return [role for (role, alias), to in wanted.items() if to is None and alias in aliases[role]]


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
