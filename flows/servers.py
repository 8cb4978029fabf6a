"""Prefect, MLflow and the workers on this machine: started together, ended together.

One process, the keeper (``python -m flows.keeper``), owns them all: it restarts what dies and ends
what it started. What runs where is written to ``.rlhf/servers.json``.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
from pydantic import Field

from flows.environment import STATE, prepare_environment
from flows.files import write_atomically
from rlhf_core.errors import RlhfError
from rlhf_core.schema import Record

HOST = "127.0.0.1"
STATE_FILE = STATE / "servers.json"
LOGS = STATE / "logs"
START_SECONDS = 600.0
STOP_SECONDS = 30.0

POOLS = {"rlhf": 3, "rlhf-training": 1}
"""Work pools and how many runs this machine takes from each at once.

SQLite bears three. Training has a pool of its own: a pipeline that waits for its stage would
otherwise hold the slot that the stage waits for.
"""


class Process(Record):
    """One process, told apart from a later one with the same number by its start."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> "Process":
        """Describe a living process."""
        return cls(pid=pid, started=psutil.Process(pid).create_time())

    def find(self) -> psutil.Process | None:
        """Return the process if it is still the same one and alive."""
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.started) < 1.0
            return found if same and found.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


class Servers(Record):
    """What `rlhf up` started."""

    prefect_port: int = Field(ge=1, le=65535)
    mlflow_port: int = Field(ge=1, le=65535)
    keeper: Process
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
    return Servers.model_validate_json(STATE_FILE.read_text(encoding="utf-8"))


def write_servers(servers: Servers) -> None:
    """Remember what runs."""
    write_atomically(STATE_FILE, servers.model_dump_json(indent=2))


def start_servers(prefect_port: int | None, mlflow_port: int | None) -> Servers:
    """Start everything and wait until it is healthy and deployed.

    Args:
        prefect_port: port of the Prefect server; None takes 4200, or a free one.
        mlflow_port: port of the MLflow server; None takes 5000, or a free one.

    Raises:
        RlhfError: it runs already, a port is taken, or something did not become healthy.
    """
    running = read_servers()
    if running is not None and running.keeper.find():
        raise RlhfError(
            f"the servers run already: Prefect {running.prefect_url}, MLflow {running.mlflow_url}; "
            "`make down` stops them"
        )
    stop_servers()
    prepare_environment()
    prefect, mlflow = choose_port(prefect_port, 4200), choose_port(mlflow_port, 5000)
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / "keeper.log").open("a") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "flows.keeper", str(prefect), str(mlflow)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        return _wait_until_ready(keeper)
    except KeyboardInterrupt:
        stop_servers()
        raise


def _wait_until_ready(keeper: "subprocess.Popen[bytes]") -> Servers:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        servers = read_servers()
        if servers is not None and servers.keeper.pid == keeper.pid and servers.ready:
            return servers
        if keeper.poll() is not None:
            break
        time.sleep(0.2)
    stop_servers()
    raise RlhfError(
        f"the servers did not start within {START_SECONDS:.0f} s: {_last_error()}; "
        f"logs are in {LOGS.absolute()}"
    )


def _last_error() -> str:
    lines = (LOGS / "keeper.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "no log was written"


def stop_servers() -> list[str]:
    """End exactly what was started from this directory; returns the names of what was ended."""
    servers = read_servers()
    if servers is None:
        return []
    ended = []
    keeper = servers.keeper.find()
    if keeper is not None:
        keeper.send_signal(signal.SIGTERM)
        psutil.wait_procs([keeper], timeout=STOP_SECONDS)
        ended.append("keeper")
    # The keeper ends its children itself; these are left only if it was killed.
    for name, child in servers.children.items():
        if end_tree(child) or keeper is not None:
            ended.append(name)
    STATE_FILE.unlink(missing_ok=True)
    return ended


def end_tree(process: Process) -> bool:
    """End a process and all it started: asked first, killed after a while."""
    root = process.find()
    if root is None:
        return False
    family = [root, *root.children(recursive=True)]
    for member in family:
        _signal(member, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS / 2)
    for member in alive:
        _signal(member, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=5)
    return True


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def choose_port(wanted: int | None, usual: int) -> int:
    """Return the wanted port if it is free; without a wish the usual one, or any free one.

    Args:
        wanted: 0 asks for any free one.
        usual: tried first where there is no wish.

    Raises:
        RlhfError: the wanted port is taken.
    """
    if wanted and not _is_free(wanted):
        raise RlhfError(f"port {wanted} is taken; choose another or leave the choice open")
    if wanted:
        return wanted
    if wanted is None and _is_free(usual):
        return usual
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def child_environment(prefect_port: int, mlflow_port: int) -> dict[str, str]:
    """Return the environment of servers and workers."""
    scripts = str(Path(sys.executable).parent)
    prefect = STATE.absolute() / "prefect"
    return {
        **os.environ,
        "PATH": os.pathsep.join((scripts, os.environ.get("PATH", os.defpath))),
        "PREFECT_API_URL": f"http://{HOST}:{prefect_port}/api",
        "PREFECT_LOCAL_STORAGE_PATH": str(prefect / "storage"),
        # SQLite has one writer; on a busy machine the others must wait longer than ten seconds.
        "PREFECT_SERVER_DATABASE_TIMEOUT": "120",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_LOGGING_SETTINGS_PATH": str(Path(__file__).with_name("logging.yml")),
        "MLFLOW_TRACKING_URI": f"http://{HOST}:{mlflow_port}",
        "PYTHONUNBUFFERED": "1",
    }
