"""A person's word about a model, kept with its version in the registry."""

from collections.abc import Mapping
from datetime import UTC, datetime

from rlhf_core.adapters.mlflow_client import mlflow_client, patiently
from rlhf_core.adapters.registry import find_version
from rlhf_core.errors import RegistryError

APPROVAL = "rlhf.approval"
APPROVED = "PROMOTE"
ASKED = "ASKED"
"""Value of the tag while a person is being asked: what was said before does not count."""


def ask_approval(uri: str) -> None:
    """Write on the version that a person is being asked about it now.

    Raises:
        RegistryError: there is no such version, or MLflow stays lost.
    """
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
    said = f"{tags.get('rlhf.approved_by')} said {found}: {tags.get('rlhf.approval_comment')}"
    problem = {None: "nobody has approved it", ASKED: "nobody has answered yet"}.get(found, said)
    raise RegistryError(f"{uri}: {problem}; `rlhf promote {uri}` is an approval by you")


def record_approval(uri: str, decision: str, *, reviewer: str, comment: str) -> None:
    """Tag the version with ``rlhf.approval``, ``.approved_by``, ``.approval_comment`` and time.

    Args:
        uri: ``models:/<name>/<version>``.
        decision: PROMOTE, HOLD or REJECT.
        reviewer: who decided.
        comment: why.

    Raises:
        RegistryError: there is no such version, or MLflow stays lost.
    """
    _tag(
        uri,
        {
            APPROVAL: decision,
            "rlhf.approved_by": reviewer,
            "rlhf.approval_comment": comment,
            "rlhf.approval_time": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def _tag(uri: str, tags: Mapping[str, str]) -> None:
    version = find_version(uri)
    for key, value in tags.items():
        patiently(
            f"recording the answer about {uri}",
            lambda key=key, value=value: mlflow_client().set_model_version_tag(  # type: ignore[misc]
                version.name, str(version.version), key, value
            ),
        )
