"""A release is one thing: promoted, rolled back, fought over, killed and completed as a whole."""

import shutil
import signal
from itertools import product

import pytest

from rlhf_core.adapters.registry import release_aliases
from rlhf_core.adapters.registry import releases as journal
from rlhf_core.adapters.registry.release_aliases import apply_newest, recover, recover_all
from rlhf_core.adapters.registry.releases import read_journal
from rlhf_core.adapters.registry.versions import find_version
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.errors import RegistryError
from rlhf_core.stages.promote import promote_model
from rlhf_core.stages.rollback import rollback_policy
from tests.registries import put_back, registry_in
from tests.releases import (
    champions,
    fights,
    in_child,
    killed_before_any_alias,
    register_release,
)


@pytest.fixture
def client(mlflow_home):
    return mlflow_client()


@pytest.fixture(scope="module")
def registry_of_three(tmp_path_factory, fresh_database):
    """A database with three releases, promoted one after the other, and the releases."""
    folder = tmp_path_factory.mktemp("three")
    with registry_in(folder, fresh_database) as client:
        made = [register_release(client) for _ in range(3)]
        for release in made:
            assert promote_model(release["policy"]).moved
            assert champions(client) == release
        assert champions(client, "previous-champion") == made[1]
    return folder / "mlflow.db", made


@pytest.fixture
def three(mlflow_home, registry_of_three):
    """The three releases in the test's own registry."""
    database, made = registry_of_three
    shutil.copy(database, mlflow_home)
    return made


def test_the_four_champions_move_and_come_back_together(three, client):
    made = three
    back = rollback_policy("rlhf")
    assert (back.was, back.champion) == (made[2]["policy"], made[1]["policy"])
    assert champions(client) == made[1]
    assert champions(client, "previous-champion") == made[0]
    assert rollback_policy("rlhf").previous_champion is None
    assert champions(client) == made[0]
    assert champions(client, "previous-champion") == {}
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        rollback_policy("rlhf")


def test_versions_that_aliases_point_at_are_not_asked_for(three, monkeypatch):
    asked, ask = [], release_aliases.version_tags
    monkeypatch.setattr(release_aliases, "version_tags", lambda uri: asked.append(uri) or ask(uri))
    apply_newest("rlhf")
    assert asked == []


def test_a_release_without_a_reward_model_takes_its_alias_away_and_rollback_brings_it_back(client):
    ppo, dpo = register_release(client), register_release(client, without=("reward",))
    promote_model(ppo["policy"])
    promote_model(dpo["policy"])
    assert champions(client) == dpo
    assert champions(client, "previous-champion") == ppo
    rollback_policy("rlhf")
    assert champions(client) == ppo


def test_a_release_with_a_part_that_was_not_promoted_is_refused(client):
    promote_model(register_release(client)["policy"])
    before = champions(client)
    bad = register_release(client)
    for role, verdict in product(("sft", "reward", "judge"), ("HOLD", "REJECT", "")):
        client.set_model_version_tag(f"rlhf-{role}", "2", "rlhf.verdict", verdict)
        with pytest.raises(RegistryError, match=f"its {role} models:/rlhf-{role}/2 has verdict"):
            promote_model(bad["policy"], reviewer="Ann")
        assert champions(client) == before, (role, verdict)
        client.set_model_version_tag(f"rlhf-{role}", "2", "rlhf.verdict", "PROMOTE")
    assert "rlhf.approval" not in find_version(bad["policy"]).tags


def test_a_release_with_a_part_outside_the_registry_is_refused(client):
    made = register_release(client)
    client.set_model_version_tag("rlhf-policy", "1", "rlhf.upstream.sft", "runs/x/sft/model")
    with pytest.raises(RegistryError, match="its sft runs/x/sft/model is not registered"):
        promote_model(made["policy"])


def test_a_release_with_a_part_of_another_role_is_refused(client):
    made = register_release(client)
    client.set_model_version_tag("rlhf-policy", "1", "rlhf.upstream.judge", made["reward"])
    with pytest.raises(RegistryError, match="its judge models:/rlhf-reward/1 was trained as rew"):
        promote_model(made["policy"])


@pytest.mark.parametrize("role", ["sft", "reward", "judge"])
def test_only_a_policy_is_promoted_whatever_its_registered_model_is_called(client, role):
    made = register_release(client)
    with pytest.raises(RegistryError, match=f"{made[role]} was trained as {role}, expected policy"):
        promote_model(made[role])
    client.set_model_version_tag("rlhf-policy", "1", "rlhf.stage", role)
    with pytest.raises(RegistryError, match=f"was trained as {role}, expected policy"):
        promote_model(made["policy"])
    assert champions(client) == {}


def test_who_planned_on_another_champion_is_told_and_moves_nothing(client, monkeypatch):
    made = [register_release(client) for _ in range(3)]
    promote_model(made[0]["policy"])
    record = journal.record_move

    def overtaken(seen, plan, words):
        monkeypatch.setattr("rlhf_core.stages.promote.record_move", record)
        promote_model(made[1]["policy"])
        return record(seen, plan, words)

    monkeypatch.setattr("rlhf_core.stages.promote.record_move", overtaken)
    with pytest.raises(RegistryError, match=f"meanwhile another command made {made[1]['policy']}"):
        promote_model(made[2]["policy"])
    assert champions(client) == made[1]
    assert champions(client, "previous-champion") == made[0]
    states = [entry.state for entry in read_journal("rlhf").entries]
    assert states == ["done", "done", "overtaken"]


@pytest.mark.parametrize("asked", [1, 2])
def test_a_right_that_is_missing_is_said_before_anything_is_written(client, monkeypatch, asked):
    """A rollback asks twice: between the two it finds the release that it brings back."""
    first, second = register_release(client), register_release(client)
    promote_model(first["policy"])
    calls = []

    def refuse(project, releases=(), state=None):
        calls.append(releases)
        if len(calls) == asked:
            raise RegistryError("403; nothing was changed")

    for module in ("promote", "rollback"):
        monkeypatch.setattr(f"rlhf_core.stages.{module}.require_release_rights", refuse)
    calls += [()] * (asked - 1)
    with pytest.raises(RegistryError, match="403"):
        promote_model(second["policy"], reviewer="Ann")
    assert "rlhf.approval" not in find_version(second["policy"]).tags
    calls.clear()
    with pytest.raises(RegistryError, match="403" if asked == 1 else "nothing to roll back to"):
        rollback_policy("rlhf")
    assert len(read_journal("rlhf").entries) == 1
    assert champions(client) == first


def test_who_promotes_what_another_command_promoted_at_the_same_moment_has_succeeded(
    client, monkeypatch
):
    made = [register_release(client) for _ in range(2)]
    promote_model(made[0]["policy"])
    record = journal.record_move

    def overtaken(seen, plan, words):
        monkeypatch.setattr("rlhf_core.stages.promote.record_move", record)
        assert promote_model(made[1]["policy"]).moved
        return record(seen, plan, words)

    monkeypatch.setattr("rlhf_core.stages.promote.record_move", overtaken)
    found = promote_model(made[1]["policy"])
    assert (found.moved, found.champion) == (False, made[1]["policy"])
    assert "another command made models:/rlhf-policy/2 the champion at the same" in found.also_by
    assert champions(client, "previous-champion") == made[0]
    assert [entry.state for entry in read_journal("rlhf").entries] == ["done", "done", "overtaken"]


@pytest.fixture(scope="module")
def registry_of_two_and_one(tmp_path_factory, fresh_database):
    """A database with two promoted releases and one without a reward model, and the releases."""
    folder = tmp_path_factory.mktemp("two-and-one")
    with registry_in(folder, fresh_database) as client:
        first, second = register_release(client), register_release(client)
        third = register_release(client, without=("reward",))
        promote_model(first["policy"])
        promote_model(second["policy"])
    return folder / "mlflow.db", (first, second, third)


@pytest.mark.slow
@pytest.mark.parametrize("apart", [4, pytest.param(1, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_killed_before_any_write_the_next_command_finds_one_release(
    mlflow_home, registry_of_two_and_one, action, apart, monkeypatch
):
    """Before each in the nightly tier, at every change before each fourth."""
    monkeypatch.setattr(release_aliases, "LATE_SECONDS", 0.0)
    database, (first, second, third) = registry_of_two_and_one
    client = mlflow_client()
    wanted = third if action == "promote" else first
    act = (promote_model, third["policy"]) if action == "promote" else (rollback_policy, "rlhf")
    for writes in range(0, 40, apart):
        put_back(database, mlflow_home / "mlflow.db")
        child = in_child(*act, dies_at=writes)
        child.join()
        recover("rlhf")
        now = champions(client)
        assert now in (second, wanted), (writes, now)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        expected = (first,) if now == second else (second, {})
        assert champions(client, "previous-champion") in expected
    assert writes > 8
    assert champions(client) == wanted
    promote_model(second["policy"]) if action == "rollback" else rollback_policy("rlhf")
    assert champions(client) == second
    assert champions(client, "previous-champion") == first


def test_looking_at_the_champion_completes_a_promotion_that_was_killed(client):
    first, second = register_release(client), register_release(client)
    promote_model(first["policy"])
    with killed_before_any_alias():
        promote_model(second["policy"])
    assert champions(client) == first
    assert find_version("models:/rlhf-policy@champion").version == 2
    assert champions(client) == second


def test_the_sweep_completes_every_project(client):
    for project in ("rlhf", "other"):
        made = register_release(client, project=project)
        with killed_before_any_alias():
            promote_model(made["policy"])
        assert champions(client, project=project) == {}
    assert sorted(recover_all()) == ["models:/other-policy/1", "models:/rlhf-policy/1"]
    assert recover_all() == []
    for project in ("rlhf", "other"):
        assert len(champions(client, project=project)) == 4


def test_a_deleted_champion_does_not_stop_a_rollback(three, client):
    made = three
    client.delete_model_version("rlhf-policy", "3")
    back = rollback_policy("rlhf")
    assert back.champion == made[1]["policy"]
    assert "models:/rlhf-policy/3 was deleted" in back.lost[0]
    assert champions(client) == made[1]
    assert champions(client, "previous-champion") == made[0]


@pytest.mark.parametrize("role", ["policy", "sft", "judge"])
def test_a_deleted_previous_champion_is_passed_over_and_named(three, client, role):
    made = three
    client.delete_model_version(f"rlhf-{role}", "2")
    back = rollback_policy("rlhf")
    assert back.champion == made[0]["policy"]
    assert f"models:/rlhf-{role}/2 was deleted" in back.lost[0]
    assert champions(client) == made[0]
    assert champions(client, "previous-champion") == {}


def test_with_every_earlier_release_deleted_nothing_moves(client):
    made = [register_release(client) for _ in range(2)]
    for release in made:
        promote_model(release["policy"])
    client.delete_model_version("rlhf-policy", "1")
    with pytest.raises(
        RegistryError, match="no other before it is left; the release of models:/rl"
    ):
        rollback_policy("rlhf")
    assert champions(client) == made[1]


def test_aliases_taken_away_in_the_ui_do_not_stop_a_rollback(three, client):
    made = three
    client.delete_registered_model_alias("rlhf-policy", "champion")
    client.delete_registered_model_alias("rlhf-policy", "previous-champion")
    back = rollback_policy("rlhf")
    assert back.champion == made[1]["policy"]
    assert any("champion of rlhf-policy stood at none" in note for note in back.by_hand)
    assert champions(client) == made[1]
    assert champions(client, "previous-champion") == made[0]


def test_a_champion_that_a_person_chose_is_a_fact(three, client):
    made = [*three, register_release(client)]
    client.set_registered_model_alias("rlhf-policy", "champion", "1")
    recover("rlhf")
    assert champions(client)["policy"] == made[0]["policy"]
    promotion = promote_model(made[3]["policy"])
    assert any("champion of rlhf-policy stood at 1" in note for note in promotion.by_hand)
    assert champions(client) == made[3]
    assert champions(client, "previous-champion") == made[0]
    assert "stood at 1" in find_version("models:/rlhf-release/4").tags["rlhf.moved_by_hand"]


def test_a_registry_from_before_the_journal_is_taken_over(client):
    made = [register_release(client) for _ in range(4)]
    for number, release in enumerate(made[:3], 1):
        for role, uri in release.items():
            client.set_registered_model_alias(f"rlhf-{role}", "champion", str(number))
            if number > 1:
                version = uri.rpartition("/")[2]
                client.set_model_version_tag(
                    f"rlhf-{role}", version, "rlhf.champion_before", str(number - 1)
                )
                client.set_registered_model_alias(
                    f"rlhf-{role}", "previous-champion", str(number - 1)
                )
    promote_model(made[3]["policy"])
    assert champions(client, "previous-champion") == made[2]
    for release in reversed(made[:3]):
        rollback_policy("rlhf")
        assert champions(client) == release
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        rollback_policy("rlhf")


def test_rollback_without_a_champion_says_so(client):
    register_release(client)
    with pytest.raises(RegistryError, match=r"policy has no champion yet at \w+:\S+; .* --project"):
        rollback_policy("rlhf")


def test_the_journal_says_who_did_what(client):
    made = [register_release(client) for _ in range(2)]
    promote_model(made[0]["policy"], reviewer="Ann", comment="reads well")
    promote_model(made[1]["policy"])
    rollback_policy("rlhf")
    tags = [find_version(f"models:/rlhf-release/{number}").tags for number in (1, 2, 3)]
    assert [entry["rlhf.action"] for entry in tags] == ["promote", "promote", "rollback"]
    assert tags[0]["rlhf.approved_by"] == "Ann"
    assert tags[0]["rlhf.approval_comment"] == "reads well"
    assert {tags[2][f"rlhf.{role}"] for role in made[0]} == set(made[0].values())


def test_what_somebody_else_registered_under_the_journals_name_is_no_release(client):
    made = register_release(client)
    promote_model(made["policy"])
    client.create_model_version("rlhf-release", source="s3://nowhere/x", tags={})
    assert read_journal("rlhf").head.number == 1
    apply_newest("rlhf")
    assert champions(client) == made


@pytest.mark.slow
def test_commands_that_fight_end_in_one_release(client):
    ended = fights(client, rounds=3, processes=4, killed=1, seed=1)
    assert {0, -signal.SIGKILL} <= set(ended) <= {0, 2, -signal.SIGKILL}


@pytest.mark.nightly
def test_commands_that_fight_for_long_end_in_one_release(client):
    ended = fights(client, rounds=40, processes=6, killed=2, seed=2)
    assert {0, 2, -signal.SIGKILL} == set(ended)
