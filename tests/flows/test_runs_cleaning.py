"""Runs that nothing needs are deleted; whatever anything still needs stays, with the reason."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlhf_core.adapters.registry.releases import Journal, Plan, Release, record_move
from rlhf_core.config import RetentionConfig
from rlhf_core.errors import CheckpointError, RegistryError
from rlhf_core.stages.promote import Promotion
from rlhf_flows.commands.cli import app
from rlhf_flows.engine import prefect_server
from rlhf_flows.engine.runs import cleaning
from rlhf_flows.engine.runs.cleaning import delete_old_runs, look_for_old_runs, retain
from rlhf_flows.engine.runs.folder import open_run
from rlhf_flows.engine.runs.in_prefect import runs_in_prefect
from rlhf_flows.engine.runs.locks import hold_stage, in_use
from rlhf_flows.engine.runs.needed import Rule
from rlhf_flows.engine.runs.stage_folder import run_once

CLEAN = ["runs", "clean"]


def test_nothing_goes_unless_asked_and_then_only_what_is_ours(folder, monkeypatch):
    run = folder.run("one")
    notes = [run.directory / "notes.txt", run.stage_directory("evaluate") / "model" / "mine.md"]
    for path in notes:
        path.write_text("mine")
    runner = CliRunner()
    for words in ([*CLEAN], [*CLEAN, "--dry-run"]):
        shown = runner.invoke(app, words)
        assert shown.exit_code == 0, shown.output
        assert (run.directory / "config.json").exists()
    assert "nothing deleted; --yes deletes 1 runs and frees" in shown.output
    shown = runner.invoke(app, [*CLEAN, "--yes", "--json", "kept.json"])
    assert shown.exit_code == 0, shown.output
    (told,) = json.loads(Path("kept.json").read_text())["runs"]
    assert told["deleted"]
    assert told["freed_bytes"] >= 50_000
    assert "deleted 1 runs, freed" in shown.output
    left = [path for path in run.directory.rglob("*") if path.is_file()]
    assert sorted(left) == sorted(notes)
    assert all(f"kept {path}" in shown.output.replace("\n", "") for path in notes)
    assert runner.invoke(app, [*CLEAN, "--yes", "--dry-run"]).exit_code == 2


def test_a_whole_run_leaves_no_folder_and_what_is_linked_to_frees_nothing(folder, tmp_path):
    run = folder.run("one")
    weights = run.stage_directory("evaluate") / "model" / "model.safetensors"
    (tmp_path / "linked").hardlink_to(weights)
    seen = look_for_old_runs(folder.config.runs, Rule())
    assert seen.runs[0].disk_bytes >= 50_000 > seen.runs[0].freed_bytes
    delete_old_runs(seen, Rule())
    assert not run.directory.exists()
    assert (tmp_path / "linked").stat().st_size == 50_000


@pytest.mark.parametrize("alias", ["candidate", "champion", "somebodys"])
def test_a_run_that_an_alias_stands_at_stays(folder, alias):
    folder.run("one")
    folder.client.set_registered_model_alias("rlhf-policy", alias, "1")
    assert folder.why("one") == f"aliases stand at its models: rlhf-policy@{alias}"


def test_runs_of_a_release_and_of_those_that_a_rollback_goes_back_to_stay(folder):
    for name in ("judged", "first", "second", "other"):
        folder.run(name)
    judge = f"models:/rlhf-judge/{folder.version('rlhf-judge', 'judged')}"
    first = Release(policy="models:/rlhf-policy/2", judge=judge)
    second = Release(policy="models:/rlhf-policy/3", judge=judge)
    plan = Plan(token="a", action="promote", base=0, releases=(second, first))
    record_move(Journal("rlhf", ()), plan, {})
    kept = {name: folder.why(name) for name in ("judged", "first", "second", "other")}
    assert kept.pop("other") == ""
    assert all("a rollback may need models:/rlhf-" in reason for reason in kept.values())


def test_a_run_that_waits_for_a_person_stays_until_the_person_has_spoken(folder):
    folder.run("one", "HOLD")
    folder.client.set_model_version_tag("rlhf-policy", "1", "rlhf.approval", "ASKED")
    assert "waits for a person's approval" in folder.why("one")
    folder.client.set_model_version_tag("rlhf-policy", "1", "rlhf.approval", "REJECT")
    assert folder.why("one") == ""


def test_a_run_that_passed_its_gates_stays_until_it_is_promoted_or_refused(folder):
    run = folder.run("one", "PROMOTE")
    assert "waits for its promotion: rlhf promote models:/rlhf-policy/1" in folder.why("one")
    folder.client.set_model_version_tag("rlhf-policy", "1", "rlhf.approval", "HOLD")
    assert folder.why("one") == ""
    folder.client.delete_model_version_tag("rlhf-policy", "1", "rlhf.approval")
    ended = Promotion(model="m", verdict="HOLD", moved=False, champion=None,
                      previous_champion=None, reasons=())  # fmt: skip
    run_once(run, "promote", {}, lambda: ended, record=Promotion)
    assert folder.why("one") == ""


@pytest.mark.parametrize(
    ("compared", "verdict", "stays"),
    [
        ("none", "PROMOTE", False),  # another became champion first: promotion refuses it
        ("models:/rlhf-policy/2", "PROMOTE", True),
        ("models:/rlhf-policy/2", "REJECT", False),  # a later evaluation of it
    ],
)
def test_a_run_whose_promotion_would_be_refused_does_not_stay_for_ever(
    folder, compared, verdict, stays
):
    for name in ("one", "champion"):
        folder.run(name, "PROMOTE")
    plan = Plan(
        token="a", action="promote", base=0, releases=(Release(policy="models:/rlhf-policy/2"),)
    )
    record_move(Journal("rlhf", ()), plan, {})
    folder.client.set_registered_model_alias("rlhf-policy", "champion", "2")
    tags = {"rlhf.compared_with_champion": compared, "rlhf.verdict": verdict}
    for key, value in (tags | {"rlhf.verdict_run": "r"}).items():
        folder.client.set_model_version_tag("rlhf-policy", "1", key, value)
    assert ("waits for its promotion" in folder.why("one")) == stays
    assert stays or folder.why("one") == ""


def test_a_look_that_has_not_ended_keeps_its_run(folder):
    folder.run("one")
    version = folder.version("rlhf-looks", "one")
    assert "look models:/rlhf-looks/1 at held-out prompts has not ended" in folder.why("one")
    folder.client.set_model_version_tag("rlhf-looks", version, "rlhf.measured_by", "r")
    assert folder.why("one") == ""


def test_what_somebody_works_on_stays(folder):
    run = folder.run("one")
    with in_use(run):
        assert folder.why("one") == "a process is working on it"
    with hold_stage(run, "policy"):
        assert folder.why("one") == "a process is working on it"
    assert folder.why("one") == ""


def test_a_run_that_is_taken_up_while_it_is_asked_about_stays(folder):
    run = folder.run("one")
    seen = look_for_old_runs(folder.config.runs, Rule())
    with in_use(run):
        (told,) = delete_old_runs(seen, Rule()).runs
    assert told.kept_because == ("a process is working on it",)
    assert (run.stage_directory("evaluate") / "result.json").exists()


def test_nobody_can_take_up_a_run_from_the_last_look_at_it_on(folder, monkeypatch):
    """An alias that moved after the look, or a stage that began, would find its files gone."""
    run = folder.run("one")
    seen = look_for_old_runs(folder.config.runs, Rule())
    looking = cleaning.registry_needs

    def look():
        with pytest.raises(CheckpointError, match="is being deleted"), in_use(run):
            pass
        with pytest.raises(CheckpointError, match="another process"), hold_stage(run, "policy"):
            pass
        return looking()

    monkeypatch.setattr(cleaning, "registry_needs", look)
    (told,) = delete_old_runs(seen, Rule()).runs
    assert told.deleted
    with pytest.raises(CheckpointError, match="was deleted; start a new one"), in_use(run):
        pass


def test_an_alias_that_moves_after_the_list_was_shown_keeps_its_run(folder):
    folder.run("one")
    seen = look_for_old_runs(folder.config.runs, Rule())
    folder.client.set_registered_model_alias("rlhf-policy", "champion", "1")
    (told,) = delete_old_runs(seen, Rule()).runs
    assert told.kept_because == ("aliases stand at its models: rlhf-policy@champion",)
    assert not told.deleted


def test_more_runs_than_are_held_at_once_go_newest_first(folder, monkeypatch):
    monkeypatch.setattr(cleaning, "_AT_ONCE", 2)
    for number in range(5):
        folder.run(f"run-{number}", days_old=5 - number)
    gone, deleting = [], cleaning.delete_run
    monkeypatch.setattr(
        cleaning, "delete_run", lambda run: (gone.append(run.run_id), deleting(run))[1]
    )
    seen = look_for_old_runs(folder.config.runs, Rule(keep_last=1))
    done = delete_old_runs(seen, Rule(keep_last=1)).runs
    assert gone == ["run-3", "run-2", "run-1", "run-0"]
    assert [run.run_id for run in done if not run.deleted] == ["run-4"]


def test_a_run_that_is_being_deleted_is_not_gone_on_with(folder):
    from rlhf_core.storage.locks import locked

    run = folder.run("one")
    with (
        locked(run.directory / ".cleaning.lock"),
        pytest.raises(CheckpointError, match="is being deleted"),
        in_use(run),
    ):
        pass


def test_what_a_kill_left_of_a_deletion_is_deleted(folder):
    run = folder.run("one")
    (run.directory / ".deleting").touch()
    (run.stage_directory("evaluate") / "result.json").unlink()
    assert folder.why("one") == ""


def test_a_run_that_is_taken_up_keeps_what_it_was_made_from(folder):
    one, two = folder.run("one", sha="a" * 64), folder.run("two", reads="a" * 64)
    seen = look_for_old_runs(folder.config.runs, Rule())
    assert len(seen.safe) == 2
    with in_use(two):
        done = {run.run_id: run for run in delete_old_runs(seen, Rule()).runs}
    assert done["two"].kept_because == ("a process is working on it",)
    assert done["one"].kept_because == ("run two was made from it",)
    assert one.directory.exists()
    assert two.directory.exists()


def test_unfinished_and_damaged_runs(folder):
    open_run(folder.config, "unfinished")
    damaged = folder.run("damaged")
    (damaged.stage_directory("evaluate") / "result.json").write_text("{")
    assert "--unfinished" in folder.why("unfinished")
    assert folder.why("unfinished", unfinished=True) == ""
    assert folder.why("damaged", unfinished=True).startswith("damaged")


def test_age_and_number_are_limits(folder):
    for name, days in (("old", 40), ("middle", 20), ("new", 1)):
        folder.run(name, days_old=days)
    assert folder.why("old", older_than=timedelta(days=30)) == ""
    assert "started 20 days ago" in folder.why("middle", older_than=timedelta(days=30))
    kept = [folder.why(name, keep_last=2) for name in ("old", "middle", "new")]
    assert kept == ["", "one of the last 2", "one of the last 2"]
    shown = CliRunner().invoke(app, [*CLEAN, "--older-than", "30d", "--keep-last", "1", "--yes"])
    assert shown.exit_code == 0, shown.output
    assert sorted(path.name for path in folder.config.runs.iterdir()) == ["middle", "new"]


@pytest.mark.parametrize("age", ["30", "d", "-3d", "1.5d", "30 days", "", "999999d"])
def test_an_age_that_is_none_is_said(folder, age):
    shown = CliRunner().invoke(app, [*CLEAN, "--older-than", age])
    assert shown.exit_code == 2
    assert "expected a number and h, d or w" in shown.output.replace("\n", " ").replace("│", "")


def test_a_run_that_this_mlflow_does_not_know_stays(folder):
    run = folder.run("one")
    (run.stage_directory("evaluate") / "mlflow-run").write_text("0" * 32)
    assert "does not know it; look at MLFLOW_TRACKING_URI" in folder.why("one")
    known = folder.client.create_run("0", tags={"rlhf.run_id": "one"})
    # Another project may have named a run of its own so: the ids are not the same.
    assert "does not know it; look at MLFLOW_TRACKING_URI" in folder.why("one")
    (run.stage_directory("sft")).mkdir()
    (run.stage_directory("sft") / "mlflow-run").write_text(known.info.run_id)
    assert folder.why("one") == ""


def test_a_run_that_another_machine_works_on_stays(folder):
    folder.run("one")
    there = folder.client.create_run(
        "0", tags={"rlhf.run_id": "one", "checkpoints.place": "elsewhere:/srv"}
    )
    assert folder.why("one") == "MLflow says that it is worked on: elsewhere:/srv"
    folder.client.set_terminated(there.info.run_id)
    assert folder.why("one") == ""


def test_a_link_in_place_of_a_run_is_not_followed(folder, tmp_path):
    elsewhere = folder.run("one").directory.rename(tmp_path / "elsewhere")
    (folder.config.runs / "one").symlink_to(elsewhere)
    assert folder.why("one") == "its folder is a link"


def test_flow_runs_that_have_not_ended_keep_their_runs(folder, monkeypatch):
    created = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    pages = [
        {"id": "x" * 32 + "9f3c", "created": created.isoformat(), "parameters": {"inputs": {}}},
        {
            "id": "y" * 36,
            "created": "2026-01-01T00:00:00Z",
            "parameters": {"inputs": {"run": "one"}},
        },
    ]
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    monkeypatch.setattr(prefect_server, "ask", lambda url, path, body: pages)
    assert {"20260102-030405-9f3c", "one"} <= runs_in_prefect()
    folder.run("one")
    assert folder.why("one") == "Prefect has a flow run of it that has not ended"


def test_a_lost_mlflow_lists_what_the_folder_knows_and_deletes_nothing(folder, monkeypatch):
    run = folder.run("one")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    shown = CliRunner().invoke(app, ["runs"])
    assert shown.exit_code == 0, shown.output
    assert shown.stderr.count("warning: aliases are not known") == 1
    assert "unknown" in shown.stdout
    shown = CliRunner().invoke(app, [*CLEAN, "--yes"])
    assert isinstance(shown.exception, RegistryError)
    assert (run.directory / "config.json").exists()


def test_retention_deletes_earlier_runs_that_were_begun_with_it(folder):
    kept = {"retention": RetentionConfig(older_than_days=30, keep_last=1)}
    folder.run("old", days_old=40, **kept)
    folder.run("needed", days_old=40, **kept)
    folder.run("a-persons", days_old=40)
    folder.run("other-project", days_old=40, project="other", **kept)
    folder.run("young", days_old=3, **kept)
    unread = folder.run("unread", days_old=40, **kept).directory / "config.json"
    unread.write_text(unread.read_text().replace('"retention"', '"of_another_build"'))
    folder.client.set_registered_model_alias("rlhf-policy", "champion", "2")
    now = folder.run("now", **kept)
    retain(folder.config, now)
    assert len(list(folder.config.runs.iterdir())) == 7
    retain(folder.config.model_copy(update=kept), now)
    left = sorted(path.name for path in folder.config.runs.iterdir())
    assert left == ["a-persons", "needed", "now", "other-project", "unread", "young"]


def test_a_damaged_run_does_not_end_retention_for_the_others(folder):
    kept = {"retention": RetentionConfig(older_than_days=30, keep_last=0)}
    for name in ("damaged", "old"):
        folder.run(name, days_old=40, **kept)
    (folder.config.runs / "damaged" / "config.json").write_text("{")
    retain(folder.config.model_copy(update=kept), folder.run("now", **kept))
    assert sorted(path.name for path in folder.config.runs.iterdir()) == ["damaged", "now"]


def test_retention_that_cannot_ask_mlflow_costs_a_warning(folder, monkeypatch, caplog):
    def lost():
        raise RegistryError("MLflow is lost")

    kept = {"retention": RetentionConfig(older_than_days=30, keep_last=0)}
    folder.run("old", days_old=40, **kept)
    monkeypatch.setattr(cleaning, "registry_needs", lost)
    retain(folder.config.model_copy(update=kept), folder.run("now", **kept))
    assert "old_runs_kept" in caplog.text
    assert (folder.config.runs / "old" / "config.json").exists()
