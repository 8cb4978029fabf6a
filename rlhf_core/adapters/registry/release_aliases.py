"""The aliases of a release: where the journal says they belong, and what makes them so.

Anybody may repeat that at any time, so the next command, or the sweep, completes what a kill left
undone.
"""

import logging
import time
import uuid
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from rlhf_core.adapters.registry.only_looking import is_only_looking
from rlhf_core.adapters.registry.processes_at_work import this_process
from rlhf_core.adapters.registry.releases import (
    APPLYING,
    DONE,
    OVERTAKEN,
    ROLES,
    SUFFIX,
    Claim,
    Journal,
    Release,
    read_journal,
    tag_entry,
)
from rlhf_core.adapters.tracking.mlflow_client import every_page, mlflow_client, with_retries
from rlhf_core.errors import RegistryError
from rlhf_core.schema import CHAMPION, PREVIOUS
from rlhf_core.schema.model_uri import split_model_uri, version_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

Aliases = Mapping[str, Mapping[str, str]]
"""Role to its aliases ``champion`` and ``previous-champion``, each to its version's number."""

LATE_SECONDS = 2.0
"""A request that a killed process had sent is waited for so long."""

logger = logging.getLogger(__name__)


def recover(project: str) -> Journal:
    """Complete what a killed command left half done; return the journal.

    Where every move is complete nothing is written: aliases that a person has moved since stay
    where that person put them.
    """
    journal = read_journal(project)
    killed = journal.killed()
    if is_only_looking() or journal.head is None or journal.is_complete(killed):
        return journal
    logger.info("release_completed project=%s number=%s", project, journal.head.number)
    apply_newest(project)
    if killed:
        time.sleep(LATE_SECONDS)
        apply_newest(project)
        _end_claims(journal, killed)
    return replace(read_journal(project), completed=True)


def recover_all() -> list[str]:
    """Complete what killed commands left half done, in every project.

    Returns:
        Policies that became champions by it.
    """
    search = partial(mlflow_client().search_registered_models, f"name LIKE '%{SUFFIX}'")
    found = every_page("looking for releases", search)
    journals = [model.name for model in found if model.tags.get("rlhf.kind") == "releases"]
    promoted = []
    for name in journals:
        journal = recover(name.removesuffix(SUFFIX))
        _end_claims(journal, journal.stray())  # else they would be looked at again and again
        if journal.completed and journal.head:
            promoted.append(journal.head.plan.releases[0].policy)
    return promoted


def _end_claims(journal: Journal, claims: Iterable[Claim]) -> None:
    """Say of claims that nobody acts on any more what became of their entries."""
    counts = {entry.number for entry in journal.effective()}
    for claim in claims:
        tag_entry(journal.name, claim, DONE if claim[0] in counts else OVERTAKEN)


@dataclass(frozen=True)
class ProjectState:
    """Journal and registered models of a project; the models were read after the journal."""

    journal: Journal
    models: Mapping[str, "RegisteredModel"]
    """By name, with aliases and tags: all of the project that are registered."""
    aliases: Aliases


def read_project_state(project: str) -> ProjectState:
    """Return how a project stands, after completing what a killed command left half done."""
    journal, models = recover(project), project_models(project)
    return ProjectState(journal, models, champion_aliases(project, models))


def apply_newest(project: str) -> None:
    """Make the aliases what the newest move says, until they are and no newer one is there.

    Whoever does this says so before the first alias moves: a request of theirs that arrives late
    could otherwise pass for a change that a person made.
    """
    journal = read_journal(project)
    if journal.head is not None:
        claim = (journal.head.number, APPLYING + uuid.uuid4().hex[:8])
        tag_entry(journal.name, claim, this_process())
        _apply(journal, claim)


def apply_move(
    move: tuple[Journal, Claim], state: ProjectState, known: Container[str]
) -> dict[str, dict[str, str]]:
    """Do the same for a move of one's own, which was claimed when it was recorded.

    Args:
        move: as ``record_move`` returned it.
        state: what the move was planned by.
        known: versions that are there.

    Returns:
        The aliases as they are now.
    """
    return _apply(*move, state, known)


def _apply(
    journal: Journal, mine: Claim, state: ProjectState | None = None, known: Container[str] = ()
) -> dict[str, dict[str, str]]:
    """Move aliases until they are right, and say so; ``state`` is how the project was before."""
    project, head = journal.project, journal.effective()[-1]
    planned = journal if state is None else state.journal
    alone, expected = planned.appliers().keys() <= {mine}, {*planned.claims(), mine}
    aliases = state.aliases if state and alone else None
    while True:
        found = champion_aliases(project) if aliases is None else aliases
        try:
            now = _move_aliases(project, head.plan.releases, found, known, is_old=found is aliases)
        except RegistryError:
            if aliases is None:
                raise
            aliases, known = None, ()  # a version may have been deleted since: look again, once
            continue
        newest = read_journal(project)
        # Whoever moves aliases has made a claim before, and a claim stays. So without another
        # one nobody else has moved any, and what was set need not be read again.
        undisturbed = alone and newest.claims().keys() == expected
        confirmed = aliases is None and now == found
        before, head, aliases = head, newest.head or head, None
        if head.number == before.number and (undisturbed or confirmed):
            tag_entry(journal.name, mine, DONE)
            return now


def _move_aliases(
    project: str,
    releases: tuple[Release, ...],
    aliases: Aliases,
    known: Container[str],
    *,
    is_old: bool,
) -> dict[str, dict[str, str]]:
    """Move every alias that is not where it belongs; return where all of them are then.

    ``is_old``: the aliases were read before the move was decided, and a person may have moved one
    of them since; then those that seemed right are set as well.
    """
    now: dict[str, dict[str, str]] = {role: {} for role in ROLES}
    for (role, alias), wanted in wanted_aliases(project, releases, aliases, known).items():
        if aliases[role].get(alias) != wanted or (is_old and wanted is not None):
            what = f"moving {alias} of {project}-{role}"
            with_retries(what, lambda r=role, a=alias, w=wanted: _set_alias(f"{project}-{r}", a, w))  # type: ignore[misc]
        if wanted is not None:
            now[role][alias] = wanted
    return now


def wanted_aliases(
    project: str,
    releases: tuple[Release, ...],
    aliases: Aliases,
    known: Container[str] = (),
) -> dict[tuple[str, str], str | None]:
    """Return where each role's aliases belong: a version number, None where they do not exist.

    Args:
        project: whose models; a part that belongs to another project has no alias here.
        releases: the one in force, then those before it; of these the first that still exists.
        aliases: as ``champion_aliases`` found them. MLflow deletes a version with its aliases:
            what one of these points at is there.
        known: further versions that are there.
    """
    there = {
        version_uri(f"{project}-{role}", number)
        for role, found in aliases.items()
        for number in found.values()
    }
    before = next((release for release in releases[1:] if not lost_parts(release, there)), None)
    wanted: dict[tuple[str, str], str | None] = {}
    for alias, release in ((PREVIOUS, before), (CHAMPION, releases[0])):
        for role in ROLES:
            uri = (None if release is None else release.parts()[role]) or ""
            exists = release is before or uri in there or uri in known
            name, number, _ = split_model_uri(uri)
            ours = name == f"{project}-{role}" and (exists or version_tags(uri) is not None)
            wanted[role, alias] = number if ours else None
    return wanted


def project_models(project: str) -> "dict[str, RegisteredModel]":
    """Return the registered models of a project by name."""
    search = partial(mlflow_client().search_registered_models, f"name LIKE '{project}-%'")
    return {model.name: model for model in every_page(f"models of {project}", search)}


def champion_aliases(
    project: str, models: "Mapping[str, RegisteredModel] | None" = None
) -> dict[str, dict[str, str]]:
    """Return the aliases ``champion`` and ``previous-champion`` of each role, by version number.

    Args:
        project: prefix of the registered model names.
        models: its models, where they were just read.
    """
    models = project_models(project) if models is None else models
    found: dict[str, dict[str, str]] = {role: {} for role in ROLES}
    for role in ROLES:
        if model := models.get(f"{project}-{role}"):
            aliases = {alias: str(number) for alias, number in model.aliases.items()}
            found[role] = {key: aliases[key] for key in (CHAMPION, PREVIOUS) if key in aliases}
    return _as_decided(project, found) if is_only_looking() else found


def _as_decided(project: str, aliases: Aliases) -> dict[str, dict[str, str]]:
    """Return where a move that is half done will have put the aliases."""
    journal = read_journal(project)
    if journal.head is None or journal.is_complete(journal.killed()):
        return {role: dict(found) for role, found in aliases.items()}
    wanted = wanted_aliases(project, journal.head.plan.releases, aliases)
    return {
        role: {alias: n for (of, alias), n in wanted.items() if of == role and n is not None}
        for role in aliases
    }


def lost_parts(release: Release, there: Container[str] = ()) -> list[str]:
    """Return the versions of a release that were deleted; those known to be ``there`` were not."""
    found = (uri for uri in release.parts().values() if uri and uri not in there)
    return [uri for uri in found if version_tags(uri) is None]


def version_tags(uri: str) -> dict[str, str] | None:
    """Return the tags of ``models:/<name>/<version>``; None where the registry has it no longer."""
    from mlflow.exceptions import MlflowException

    name, number, _ = split_model_uri(uri)

    def look() -> dict[str, str] | None:
        try:
            return dict(mlflow_client().get_model_version(name, number).tags)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    return with_retries(f"looking for {uri}", look)


def tags_of(
    uris: Collection[str], project: str, run: str | None
) -> dict[str, dict[str, str] | None]:
    """Return the tags of several versions by URI, None for those that are no longer there.

    Args:
        uris: each ``models:/<name>/<version>``.
        project: prefix of the registered names; of another project's each is asked for by itself.
        run: pipeline run of one of them: what else it made comes in the same answer.
    """
    found: dict[str, dict[str, str]] = {}
    if run and len(uris) > 1:
        query = f"name LIKE '{project}-%' and tags.`rlhf.run_id` = '{run}'"
        made = with_retries(
            f"looking for what run {run} made",
            lambda: list(mlflow_client().search_model_versions(query)),
        )
        found = {version_uri(one.name, one.version): dict(one.tags) for one in made}
    return {uri: found[uri] if uri in found else version_tags(uri) for uri in uris}


def _set_alias(name: str, alias: str, version: str | None) -> None:
    """Point ``alias`` at a version, or remove it."""
    if version is None:
        mlflow_client().delete_registered_model_alias(name, alias)
    else:
        mlflow_client().set_registered_model_alias(name, alias, version)
