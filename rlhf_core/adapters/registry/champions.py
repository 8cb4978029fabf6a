"""Which releases are and were champions, and what a move from one to another is planned on."""

import logging
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from rlhf_core.adapters.registry.decision import JUDGED_BY, verdict_of
from rlhf_core.adapters.registry.release_aliases import (
    ProjectState,
    read_project_state,
    tags_of,
    version_tags,
    wanted_aliases,
)
from rlhf_core.adapters.registry.releases import MOST_RELEASES, Plan, Release
from rlhf_core.adapters.registry.versions import UPSTREAM, find_version
from rlhf_core.errors import RegistryError
from rlhf_core.schema import CHAMPION, PREVIOUS
from rlhf_core.schema.model_uri import is_model_uri, split_model_uri, version_uri

logger = logging.getLogger(__name__)

_PARTS = ("sft", "reward", "judge")
_LEGACY_BEFORE = "rlhf.champion_before"
"""Tag by which versions without a journal named the champion before them."""


@dataclass(frozen=True)
class ReleaseHistory:
    """What is in force, as the journal and the aliases say."""

    base: int
    """Number of the journal's newest entry; 0 without a journal."""
    current: Release | None
    """The release in force; None if there is none, or somebody took its alias away."""
    before: tuple[Release, ...]
    """Those before it, the latest first."""
    withdrawn: Release | None = None
    """The release in force until its policy was deleted, or its alias taken away."""
    by_hand: tuple[str, ...] = ()


def release_of(
    policy: str, tags: Mapping[str, str], parts: Mapping[str, Mapping[str, str] | None]
) -> Release:
    """Return the release a policy belongs to: what it was made and judged with, by its tags.

    Args:
        policy: ``models:/<name>/<version>``.
        tags: its own.
        parts: those of what it was made and judged with, as ``parts_of`` returns them.

    Raises:
        RegistryError: a part is not registered, plays another role, or did not pass its gates.
    """
    upstream = {role: tags.get(UPSTREAM + role) for role in _PARTS}
    for role, uri in upstream.items():
        if uri is None:
            continue
        problem = _unfit(role, uri, parts.get(uri))
        if problem:
            raise RegistryError(
                f"{policy} is no complete release: its {role} {uri} {problem}; only models that "
                f"passed their gates become champions together. See `rlhf lineage {policy}`"
            )
    return Release(policy=policy, judged_by=tags.get(JUDGED_BY, ""), **upstream)


def parts_of(project: str, tags: Mapping[str, str]) -> dict[str, dict[str, str] | None]:
    """Return the tags of what a policy was made and judged with, by URI; None for what is gone.

    Args:
        project: prefix of the registered model names.
        tags: of the policy.
    """
    uris = {tags.get(UPSTREAM + role, "") for role in _PARTS}
    registered = sorted(uri for uri in uris if is_model_uri(uri))
    return tags_of(registered, project, tags.get("rlhf.run_id"))


def _unfit(role: str, uri: str, tags: Mapping[str, str] | None) -> str | None:
    """Say why a version cannot be part of a release; None if it can."""
    if not is_model_uri(uri):
        return "is not registered"
    if tags is None:
        return "was deleted"
    trained_as = tags.get("rlhf.stage")
    if trained_as != role:
        return f"was trained as {trained_as or 'something unknown'}"
    verdict, _ = verdict_of(tags)
    return None if verdict == "PROMOTE" else f"has verdict {verdict or 'none'}"


def read_history(project: str) -> ReleaseHistory:
    """Return what is in force, after completing what a killed command left half done.

    What a person did to the aliases in MLflow since is taken as a fact, and named.
    """
    return history_of(read_project_state(project))


def history_of(state: ProjectState) -> ReleaseHistory:
    """Return what is in force in a project that stands so."""
    journal, aliases = state.journal, state.aliases
    project = journal.project
    champion = policy_uri(project, aliases["policy"].get(CHAMPION))
    previous = policy_uri(project, aliases["policy"].get(PREVIOUS))
    if journal.head is None:
        return _without_journal(champion, previous)
    base, releases = journal.head.number, journal.head.plan.releases
    wanted = wanted_aliases(project, releases, aliases)
    by_hand = tuple(
        f"{alias} of {project}-{role} stood at {aliases[role].get(alias, 'none')}, its release "
        f"says {number or 'none'}"
        for (role, alias), number in wanted.items()
        if aliases[role].get(alias) != number
    )
    # Whoever is moving aliases right now goes on until they are where the journal says.
    if not by_hand or journal.appliers():
        return ReleaseHistory(base, releases[0], releases[1:])
    logger.warning("aliases_moved_by_hand project=%s %s", project, "; ".join(by_hand))
    before = releases[1:]
    if previous != policy_uri(project, wanted["policy", PREVIOUS]) and previous is not None:
        before = _from(before, previous)
    if champion is None:
        return ReleaseHistory(base, None, before, withdrawn=releases[0], by_hand=by_hand)
    if champion != releases[0].policy:
        current, *rest = _from(releases, champion)
        return ReleaseHistory(base, current, tuple(rest), by_hand=by_hand)
    return ReleaseHistory(base, releases[0], before, by_hand=by_hand)


def _from(releases: tuple[Release, ...], policy: str) -> tuple[Release, ...]:
    """Return the releases from that of a policy on; one that is not among them comes before all."""
    for index, release in enumerate(releases):
        if release.policy == policy:
            return releases[index:]
    return (_release_as_it_is(policy), *releases)


def _without_journal(champion: str | None, previous: str | None) -> ReleaseHistory:
    """Return what the aliases and tags of a registry without a journal say."""
    current = None if champion is None else _release_as_it_is(champion)
    before: list[Release] = []
    if previous is None and champion is not None:
        previous = _before(champion)
    while previous not in (None, champion, *(release.policy for release in before)):
        before.append(_release_as_it_is(str(previous)))
        previous = _before(str(previous))
    return ReleaseHistory(0, current, tuple(before))


def _before(policy: str) -> str | None:
    number = find_version(policy).tags.get(_LEGACY_BEFORE)
    if number is None:
        return None
    uri = version_uri(split_model_uri(policy).name, number)
    return uri if version_tags(uri) is not None else None


def _release_as_it_is(policy: str) -> Release:
    """Return the release of a policy that somebody made champion past the gates of its parts."""
    version = find_version(policy)
    tags, found = version.tags, parts_of(version.name.rpartition("-")[0], version.tags)
    parts = {
        role: uri
        for role in _PARTS
        if (uri := tags.get(UPSTREAM + role)) and not _unfit(role, uri, found.get(uri))
    }
    return Release(policy=policy, judged_by=tags.get(JUDGED_BY, ""), **parts)


def plan_of(
    action: Literal["promote", "rollback"], seen: ReleaseHistory, chain: list[Release]
) -> Plan:
    """Return a move to the first release of a chain, planned on what was seen."""
    return Plan(
        token=uuid.uuid4().hex,
        action=action,
        base=seen.base,
        releases=tuple(chain[:MOST_RELEASES]),
    )


def note_of(seen: ReleaseHistory, lost: Iterable[str] = ()) -> dict[str, str]:
    """Return what the journal says of a move beside the plan."""
    notes = {"moved_by_hand": "; ".join(seen.by_hand), "lost": "; ".join(lost)}
    return {name: text for name, text in notes.items() if text}


def policy_uri(project: str, number: str | None) -> str | None:
    """Return the URI of a version of the project's policy; None for none."""
    return None if number is None else version_uri(f"{project}-policy", number)
