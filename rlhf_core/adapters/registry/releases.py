"""Releases: models that are champions together, and the journal of every move from one to another.

MLflow moves one alias a call, and whoever writes last wins. So a move is decided before the first
alias moves, as a version of the registered model ``<project>-release``: the registry gives every
version its number in one transaction, once, to whichever machine asks, and so puts all moves in
order. Each says on top of which one it was planned; one that another overtook does not count, and
whoever made it gets an error. ``release_aliases`` then makes the aliases what the newest says.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from rlhf_core.adapters.registry.processes_at_work import is_gone
from rlhf_core.adapters.tracking.mlflow_client import (
    ensure_registered_model,
    mlflow_client,
    with_retries,
)
from rlhf_core.errors import RegistryError, SameMoveError
from rlhf_core.schema import Record

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

    def effective(self) -> list[Entry]:
        """Return the entries that were not overtaken.

        An entry counts if none that counts came between it and the one it was planned on. That
        follows from what never changes, so everybody finds the same.
        """
        effective: list[Entry] = []
        tokens: set[str] = set()
        for entry in self.entries:
            repeated = entry.plan.token in tokens
            tokens.add(entry.plan.token)
            if repeated or entry.state == OVERTAKEN:
                continue
            in_time = not effective or effective[-1].number <= entry.plan.base
            if in_time or entry.state == DONE:
                effective.append(entry)
        return effective

    @property
    def head(self) -> Entry | None:
        """The entry in force."""
        effective = self.effective()
        return effective[-1] if effective else None

    def killed(self) -> dict[tuple[int, str], str]:
        """Return those of ``appliers`` whose process is gone."""
        return {key: who for key, who in self.appliers().items() if is_gone(who)}

    def is_complete(self, killed: Mapping[tuple[int, str], str]) -> bool:
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
    found = with_retries(
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
    with_retries(f"opening the journal {name}", lambda: open_journal(name, project))
    with_retries(
        f"recording the release of {release.policy}",
        lambda: mlflow_client().create_model_version(
            name, source=release.policy, tags=tags, description=f"{plan.action}{by}"
        ),
    )
    journal = read_journal(project)
    mine = next(entry for entry in journal.entries if entry.plan.token == plan.token)
    if mine in journal.effective():
        return mine
    tag_entry(journal.name, mine.number, STATE, OVERTAKEN)
    newest = journal.effective()[-1]
    if plan.action == "promote" == newest.plan.action and release == newest.plan.releases[0]:
        raise SameMoveError(
            f"another command made {release.policy} the champion at the same moment "
            f"(models:/{name}/{newest.number})"
        )
    other = next(entry for entry in journal.effective() if entry.number > plan.base)
    raise RegistryError(
        f"nothing was moved: meanwhile another command made {other.plan.releases[0].policy} the "
        f"champion ({other.plan.action}, models:/{name}/{other.number}); look at it, and repeat "
        f"this {plan.action} if you still mean it"
    )


def open_journal(name: str, project: str) -> None:
    """Make the registered model whose versions are the entries, unless it is there."""
    text = (
        f"The releases of {project}: each version names the models that became champions together "
        "and who decided it. `rlhf promote` and `rlhf rollback` write it; nobody else should."
    )
    ensure_registered_model(name, {"rlhf.kind": "releases"}, text)


def tag_entry(name: str, number: int, tag: str, value: str) -> None:
    """Put a tag on an entry of a journal."""
    with_retries(
        f"tagging models:/{name}/{number}",
        lambda: mlflow_client().set_model_version_tag(name, str(number), tag, value),
    )


def untag_entry(name: str, number: int, tag: str) -> None:
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

    with_retries(f"tagging models:/{name}/{number}", remove)
