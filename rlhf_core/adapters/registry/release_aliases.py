"""The aliases of a release: where the journal says they belong, and what makes them so.

Anybody may repeat that at any time, so the next command, or the sweep, completes what a kill left
undone.
"""

import logging
import time
import uuid
from collections.abc import Container, Mapping
from functools import partial

from rlhf_core.adapters.registry.only_looking import is_only_looking
from rlhf_core.adapters.registry.processes_at_work import this_process
from rlhf_core.adapters.registry.releases import (
    APPLYING,
    DONE,
    OVERTAKEN,
    ROLES,
    STATE,
    SUFFIX,
    Journal,
    Release,
    project_of,
    read_journal,
    tag_entry,
    untag_entry,
)
from rlhf_core.adapters.tracking.mlflow_client import every_page, mlflow_client, with_retries
from rlhf_core.schema import CHAMPION, PREVIOUS

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
        for number, tag in killed:
            untag_entry(journal.name, number, tag)
    return read_journal(project)


def recover_all() -> list[str]:
    """Complete what killed commands left half done, in every project; return those looked at."""
    search = partial(mlflow_client().search_registered_models, f"name LIKE '%{SUFFIX}'")
    found = every_page("looking for releases", search)
    journals = [model.name for model in found if model.tags.get("rlhf.kind") == "releases"]
    for name in journals:
        recover(name.removesuffix(SUFFIX))
    return journals


def apply_newest(project: str) -> None:
    """Make the aliases what the newest move says, until they are and no newer one is there.

    Whoever does this says so before the first alias moves: a request of theirs that arrives late
    could otherwise pass for a change that a person made.
    """
    head = read_journal(project).head
    if head is None:
        return
    name, mine, first = project + SUFFIX, APPLYING + uuid.uuid4().hex[:8], head.number
    tag_entry(name, first, mine, this_process())
    while True:
        moved = _move_aliases(project, head.plan.releases)
        newest = read_journal(project)
        if newest.head is None or (not moved and newest.head.number == head.number):
            break
        head = newest.head
    untag_entry(name, first, mine)
    effective = newest.effective()
    for entry in newest.entries:
        if entry.state is None and entry.number <= head.number:
            tag_entry(name, entry.number, STATE, DONE if entry in effective else OVERTAKEN)


def _move_aliases(project: str, releases: tuple[Release, ...]) -> bool:
    """Move every alias that is not where it belongs; return whether there was any."""
    aliases, moved = champion_aliases(project), False
    for (role, alias), wanted in wanted_aliases(project, releases, aliases).items():
        if aliases[role].get(alias) != wanted:
            moved = True
            what = f"moving {alias} of {project}-{role}"
            with_retries(what, lambda r=role, a=alias, w=wanted: _set_alias(f"{project}-{r}", a, w))  # type: ignore[misc]
    return moved


def wanted_aliases(
    project: str, releases: tuple[Release, ...], aliases: Mapping[str, Mapping[str, str]]
) -> dict[tuple[str, str], str | None]:
    """Return where each role's aliases belong: a version number, None where they do not exist.

    Args:
        project: whose models; a part that belongs to another project has no alias here.
        releases: the one in force, then those before it; of these the first that still exists.
        aliases: as ``champion_aliases`` found them. MLflow deletes a version with its aliases:
            what one of these points at is there.
    """
    own = {role: f"models:/{project}-{role}/" for role in ROLES}
    there = {own[role] + number for role, found in aliases.items() for number in found.values()}
    before = next((release for release in releases[1:] if not lost_parts(release, there)), None)
    wanted: dict[tuple[str, str], str | None] = {}
    for alias, release in ((PREVIOUS, before), (CHAMPION, releases[0])):
        for role in ROLES:
            uri = (None if release is None else release.parts()[role]) or ""
            known = release is before or uri in there
            ours = uri.startswith(own[role]) and (known or version_tags(uri) is not None)
            wanted[role, alias] = uri.removeprefix(own[role]) if ours else None
    return wanted


def champion_aliases(project: str) -> dict[str, dict[str, str]]:
    """Return the aliases ``champion`` and ``previous-champion`` of each role, by version number."""
    found: dict[str, dict[str, str]] = {role: {} for role in ROLES}
    search = partial(mlflow_client().search_registered_models, f"name LIKE '{project}-%'")
    for model in every_page(f"aliases of {project}", search):
        if project_of(model.name) == project:
            aliases = {alias: str(number) for alias, number in model.aliases.items()}
            found[model.name.rpartition("-")[2]] = {
                alias: aliases[alias] for alias in (CHAMPION, PREVIOUS) if alias in aliases
            }
    return _as_decided(project, found) if is_only_looking() else found


def _as_decided(project: str, aliases: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Return where a move that is half done will have put the aliases."""
    journal = read_journal(project)
    if journal.head is None or journal.is_complete(journal.killed()):
        return aliases
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

    name, _, number = uri.removeprefix("models:/").partition("/")

    def look() -> dict[str, str] | None:
        try:
            return dict(mlflow_client().get_model_version(name, number).tags)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    return with_retries(f"looking for {uri}", look)


def _set_alias(name: str, alias: str, version: str | None) -> None:
    """Point ``alias`` at a version, or remove it."""
    if version is None:
        mlflow_client().delete_registered_model_alias(name, alias)
    else:
        mlflow_client().set_registered_model_alias(name, alias, version)


if __name__ == "__main__":
    recover_all()
