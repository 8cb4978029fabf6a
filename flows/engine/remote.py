"""Stages of a deployed pipeline: each runs as its own deployment, in its own work pool."""

import hashlib
import json
import logging
from functools import partial
from typing import Any, cast

from prefect import task
from prefect.cache_policies import INPUTS, RUN_ID
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.runtime import flow_run

from rlhf_flows.engine.lost_server import until_prefect_answers

POLL_SECONDS = 2
STARTS = ("", ":2", ":3")
"""Ends of the keys under which one attempt starts a stage: each if the run before never began."""

logger = logging.getLogger(__name__)


class StageFailedError(RuntimeError):
    """The run of a stage did not complete; its own page in Prefect has the traceback."""


@task(
    persist_result=True,
    cache_policy=INPUTS + RUN_ID,
    result_serializer="json",
    task_run_name="{stage}",
)
def run_deployed_stage(
    stage: str, flow_name: str, inputs: dict[str, Any], settings: dict[str, Any] | None = None
) -> str:
    """Run a stage by its deployment, e.g. ``rlhf-sft/sft``, and wait; returns its flow run's id.

    Its settings go with it by value: its worker may have no file of them, nor the run's folder.
    The result is kept, so that a Retry of the pipeline does not come back to a finished stage.
    Each attempt of the pipeline lets the stage begin once at most: a run whose process died before
    it began, as where the server was away just then, is followed by another. Before that it finds
    the stage runs that earlier attempts started from the same inputs, by their keys: one that is
    still running is waited for, one that completed (perhaps by a Retry of its own) counts.

    Raises:
        StageFailedError: the last attempt failed, crashed or was cancelled.
    """
    outcome = "was not started"
    made_from = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]
    attempts = range(int(flow_run.run_count))
    keys = [f"{flow_run.id}:{stage}:{made_from}:{n}{start}" for n in attempts for start in STARTS]
    ours = keys[-len(STARTS) :]
    for key in dict.fromkeys([*_started(keys), *ours]):
        run = until_prefect_answers(
            "running_stage", partial(_see_through, flow_name, inputs, settings, key)
        )
        if run.state is not None and run.state.is_completed():
            return str(run.id)
        if run.state is not None:
            outcome = f"{run.name} is {run.state.name}: {run.state.message}"
        if key in ours:
            if not _never_began(run):
                break
            logger.warning("stage_never_began stage=%s flow_run=%r", stage, run.name)
    raise StageFailedError(f"{stage}: {outcome}")


def _never_began(run: FlowRun) -> bool:
    """Whether its process ended before it could say that it runs, whatever it has met."""
    return run.state is not None and run.state.is_crashed() and run.start_time is None


def _see_through(
    flow_name: str, inputs: dict[str, Any], settings: dict[str, Any] | None, key: str
) -> FlowRun:
    """Start the stage, or find what was started under the key, and wait until it has ended."""
    run = run_deployment(
        f"{flow_name}/{flow_name.removeprefix('rlhf-')}",
        parameters={"settings": settings, "inputs": inputs},
        timeout=None,
        poll_interval=POLL_SECONDS,
        idempotency_key=key,
    )
    return cast(FlowRun, run)


def _started(keys: list[str]) -> list[str]:
    """Return those of the keys under which a flow run was started, in their order."""
    wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=keys))

    def read() -> list[FlowRun]:
        with get_client(sync_client=True) as client:
            return client.read_flow_runs(flow_run_filter=wanted)

    found = {run.idempotency_key for run in until_prefect_answers("finding_stages", read)}
    return [key for key in keys if key in found]
