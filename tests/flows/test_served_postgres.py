"""Both servers on a real PostgreSQL of this machine, chosen by environment variables alone."""

import pytest

from tests.flows.served import CONFIG, EVERY_STAGE, SETTINGS, Served, until
from tests.postgres import needs_postgres, running_postgres

pytestmark = [pytest.mark.nightly, pytest.mark.xdist_group("outages"), needs_postgres]


@pytest.fixture(scope="module")
def postgres():
    """A server of its own on a free port, with a database each for Prefect and MLflow."""
    with running_postgres("prefect", "mlflow") as address:
        yield address


@pytest.fixture(scope="module")
def served(tmp_path_factory, postgres):
    made = Served.prepare(
        tmp_path_factory.mktemp("postgres") / "work",
        PREFECT_SERVER_DATABASE_CONNECTION_URL=f"postgresql+asyncpg://{postgres}/prefect",
        MLFLOW_BACKEND_STORE_URI=f"postgresql://{postgres}/mlflow",
    )
    (made.path / "config.yaml").write_text(CONFIG.replace("approval: person", "approval: gates"))
    with made.running():
        yield made


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
    run = served.trigger("rlhf-sft/sft", settings=SETTINGS)
    served.wait(run, "RUNNING")
    until(lambda: served.post("events/filter", wanted)["total"], "a heartbeat")
    (served.path / "slow-sft").unlink()
    assert served.wait(run)["state"]["type"] == "COMPLETED", served.logs()
