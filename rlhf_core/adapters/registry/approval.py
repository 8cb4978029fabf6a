"""A person's word about a model, kept with its version in the registry."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import cast

from rlhf_core.adapters.registry.versions import find_version
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client, with_retries
from rlhf_core.errors import RegistryError
from rlhf_core.schema import CHAMPION, Verdict
from rlhf_core.schema.model_uri import split_model_uri

APPROVAL = "rlhf.approval"
APPROVED = "PROMOTE"
ASKED = "ASKED"
"""Value of the tag while a person is being asked: what was said before does not count."""
REVIEWER = "rlhf.approved_by"
COMMENT = "rlhf.approval_comment"
TIME = "rlhf.approval_time"


def ask_approval(uri: str) -> None:
    """Write on the version that a person is being asked about it now.

    A champion keeps its approval until somebody takes it back.

    Raises:
        RegistryError: there is no such version, or MLflow stays lost.
    """
    version = find_version(uri)
    if CHAMPION not in version.aliases or version.tags.get(APPROVAL) != APPROVED:
        _tag(uri, {APPROVAL: ASKED})


def require_approval(uri: str, *, asked_for: bool) -> None:
    """Refuse a version that a person did not approve.

    Args:
        uri: ``models:/<name>/<version>``.
        asked_for: the settings ask for a person; without, nobody has to have said anything, but
            a refusal counts all the same.

    Raises:
        RegistryError: nobody was asked, nobody has answered, or the answer was not PROMOTE.
    """
    tags = find_version(uri).tags
    found = tags.get(APPROVAL)
    if found == APPROVED or (found is None and not asked_for):
        return
    said = f"{tags.get(REVIEWER)} said {found}: {tags.get(COMMENT)}"
    problem = {None: "nobody has approved it", ASKED: "nobody has answered yet"}.get(found, said)
    raise RegistryError(f"{uri}: {problem}; `rlhf promote {uri}` is an approval by you")


def record_approval(
    uri: str,
    decision: Verdict,
    *,
    reviewer: str,
    comment: str,
    said_at: datetime | None,
    tags: Mapping[str, str] | None = None,
) -> tuple[Verdict, str]:
    """Tag the version with ``rlhf.approval``, ``.approved_by``, ``.approval_comment`` and time.

    The latest answer counts: one that is read late does not undo what was said after it.

    Args:
        uri: ``models:/<name>/<version>``.
        decision: PROMOTE, HOLD or REJECT.
        reviewer: who decided.
        comment: why.
        said_at: when it was said; None: by nobody, so that it counts only if nobody else has
            said anything.
        tags: of the version, where they were just read.

    Returns:
        The decision that counts now, and a line that says by whom and why.

    Raises:
        RegistryError: there is no such version, or MLflow stays lost.
    """
    tags = find_version(uri).tags if tags is None else tags
    if tags.get(APPROVAL, ASKED) != ASKED and _is_later(tags, said_at):
        decision = cast(Verdict, tags[APPROVAL])
        return decision, f"{decision} by {tags.get(REVIEWER)}: {tags.get(COMMENT)}"
    said = (said_at or datetime.now(UTC)).isoformat(timespec="seconds")
    # The decision comes last: a kill in between leaves a version that nobody has approved.
    # All of it: somebody else may have spoken since the tags were read.
    _tag(uri, {REVIEWER: reviewer, COMMENT: comment, TIME: said, APPROVAL: decision})
    return decision, f"{decision} by {reviewer}: {comment}"


_CLOCKS = timedelta(minutes=1)
"""How far the clocks of two machines may be apart."""


def _is_later(tags: Mapping[str, str], said_at: datetime | None) -> bool:
    """Return whether the word on the version is not older, to the second, than another one.

    A word from the future was written by a machine whose clock is ahead: it is no later than any.
    """
    if said_at is None:
        return True
    told = datetime.fromisoformat(tags[TIME])
    return said_at.replace(microsecond=0) <= told <= datetime.now(UTC) + _CLOCKS


def _tag(uri: str, tags: Mapping[str, str]) -> None:
    name, number, _ = split_model_uri(uri)
    for key, value in tags.items():
        with_retries(
            f"recording the answer about {uri}",
            lambda key=key, value=value: mlflow_client().set_model_version_tag(  # type: ignore[misc]
                name, number, key, value
            ),
        )
