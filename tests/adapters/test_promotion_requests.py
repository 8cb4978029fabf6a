"""How often one promotion asks the registry, counted where MLflow's client sends its requests."""

import shutil
from collections import Counter

import pytest
import requests

from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.stages.promote import promote_model
from tests.releases import champions, register_release
from tests.servers import MlflowServer

READ = {
    "GET model-versions/get": 1,  # the policy, with its verdict
    "GET model-versions/search": 3,  # the journal before and after; what the policy's run made
    "GET registered-models/search": 1,  # the aliases of all four, and what the project requires
}
WRITTEN = {
    "POST model-versions/create": 1,  # the move, and who makes it
    "POST registered-models/alias": 8,  # champion and previous-champion of four models
    "POST model-versions/set-tag": 1,  # that it is done
}


@pytest.fixture
def client(tmp_path, fresh_database, forked, monkeypatch):
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    server = MlflowServer(tmp_path, forked)
    server.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        yield mlflow_client()
    finally:
        server.stop()


@pytest.fixture
def asked(monkeypatch):
    """Method and end of the address of every request that is sent, counted."""
    counted, send = Counter(), requests.Session.send

    def counting(session, request, **options):
        path = request.path_url.partition("?")[0].rpartition("2.0/mlflow/")[2]
        counted[f"{request.method} {path}"] += 1
        return send(session, request, **options)

    monkeypatch.setattr(requests.Session, "send", counting)
    return counted


@pytest.mark.slow
def test_four_models_follow_four_others_by_fifteen_requests(client, asked):
    made = [register_release(client, run=f"run-{number}") for number in range(3)]
    promote_model(made[0]["policy"])
    asked.clear()
    assert promote_model(made[1]["policy"]).moved
    assert asked == READ | WRITTEN
    assert asked.total() == 15
    assert champions(client) == made[1]
    asked.clear()
    approved = promote_model(made[2]["policy"], reviewer="Ann", comment="reads well")
    # Who said what, why and when: a tag each, and MLflow writes one a request.
    assert asked == READ | WRITTEN | {"POST model-versions/set-tag": 1 + 4}
    assert (approved.champion, approved.previous_champion) == (
        made[2]["policy"],
        made[1]["policy"],
    )
    assert champions(client) == made[2]
    assert champions(client, "previous-champion") == made[1]


@pytest.mark.slow
def test_who_signs_in_asks_for_a_right_on_each_model_that_a_move_changes(
    client, asked, monkeypatch
):
    made = [register_release(client, run=f"run-{number}") for number in range(2)]
    promote_model(made[0]["policy"])
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "ann's")
    asked.clear()
    promote_model(made[1]["policy"])
    assert asked == READ | WRITTEN | {"DELETE registered-models/delete-tag": 5}
