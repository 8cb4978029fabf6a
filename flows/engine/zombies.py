"""What died without a word: runs, marked so that they can be retried, and half-done promotions.

Prefect itself notices a dead run through missing heartbeats, after minutes and not at all where
SQLite forbids the automation. On one machine the process table is the better witness.
"""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import psutil
import requests

from rlhf_core.adapters.registry.processes_at_work import began_after_start, is_as_begun
from rlhf_core.adapters.registry.releases import SUFFIX, is_unfinished
from rlhf_flows.engine.prefect_server import ask, every_flow_run

logger = logging.getLogger(__name__)

PROCESS_LABEL = "rlhf.process"
BEGAN_LABEL = "rlhf.process-began"
WHOSE = "PREFECT__FLOW_RUN_ID"
"""Variable by which a process that Prefect starts knows its flow run."""
PATIENCE_SECONDS = {"RUNNING": 15.0, "CANCELLING": 60.0, "PENDING": 90.0}
"""How long a run may be in a state before its process must exist: a retry starts in the old one's
name, and a worker takes time to start a process."""


ANSWER_SECONDS = 10.0
"""How long MLflow may take to say which releases there are."""
UNSTARTED_SECONDS = 600.0
"""How long a worker of this machine may take to start a process; one that was killed never will."""


def process_name() -> str:
    """Return this process as runs are labelled with it: ``host:pid``."""
    return f"{socket.gethostname()}:{os.getpid()}"


def labels_of_this_process() -> dict[str, str]:
    """Return what a run says of the process that works on it."""
    began = began_after_start(psutil.Process())
    return {PROCESS_LABEL: process_name(), BEGAN_LABEL: f"{began:.2f}"}


def mark_zombie_runs(api_url: str) -> list[str]:
    """Set every unfinished run of this machine whose process is gone to Crashed.

    Args:
        api_url: address of the Prefect API.

    Returns:
        Names of the runs that were marked.

    Raises:
        OrchestrationError: the server does not answer, or refuses.
    """
    runs = every_flow_run(api_url, PATIENCE_SECONDS)
    dead = [run for run in runs if _is_dead(run) and _is_unchanged(api_url, run)]
    for run in dead:
        gone = ", ".join(sorted(_processes_of(run))) or "unstarted"
        message = f"process {gone} is gone; Retry goes on from where it was"
        ask(
            api_url,
            f"flow_runs/{run['id']}/set_state",
            {"state": {"type": "CRASHED", "name": "Crashed", "message": message}, "force": True},
        )
        logger.warning("marked_crashed flow_run=%r process=%s", run["name"], gone)
    return [run["name"] for run in dead]


def _is_unchanged(api_url: str, run: dict[str, Any]) -> bool:
    """Ask once more: somebody may have retried the run since it was read."""
    body = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    return [found["state"] for found in ask(api_url, "flow_runs/filter", body)] == [run["state"]]


def _processes_of(run: dict[str, Any]) -> set[str]:
    """Return ``host:pid`` of all that may be at work: what the run said, what its worker started.

    The label of a retry names the attempt before it until the retry has spoken, and for good where
    the server was lost just then. A pending one has not spoken, so only its worker knows.
    """
    said = (run.get("labels") or {}).get(PROCESS_LABEL)
    host = _host_of(run)
    pid = str(run.get("infrastructure_pid") or "").rpartition(":")[2]
    started = f"{host}:{pid}" if host and pid else None
    known = {str(name) for name in (said, started) if name}
    return known - {said} if run["state"]["type"] == "PENDING" else known


def _host_of(run: dict[str, Any]) -> str:
    """Return the machine whose worker took the run."""
    return str((run.get("labels") or {}).get("prefect.worker.name", "")).partition("@")[0]


def _is_dead(run: dict[str, Any]) -> bool:
    """Return whether the run had processes of this machine and has none of them any more."""
    state = run["state"]
    since = datetime.fromisoformat(state["timestamp"])
    age = (datetime.now(UTC) - since).total_seconds()
    if age < PATIENCE_SECONDS[state["type"]]:
        return False
    processes = _processes_of(run)
    if not processes and state["type"] == "PENDING":
        return _host_of(run) == socket.gethostname() and age > UNSTARTED_SECONDS
    # The number may belong to a later process by now. A pending run's process is always later.
    latest = since.timestamp() + 5 if state["type"] == "RUNNING" else None
    return bool(processes) and all(_is_gone(name, latest, run) for name in processes)


def _is_gone(name: str, latest: float | None, run: dict[str, Any]) -> bool:
    """Return whether ``host:pid`` was a process of this machine, begun by ``latest``, and ended.

    When one began is counted from the machine's start, by a clock that stands while the machine is
    paused: after a pause a living process seems to have begun later. So it is asked whose it is.
    """
    host, _, pid = name.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        process = psutil.Process(int(pid))
        reused = latest is not None and process.create_time() > latest
        reused = reused and not _works_on(process, name, run)
        return bool(reused or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _works_on(process: psutil.Process, name: str, run: dict[str, Any]) -> bool:
    """Return whether a process is what the run said it is, or knows itself that it is the run's.

    One of a command line, and one that works on a flow within a flow, do not know it.
    """
    labels = run.get("labels") or {}
    began = labels.get(BEGAN_LABEL) if labels.get(PROCESS_LABEL) == name else None
    if began is not None and is_as_begun(process, float(began)):
        return True
    with suppress(psutil.AccessDenied):
        return bool(process.environ().get(WHOSE) == str(run["id"]))
    return False


def complete_releases(mlflow_url: str, environment: Mapping[str, str]) -> bool:
    """Complete promotions and rollbacks that were killed, if there may be one; say whether.

    A process of its own does it: MLflow's client would stay in this one's memory for good. It logs
    where this one does, and tells the Prefect server of its environment of each new champion.

    Args:
        mlflow_url: of the server with the registry.
        environment: of that process.

    Raises:
        requests.RequestException: the server does not answer.
    """
    address = f"{mlflow_url}/api/2.0/mlflow/model-versions/search"
    wanted = {"filter": f"name LIKE '%{SUFFIX}'", "order_by": "last_updated_timestamp DESC"}
    answer = requests.get(address, params=wanted, timeout=ANSWER_SECONDS)
    answer.raise_for_status()
    undone = any(
        is_unfinished({tag["key"]: tag.get("value", "") for tag in version.get("tags", ())})
        for version in answer.json().get("model_versions", ())
    )
    if undone:
        done = subprocess.run([sys.executable, "-m", __name__], env=dict(environment), check=False)
        if done.returncode:
            logger.warning("releases_not_completed exit_code=%s", done.returncode)
    return undone


def _complete_and_announce() -> None:
    """Do what ``complete_releases`` starts a process for."""
    from rlhf_core.adapters.registry.release_aliases import recover_all
    from rlhf_flows.engine.events import announce_champion
    from rlhf_flows.engine.logs import configure_logging

    configure_logging("info")
    for champion in recover_all():
        announce_champion(champion)


if __name__ == "__main__":
    _complete_and_announce()
