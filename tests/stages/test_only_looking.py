"""A dry run sees where a killed promotion will end, and leaves its completion to others."""

import sqlite3

import pytest

from rlhf_core.adapters.registry import release_aliases
from rlhf_core.adapters.registry.champions import read_history
from rlhf_core.adapters.registry.only_looking import only_looking
from rlhf_core.adapters.registry.versions import find_version
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.errors import RegistryError
from rlhf_core.stages.promote import plan_promotion, promote_model
from tests.releases import champions, register_release


@pytest.fixture
def client(mlflow_home):
    return mlflow_client()


@pytest.fixture(params=["recorded", "one alias"])
def killed(request, client, monkeypatch):
    """Three releases; who made the last one champion was killed on the way."""
    made = [register_release(client) for _ in range(3)]
    for release in made[:2]:
        promote_model(release["policy"])
    left = {"recorded": 0, "one alias": 1}[request.param]

    def die(*_):
        raise KeyboardInterrupt

    def move(name, alias, version):
        nonlocal left
        if not left:
            die()
        left -= 1
        client.set_registered_model_alias(name, alias, version)

    with monkeypatch.context() as patch:
        patch.setattr(release_aliases, "_set_alias", move)
        if request.param == "recorded":
            patch.setattr("rlhf_core.stages.promote.apply_move", die)
        with pytest.raises(KeyboardInterrupt):
            promote_model(made[2]["policy"])
    return made


def everything(folder):
    with sqlite3.connect(folder / "mlflow.db") as database:
        return list(database.iterdump())


def test_nothing_is_completed_and_the_end_is_seen(killed, client, mlflow_home):
    before, standing = everything(mlflow_home), champions(client)
    assert standing != killed[2]
    with only_looking():
        seen = read_history("rlhf")
        named = [find_version(f"models:/rlhf-{role}@champion").version for role in killed[2]]
        earlier = find_version("models:/rlhf-policy@previous-champion").version
    assert (seen.current.policy, seen.by_hand) == (killed[2]["policy"], ())
    assert [release.policy for release in seen.before] == [m["policy"] for m in killed[1::-1]]
    assert list(map(int, named)) == [3] * 4
    assert int(earlier) == 2
    planned = plan_promotion(killed[2]["policy"])
    assert (planned.moved, planned.champion) == (False, killed[2]["policy"])
    assert everything(mlflow_home) == before

    assert read_history("rlhf").current.policy == killed[2]["policy"]
    assert champions(client) == killed[2]


def test_what_would_move_is_what_then_moves(client, mlflow_home):
    made = [
        register_release(client, verdicts={"policy": v}) for v in ("PROMOTE", "PROMOTE", "HOLD")
    ]
    promote_model(made[0]["policy"])
    before = everything(mlflow_home)
    planned, held = plan_promotion(made[1]["policy"]), plan_promotion(made[2]["policy"])
    assert (held.verdict, held.moved, held.champion) == ("HOLD", False, made[0]["policy"])
    with pytest.raises(RegistryError, match="only a policy is promoted"):
        plan_promotion(made[1]["sft"])
    assert everything(mlflow_home) == before
    assert planned == promote_model(made[1]["policy"])
    assert planned.moved
    assert planned.previous_champion == made[0]["policy"]
