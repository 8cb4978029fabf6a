"""Releases: models that are champions together, and the journal of every move from one to another.

MLflow moves one alias a call, and whoever writes last wins. So a move is decided before the first
alias moves, as a version of the registered model ``<project>-release``: the registry gives every
version its number in one transaction, once, to whichever machine asks, and so puts all moves in
order. Each says on top of which one it was planned; one that another overtook does not count, and
whoever made it gets an error. The aliases are then made what the newest that counts says. Anybody
may repeat that at any time, so the next command, or the sweep, completes what a kill left undone.
"""

import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from rlhf_core.adapters.mlflow_client import (
    create_unless_there,
    every_page,
    mlflow_client,
    patiently,
)
from rlhf_core.adapters.only_looking import is_only_looking
from rlhf_core.adapters.processes_at_work import is_gone, this_process
from rlhf_core.errors import RegistryError, SameMoveError
from rlhf_core.schema import CHAMPION, PREVIOUS, Record

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

ROLES = ("sft", "reward", "judge", "policy")
"""Models of a release; the policy's alias moves last, when all it was made with is in place."""
SUFFIX = "-release"
PLAN = "rlhf.release"
"""Tag of a journal entry: the plan, as JSON. It is written with the entry and never changed."""
STATE = "rlhf.release_state"
DONE, OVERTAKEN = "done", "overtaken"
APPLYING = "rlhf.applying."
"""Prefix of tags of an entry: who is moving aliases now, ``host:pid:began|time``."""
ENDED = "ended"
"""Its value where its writer may not take it away: MLflow lets only MANAGE delete."""
MOST_RELEASES = 50
"""So far back the way to earlier releases is kept."""
LATE_SECONDS = 2.0
"""A request that a killed process had sent is waited for so long."""

logger = logging.getLogger(__name__)


class Release(Record):
    """Versions that are champions together, each as ``models:/<name>/<version>``."""

    policy: str
    sft: str | None = None
    reward: str | None = None
    """None after DPO."""
    judge: str | None = None
    judged_by: str = ""
    """Who judged, where that was no registered model of ours."""

    def parts(self) -> dict[str, str | None]:
        """Return the version of each role, None where the release has none."""
        return {role: getattr(self, role) for role in ROLES}


class Plan(Record):
    """A move, as it was decided."""

    token: str
    """Of the command that made it: a request that was sent twice counts once."""
    action: Literal["promote", "rollback"]
    base: int = Field(ge=0)
    """Number of the entry in force when the move was planned; 0: none was."""
    releases: tuple[Release, ...] = Field(min_length=1)
    """The release that this puts in force, then those that rollbacks go back to."""


@dataclass(frozen=True)
class Entry:
    """One version of the journal."""

    number: int
    plan: Plan
    state: str | None
    appliers: Mapping[str, str]
    """Tag to value of everybody who is moving aliases for it, or was killed meanwhile."""


@dataclass(frozen=True)
class Journal:
    """All entries, oldest first."""

    project: str
    entries: tuple[Entry, ...]

    @property
    def name(self) -> str:
        """Name of the registered model whose versions are the entries."""
        return self.project + SUFFIX

    def counting(self) -> list[Entry]:
        """Return the entries that were not overtaken.

        An entry counts if none that counts came between it and the one it was planned on. That
        follows from what never changes, so everybody finds the same.
        """
        counting: list[Entry] = []
        tokens: set[str] = set()
        for entry in self.entries:
            repeated = entry.plan.token in tokens
            tokens.add(entry.plan.token)
            if repeated or entry.state == OVERTAKEN:
                continue
            in_time = not counting or counting[-1].number <= entry.plan.base
            if in_time or entry.state == DONE:
                counting.append(entry)
        return counting

    @property
    def head(self) -> Entry | None:
        """The entry in force."""
        counting = self.counting()
        return counting[-1] if counting else None

    def killed(self) -> dict[tuple[int, str], str]:
        """Return those of ``appliers`` whose process is gone."""
        return {key: who for key, who in self.appliers().items() if is_gone(who)}

    def is_settled(self, killed: Mapping[tuple[int, str], str]) -> bool:
        """Return whether no move is half done, given who was killed."""
        return self.head is None or (self.head.state == DONE and not killed)

    def appliers(self) -> dict[tuple[int, str], str]:
        """Return who is moving aliases: entry and tag to the tag's value."""
        return {
            (entry.number, tag): value
            for entry in self.entries
            for tag, value in entry.appliers.items()
        }


def project_of(name: str) -> str | None:
    """Return the project of a registered model called ``<project>-<role>``; None for others."""
    project, _, role = name.rpartition("-")
    return project if project and role in ROLES else None


def read_journal(project: str) -> Journal:
    """Return the journal of a project; empty where no release was made with one."""
    name = project + SUFFIX
    found = patiently(
        f"reading the releases of {project}",
        lambda: list(mlflow_client().search_model_versions(f"name = '{name}'")),
    )
    entries = [entry for version in found if (entry := _entry(version)) is not None]
    return Journal(project, tuple(sorted(entries, key=lambda entry: entry.number)))


def _entry(version: "ModelVersion") -> Entry | None:
    tags = dict(version.tags)
    try:
        plan = Plan.model_validate_json(tags.get(PLAN, ""))
    except ValidationError:
        logger.warning("not_a_release name=%s version=%s", version.name, version.version)
        return None
    found = {tag: value for tag, value in tags.items() if tag.startswith(APPLYING)}
    appliers = {tag: value for tag, value in found.items() if value != ENDED}
    return Entry(int(version.version), plan, tags.get(STATE), appliers)


def record_move(project: str, plan: Plan, notes: Mapping[str, str]) -> Entry:
    """Write a move into the journal: from here on it is decided, or lost.

    Args:
        project: prefix of the registered model names.
        plan: the move.
        notes: further tags, for people, without the prefix ``rlhf.``.

    Raises:
        SameMoveError: the promotion in force is of the same release.
        RegistryError: another move was made since ``plan`` was; nothing moves by this one.
    """
    name, release = project + SUFFIX, plan.releases[0]
    parts = {f"rlhf.{role}": uri or "none" for role, uri in release.parts().items()}
    tags = {**parts, **{f"rlhf.{name}": text for name, text in notes.items()}}
    tags |= {"rlhf.judge": release.judge or release.judged_by or "none"}
    tags |= {"rlhf.action": plan.action, PLAN: plan.model_dump_json()}
    by = f" by {notes['approved_by']}" if notes.get("approved_by") else ""
    patiently(f"opening the journal {name}", lambda: open_journal(name, project))
    patiently(
        f"recording the release of {release.policy}",
        lambda: mlflow_client().create_model_version(
            name, source=release.policy, tags=tags, description=f"{plan.action}{by}"
        ),
    )
    journal = read_journal(project)
    mine = next(entry for entry in journal.entries if entry.plan.token == plan.token)
    if mine in journal.counting():
        return mine
    _tag(journal.name, mine.number, STATE, OVERTAKEN)
    newest = journal.counting()[-1]
    if plan.action == "promote" == newest.plan.action and release == newest.plan.releases[0]:
        raise SameMoveError(
            f"another command made {release.policy} the champion at the same moment "
            f"(models:/{name}/{newest.number})"
        )
    other = next(entry for entry in journal.counting() if entry.number > plan.base)
    raise RegistryError(
        f"nothing was moved: meanwhile another command made {other.plan.releases[0].policy} the "
        f"champion ({other.plan.action}, models:/{name}/{other.number}); look at it, and repeat "
        f"this {plan.action} if you still mean it"
    )


def open_journal(name: str, project: str) -> None:
    """Make the registered model whose versions are the entries, unless it is there."""
    client = mlflow_client()
    if client.search_registered_models(f"name = '{name}'"):
        return
    text = (
        f"The releases of {project}: each version names the models that became champions together "
        "and who decided it. `rlhf promote` and `rlhf rollback` write it; nobody else should."
    )
    tags = {"rlhf.kind": "releases"}
    create_unless_there(lambda: client.create_registered_model(name, tags=tags, description=text))


def settle(project: str) -> Journal:
    """Complete what a killed command left half done; return the journal.

    Where every move is complete nothing is written: aliases that a person has moved since stay
    where that person put them.
    """
    journal = read_journal(project)
    killed = journal.killed()
    if is_only_looking() or journal.head is None or journal.is_settled(killed):
        return journal
    logger.info("release_completed project=%s number=%s", project, journal.head.number)
    apply_newest(project)
    if killed:
        time.sleep(LATE_SECONDS)
        apply_newest(project)
        for number, tag in killed:
            _untag(journal.name, number, tag)
    return read_journal(project)


def settle_all() -> list[str]:
    """Complete what killed commands left half done, in every project; return those looked at."""
    search = partial(mlflow_client().search_registered_models, f"name LIKE '%{SUFFIX}'")
    found = every_page("looking for releases", search)
    journals = [model.name for model in found if model.tags.get("rlhf.kind") == "releases"]
    for name in journals:
        settle(name.removesuffix(SUFFIX))
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
    _tag(name, first, mine, this_process())
    while True:
        moved = _move_aliases(project, head.plan.releases)
        newest = read_journal(project)
        if newest.head is None or (not moved and newest.head.number == head.number):
            break
        head = newest.head
    _untag(name, first, mine)
    counting = newest.counting()
    for entry in newest.entries:
        if entry.state is None and entry.number <= head.number:
            _tag(name, entry.number, STATE, DONE if entry in counting else OVERTAKEN)


def _move_aliases(project: str, releases: tuple[Release, ...]) -> bool:
    """Move every alias that is not where it belongs; return whether there was any."""
    aliases, moved = champion_aliases(project), False
    for (role, alias), wanted in wanted_aliases(project, releases).items():
        if aliases[role].get(alias) != wanted:
            moved = True
            what = f"moving {alias} of {project}-{role}"
            patiently(what, lambda r=role, a=alias, w=wanted: _set_alias(f"{project}-{r}", a, w))  # type: ignore[misc]
    return moved


def wanted_aliases(
    project: str, releases: tuple[Release, ...]
) -> dict[tuple[str, str], str | None]:
    """Return where each role's aliases belong: a version number, None where they do not exist.

    Args:
        project: whose models; a part that belongs to another project has no alias here.
        releases: the one in force, then those before it; of these the first that still exists.
    """
    before = next((release for release in releases[1:] if not lost_parts(release)), None)
    wanted: dict[tuple[str, str], str | None] = {}
    for alias, release in ((PREVIOUS, before), (CHAMPION, releases[0])):
        for role in ROLES:
            uri = None if release is None else release.parts()[role]
            name, _, number = (uri or "").removeprefix("models:/").partition("/")
            ours = uri is not None and name == f"{project}-{role}" and version_tags(uri) is not None
            wanted[role, alias] = number if ours else None
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
    if journal.head is None or journal.is_settled(journal.killed()):
        return aliases
    wanted = wanted_aliases(project, journal.head.plan.releases)
    return {
        role: {alias: n for (of, alias), n in wanted.items() if of == role and n is not None}
        for role in aliases
    }


def lost_parts(release: Release) -> list[str]:
    """Return the versions of a release that were deleted."""
    return [uri for uri in release.parts().values() if uri and version_tags(uri) is None]


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

    return patiently(f"looking for {uri}", look)


def _set_alias(name: str, alias: str, version: str | None) -> None:
    """Point ``alias`` at a version, or remove it."""
    if version is None:
        mlflow_client().delete_registered_model_alias(name, alias)
    else:
        mlflow_client().set_registered_model_alias(name, alias, version)


def _tag(name: str, number: int, tag: str, value: str) -> None:
    patiently(
        f"tagging models:/{name}/{number}",
        lambda: mlflow_client().set_model_version_tag(name, str(number), tag, value),
    )


def _untag(name: str, number: int, tag: str) -> None:
    """Take a tag away, or mark it; somebody else may have done so."""
    from mlflow.exceptions import MlflowException

    def remove() -> None:
        try:
            mlflow_client().delete_model_version_tag(name, str(number), tag)
        except MlflowException as error:
            if error.get_http_status_code() == 403:
                mlflow_client().set_model_version_tag(name, str(number), tag, ENDED)
            elif error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    patiently(f"tagging models:/{name}/{number}", remove)


if __name__ == "__main__":
    settle_all()
