"""What `rlhf doctor` says of releases: looked at, and nothing moved."""

from dataclasses import dataclass

from rlhf_core.adapters.registry.champions import policy_uri
from rlhf_core.adapters.registry.processes_at_work import is_gone
from rlhf_core.adapters.registry.release_aliases import champion_aliases, lost_parts, wanted_aliases
from rlhf_core.adapters.registry.releases import DONE, ROLES, Journal, Release, read_journal
from rlhf_core.adapters.registry.versions import UPSTREAM, find_version
from rlhf_core.schema import CHAMPION, PREVIOUS
from rlhf_core.schema.model_uri import alias_uri, split_model_uri, version_uri

Aliases = dict[str, dict[str, str]]


@dataclass(frozen=True)
class ReleaseState:
    """Whether champions are one release and previous champions another."""

    healthy: bool
    found: str
    fix: str = ""


def release_state(project: str) -> ReleaseState:
    """Look at the journal and the aliases of a project.

    Args:
        project: prefix of the registered model names.

    Raises:
        RegistryError: MLflow does not answer.
    """
    journal, aliases = read_journal(project), champion_aliases(project)
    if journal.head is None:
        return _without_journal(project, aliases)
    releases = journal.head.plan.releases
    current = releases[0]
    if moving := _moving(project, journal):
        return moving
    if lost := lost_parts(current):
        return ReleaseState(
            healthy=False,
            found=f"{', '.join(lost)} of the release of {current.policy} was deleted",
            fix=f"rlhf rollback --project {project}: the last release that is whole comes back",
        )
    by_hand = [
        f"{alias} of {project}-{role} stands at {aliases[role].get(alias, 'none')}, its release "
        f"says {number or 'none'}"
        for (role, alias), number in wanted_aliases(project, releases, aliases).items()
        if aliases[role].get(alias) != number
    ]
    if by_hand:
        lost = [uri for release in releases[1:] for uri in lost_parts(release)]
        why = f"{', '.join(lost)} was deleted, or moved by hand" if lost else "moved by hand"
        return ReleaseState(
            healthy=False,
            found=f"{why}: {'; '.join(by_hand)}",
            fix=_fix_by_hand(project, aliases, current),
        )
    return ReleaseState(healthy=True, found=_whole(releases))


def _moving(project: str, journal: Journal) -> ReleaseState | None:
    """Say whether a move from one release to another is going on, or was left half done."""
    head, appliers = journal.head, journal.appliers()
    if head is None or (head.state == DONE and not appliers):
        return None
    goal = f"{head.plan.action} to {head.plan.releases[0].policy}"
    alive = [who for who in appliers.values() if not is_gone(who)]
    if alive:
        who = alive[0].partition("|")[0]
        return ReleaseState(True, f"{goal} is going on (host, process and its start: {who})")
    champion = alias_uri(f"{project}-policy", CHAMPION)
    return ReleaseState(
        healthy=False,
        found=f"{goal} is half done: who made it is gone",
        fix=f"rlhf lineage {champion}, as any command that asks for the champion, completes it",
    )


def _without_journal(project: str, aliases: Aliases) -> ReleaseState:
    """Champions from before releases had a journal, or that only a person has made."""
    champions = {role: aliases[role][CHAMPION] for role in ROLES if CHAMPION in aliases[role]}
    if not champions:
        return ReleaseState(True, f"{project} has no champion yet")
    number = champions.pop("policy", None)
    policy = policy_uri(project, number)
    fix = f"rlhf promote {policy}" if policy else "rlhf promote MODEL, of the policy that you mean"
    tags = find_version(policy).tags if policy else {}
    made_with = {role: tags[UPSTREAM + role] for role in ROLES if UPSTREAM + role in tags}
    standing = {role: version_uri(f"{project}-{role}", found) for role, found in champions.items()}
    if policy and standing == made_with:
        return ReleaseState(True, f"{policy} and what it was made with, moved without a journal")
    other = ", ".join(sorted(standing.values())) or "no other model"
    return ReleaseState(
        healthy=False,
        found=f"champions are not one release: {policy or 'no policy'}, beside {other}",
        fix=fix,
    )


def _fix_by_hand(project: str, aliases: Aliases, current: Release) -> str:
    """Say what puts every alias back, and what makes a release of the policy somebody chose."""
    number = split_model_uri(current.policy).version
    fix = (
        f"rlhf rollback --to {number} --project {project} puts every alias where that release says"
    )
    chosen = aliases["policy"].get(CHAMPION)
    if chosen in (None, number):
        return fix
    return (
        f"{fix}; to keep version {chosen} instead, rlhf promote {policy_uri(project, chosen)} "
        f"if its gates allow, or rlhf rollback --to {chosen} --project {project} if it was champion"
    )


def _whole(releases: tuple[Release, ...]) -> str:
    current, *earlier = releases
    parts = [f"{role} {uri}" for role, uri in current.parts().items() if uri and role != "policy"]
    found = f"{current.policy} is {CHAMPION} with {', '.join(parts) or 'nothing else'}"
    before = next((release for release in earlier if not lost_parts(release)), None)
    lost = [uri for release in earlier for uri in lost_parts(release)]
    found += f"; {PREVIOUS} is {before.policy if before else 'none'}"
    return found + (f"; deleted since: {', '.join(sorted(set(lost)))}" if lost else "")
