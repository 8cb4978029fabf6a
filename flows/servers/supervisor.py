"""The process that owns the servers and workers: starts, watches, restarts and ends them.

supervisor and circus start, watch and restart too, but begin anew after they were killed: their
children live on, hold the ports and are nobody's, while `rlhf up` finds and ends them by the folder
in their environment. Ready servers, free ports written for later commands, pools, deployments and
the sweep of dead runs would stay ours beside them; under systemd (``deploy/systemd``) none of this
module runs.
"""

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import requests

from rlhf_core.adapters.retries import backoff, retry_while
from rlhf_core.errors import OrchestrationError, RlhfError
from rlhf_core.storage.records import keep_private
from rlhf_flows.engine.environment import prepare_environment
from rlhf_flows.engine.logs import configure_logging
from rlhf_flows.servers.pools import read_pools
from rlhf_flows.servers.processes import (
    KEPT_IN,
    STOP_SECONDS,
    Process,
    StopAskedError,
    StopSignals,
    become_subreaper,
    end_all,
    end_tree,
    left_by,
    reap_zombies,
)
from rlhf_flows.servers.servers import (
    HOST,
    LOGS,
    START_SECONDS,
    Servers,
    child_environment,
    write_servers,
)

logger = logging.getLogger("rlhf_flows.servers.supervisor")

SERVERS = ("prefect", "mlflow")
OWNER_ALONE = 0o077
CHECK_SECONDS = 1.0
PAUSE_SECONDS = 0.3
SWEEP_SECONDS = 15.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0


class Supervisor:
    """Children by name, in the order they were started."""

    def __init__(self, prefect_port: int, mlflow_port: int, signals: StopSignals) -> None:
        self.signals = signals
        self.environment = child_environment(prefect_port, mlflow_port)
        self.servers = Servers(
            prefect_port=prefect_port, mlflow_port=mlflow_port, supervisor=Process.of(os.getpid())
        )
        self.commands: dict[str, list[str]] = {}
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.restart_after: dict[str, float] = {}
        self.pauses: dict[str, float] = {}
        self.recorded = False

    def start(self, name: str, command: list[str]) -> None:
        """Start a child in its own session, its output appended to its own log."""
        self.commands[name] = command
        log_file = LOGS / f"{name}.log"
        keep_private(log_file)
        # A child that is started and not yet remembered would outlive everything.
        with self.signals.undisturbed(), log_file.open("ab") as log:
            self.children[name] = subprocess.Popen(
                command,
                # Their databases are their owner's alone; runs and models are made as usual.
                umask=OWNER_ALONE if name in SERVERS else -1,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            self._remember()

    def restart_dead(self) -> None:
        """Start every child again that died; ever later if it keeps dying.

        Where the disk is full the others live on, and the start or its record is tried again.
        """
        try:
            self._restart_due()
            if not self.recorded:
                self._remember()
        except OSError as error:
            logger.warning("restart_deferred error=%s", error)

    def _restart_due(self) -> None:
        now = time.monotonic()
        for name, child in list(self.children.items()):
            if child.poll() is None:
                continue
            if name not in self.restart_after:
                pause = self.pauses.get(name, FIRST_PAUSE_SECONDS)
                self.restart_after[name] = now + pause
                self.pauses[name] = min(2 * pause, LONGEST_PAUSE_SECONDS)
                logger.warning(
                    "died=%s exit_code=%s restart_in_seconds=%.0f", name, child.returncode, pause
                )
            elif now >= self.restart_after[name]:
                if name in SERVERS:  # what it left holds its port; what a worker left are runs
                    end_all(left_by(child.pid, self.environment[KEPT_IN]))
                del self.restart_after[name]
                self.start(name, self.commands[name])

    def ready(self) -> None:
        """Say that everything is up."""
        self.servers = self.servers.model_copy(update={"ready": True})
        self._remember()

    def reap(self) -> None:
        """Let adopted processes that ended go: flows whose worker was killed."""
        reap_zombies(child.pid for child in self.children.values())

    def end(self) -> None:
        """End all children, the last started first: workers before the servers they talk to.

        Then whatever they have left behind. One that cannot be ended keeps none of the others.
        """
        self.signals.ignore()
        for name, child in reversed(self.children.items()):
            if child.poll() is not None:
                continue
            try:
                end_tree(Process.of(child.pid))
                child.wait(timeout=STOP_SECONDS)
                logger.info("ended=%s", name)
            except (psutil.Error, OSError, subprocess.TimeoutExpired) as error:
                logger.warning("not_ended=%s error=%s", name, error)
        end_all(psutil.Process().children(recursive=True))

    def _remember(self) -> None:
        children = {
            name: Process.of(child.pid)
            for name, child in self.children.items()
            if child.poll() is None
        }
        self.servers = self.servers.model_copy(update={"children": children})
        self.recorded = False
        write_servers(self.servers)
        self.recorded = True


def keep(prefect_port: int, mlflow_port: int) -> None:
    """Start everything, then watch until it is stopped."""
    become_subreaper()
    supervisor = Supervisor(prefect_port, mlflow_port, StopSignals())
    try:
        pools = read_pools()
        _start_servers(supervisor)
        _deploy(supervisor)
        for pool, limit in pools.limits.items():
            supervisor.start(f"worker-{pool}", _worker(pool, limit))
        supervisor.ready()
        logger.info("ready prefect=%s mlflow=%s", prefect_port, mlflow_port)
        _watch(supervisor)
    except StopAskedError:
        logger.info("stop_asked")
    finally:
        supervisor.end()


def _start_servers(supervisor: Supervisor) -> None:
    servers = supervisor.servers
    address = ("--host", HOST, "--port", str(servers.prefect_port))
    supervisor.start("prefect", _prefect("server", "start", *address))
    supervisor.start("mlflow", _mlflow(servers.mlflow_port, supervisor.environment))
    _wait_for(supervisor, "prefect", f"{servers.prefect_url}/api/health")
    _wait_for(supervisor, "mlflow", f"{servers.mlflow_url}/health")


def _prefect(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rlhf_flows.servers.patched_prefect", *arguments]


def _worker(pool: str, limit: int) -> list[str]:
    name = f"{socket.gethostname()}@{pool}"
    return _prefect("worker", "start", "--pool", pool, "--limit", str(limit), "--name", name)


def _mlflow(port: int, environment: Mapping[str, str]) -> list[str]:
    """MLflow's server; it reads the database's address, which may hold a password, itself."""
    root = environment.get("MLFLOW_DEFAULT_ARTIFACT_ROOT", str(Path.cwd() / "mlartifacts"))
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    if "MLFLOW_AUTH_CONFIG_PATH" in environment:
        command += ["--app-name", "basic-auth"]
    return [
        *command,
        *("--workers", "1", "--no-serve-artifacts", "--default-artifact-root", root),
    ]


def _wait_for(supervisor: Supervisor, name: str, url: str) -> None:
    def ask() -> None:
        if supervisor.children[name].poll() is not None:
            raise RlhfError(f"{name} ended while starting; see {LOGS / name}.log")
        requests.get(url, timeout=5).raise_for_status()

    try:
        retry_while(
            lambda error: isinstance(error, requests.RequestException),
            ask,
            patience=START_SECONDS,
            announce=lambda *_: logger.debug("not_yet=%s", name),
            waits=backoff(PAUSE_SECONDS, PAUSE_SECONDS),
        )
    except requests.RequestException as error:
        raise RlhfError(f"{name} at {url} did not become healthy; see {LOGS / name}.log") from error


def _deploy(supervisor: Supervisor) -> None:
    """Apply ``prefect.yaml``; SQLite cannot bear the automation that watches heartbeats."""
    database = supervisor.environment.get("PREFECT_SERVER_DATABASE_CONNECTION_URL", "sqlite")
    watch = "--no-watch-heartbeats" if database.startswith("sqlite") else "--watch-heartbeats"
    done = subprocess.run(
        [str(Path(sys.executable).with_name("rlhf")), "deploy", watch],
        env=supervisor.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    keep_private(LOGS / "deploy.log")
    (LOGS / "deploy.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise RlhfError(f"rlhf deploy failed: {lines[-1]}; see {LOGS / 'deploy.log'}")


def _watch(supervisor: Supervisor) -> None:
    next_sweep = time.monotonic()
    while True:
        time.sleep(CHECK_SECONDS)
        supervisor.restart_dead()
        supervisor.reap()
        if time.monotonic() >= next_sweep:
            _sweep(supervisor)
            next_sweep = time.monotonic() + SWEEP_SECONDS


def _sweep(supervisor: Supervisor) -> None:
    """See to what killed processes left; a server that is just restarting is asked again later."""
    from rlhf_flows.engine.zombies import complete_releases, mark_zombie_runs

    try:
        mark_zombie_runs(supervisor.environment["PREFECT_API_URL"])
        complete_releases(supervisor.servers.mlflow_url, supervisor.environment)
    except (OrchestrationError, requests.RequestException) as error:
        logger.warning("sweep_failed error=%s", error)


def main(arguments: list[str]) -> int:
    """Entry point of ``python -m rlhf_flows.servers.supervisor PREFECT_PORT MLFLOW_PORT``."""
    prepare_environment()
    configure_logging("info")
    keep_private(LOGS, folder=True)
    try:
        keep(int(arguments[0]), int(arguments[1]))
    except RlhfError as error:
        logger.error("error=%s", error)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
