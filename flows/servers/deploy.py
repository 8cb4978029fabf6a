"""`rlhf deploy`: pools, deployments and automations on the Prefect server that is configured.

Repeating it changes nothing but what has changed: what a person switched on or off stays so.
"""

import copy
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.objects import DeploymentSchedule, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from rlhf_core.errors import ConfigError, RlhfError
from rlhf_flows.engine.environment import RELIED_ON, SILENT_RUNS, SILENT_SECONDS
from rlhf_flows.engine.prefect_server import START_SECONDS, check_prefect
from rlhf_flows.servers.installation import STEP, describe_code, installed_code, module_entrypoint
from rlhf_flows.servers.pools import FILE, read_pools

logger = logging.getLogger(__name__)

HEARTBEAT = "prefect.flow-run.heartbeat"
FORMER_NAMES = {
    "rlhf_flows.collect.collect_flow": "manual",
    **{
        f"rlhf_flows.stages.{stage}_stage": "stage"
        for stage in ("prepare", "sft", "reward", "policy", "evaluate", "promote")
    },
}
"""By entry point, what earlier builds called a deployment."""
ENDS = (
    *("Completed", "Failed", "Cancelled", "Crashed", "TimedOut", "Suspended", "Paused", "Skipped"),
    *("HOLD", "REJECT", "WAITING"),
)
"""Names of states in which a run has no process that could send a heartbeat."""


def deploy(*, pool_type: str, watch_heartbeats: bool) -> None:
    """Apply ``prefect.yaml``.

    Args:
        pool_type: type of work pools that do not exist yet, e.g. ``process``.
        watch_heartbeats: create the automation that marks silent runs as crashed. Not on SQLite,
            which locks up under it.

    Raises:
        OrchestrationError: the server did not answer for a minute.
        ConfigError: a schedule of the file has no slug.
        RlhfError: the server refuses.
    """
    pools = read_pools()
    check_prefect(START_SECONDS)
    with get_client(sync_client=True) as client:
        for pool in pools.limits:
            _make_pool(client, pool, pool_type)
        with _as_people_left_it(client) as file:
            _apply(file)
        queue = client.read_work_queue_by_name(
            pools.pipeline_queue, work_pool_name=pools.orchestration
        )
        client.update_work_queue(queue.id, concurrency_limit=1)
        if watch_heartbeats:
            _watch_heartbeats(client)


def _make_pool(client: SyncPrefectClient, name: str, kind: str) -> None:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type=kind))


@contextmanager
def _as_people_left_it(client: SyncPrefectClient) -> Iterator[Path]:
    """``prefect.yaml`` with every switch as it is on the server, and new schedules off.

    Prefect would resume what was paused and switch automations on again. Put right afterwards, they
    would be on for a moment, and for good where somebody was killed in between.
    """
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    named = {item["name"] for item in content["deployments"]} | set(FORMER_NAMES.values())
    names = DeploymentFilterName(any_=sorted(named))
    found = client.read_deployments(deployment_filter=DeploymentFilter(name=names))
    made = {(module_entrypoint(item.entrypoint or ""), item.name): item for item in found}
    for deployment in content["deployments"]:
        _run_by_any_installation(deployment)
        _require_slugs(deployment)
    content["deployments"] += _under_former_names(content["deployments"], made)
    for deployment in content["deployments"]:
        if known := made.get((deployment["entrypoint"], deployment["name"])):
            _keep_switches(client, deployment, known)
            _keep_schedules(client, deployment, known)
            _keep_parameters(deployment, known)
        else:
            for schedule in deployment.get("schedules", ()):
                schedule["active"] = False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE.name
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        yield path


def _under_former_names(
    deployments: list[dict[str, Any]], made: Mapping[tuple[str, str], DeploymentResponse]
) -> list[dict[str, Any]]:
    """Return deployments that the server has by the name of an earlier build, to be kept in force.

    Schedules and automations of people refer to them, and Prefect cannot rename one. What is made
    by the new name for the first time begins as the old one was left.
    """
    kept = []
    for deployment in deployments:
        entrypoint, name = deployment["entrypoint"], deployment["name"]
        former = made.get((entrypoint, FORMER_NAMES.get(entrypoint, name)))
        if former is None or former.name == name:
            continue
        about = (
            f"Now called {name}; delete this one once no schedule or automation of yours uses it."
        )
        old = {**copy.deepcopy(deployment), "name": former.name, "description": about}
        kept.append(
            {key: value for key, value in old.items() if key not in ("triggers", "schedules")}
        )
        if (entrypoint, name) not in made:
            deployment["paused"] = former.paused
            _keep_parameters(deployment, former)
    return kept


def _require_slugs(deployment: dict[str, Any]) -> None:
    for number, schedule in enumerate(deployment.get("schedules", ())):
        if not schedule.get("slug"):
            raise ConfigError(
                f"{FILE}: deployment {deployment['name']}: schedules[{number}]: expected a slug, "
                "by which it is found when it is deployed again; add e.g. `slug: weekly`"
            )


def _run_by_any_installation(deployment: dict[str, Any]) -> None:
    """Let a worker run it by its own code, and with what the product relies on, however started."""
    deployment["entrypoint"] = module_entrypoint(deployment["entrypoint"])
    step = {"code": installed_code(), "description": describe_code()}
    deployment.setdefault("pull", [{STEP: step}])
    pool = deployment["work_pool"] = dict(deployment.get("work_pool") or {})
    variables = pool["job_variables"] = dict(pool.get("job_variables") or {})
    variables["env"] = RELIED_ON | dict(variables.get("env") or {})


def _keep_switches(
    client: SyncPrefectClient, deployment: dict[str, Any], known: DeploymentResponse
) -> None:
    """Write into a deployment what the server says; about old schedules Prefect asks it itself."""
    deployment["paused"] = known.paused
    automations = client.read_resource_related_automations(f"prefect.deployment.{known.id}")
    enabled = {automation.name: automation.enabled for automation in automations}
    for number, trigger in enumerate(deployment.get("triggers", ()), 1):
        unnamed = (
            f"{known.name}__automation_{number}"  # as Prefect calls it, and earlier builds did
        )
        name = trigger.setdefault("name", unnamed)
        before = enabled.get(unnamed, trigger.get("enabled", True))
        trigger["enabled"] = enabled.get(name, before)


def _keep_schedules(
    client: SyncPrefectClient, deployment: dict[str, Any], known: DeploymentResponse
) -> None:
    """Leave the schedules of the server alone; add those that it lacks, switched off.

    What differs from the file is named in the log. Prefect leaves alone what it knows by a slug.
    With one schedule that has none it would make all of the deployment's anew: switched on, with
    no limit of runs. So that one is given a slug first.
    """
    shipped = {one["slug"]: one for one in deployment.pop("schedules", ())}
    for made in known.schedules:
        if not made.slug:
            _name_schedule(client, known, made)
        found, wanted = _as_configured(made), shipped.pop(made.slug, None)
        if wanted is None or any(found.get(name) != value for name, value in wanted.items()):
            logger.info("kept deployment=%s schedule=%r file=%r", known.name, found, wanted)
    if shipped:
        deployment["schedules"] = [{**one, "active": False} for one in shipped.values()]


def _name_schedule(
    client: SyncPrefectClient, deployment: DeploymentResponse, made: DeploymentSchedule
) -> None:
    slug = f"schedule-{str(made.id)[:8]}"
    client.request(
        "PATCH",
        "/deployments/{id}/schedules/{schedule_id}",
        path_params={"id": deployment.id, "schedule_id": made.id},
        json={"slug": slug},
    )
    logger.info("named deployment=%s schedule=%s", deployment.name, slug)


def _as_configured(made: DeploymentSchedule) -> dict[str, Any]:
    """Return a schedule of the server as ``prefect.yaml`` would say it."""
    found = made.schedule.model_dump(mode="json", exclude_none=True)
    if "interval" in found:
        found["interval"] = cast(IntervalSchedule, made.schedule).interval.total_seconds()
    return found | {"slug": made.slug, "active": made.active, "parameters": made.parameters}


def _keep_parameters(deployment: dict[str, Any], known: DeploymentResponse) -> None:
    """Write into a deployment the parameters that people have set on the server; name them."""
    wanted = deployment.get("parameters") or {}
    if known.parameters != wanted:
        logger.info(
            "kept deployment=%s parameters=%r file=%r", known.name, known.parameters, wanted
        )
        deployment["parameters"] = known.parameters


def _apply(file: Path) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(
        [*command, "--prefect-file", str(file)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise RlhfError(f"prefect deploy failed: {' '.join(lines[-5:])}")


def _watch_heartbeats(client: SyncPrefectClient) -> None:
    """Make the automation, or give one of an earlier build the states that end a run now."""
    trigger = EventTrigger(
        after={HEARTBEAT},
        expect={HEARTBEAT, *(f"prefect.flow-run.{end}" for end in ENDS)},
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=SILENT_SECONDS),
    )
    automation = AutomationCore(
        name=SILENT_RUNS,
        description=f"A run without a heartbeat for {SILENT_SECONDS} s has lost its process.",
        trigger=trigger,
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message="no heartbeat: its process is gone. Retry goes on from where it was",
            )
        ],
    )
    known = client.read_automations_by_name(SILENT_RUNS)
    if not known:
        client.create_automation(automation)
    for other in known:
        found = other.trigger
        if not isinstance(found, EventTrigger) or found.expect != trigger.expect:
            kept = automation.model_copy(update={"enabled": other.enabled})
            client.update_automation(other.id, kept)
