"""The last stage: apply the decision that was recorded, and take it back.

The champions of SFT, reward model and judge follow the policy's: the four together are one release.
"""

from datetime import UTC, datetime

from rlhf_core.adapters.approval import record_approval
from rlhf_core.adapters.champion import (
    alias_uris,
    promote_to_champion,
    recorded_verdict,
    rollback,
)
from rlhf_core.adapters.registry import CHAMPION, PREVIOUS, find_version, upstream_uris
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import RegistryError
from rlhf_core.schema import Record, RunContext, StageResult, Verdict


class Promotion(Record):
    """What promotion did to the aliases of a registered model."""

    model: str
    """The model the decision was about."""
    verdict: Verdict
    moved: bool
    """True if this made the model champion; False if it was that already."""
    champion: str | None
    """The champion after this; None if there is none."""
    previous_champion: str | None
    """What ``rlhf rollback`` would bring back."""
    reasons: tuple[str, ...]


class Rollback(Record):
    """What a rollback did."""

    was: str
    """Champion before."""
    champion: str
    """Champion now."""
    previous_champion: str | None
    """What a further rollback would bring back."""


def promote_policy(config: PipelineConfig, result: StageResult, context: RunContext) -> Promotion:
    """Apply the decision of an evaluation: PROMOTE moves ``champion``, anything else moves nothing.

    The verdict is read from the registry, where the evaluation wrote it, and must be the one in
    ``result``: a decision about other weights, or one overtaken by a later evaluation, moves
    nothing.

    Args:
        config: settings of the run.
        result: what evaluation handed on.
        context: of the run that promotes.

    Raises:
        RegistryError: the registry holds another verdict than ``result``, or does not answer.
    """
    expected = f"{config.project}-policy"
    if result.model.name != expected:
        raise RegistryError(
            f"run {context.run_id}: {result.model.uri} is not a version of {expected}"
        )
    registered = find_version(result.model.uri).tags.get("rlhf.sha256")
    if registered != result.model.sha256:
        raise RegistryError(
            f"{result.model.uri}: evaluated weights {result.model.sha256[:12]}, registered are "
            f"{str(registered)[:12]}; evaluate again"
        )
    recorded, _ = recorded_verdict(result.model.uri)
    if recorded != result.decision.verdict:
        raise RegistryError(
            f"{result.model.uri}: the evaluation said {result.decision.verdict}, the registry now "
            f"says {recorded or 'nothing'}; evaluate again"
        )
    return promote_model(result.model.uri)


def promote_model(reference: str, *, reviewer: str | None = None, comment: str = "") -> Promotion:
    """Apply the verdict that is recorded with a registered model.

    Args:
        reference: ``models:/<name>/<version>`` or ``models:/<name>@<alias>``.
        reviewer: who approves by this; recorded before anything moves, so that a kill in between
            leaves no champion that nobody has approved. None: nobody in person.
        comment: why.

    Raises:
        RegistryError: there is no such model, or no gate has been applied to it.
    """
    version = find_version(reference)
    uri = f"models:/{version.name}/{version.version}"
    verdict, reasons = recorded_verdict(uri)
    if verdict is None:
        raise RegistryError(f"{uri} has no verdict; run `rlhf evaluate` on it first")
    before = alias_uris(version.name).get(CHAMPION)
    if verdict == "PROMOTE":
        if reviewer is not None:
            now = datetime.now(UTC)
            record_approval(uri, "PROMOTE", reviewer=reviewer, comment=comment, said_at=now)
        promote_to_champion(uri)
        _align_upstream(uri)
    aliases = alias_uris(version.name)
    return Promotion(
        model=uri,
        verdict=verdict,
        moved=before != uri == aliases.get(CHAMPION),
        champion=aliases.get(CHAMPION),
        previous_champion=aliases.get(PREVIOUS),
        reasons=reasons,
    )


def rollback_policy(project: str) -> Rollback:
    """Make the policy champion again that was so before the last promotion.

    Args:
        project: prefix of the registered model names.

    Raises:
        RegistryError: there is no champion, or none before it.
    """
    name = f"{project}-policy"
    was, now = rollback(name)
    _align_upstream(f"models:/{name}/{now}")
    return Rollback(
        was=f"models:/{name}/{was}",
        champion=f"models:/{name}/{now}",
        previous_champion=alias_uris(name).get(PREVIOUS),
    )


def _align_upstream(policy: str) -> None:
    """Make the models that ``policy`` was made and judged with the champions of their names.

    One without a PROMOTE of its own (a stage run by hand past its gate) stays what it is.
    """
    for uri in upstream_uris(policy).values():
        verdict, _ = recorded_verdict(uri)
        if verdict == "PROMOTE":
            promote_to_champion(uri)
