"""Promotions and rollbacks at once against a real MLflow server, on SQLite and on PostgreSQL."""

import os
import shutil
import signal
from contextlib import nullcontext

import pytest

from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.stages.promote import promote_model
from rlhf_flows.engine.zombies import complete_releases
from tests.postgres import needs_postgres, running_postgres
from tests.releases import champions, fights, killed_before_any_alias, register_release
from tests.servers import MlflowServer


@pytest.fixture(
    params=["sqlite", pytest.param("postgresql", marks=[needs_postgres, pytest.mark.nightly])],
    name="served_client",
)
def _served_client(request, tmp_path, fresh_database, forked, monkeypatch):
    there = running_postgres("mlflow") if request.param == "postgresql" else nullcontext()
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    with there as address:
        database = f"postgresql://{address}/mlflow" if address else None
        server = MlflowServer(tmp_path, forked, database)
        server.start()
        try:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
            yield mlflow_client()
        finally:
            server.stop()


@pytest.mark.slow
def test_the_sweep_of_the_servers_completes_a_promotion_that_was_killed(served_client, capfd):
    first, second = register_release(served_client), register_release(served_client)
    promote_model(first["policy"])
    uri = os.environ["MLFLOW_TRACKING_URI"]
    assert not complete_releases(uri, os.environ)
    with killed_before_any_alias(gone=True):
        promote_model(second["policy"])
    assert champions(served_client) == first
    assert complete_releases(uri, os.environ)
    assert "release_completed project=rlhf number=2" in capfd.readouterr().err
    assert champions(served_client) == second
    assert not complete_releases(uri, os.environ)


@pytest.mark.nightly
def test_commands_that_fight_for_long_on_a_server_end_in_one_release(served_client):
    ended = fights(served_client, rounds=40, processes=6, killed=2, seed=4)
    assert {0, 2, -signal.SIGKILL} == set(ended)
