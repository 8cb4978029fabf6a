"""Prefect, MLflow and the workers on this machine: started together, ended together.

One process, the supervisor (``python -m rlhf_flows.servers.supervisor``), owns them all: it
restarts what dies and ends what it started. What runs where is written to ``.rlhf/servers.json``.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from pydantic import AliasChoices, Field

from rlhf_core.errors import DataError, RlhfError
from rlhf_core.schema import Record
from rlhf_core.storage.locks import locked
from rlhf_core.storage.records import keep_private, write_record
from rlhf_flows.engine.environment import LOGGING, RELIED_ON, STATE, prepare_environment
from rlhf_flows.servers.pools import read_pools
from rlhf_flows.servers.processes import KEPT_IN, STOP_SECONDS, Process, end_all, end_tree, kept_in

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
STATE_FILE = STATE / "servers.json"
LOGS = STATE / "logs"
START_SECONDS = 600.0
SUPERVISOR_STOP_SECONDS = 6 * STOP_SECONDS
"""The supervisor ends its children one after the other."""
LEASES = {
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
        "prefect.server.concurrency.lease_storage.filesystem"
    ),
    "PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION": "900",
}
"""Which run holds a deployment's place. Prefect keeps it in memory: after a restart of the server
every pipeline would be ended at its next renewal. Renewed after three quarters of the time, a
longer lease outlives an outage of minutes."""


class Servers(Record):
    """What `rlhf up` started."""

    prefect_port: int = Field(ge=1, le=65535)
    mlflow_port: int = Field(ge=1, le=65535)
    supervisor: Process = Field(validation_alias=AliasChoices("supervisor", "keeper"))
    """Called ``keeper`` by earlier builds, whose servers may still run."""
    children: dict[str, Process] = Field(default_factory=dict)
    ready: bool = False

    @property
    def prefect_url(self) -> str:
        """Address of the Prefect UI."""
        return f"http://{HOST}:{self.prefect_port}"

    @property
    def mlflow_url(self) -> str:
        """Address of the MLflow UI."""
        return f"http://{HOST}:{self.mlflow_port}"


def read_servers() -> Servers | None:
    """Return what was started from this directory, or None."""
    if not STATE_FILE.exists():
        return None
    from rlhf_core.storage.records import read_record

    try:
        return read_record(STATE_FILE, Servers)
    except DataError as error:
        raise DataError(f"{error}; delete it, and start again: rlhf up") from error


def known_servers() -> Servers | None:
    """Return what was started here; a record that cannot be read counts as none, with a warning."""
    try:
        return read_servers()
    except (OSError, ValueError) as error:
        logger.warning("record_not_read file=%s error=%s", STATE_FILE, type(error).__name__)
        return None


def write_servers(servers: Servers) -> None:
    """Remember what runs."""
    write_record(STATE_FILE, servers)


def start_servers(prefect_port: int | None, mlflow_port: int | None) -> Servers:
    """Start everything and wait until it is healthy and deployed.

    Args:
        prefect_port: port of the Prefect server; None takes 4200, or a free one.
        mlflow_port: port of the MLflow server; None takes 5000, or a free one.

    Raises:
        RlhfError: it runs already, a port is taken, or something did not become healthy.
    """
    prepare_environment()
    read_pools()
    with _alone():
        running = known_servers()
        if running is not None and running.supervisor.find():
            raise RlhfError(
                f"the servers run already: Prefect {running.prefect_url}, "
                f"MLflow {running.mlflow_url}; `rlhf down` stops them"
            )
        stop_servers()
        prefect, mlflow = choose_ports(prefect_port, mlflow_port)
        keep_private(LOGS, folder=True)
        keep_private(LOGS / "supervisor.log")
        with (LOGS / "supervisor.log").open("a") as log:
            supervisor = subprocess.Popen(
                [sys.executable, "-m", "rlhf_flows.servers.supervisor", str(prefect), str(mlflow)],
                env={**os.environ, KEPT_IN: str(STATE.absolute())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            return _wait_until_ready(supervisor)
        except KeyboardInterrupt:
            stop_servers()
            raise


@contextmanager
def _alone() -> Iterator[None]:
    """Keep a second start from this directory out until this one is done.

    Raises:
        RlhfError: another one is under way.
    """
    busy = RlhfError("another `rlhf up` is just starting the servers here")
    with locked(STATE / "up.lock", busy=busy):
        yield


def _wait_until_ready(supervisor: "subprocess.Popen[bytes]") -> Servers:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        servers = read_servers()
        if servers is not None and servers.supervisor.pid == supervisor.pid and servers.ready:
            return servers
        if supervisor.poll() is not None:
            break
        time.sleep(0.2)
    stop_servers()
    raise RlhfError(
        f"the servers did not start within {START_SECONDS:.0f} s: {_last_error()}; "
        f"logs are in {LOGS.absolute()}"
    )


def _last_error() -> str:
    lines = (LOGS / "supervisor.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "no log was written"


def stop_servers() -> list[str]:
    """End exactly what was started from this directory; returns the names of what was ended."""
    servers = known_servers()
    ended = _end_known(servers) if servers is not None else []
    # What a killed supervisor or worker left to nobody.
    orphans = kept_in(str(STATE.absolute()))
    if orphans:
        end_all(orphans)
        ended.append("orphans")
    STATE_FILE.unlink(missing_ok=True)
    return ended


def _end_known(servers: Servers) -> list[str]:
    ended = []
    supervisor = servers.supervisor.find()
    if supervisor is not None:
        supervisor.send_signal(signal.SIGTERM)
        psutil.wait_procs([supervisor], timeout=SUPERVISOR_STOP_SECONDS)
        ended.append("supervisor")
    # The supervisor ends its children itself; these are left only if it was killed.
    for name, child in servers.children.items():
        if end_tree(child) or supervisor is not None:
            ended.append(name)
    return ended


def choose_ports(prefect: int | None, mlflow: int | None) -> tuple[int, int]:
    """Choose two different ports: the wanted ones, else the usual ones, else any free ones.

    Args:
        prefect: port of the Prefect server; None prefers 4200, 0 takes any.
        mlflow: port of the MLflow server; None prefers 5000, 0 takes any.

    Raises:
        RlhfError: a wanted port is taken.
    """
    with ExitStack() as held:
        first = _hold_port(held, prefect, 4200)
        return first, _hold_port(held, mlflow, 5000)


def _hold_port(held: ExitStack, wanted: int | None, usual: int) -> int:
    """Bind a port until the stack is closed, so that nobody is given it twice."""
    for port in (wanted,) if wanted else (usual, 0) if wanted is None else (0,):
        holder = held.enter_context(socket.socket())
        if port:
            # A port that was in use a moment ago counts as free; a free one must be unused.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((HOST, port))
        except OSError:
            continue
        holder.listen()
        return int(holder.getsockname()[1])
    raise RlhfError(f"port {wanted} is taken; choose another or leave the choice open")


def child_environment(prefect_port: int, mlflow_port: int) -> dict[str, str]:
    """Return the environment of servers and workers."""
    scripts = str(Path(sys.executable).parent)
    prefect = STATE.absolute() / "prefect"
    return {
        **os.environ,
        "PATH": os.pathsep.join((scripts, os.environ.get("PATH", os.defpath))),
        KEPT_IN: str(STATE.absolute()),
        "PREFECT_API_URL": f"http://{HOST}:{prefect_port}/api",
        "PREFECT_LOCAL_STORAGE_PATH": str(prefect / "storage"),
        **LEASES,
        **RELIED_ON,
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_LOGGING_SETTINGS_PATH": str(LOGGING),
        "MLFLOW_TRACKING_URI": f"http://{HOST}:{mlflow_port}",
        "MLFLOW_SERVER_ALLOWED_HOSTS": os.environ.get("MLFLOW_SERVER_ALLOWED_HOSTS")
        or ",".join(f"{name}:*" for name in ("localhost", "127.0.0.1", "[[]::1]")),
        # Not an argument: those of a process are shown to everybody on the machine. By default it
        # is the database that `rlhf run` uses without a server.
        "MLFLOW_BACKEND_STORE_URI": os.environ.get("MLFLOW_BACKEND_STORE_URI")
        or f"sqlite:///{Path.cwd() / 'mlflow.db'}",
        "PYTHONUNBUFFERED": "1",
    }
