"""Promotions and rollbacks at once against a real MLflow server, on SQLite and on PostgreSQL."""

import signal
from contextlib import nullcontext

import pytest

from rlhf_core.adapters.mlflow_client import mlflow_client
from tests.adapters.test_server import Server
from tests.postgres import needs_postgres, running_postgres
from tests.releases import fights


@pytest.fixture(
    params=["sqlite", pytest.param("postgresql", marks=needs_postgres)], name="served_client"
)
def _served_client(request, tmp_path, monkeypatch):
    there = running_postgres("mlflow") if request.param == "postgresql" else nullcontext()
    with there as address:
        server = Server(tmp_path, f"postgresql://{address}/mlflow" if address else None)
        server.start()
        try:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
            yield mlflow_client()
        finally:
            server.stop()


@pytest.mark.slow
def test_commands_that_fight_on_a_server_end_in_one_release(served_client):
    ended = fights(served_client, rounds=2, processes=4, killed=1, seed=3)
    assert set(ended) <= {0, 2, -signal.SIGKILL}


@pytest.mark.nightly
def test_commands_that_fight_for_long_on_a_server_end_in_one_release(served_client):
    ended = fights(served_client, rounds=40, processes=6, killed=2, seed=4)
    assert {0, 2, -signal.SIGKILL} == set(ended)
