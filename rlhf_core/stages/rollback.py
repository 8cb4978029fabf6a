"""Taking a promotion back: the release before, or any that was in force once."""

from collections.abc import Iterable

from rlhf_core.adapters.registry.access import require_release_rights
from rlhf_core.adapters.registry.champions import (
    ReleaseHistory,
    history_of,
    note_of,
    plan_of,
    policy_uri,
)
from rlhf_core.adapters.registry.release_aliases import apply_move, lost_parts, read_project_state
from rlhf_core.adapters.registry.releases import Journal, Release, record_move
from rlhf_core.adapters.settings import mlflow_address
from rlhf_core.errors import RegistryError
from rlhf_core.schema import PREVIOUS, Record
from rlhf_core.schema.model_uri import version_uri


class Rollback(Record):
    """What a rollback did: the champion it was, is now, and would be after one more."""

    was: str
    champion: str
    previous_champion: str | None
    lost: tuple[str, ...] = ()
    """Releases that were passed over because a part of them was deleted."""
    by_hand: tuple[str, ...] = ()
    """Aliases that somebody had moved in MLflow since the last release, and what became of them."""


def rollback_policy(
    project: str, *, to: str | None = None, reviewer: str | None = None, comment: str = ""
) -> Rollback:
    """Bring an earlier release back: that of a version, or the last one that still exists.

    Every alias is put where that release says, also one that somebody has moved in MLflow.

    Args:
        project: prefix of the registered model names.
        to: version of the policy, as ``3`` or ``models:/<project>-policy/3``; None: the release
            before the one in force.
        reviewer: who decides this; kept in the journal. None: nobody in person.
        comment: why.

    Raises:
        RegistryError: there is no champion, or no release before it is left; or ``to`` never was
            champion, or is not whole any more.
    """
    notes = {"approved_by": reviewer, "approval_comment": comment} if reviewer else {}
    require_release_rights(project)
    state = read_project_state(project)
    seen = history_of(state)
    was = seen.current or seen.withdrawn
    if was is None and not seen.before:
        raise RegistryError(
            f"models:/{project}-policy has no champion yet at {mlflow_address()}; models with "
            "another prefix: --project"
        )
    if to is None:
        chain, lost = _earlier(project, seen)
    else:
        chain, lost = _chain_to(state.journal, to, seen), []
    require_release_rights(project, tuple(chain), state)
    move = record_move(state.journal, plan_of("rollback", seen, chain), notes | note_of(seen, lost))
    aliases = apply_move(move, state, [uri for uri in chain[0].parts().values() if uri])["policy"]
    return Rollback(
        was=was.policy if was else "none",
        champion=chain[0].policy,
        previous_champion=policy_uri(project, aliases.get(PREVIOUS)),
        lost=tuple(lost),
        by_hand=seen.by_hand,
    )


def _earlier(project: str, seen: ReleaseHistory) -> tuple[list[Release], list[str]]:
    """Return the last whole release before the one in force with those before it, and what is lost.

    Raises:
        RegistryError: there is none.
    """
    was = seen.current or seen.withdrawn
    lost = [_loss(was, parts)] if was and (parts := lost_parts(was)) else []
    chain = list(seen.before)
    while chain and (parts := lost_parts(chain[0])):
        lost.append(_loss(chain.pop(0), parts))
    if not chain:
        gone = f"; {'; '.join(lost)}" if lost else ""
        raise RegistryError(
            f"models:/{project}-policy: nothing to roll back to: "
            f"{was.policy if was else 'none'} is champion and no other before it is left{gone}"
        )
    return chain, lost


def _chain_to(journal: Journal, version: str, seen: ReleaseHistory) -> list[Release]:
    """Return the release of a version, with those before it when it was last put in force.

    Raises:
        RegistryError: it never was, or is not whole any more, or nothing would change.
    """
    name = f"{journal.project}-policy"
    number = version.removeprefix(version_uri(name, "")).removeprefix("v")
    if not number.isdigit():
        raise RegistryError(f"--to {version}: expected a version of {name}, such as 3")
    uri = version_uri(name, int(number))
    in_force = [*([seen.current] if seen.current else []), *seen.before]
    plans = [entry.plan.releases for entry in reversed(journal.effective())]
    # As the journal has it: what a person did to the aliases since does not change the way back.
    for releases in (*plans, tuple(in_force)):
        for index, release in enumerate(releases):
            if release.policy != uri:
                continue
            if parts := lost_parts(release):
                raise RegistryError(_loss(release, parts))
            if release == seen.current and not seen.by_hand and seen.base:
                raise RegistryError(f"{uri} is champion already, and so is its whole release")
            return list(releases[index:])
    raise RegistryError(
        f"{uri} never was champion, so there is nothing to roll back to; `rlhf promote {uri}` "
        "makes it champion if its gates allow"
    )


def _loss(release: Release, parts: Iterable[str]) -> str:
    return f"the release of {release.policy} is lost: {', '.join(parts)} was deleted"
