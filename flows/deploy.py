"""`rlhf deploy`: pools, deployments and automations on the Prefect server that is configured.

Repeating it changes nothing but what has changed: a schedule that a person switched on stays on.
"""

import subprocess
import sys
from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from rlhf_core.errors import RlhfError

PIPELINE_POOL = "rlhf"
TRAINING_POOL = "rlhf-training"
PIPELINE_QUEUE = "pipelines"
NIGHTLY = "rlhf-pipeline/nightly"
SILENT_SECONDS = 90
"""A run that sends no heartbeat for so long is taken for dead; workers send one every 30 s."""

HEARTBEAT = "prefect.flow-run.heartbeat"
ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "Suspended")


def deploy(*, pool_type: str, watch_heartbeats: bool) -> None:
    """Apply ``prefect.yaml``.

    Args:
        pool_type: type of work pools that do not exist yet, e.g. ``process``.
        watch_heartbeats: create the automation that marks silent runs as crashed. Not on SQLite,
            which locks up under it.

    Raises:
        RlhfError: the server refuses.
    """
    with get_client(sync_client=True) as client:
        for pool in (PIPELINE_POOL, TRAINING_POOL):
            _make_pool(client, pool, pool_type)
        is_new = not _exists(client, NIGHTLY)
        _apply_file()
        queue = client.read_work_queue_by_name(PIPELINE_QUEUE, work_pool_name=PIPELINE_POOL)
        client.update_work_queue(queue.id, concurrency_limit=1)
        if is_new:
            _switch_off(client, NIGHTLY)
        if watch_heartbeats:
            _watch_heartbeats(client)


def _make_pool(client: SyncPrefectClient, name: str, kind: str) -> None:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type=kind))


def _exists(client: SyncPrefectClient, deployment: str) -> bool:
    try:
        client.read_deployment_by_name(deployment)
    except ObjectNotFound:
        return False
    return True


def _apply_file() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise RlhfError(f"prefect deploy failed: {' '.join(lines[-5:])}")


def _switch_off(client: SyncPrefectClient, deployment: str) -> None:
    found = client.read_deployment_by_name(deployment)
    for schedule in found.schedules:
        client.update_deployment_schedule(found.id, schedule.id, active=False)


def _watch_heartbeats(client: SyncPrefectClient) -> None:
    name = "rlhf: silent runs are crashed"
    if client.read_automations_by_name(name):
        return
    client.create_automation(
        AutomationCore(
            name=name,
            description=f"A run without a heartbeat for {SILENT_SECONDS} s has lost its process.",
            trigger=EventTrigger(
                after={HEARTBEAT},
                expect={HEARTBEAT, *(f"prefect.flow-run.{end}" for end in ENDS)},
                match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=SILENT_SECONDS),
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    message="no heartbeat: its process is gone. Retry goes on from where it was",
                )
            ],
        )
    )
