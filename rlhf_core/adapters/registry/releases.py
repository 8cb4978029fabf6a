"""Releases: models that are champions together, and the journal of every move from one to another.

MLflow moves one alias a call, and whoever writes last wins. So a move is decided before the first
alias moves, as a version of the registered model ``<project>-release``: the registry gives every
version its number in one transaction, once, to whichever machine asks, and so puts all moves in
order. Each says on top of which one it was planned; one that another overtook does not count, and
whoever made it gets an error. ``release_aliases`` then makes the aliases what the newest says.
"""

import logging
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from rlhf_core.adapters.registry.processes_at_work import is_gone, this_process
from rlhf_core.adapters.tracking.mlflow_client import (
    ensure_registered_model,
    mlflow_client,
    with_retries,
)
from rlhf_core.errors import RegistryError, SameMoveError
from rlhf_core.schema import Record
from rlhf_core.schema.model_uri import version_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

ROLES = ("sft", "reward", "judge", "policy")
"""Models of a release; the policy's alias moves last, when all it was made with is in place."""
SUFFIX = "-release"
PLAN = "rlhf.release"
"""Tag of a journal entry: the plan, as JSON. It is written with the entry and never changed."""
STATE = "rlhf.release_state"
"""Tag of an entry: who made it and is moving aliases, ``host:pid:began|time``; then the end."""
DONE, OVERTAKEN = "done", "overtaken"
APPLYING = "rlhf.applying."
"""Prefix of tags of an entry: who else moved aliases for it; they end as ``STATE`` does."""
_ENDS = (DONE, OVERTAKEN, "ended")
"""What a claim becomes; it is never taken away, so that whoever moved something is seen later."""

Claim = tuple[int, str]
"""Number of an entry, and the tag by which somebody says that they move aliases for it."""
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
    """None until all aliases were where it says, or it was found overtaken."""
    claims: Mapping[str, str]
    """Tag to value of everybody who moves aliases for it, or did."""


@dataclass(frozen=True)
class Journal:
    """All entries, oldest first."""

    project: str
    entries: tuple[Entry, ...]
    last: int = 0
    """Number of the newest version, were it an entry or something else; 0: there is none."""
    completed: bool = False
    """Whether a move that was left half done was completed before this was read."""

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
        repeats = self.repeats()
        for entry in self.entries:
            if entry.number in repeats or entry.state == OVERTAKEN:
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

    def killed(self) -> Set[Claim]:
        """Return those of ``appliers`` whose process is gone."""
        return {claim for claim, who in self.appliers().items() if is_gone(who)}

    def is_complete(self, killed: Set[Claim]) -> bool:
        """Return whether no move is half done, given who was killed."""
        return self.head is None or (self.head.state == DONE and not killed)

    def appliers(self) -> dict[Claim, str]:
        """Return who is moving aliases, or was killed at it."""
        stray = self.stray()
        return {
            claim: who
            for claim, who in self.claims().items()
            if who not in _ENDS and claim not in stray
        }

    def repeats(self) -> set[int]:
        """Return the entries that a repeated request made: an earlier one is the same move."""
        first: dict[str, int] = {}
        for entry in self.entries:
            first.setdefault(entry.plan.token, entry.number)
        return {entry.number for entry in self.entries if first[entry.plan.token] != entry.number}

    def stray(self) -> set[Claim]:
        """Return the claims besides the head's by which nobody moves anything, and nobody ends.

        Those written with a repeat, and of entries that earlier builds left without any.
        """
        repeats, head = self.repeats(), self.head
        return {
            (entry.number, STATE)
            for entry in self.entries
            if entry is not head
            and (
                not entry.claims
                or (entry.number in repeats and entry.claims.get(STATE, DONE) not in _ENDS)
            )
        }

    def claims(self) -> dict[Claim, str]:
        """Return who is moving aliases or ever did, and what came of it."""
        return {
            (entry.number, tag): value
            for entry in self.entries
            for tag, value in entry.claims.items()
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
    in_order = tuple(sorted(entries, key=lambda entry: entry.number))
    return Journal(project, in_order, max((int(version.version) for version in found), default=0))


def _entry(version: "ModelVersion") -> Entry | None:
    tags = dict(version.tags)
    try:
        plan = Plan.model_validate_json(tags.get(PLAN, ""))
    except ValidationError:
        logger.warning("not_a_release name=%s version=%s", version.name, version.version)
        return None
    claims = _claims(tags)
    state = OVERTAKEN if tags.get(STATE) == OVERTAKEN else None
    return Entry(int(version.version), plan, DONE if DONE in claims.values() else state, claims)


def is_unfinished(tags: Mapping[str, str]) -> bool:
    """Return whether, by an entry's tags, somebody moves aliases for it or was killed at it."""
    claims = _claims(tags)
    return PLAN in tags and (not claims or any(who not in _ENDS for who in claims.values()))


def _claims(tags: Mapping[str, str]) -> dict[str, str]:
    return {tag: value for tag, value in tags.items() if tag.startswith((APPLYING, STATE))}


def record_move(seen: Journal, plan: Plan, notes: Mapping[str, str]) -> tuple[Journal, Claim]:
    """Write a move into the journal: from here on it is decided, or lost.

    With it is written who makes it: ``release_aliases.apply_move`` is to follow.

    Args:
        seen: the journal that ``plan`` was made by.
        plan: the move.
        notes: further tags, for people, without the prefix ``rlhf.``.

    Returns:
        The journal with the move, and the claim that was made with it.

    Raises:
        SameMoveError: the promotion in force is of the same release.
        RegistryError: another move was made since ``plan`` was; nothing moves by this one.
    """
    name, release, maker = seen.name, plan.releases[0], this_process()
    parts = {f"rlhf.{role}": uri or "none" for role, uri in release.parts().items()}
    tags = {**parts, **{f"rlhf.{name}": text for name, text in notes.items()}}
    tags |= {"rlhf.judge": release.judge or release.judged_by or "none"}
    tags |= {"rlhf.action": plan.action, PLAN: plan.model_dump_json(), STATE: maker}
    by = f" by {notes['approved_by']}" if notes.get("approved_by") else ""
    if not seen.last:
        with_retries(f"opening the journal {name}", lambda: open_journal(name, seen.project))
    made = with_retries(
        f"recording the release of {release.policy}",
        lambda: mlflow_client().create_model_version(
            name,
            source=release.policy,
            tags=tags,
            description=f"{plan.action}{by}",
            await_creation_for=0,
        ),
    )
    number = int(made.version)
    if number == seen.last + 1:  # nobody can have come between
        entry = Entry(number, plan, None, {STATE: maker})
        return replace(seen, entries=(*seen.entries, entry), last=number), (number, STATE)
    journal = read_journal(seen.project)
    mine = [entry for entry in journal.entries if entry.plan.token == plan.token]
    counts = [entry for entry in mine if entry in journal.effective()]
    for entry in mine:  # several, where an answer was lost and the request repeated
        if entry not in counts:
            tag_entry(name, (entry.number, STATE), OVERTAKEN)
    if not counts:
        raise _overtaken(journal, plan)
    return journal, (counts[0].number, STATE)


def _overtaken(journal: Journal, plan: Plan) -> RegistryError:
    """Return the error of a move that another one came before."""
    name, release, newest = journal.name, plan.releases[0], journal.effective()[-1]
    if plan.action == "promote" == newest.plan.action and release == newest.plan.releases[0]:
        return SameMoveError(
            f"another command made {release.policy} the champion at the same moment "
            f"({version_uri(name, newest.number)})"
        )
    other = next(entry for entry in journal.effective() if entry.number > plan.base)
    return RegistryError(
        f"nothing was moved: meanwhile another command made {other.plan.releases[0].policy} the "
        f"champion ({other.plan.action}, {version_uri(name, other.number)}); look at it, and "
        f"repeat this {plan.action} if you still mean it"
    )


def open_journal(name: str, project: str) -> None:
    """Make the registered model whose versions are the entries, unless it is there."""
    text = (
        f"The releases of {project}: each version names the models that became champions together "
        "and who decided it. `rlhf promote` and `rlhf rollback` write it; nobody else should."
    )
    ensure_registered_model(name, {"rlhf.kind": "releases"}, text)


def tag_entry(name: str, claim: Claim, value: str) -> None:
    """Make a claim, or say what came of it."""
    number, tag = claim
    with_retries(
        f"tagging {version_uri(name, number)}",
        lambda: mlflow_client().set_model_version_tag(name, str(number), tag, value),
    )
