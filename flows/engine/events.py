"""Events that automations can act on.

``rlhf.gate-failed``, ``rlhf.kl-spike``, ``rlhf.promoted``, ``rlhf.data-version``.
"""

from prefect.events import emit_event

from rlhf_core.adapters.settings import load_settings
from rlhf_core.schema import BatchResult, RunContext
from rlhf_core.schema.model_uri import without_scheme
from rlhf_flows.engine.lost_server import best_effort


def announce(event: str, context: RunContext, **payload: str | None) -> None:
    """Tell the Prefect server what happened to a run; without a server there is nobody to tell."""
    emit(event, resource=f"rlhf.run.{context.run_id}", run=context.run_id, **payload)


def announce_champion(uri: str) -> None:
    """Tell the Prefect server that a command, and no run, made a version champion."""
    name = without_scheme(uri).replace("/", ".")
    emit("rlhf.promoted", resource=f"rlhf.model.{name}", model=uri, champion=uri)


def announce_dataset(sha256: str, directory: str, **payload: str | None) -> None:
    """Tell the Prefect server that a dataset version was published.

    Args:
        sha256: of the dataset.
        directory: where it lies.
        payload: ``version`` (``data-vN``), which the shipped automation starts the pipeline on, and
            further words about it.
    """
    emit(
        "rlhf.data-version", resource=f"rlhf.dataset.{sha256[:12]}", directory=directory, **payload
    )


def announce_published(published: BatchResult) -> None:
    """Tell the Prefect server of a version as `rlhf data add`, or a pull of labels, made it."""
    version = published.version
    announce_dataset(
        version.sha256,
        str(published.directory),
        version=version.version,
        dvc_md5=version.dvc_md5,
        commit=version.commit,
        batch=version.batch,
    )


def emit(event: str, *, resource: str, **payload: str | None) -> None:
    """Send one event if a Prefect server is configured; one that cannot be sent costs a warning."""
    if load_settings().prefect_api_url is None:
        return
    with best_effort(f"event_not_sent event={event}"):
        emit_event(event=event, resource={"prefect.resource.id": resource}, payload=dict(payload))
