"""A dry run says what would be done, from what, and leaves everything as it was."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.errors import ConfigError, RegistryError
from rlhf_core.stages.promote import promote_model
from rlhf_flows.commands.cli import app
from rlhf_flows.engine.dry_run import plan_pipeline, plan_stage
from rlhf_flows.engine.inputs import EvaluateInputs, PipelineInputs, RewardInputs, SftInputs
from rlhf_flows.engine.runs.settings import RunSettings
from rlhf_flows.pipeline import rlhf_pipeline
from rlhf_flows.stages import sft_stage
from tests.releases import champions, killed_before_any_alias, register_release

pytestmark = pytest.mark.usefixtures("without_engine")

ALL = ["prepare", "sft", "reward", "judge", "policy", "evaluate", "promote"]


@pytest.fixture(autouse=True)
def raw_file(tmp_path):
    (tmp_path / "raw.jsonl").write_text("{}\n")


def what(plan):
    return {planned.stage: planned.would for planned in plan.stages}


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_new_run_would_run_every_stage_and_leaves_no_folder(stages, settings, tmp_path):
    before = files(tmp_path)
    plan = plan_pipeline(settings.config, None)
    assert what(plan) == dict.fromkeys(ALL, "run")
    assert plan.is_new
    reads = {planned.stage: planned.reads for planned in plan.stages}
    assert reads["prepare"]["data.preferences.path"] == "raw.jsonl"
    assert reads["sft"] == {"dataset": "what prepare makes", "base": "base"}
    assert reads["policy"]["reward"] == "what reward makes"
    assert reads["policy"]["judge"] == "what judge makes"
    assert reads["evaluate"]["champion"] == "none yet"
    assert stages.calls == []
    assert files(tmp_path) == before


def test_what_was_done_from_the_same_inputs_would_be_skipped(stages, settings, tmp_path):
    rlhf_pipeline(settings, PipelineInputs(run="one"))
    before, calls = files(tmp_path), list(stages.calls)
    plan = plan_pipeline(settings.config, "one")
    assert what(plan) == dict.fromkeys(ALL[:-1], "skip") | {"promote": "run"}
    assert not plan.is_new
    by_stage = {planned.stage: planned for planned in plan.stages}
    assert by_stage["reward"].reads["sft"] == "models:/rlhf-sft/1"
    assert by_stage["promote"].why == "again: it said PROMOTE"
    assert stages.calls == calls
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("overrides", "judge"),
    [
        (("policy.selection.num_prompts=0",), None),
        (("evaluation.judge=models:/rlhf-judge/7",), "models:/rlhf-judge/7"),
    ],
)
def test_the_policy_reads_the_judge_that_chooses_its_checkpoint(stages, settings, overrides, judge):
    chosen = RunSettings(file=settings.file, overrides=(*settings.overrides, *overrides))
    reads = {each.stage: each.reads for each in plan_pipeline(chosen.config, None).stages}
    assert reads["policy"].get("judge") == judge
    assert reads["evaluate"]["judge"] == judge or judge is None


@pytest.mark.parametrize("first", ["prepare", "sft", "evaluate"])
def test_what_changed_and_all_that_follows_would_run(stages, settings, first):
    rlhf_pipeline(settings, PipelineInputs(run="one"))
    if first == "prepare":
        stages.raw = "other"
    elif first == "sft":
        stages.base = "other"
    else:
        other = stages.models["models:/rlhf-policy/1"].model_copy(
            update={"uri": "models:/other/1", "sha256": "f" * 64}
        )
        stages.models["models:/other/1"] = other
        stages.champion = "models:/other/1"
    place = ALL.index(first)
    plan = plan_pipeline(settings.config, "one")
    assert what(plan) == dict.fromkeys(ALL[:place], "skip") | dict.fromkeys(ALL[place:], "run")
    assert plan.stages[place].why.startswith("its inputs have changed")


def test_behind_a_gate_that_said_no_nothing_would_be_reached(stages, settings):
    stages.verdicts["reward"] = "HOLD"
    rlhf_pipeline(settings, PipelineInputs(run="one"))
    plan = plan_pipeline(settings.config, "one")
    assert what(plan)["reward"] == "skip"
    assert what(plan)["judge"] == what(plan)["promote"] == "not be reached"
    assert plan.stages[-1].why == "reward said HOLD"


def test_other_settings_than_the_runs_are_refused(stages, settings):
    sft_stage(settings, SftInputs(run="one"))
    other = RunSettings(file=settings.file, overrides=("seed=1",))
    with pytest.raises(ConfigError, match=r"started with other settings \(changed: seed\)"):
        plan_pipeline(other.config, "one")


def test_a_stage_alone_says_which_models_it_would_read(stages, settings, tmp_path):
    with pytest.raises(RegistryError, match="no sft model to start from"):
        plan_stage(settings.config, None, "reward", RewardInputs())
    made = sft_stage(settings, SftInputs(run="one"))
    stages.models["models:/rlhf-sft@candidate"] = made.model
    before = files(tmp_path)
    (planned,) = plan_stage(settings.config, None, "reward", RewardInputs()).stages
    assert planned.reads["sft"] == made.model.uri
    assert (planned.would, planned.why) == ("run", "not done yet")
    (planned,) = plan_stage(settings.config, "one", "sft", SftInputs()).stages
    assert planned.would == "skip"
    (planned,) = plan_stage(settings.config, "one", "sft", SftInputs(force=True)).stages
    assert planned.would == "run"
    with pytest.raises(ConfigError, match="no such run"):
        plan_stage(settings.config, "two", "evaluate", EvaluateInputs())
    assert files(tmp_path) == before


@pytest.mark.parametrize("given", ["data-v3", None, "elsewhere@" + "0" * 64])
def test_a_dataset_that_is_not_here_is_neither_made_nor_brought(stages, settings, tmp_path, given):
    splits = rlhf_pipeline(settings, PipelineInputs(run="one")).splits
    shutil.rmtree(splits.directory)
    before, calls = files(tmp_path), list(stages.calls)
    (planned,) = plan_stage(settings.config, "one", "sft", SftInputs(dataset=given)).stages
    assert planned.reads["dataset"] == (
        given or f"{splits.directory} (sha256 {splits.sha256[:12]})"
    )
    assert planned.would == ("run" if given else "skip")
    assert stages.calls == calls
    assert files(tmp_path) == before


def test_the_commands_change_nothing_and_say_what_would_end_them(
    stages, config_path, tmp_path, monkeypatch
):
    def refuse(config):
        raise ConfigError("the base model has no tokenizer")

    before = files(tmp_path)
    runner, kept = CliRunner(), tmp_path.parent / f"{tmp_path.name}.json"
    for words in (["run"], ["sft"], ["prepare"]):
        if words == ["prepare"]:
            monkeypatch.setattr("rlhf_core.stages.prepare.require_own_folders", lambda config: None)
        shown = runner.invoke(app, [*words, str(config_path), "--dry-run", "--json", str(kept)])
        assert shown.exit_code == 0, shown.output
        assert kept.exists()
        kept.unlink()
    monkeypatch.setattr("rlhf_core.stages.preflight.check_inputs", refuse)
    shown = runner.invoke(app, ["run", str(config_path), "--dry-run", "--json", str(kept)])
    assert isinstance(shown.exception, ConfigError)
    told = json.loads(kept.read_text())
    assert told["problem"] == "the base model has no tokenizer"
    assert len(told["stages"]) == len(ALL)
    assert files(tmp_path) == before


@pytest.mark.parametrize("command", [["run", "config.yaml"], ["promote", "models:/rlhf-policy/2"]])
def test_a_promotion_that_was_killed_is_seen_and_left_to_others(
    config_path, mlflow_home, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{mlflow_home}/mlflow.db")
    # Its base model is none: the hub would be asked, for 45 seconds where there is no network.
    monkeypatch.setattr("rlhf_core.stages.preflight.check_inputs", lambda config: None)
    client = mlflow_client()
    first, second = register_release(client), register_release(client)
    promote_model(first["policy"])
    with killed_before_any_alias():
        promote_model(second["policy"])
    done = CliRunner().invoke(app, [*command, "--dry-run", "--json", "said.json"])
    said = json.loads((tmp_path / "said.json").read_text())
    if command[0] == "run":
        (evaluate,) = [each for each in said["stages"] if each["stage"] == "evaluate"]
        assert evaluate["reads"]["champion"] == second["policy"]
    else:
        assert (said["champion"], said["moved"]) == (second["policy"], False)
        assert (done.exit_code, done.output.splitlines()[-1]) == (
            0, "dry run: nothing was changed",
        )  # fmt: skip
    assert champions(client) == first
