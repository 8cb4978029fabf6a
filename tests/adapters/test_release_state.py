"""What the doctor says of releases, and that what it tells to do fixes them."""

import shutil

import pytest

from rlhf_core.adapters.registry import release_aliases
from rlhf_core.adapters.registry import releases as journal
from rlhf_core.adapters.registry.processes_at_work import this_process
from rlhf_core.adapters.registry.release_state import release_state
from rlhf_core.adapters.registry.versions import find_version
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.errors import RegistryError
from rlhf_core.stages import promote
from rlhf_core.stages.promote import promote_model
from rlhf_core.stages.rollback import rollback_policy
from rlhf_flows.commands import doctor
from tests.registries import registry_in
from tests.releases import champions, killed_before_any_alias, register_release


@pytest.fixture
def client(mlflow_home):
    return mlflow_client()


@pytest.fixture(scope="module")
def registry_of_three(tmp_path_factory, fresh_database):
    """A database with three releases, the last two of them promoted, and the releases."""
    folder = tmp_path_factory.mktemp("three")
    with registry_in(folder, fresh_database) as client:
        found = [register_release(client) for _ in range(3)]
        for release in found[1:]:
            promote_model(release["policy"])
    return folder / "mlflow.db", found


@pytest.fixture
def made(mlflow_home, registry_of_three):
    """The three releases in the test's own registry."""
    database, found = registry_of_three
    shutil.copy(database, mlflow_home)
    return found


def failing(said):
    state = release_state("rlhf")
    assert not state.healthy
    assert said in state.found
    assert "\n" not in state.found + state.fix
    return state.fix


def test_without_a_champion_there_is_nothing_to_mend(client, tmp_path, monkeypatch):
    assert release_state("rlhf").found == "rlhf has no champion yet"
    [finding] = [one for one in doctor._mlflow() if one.what.startswith("releases")]
    assert finding.healthy
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert [finding.what for finding in doctor._mlflow()] == ["mlflow"]


def test_champions_of_one_release_and_the_one_before_are_named(made):
    state = release_state("rlhf")
    assert state.healthy
    for part in (*made[2].values(), f"previous-champion is {made[1]['policy']}"):
        assert part in state.found


@pytest.mark.parametrize("role", ["judge", "policy"])
def test_an_alias_that_was_moved_by_hand_is_named_and_one_command_puts_it_back(made, client, role):
    client.set_registered_model_alias(f"rlhf-{role}", "champion", "1")
    fix = failing(f"moved by hand: champion of rlhf-{role} stands at 1, its release says 3")
    assert fix.startswith("rlhf rollback --to 3 --project rlhf")
    assert (f"rlhf promote {made[0]['policy']}" in fix) == (role == "policy")
    rollback_policy("rlhf", to="3")
    assert champions(client) == made[2]
    assert champions(client, "previous-champion") == made[1]
    assert release_state("rlhf").healthy
    assert rollback_policy("rlhf").champion == made[1]["policy"]


def test_a_policy_that_was_chosen_by_hand_can_be_kept(made, client):
    client.set_registered_model_alias("rlhf-policy", "champion", "1")
    promote_model(made[0]["policy"])
    assert champions(client) == made[0]
    assert release_state("rlhf").healthy


def test_a_person_goes_back_to_a_version_and_forward_again(made, client):
    promote_model(made[0]["policy"])
    back = rollback_policy("rlhf", to="2", reviewer="the reviewer", comment="it is rude")
    assert (back.was, back.champion) == (made[0]["policy"], made[1]["policy"])
    assert champions(client) == made[1]
    (newest,) = journal.read_journal("rlhf").entries[-1:]
    tags = client.get_model_version("rlhf-release", str(newest.number)).tags
    assert (tags["rlhf.approved_by"], tags["rlhf.approval_comment"]) == (
        "the reviewer",
        "it is rude",
    )
    rollback_policy("rlhf", to=made[0]["policy"])
    assert champions(client) == made[0]
    assert champions(client, "previous-champion") == made[2]
    assert rollback_policy("rlhf").champion == made[2]["policy"]


def test_a_version_that_nobody_can_go_back_to_is_told_of(made, client):
    for version, said in (
        ("1", "never was champion"),
        ("9", "never was champion"),
        ("3", "is champion already"),
        ("champion", "expected a version of rlhf-policy, such as 3"),
    ):
        with pytest.raises(RegistryError, match=said):
            rollback_policy("rlhf", to=version)
    client.delete_model_version("rlhf-judge", "2")
    with pytest.raises(RegistryError, match="judge/2 was deleted"):
        rollback_policy("rlhf", to="2")
    assert champions(client) == made[2]


def test_an_alias_that_was_taken_away_is_named(made, client):
    client.delete_registered_model_alias("rlhf-sft", "previous-champion")
    failing("previous-champion of rlhf-sft stands at none, its release says 2")
    promote_model(made[2]["policy"])
    assert release_state("rlhf").healthy


def test_a_deleted_version_of_the_release_in_force_is_named_and_rollback_mends_it(made, client):
    client.delete_model_version("rlhf-judge", "3")
    fix = failing(f"models:/rlhf-judge/3 of the release of {made[2]['policy']} was deleted")
    assert fix.startswith("rlhf rollback")
    rollback_policy("rlhf")
    assert champions(client) == made[1]
    assert release_state("rlhf").healthy


def test_a_deleted_version_of_the_release_before_is_named(made, client):
    client.delete_model_version("rlhf-policy", "2")
    fix = failing("models:/rlhf-policy/2 was deleted, or moved by hand: previous-champion of")
    assert fix.startswith("rlhf rollback --to 3 --project rlhf")
    promote_model(made[2]["policy"])
    assert "deleted since: models:/rlhf-policy/2" in release_state("rlhf").found


def test_a_move_that_was_killed_is_half_done_and_one_that_goes_on_is_not(made, client, monkeypatch):
    monkeypatch.setattr(release_aliases, "LATE_SECONDS", 0.0)
    with killed_before_any_alias(gone=True):
        promote_model(made[0]["policy"])
    fix = failing(f"promote to {made[0]['policy']} is half done")
    assert fix.startswith("rlhf lineage models:/rlhf-policy@champion")
    client.set_model_version_tag("rlhf-release", "3", "rlhf.applying.x", this_process())
    assert "is going on" in release_state("rlhf").found
    client.delete_model_version_tag("rlhf-release", "3", "rlhf.applying.x")
    assert find_version("models:/rlhf-policy@champion").aliases == ["champion"]
    assert release_state("rlhf").healthy


def test_champions_without_a_journal_are_compared_with_what_the_policy_was_made_with(client):
    made = [register_release(client) for _ in range(2)]
    for uri in made[1].values():
        client.set_registered_model_alias(
            *uri.removeprefix("models:/").split("/")[:1], "champion", "2"
        )
    assert release_state("rlhf").healthy
    client.set_registered_model_alias("rlhf-judge", "champion", "1")
    assert failing("champions are not one release") == f"rlhf promote {made[1]['policy']}"
    promote_model(made[1]["policy"])
    assert champions(client) == made[1]
    assert release_state("rlhf").healthy


def test_an_alias_that_somebody_moves_while_a_promotion_is_planned_is_set_again(
    client, made, monkeypatch
):
    tags = {"rlhf.stage": "policy", "rlhf.sha256": "another", "rlhf.verdict": "PROMOTE"}
    tags |= {f"rlhf.upstream.{role}": made[2][role] for role in ("sft", "reward", "judge")}
    number = client.create_model_version("rlhf-policy", source="s3://nowhere/model", tags=tags)
    record = promote.record_move

    def after_somebody(*arguments):
        client.set_registered_model_alias("rlhf-sft", "champion", made[0]["sft"].split("/")[2])
        return record(*arguments)

    monkeypatch.setattr(promote, "record_move", after_somebody)
    moved = promote_model(f"models:/rlhf-policy/{number.version}")
    assert champions(client) == made[2] | {"policy": moved.champion}
    assert release_state("rlhf").healthy


def test_what_a_repeated_request_made_holds_nobody_up_and_is_closed(client, made):
    newest = max(client.search_model_versions("name = 'rlhf-release'"), key=lambda v: v.version)
    tags = {journal.PLAN: newest.tags[journal.PLAN], journal.STATE: this_process()}
    client.create_model_version("rlhf-release", source=newest.source, tags=tags)
    client.set_registered_model_alias("rlhf-sft", "champion", made[0]["sft"].split("/")[2])
    assert journal.read_journal("rlhf").appliers() == {}
    release_aliases.recover_all()
    repeated = max(client.search_model_versions("name = 'rlhf-release'"), key=lambda v: v.version)
    assert repeated.tags[journal.STATE] == "overtaken"
    assert not journal.is_unfinished(repeated.tags)
    assert champions(client)["sft"] == made[0]["sft"]  # what a person set stays


def test_a_move_that_an_earlier_build_left_without_a_word_is_closed(client, made):
    first = min(client.search_model_versions("name = 'rlhf-release'"), key=lambda v: v.version)
    client.delete_model_version_tag("rlhf-release", first.version, journal.STATE)
    release_aliases.recover_all()
    again = client.get_model_version("rlhf-release", first.version)
    assert again.tags[journal.STATE] == "done"
