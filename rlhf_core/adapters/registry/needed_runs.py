"""Which pipeline runs the registry still needs, and why: their files may not be deleted."""

import socket
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from rlhf_core.adapters.registry.approval import APPROVAL, ASKED
from rlhf_core.adapters.registry.champions import read_history
from rlhf_core.adapters.registry.decision import is_overtaken, verdict_of
from rlhf_core.adapters.registry.looks import MEASURED
from rlhf_core.adapters.registry.looks import SUFFIX as LOOKS
from rlhf_core.adapters.registry.only_looking import only_looking
from rlhf_core.adapters.registry.registry import aliases_by_run
from rlhf_core.adapters.registry.releases import SUFFIX as RELEASE
from rlhf_core.adapters.registry.releases import project_of, read_journal
from rlhf_core.adapters.registry.versions import UPSTREAM
from rlhf_core.adapters.tracking.mlflow_client import every_page, mlflow_client, with_retries
from rlhf_core.adapters.tracking.tracking import PLACE
from rlhf_core.schema.model_uri import version_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

RUN_ID = "rlhf.run_id"
"""Tag of versions and MLflow runs: the pipeline run, a folder's name."""
_PAGE = 1_000
_REFUSALS = frozenset({"HOLD", "REJECT"})


@dataclass(frozen=True)
class RegistryNeeds:
    """What the registry says of pipeline runs; all by run id."""

    aliases: dict[str, list[str]]
    """``<name>@<alias>`` that stand at models of the run."""
    reasons: dict[str, list[str]]
    """Why the run is needed, one line each."""
    made_from: dict[str, set[str]]
    """Runs whose models the run's own models were made or judged with."""
    run_of: dict[str, str]
    """Model version, ``models:/<name>/<version>``, to its run."""
    refused: frozenset[str]
    """Versions that ``rlhf promote`` refuses: a person or a later evaluation has said no, or they
    were compared with another champion than the one in force."""


def registry_needs() -> RegistryNeeds:
    """Ask the registry once for all runs: aliases, releases, approvals, looks, what was made from.

    Raises:
        RegistryError: MLflow does not answer.
    """
    versions = list(_versions())
    run_of = {_uri(version): run for version in versions if (run := version.tags.get(RUN_ID))}
    reasons: dict[str, list[str]] = defaultdict(list)
    made_from: dict[str, set[str]] = defaultdict(set)
    aliases = aliases_by_run()
    for run, names in aliases.items():
        reasons[run].append(f"aliases stand at its models: {', '.join(sorted(names))}")
    projects = {version.name.removesuffix(RELEASE) for version in versions if _is(version, RELEASE)}
    for project in sorted(projects):
        parts = _parts_of_releases(project)
        for run in sorted({run_of[uri] for uri in parts if uri in run_of}):
            own = ", ".join(uri for uri in parts if run_of.get(uri) == run)
            reasons[run].append(f"a rollback may need {own}")
    for version in versions:
        if run := version.tags.get(RUN_ID):
            reasons[run] += _waits_for(version)
            upstream = (tag for key, tag in version.tags.items() if key.startswith(UPSTREAM))
            made_from[run] |= {run_of[uri] for uri in upstream if uri in run_of} - {run}
    champion = cache(_champion)
    refused = {_uri(version) for version in versions if _is_refused(version, champion)}
    return RegistryNeeds(aliases, dict(reasons), dict(made_from), run_of, frozenset(refused))


def _is_refused(version: "ModelVersion", champion: Callable[[str], str | None]) -> bool:
    """Return whether a policy that passed its gates can no longer be promoted by them."""
    said, (verdict, _) = version.tags.get(APPROVAL), verdict_of(version.tags)
    if _REFUSALS & {said, verdict}:
        return True
    project = project_of(version.name)
    if verdict is None or project is None or not version.name.endswith("-policy"):
        return False
    return is_overtaken(_uri(version), version.tags, champion(project))


def _champion(project: str) -> str | None:
    """Return the policy in force; of a move that is half done the one that it ends at."""
    with only_looking():
        current = read_history(project).current
    return current.policy if current else None


def _waits_for(version: "ModelVersion") -> Iterator[str]:
    """Yield what has yet to happen to a version, if anything has."""
    if version.tags.get(APPROVAL) == ASKED:
        yield f"{_uri(version)} waits for a person's approval"
    if _is(version, LOOKS) and MEASURED not in version.tags:
        yield f"its look {_uri(version)} at held-out prompts has not ended"


def tracked_runs(run_id: str) -> tuple[set[str], list[str]]:
    """Return which MLflow runs there are of a pipeline run, and where it is worked on elsewhere.

    Args:
        run_id: of the pipeline run.

    Returns:
        Their ids, deleted ones included; and ``host:folder`` of those that another machine has
        not ended. On this machine the locks of its folder tell more.

    Raises:
        RegistryError: MLflow does not answer.
    """
    from mlflow.entities import ViewType

    client = mlflow_client()

    def search() -> list[dict[str, str]]:
        experiments = client.search_experiments(view_type=ViewType.ALL)
        found = client.search_runs(
            [str(each.experiment_id) for each in experiments],
            f"tags.`{RUN_ID}` = '{run_id}'",
            run_view_type=ViewType.ALL,
        )
        return [
            {"id": run.info.run_id, "status": run.info.status, **run.data.tags} for run in found
        ]

    runs = with_retries(f"finding the runs of {run_id}", search)
    here = f"{socket.gethostname()}:"
    places = {run.get(PLACE, here) for run in runs if run["status"] == "RUNNING"}
    return {run["id"] for run in runs}, sorted(
        place for place in places if not place.startswith(here)
    )


def _parts_of_releases(project: str) -> list[str]:
    """Return every model of the releases that are or were in force: a rollback may go back."""
    return sorted(
        {
            uri
            for entry in read_journal(project).entries
            for release in entry.plan.releases
            for uri in release.parts().values()
            if uri
        }
    )


def _versions() -> "Iterator[ModelVersion]":
    search = partial(mlflow_client().search_model_versions, max_results=_PAGE)
    return every_page("reading the registry", search)


def _is(version: "ModelVersion", suffix: str) -> bool:
    return str(version.name).endswith(suffix)


def _uri(version: "ModelVersion") -> str:
    return version_uri(version.name, version.version)
