"""Both servers on a real PostgreSQL of this machine, chosen by environment variables alone."""

import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.flows.served import Served, until
from tests.flows.test_served import CONFIG, EVERY_STAGE, SETTINGS

BINARIES = sorted(path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("outages"),
    pytest.mark.skipif(not BINARIES, reason="no PostgreSQL server under /usr/lib/postgresql"),
]


def as_postgres(command, **options):
    """PostgreSQL refuses to run as root."""
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    return subprocess.run(
        [*user, *map(str, command)], check=True, capture_output=True, text=True, **options
    )


class Database(str):
    """Where PostgreSQL listens, as it stands in addresses; it can go away and come back."""

    def __new__(cls, address, stop, start):
        made = super().__new__(cls, address)
        made._stop, made._start = stop, start
        return made

    @contextmanager
    def away(self):
        """Stop it until the block ends."""
        self._stop()
        try:
            yield
        finally:
            self._start()


@pytest.fixture(scope="module")
def postgres():
    """A server of its own on a free port, with a database each for Prefect and MLflow."""
    folder = Path(tempfile.mkdtemp(prefix="rlhf-postgres-"))
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, control = folder / "data", [BINARIES[-1] / "pg_ctl", "-D", folder / "data"]
    as_postgres([BINARIES[-1] / "initdb", "-D", data, "-U", "postgres", "-A", "trust"], cwd=folder)
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder}"
    begin = [*control, "-w", "-t", "300", "-l", folder / "log", "-o", options, "start"]
    as_postgres(begin, cwd=folder)
    try:
        for name in ("prefect", "mlflow"):
            login = ["-h", "127.0.0.1", "-p", port, "-U", "postgres"]
            as_postgres([BINARIES[-1] / "createdb", *login, name], cwd=folder)
        yield Database(
            f"postgres@127.0.0.1:{port}",
            stop=lambda: as_postgres([*control, "-m", "fast", "stop"], cwd=folder),
            start=lambda: as_postgres(begin, cwd=folder),
        )
    finally:
        as_postgres([*control, "-m", "immediate", "stop"], cwd=folder)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def served(tmp_path_factory, postgres):
    made = Served.prepare(
        tmp_path_factory.mktemp("postgres") / "work",
        PREFECT_SERVER_DATABASE_CONNECTION_URL=f"postgresql+asyncpg://{postgres}/prefect",
        MLFLOW_BACKEND_STORE_URI=f"postgresql://{postgres}/mlflow",
    )
    (made.path / "config.yaml").write_text(CONFIG.replace("approval: person", "approval: gates"))
    made.up()
    yield made
    made.down()


def test_a_pipeline_runs_on_postgresql(served):
    run = served.trigger("rlhf-pipeline/manual", settings=SETTINGS)
    assert served.wait(run)["state"]["type"] == "COMPLETED", served.logs()
    assert served.calls() == EVERY_STAGE
    assert not list(served.path.rglob("prefect.db")), "nothing went to SQLite"
    assert not (served.path / "mlflow.db").exists()


def test_the_automation_that_watches_heartbeats_is_there_and_runs_send_them(served):
    automations = served.post("automations/filter", {})
    (watching,) = [item for item in automations if item["name"] == "rlhf: silent runs are crashed"]
    assert watching["enabled"]
    assert watching["trigger"]["within"] == 90
    wanted = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}}}
    (served.path / "slow-sft").write_text("45")
    run = served.trigger("rlhf-sft/stage", settings=SETTINGS)
    served.wait(run, "RUNNING")
    until(lambda: served.post("events/filter", wanted)["total"], "a heartbeat")
    (served.path / "slow-sft").unlink()
    assert served.wait(run)["state"]["type"] == "COMPLETED", served.logs()
