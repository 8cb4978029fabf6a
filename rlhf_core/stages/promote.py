"""The last stage: apply the decision that was recorded.

A policy and the SFT model, reward model and judge it was made and judged with are one release: they
become champions together, and a rollback brings all of them back.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rlhf_core.adapters.registry.access import require_release_rights
from rlhf_core.adapters.registry.approval import record_approval
from rlhf_core.adapters.registry.champions import (
    ReleaseHistory,
    history_of,
    note_of,
    parts_of,
    plan_of,
    policy_uri,
    read_history,
    release_of,
)
from rlhf_core.adapters.registry.decision import COMPARED, NOBODY, is_overtaken, verdict_of
from rlhf_core.adapters.registry.only_looking import only_looking
from rlhf_core.adapters.registry.registry import require_role
from rlhf_core.adapters.registry.release_aliases import (
    ProjectState,
    apply_move,
    apply_newest,
    champion_aliases,
    read_project_state,
    version_tags,
    wanted_aliases,
)
from rlhf_core.adapters.registry.releases import Release, project_of, record_move
from rlhf_core.adapters.registry.required_gates import require_applied
from rlhf_core.adapters.registry.versions import find_version
from rlhf_core.adapters.tracking.mlflow_client import has_store
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import RegistryError, SameMoveError
from rlhf_core.schema import CHAMPION, PREVIOUS, ModelRef, Record, RunContext, StageResult, Verdict
from rlhf_core.schema.model_uri import version_uri


class Promotion(Record):
    """What promotion did to the aliases of a registered model."""

    model: str
    verdict: Verdict
    moved: bool
    """True if this made the model champion; False if it was that already."""
    champion: str | None
    previous_champion: str | None
    """What ``rlhf rollback`` would bring back."""
    reasons: tuple[str, ...]
    by_hand: tuple[str, ...] = ()
    """Aliases that somebody had moved in MLflow since the last release, and what became of them."""
    also_by: str | None = None
    """Says that another command made the same model champion at the same moment."""


def promote_policy(config: PipelineConfig, result: StageResult, context: RunContext) -> Promotion:
    """Apply the decision of an evaluation: PROMOTE moves ``champion``, anything else moves nothing.

    The verdict is read from the registry, where the evaluation wrote it, and must be the one in
    ``result``: a decision about other weights, or one overtaken by a later evaluation, moves
    nothing.

    Args:
        config: settings of the run.
        result: of the evaluation.
        context: of the run that promotes.

    Raises:
        RegistryError: the registry holds another verdict than ``result``, or does not answer.
    """
    expected, uri = f"{config.project}-policy", result.model.uri
    if result.model.name != expected:
        raise RegistryError(f"run {context.run_id}: {uri} is not a version of {expected}")
    version = find_version(uri)
    registered = version.tags.get("rlhf.sha256")
    if registered != result.model.sha256:
        raise RegistryError(
            f"{result.model.uri}: evaluated weights {result.model.sha256[:12]}, registered are "
            f"{str(registered)[:12]}; evaluate again"
        )
    recorded, _ = verdict_of(version.tags)
    if recorded != result.judgement.verdict:
        raise RegistryError(
            f"{result.model.uri}: the evaluation said {result.judgement.verdict}, the registry now "
            f"says {recorded or 'nothing'}; evaluate again"
        )
    return _promote(version, {})


def bar_for(policy: ModelRef, project: str) -> str | None:
    """Return the champion that ``policy`` is to be compared with; None where there is none.

    The champion itself, evaluated again, is held to what it was held to when it became champion.
    """
    current = read_history(project).current if has_store() else None
    champion = current.policy if current else None
    if champion is None or champion != policy.uri:
        return champion
    compared = find_version(champion).tags.get(COMPARED, NOBODY)
    return compared if compared != NOBODY and version_tags(compared) is not None else None


def _require_compared(uri: str, tags: Mapping[str, str], champion: str | None) -> None:
    """Refuse a candidate that was compared with another champion than the one in force.

    Raises:
        RegistryError: says which one, and what to do.
    """
    if not is_overtaken(uri, tags, champion):
        return
    compared = tags.get(COMPARED, "none, by an earlier build")
    raise RegistryError(
        f"{uri} was compared with champion {compared}, and the "
        f"champion is now {champion or NOBODY}; evaluate it again: "
        f"`rlhf evaluate CONFIG --policy {uri}`"
    )


def promote_model(reference: str, *, reviewer: str | None = None, comment: str = "") -> Promotion:
    """Apply the verdict that is recorded with a registered model.

    Args:
        reference: ``models:/<name>/<version>`` or ``models:/<name>@<alias>``.
        reviewer: who approves by this; recorded before anything moves, so that a kill in between
            leaves no champion that nobody has approved. None: nobody in person.
        comment: why.

    Raises:
        RegistryError: there is no such model, no gate has been applied to it, or MLflow refuses.
    """
    noted = {"approved_by": reviewer, "approval_comment": comment} if reviewer else {}
    return _promote(find_version(reference), noted)


def _promote(version: Any, noted: dict[str, str]) -> Promotion:
    """Apply the verdict of what ``find_version`` found; ``noted`` is who approves it, and why."""
    uri, project, verdict, reasons = _require_verdict(version)
    if verdict == "PROMOTE":
        return _make_champion(version, noted, reasons)
    aliases = champion_aliases(project)["policy"]
    return Promotion(
        model=uri,
        verdict=verdict,
        moved=False,
        champion=policy_uri(project, aliases.get(CHAMPION)),
        previous_champion=policy_uri(project, aliases.get(PREVIOUS)),
        reasons=reasons,
    )


def plan_promotion(reference: str) -> Promotion:
    """Say what ``promote_model`` would do; nothing is written, not even a move completed.

    Raises:
        RegistryError: what ``promote_model`` would refuse; rights are not asked for.
    """
    with only_looking():
        version = find_version(reference)
        uri, project, verdict, reasons = _require_verdict(version)
        state = read_project_state(project)
        champion, previous = (state.aliases["policy"].get(alias) for alias in (CHAMPION, PREVIOUS))
        before = policy_uri(project, champion)
        by_hand: tuple[str, ...] = ()
        if verdict == "PROMOTE":
            release, known = _release_with_parts(version, state)
            seen = history_of(state)
            by_hand = seen.by_hand
            chain = tuple(_chain_of(release, version.tags, seen))
            wanted = wanted_aliases(project, chain, state.aliases, known)
            champion, previous = wanted["policy", CHAMPION], wanted["policy", PREVIOUS]
        return Promotion(
            model=uri,
            verdict=verdict,
            moved=before != uri == policy_uri(project, champion),
            champion=policy_uri(project, champion),
            previous_champion=policy_uri(project, previous),
            reasons=reasons,
            by_hand=by_hand,
        )


def _require_verdict(version: Any) -> tuple[str, str, Verdict, tuple[str, ...]]:
    """Return URI and project of a policy, and what its gates said.

    Raises:
        RegistryError: it is no policy of a project, or no gate has been applied to it.
    """
    uri = version_uri(version.name, version.version)
    require_role(
        version,
        ("policy",),
        "only a policy is promoted; its SFT model, reward model and judge become champions with it",
    )
    project = project_of(version.name)
    if project is None:
        raise RegistryError(f"{uri}: only versions of <project>-policy are promoted")
    verdict, reasons = verdict_of(version.tags)
    if verdict is None:
        raise RegistryError(f"{uri} has no verdict; run `rlhf evaluate` on it first")
    return uri, project, verdict, reasons


def _make_champion(version: Any, noted: dict[str, str], reasons: tuple[str, ...]) -> Promotion:
    """Put a version and what it was made with in force, unless they are already."""
    uri, tags = version_uri(version.name, version.version), version.tags
    project = version.name.rpartition("-")[0]
    state = read_project_state(project)
    release, known = _release_with_parts(version, state)
    seen, aliases = history_of(state), state.aliases
    before, also_by = policy_uri(project, aliases["policy"].get(CHAMPION)), None
    if release == seen.current and not seen.by_hand and seen.base:
        _approve(uri, tags, noted)
    else:
        chain = _chain_of(release, tags, seen)
        require_release_rights(project, tuple(chain), state)
        _approve(uri, tags, noted)
        try:
            plan = plan_of("promote", seen, chain)
            move = record_move(state.journal, plan, noted | note_of(seen))
            aliases = apply_move(move, state, known)
        except SameMoveError as error:
            also_by = str(error)
            apply_newest(project)
            aliases = champion_aliases(project)
    champion = policy_uri(project, aliases["policy"].get(CHAMPION))
    return Promotion(
        model=uri,
        verdict="PROMOTE",
        moved=also_by is None and uri == champion and (before != uri or state.journal.completed),
        champion=champion,
        previous_champion=policy_uri(project, aliases["policy"].get(PREVIOUS)),
        reasons=reasons,
        by_hand=() if also_by else seen.by_hand,
        also_by=also_by,
    )


def _release_with_parts(version: Any, state: ProjectState) -> tuple[Release, frozenset[str]]:
    """Return the release of a policy and the versions it is made of.

    Raises:
        RegistryError: it is not complete, or not about all that its project requires.
    """
    project, uri = state.journal.project, version_uri(version.name, version.version)
    found = parts_of(project, version.tags)
    release = release_of(uri, version.tags, found)
    tags = {**found, uri: version.tags}
    require_applied(project, release.parts(), models=state.models, tags=tags)
    return release, frozenset(tags)


def _chain_of(release: Release, tags: Mapping[str, str], seen: ReleaseHistory) -> list[Release]:
    """Return a release and those before it, if it may come after the one in force."""
    _require_compared(release.policy, tags, seen.current.policy if seen.current else None)
    before = [seen.current] if seen.current and release != seen.current else []
    return [release, *before, *seen.before]


def _approve(uri: str, tags: Mapping[str, str], noted: dict[str, str]) -> None:
    if noted:
        who = {"reviewer": noted["approved_by"], "comment": noted["approval_comment"]}
        record_approval(uri, "PROMOTE", said_at=datetime.now(UTC), tags=tags, **who)
