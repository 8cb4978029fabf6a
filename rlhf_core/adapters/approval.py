"""A person's word about a model, kept with its version in the registry."""

from datetime import UTC, datetime

from rlhf_core.adapters.mlflow_client import mlflow_client, patiently
from rlhf_core.adapters.registry import find_version


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
    version = find_version(uri)
    tags = {
        "rlhf.approval": decision,
        "rlhf.approved_by": reviewer,
        "rlhf.approval_comment": comment,
        "rlhf.approval_time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for key, value in tags.items():
        patiently(
            f"recording the answer about {uri}",
            lambda key=key, value=value: mlflow_client().set_model_version_tag(  # type: ignore[misc]
                version.name, str(version.version), key, value
            ),
        )
