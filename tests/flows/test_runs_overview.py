"""Runs are listed and compared from what the product itself writes into their folders."""

import json

import pytest
from typer.testing import CliRunner

from rlhf_core.adapters.registry.registry import aliases_by_run
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.errors import ConfigError
from rlhf_core.schema import Estimate, EvaluationReport, ModelRef, PromotionDecision, StageResult
from rlhf_core.stages.promote import Promotion
from rlhf_flows.commands.cli import app
from rlhf_flows.commands.runs import _measured
from rlhf_flows.engine.runs.folder import open_run
from rlhf_flows.engine.runs.locks import hold_stage
from rlhf_flows.engine.runs.overview import compare_runs, disk_of, list_runs
from rlhf_flows.engine.runs.stage_folder import run_once


def finish(run, stage, verdict, metrics=None):
    model = ModelRef(name="m", version="1", uri="models:/m/1", path=run.directory, sha256="0" * 64,
                     kind="causal", run_id="r")  # fmt: skip
    if stage == "promote":
        result = Promotion(model="models:/m/1", verdict=verdict, moved=True, champion="models:/m/1",
                           previous_champion=None, reasons=())  # fmt: skip
    else:
        report = EvaluationReport(stage=stage, model=model, metrics=metrics or {})
        decision = PromotionDecision(
            stage=stage, model=model, verdict=verdict, results=(), reasons=()
        )
        result = StageResult(
            stage=stage, model=model, report=report, decision=decision, seconds=1, tracking_url=""
        )
    run_once(run, stage, {}, lambda: result, record=type(result))


def test_a_run_that_a_process_is_at_is_listed_as_running(settings, tmp_path, mlflow_home):
    runs = tmp_path / "runs"
    run = open_run(settings.config.model_copy(update={"runs": runs}), "one")
    with hold_stage(run, "sft"):
        shown = CliRunner().invoke(app, ["runs", "list", "--runs", str(runs)])
    assert "running" in shown.stdout, shown.output
    shown = CliRunner().invoke(app, ["runs", "list", "--runs", str(runs)])
    assert "unfinished" in shown.stdout


def estimate(value):
    return Estimate(value=value, low=value - 0.1, high=value + 0.1, num_samples=1_200)


@pytest.mark.parametrize(
    ("finished", "verdict"),
    [
        ({}, "unfinished"),
        ({"sft": "PROMOTE", "reward": "PROMOTE"}, "unfinished"),
        ({"sft": "PROMOTE", "reward": "REJECT"}, "REJECT"),
        ({"sft": "PROMOTE", "evaluate": "HOLD"}, "HOLD"),
        ({"evaluate": "PROMOTE"}, "PROMOTE"),
        ({"evaluate": "PROMOTE", "promote": "REJECT"}, "REJECT"),
    ],
)
def test_a_run_is_listed_with_what_decided_it(settings, finished, verdict, tmp_path):
    config = settings.config.model_copy(update={"runs": tmp_path / "runs"})
    run = open_run(config, "one")
    for stage, word in finished.items():
        finish(run, stage, word)
    (tmp_path / "runs" / "foreign").mkdir()
    (found,) = list_runs(tmp_path / "runs", {"one": ["m@champion"], "other": ["m@x"]}).runs
    assert (found.verdict, found.stages) == (verdict, tuple(finished))
    assert not found.is_worked_on
    assert found.aliases == ("m@champion",)


def test_a_damaged_run_is_listed_and_named(settings, tmp_path):
    run = open_run(settings.config.model_copy(update={"runs": tmp_path}), "one")
    finish(run, "evaluate", "PROMOTE")
    (run.directory / "evaluate" / "result.json").write_text("{")
    (found,) = list_runs(tmp_path, {}).runs
    assert found.verdict == "damaged"
    assert "evaluate/result.json" in found.reason


def test_a_file_with_two_names_takes_its_blocks_once(tmp_path):
    (tmp_path / "model").write_bytes(b"x" * 100_000)
    before = disk_of(tmp_path)
    (tmp_path / "again").hardlink_to(tmp_path / "model")
    assert disk_of(tmp_path) == before >= 100_000


def test_two_runs_are_compared_by_what_differs(settings, tmp_path):
    config = settings.config.model_copy(update={"runs": tmp_path})
    one = open_run(config, "one")
    gate = config.gates.policy[0]
    other = open_run(
        config.model_copy(
            update={
                "seed": config.seed + 1,
                "gates": config.gates.model_copy(
                    update={
                        "policy": (
                            gate.model_copy(update={"min_samples": 77}),
                            *config.gates.policy[1:],
                        )
                    }
                ),
            }
        ),
        "other",
    )
    finish(one, "sft", "PROMOTE", {"sft/x": estimate(0.5)})
    finish(other, "sft", "PROMOTE", {"sft/x": estimate(0.7), "sft/y": estimate(0.1)})
    found = compare_runs("one", "other", tmp_path)
    assert found.settings["seed"] == (str(config.seed), str(config.seed + 1))
    assert found.settings["gates.policy[0].min_samples"] == (str(gate.min_samples), "77")
    assert len(found.settings) == 2
    assert found.metrics == {
        "sft/x": (estimate(0.5), estimate(0.7)),
        "sft/y": (None, estimate(0.1)),
    }
    with pytest.raises(ConfigError, match="nowhere: no such run; rlhf runs"):
        compare_runs("one", "nowhere", tmp_path)


def test_the_level_of_an_interval_is_not_rounded():
    narrow = estimate(0.5).model_copy(update={"confidence": 0.9958})
    assert "(99.58%, n = " in _measured(narrow)
    assert "(95%, n = " in _measured(narrow.model_copy(update={"confidence": 0.95}))


def test_the_commands_print_what_was_found(settings, tmp_path, mlflow_home):
    config = settings.config.model_copy(update={"runs": tmp_path / "runs"})
    for name, value in (("one", 0.5), ("other", 0.7)):
        finish(open_run(config, name), "evaluate", "HOLD", {"policy/win_rate": estimate(value)})
    folder, kept = ["--runs", str(tmp_path / "runs")], ["--json", str(tmp_path / "kept.json")]
    shown = CliRunner().invoke(app, ["runs", "compare", "one", "other", *folder, *kept])
    assert shown.exit_code == 0, shown.output
    assert json.loads((tmp_path / "kept.json").read_text())["runs"] == ["one", "other"]
    client = mlflow_client()
    client.create_registered_model("m")
    client.create_model_version("m", "/nowhere", tags={"rlhf.run_id": "one"})
    client.set_registered_model_alias("m", "champion", "1")
    assert aliases_by_run() == {"one": ["m@champion"]}
    for words in (["runs", *folder, *kept], ["runs", "list", *folder, *kept]):
        shown = CliRunner().invoke(app, words)
        assert shown.exit_code == 0, shown.output
        runs = {
            run["run_id"]: run for run in json.loads((tmp_path / "kept.json").read_text())["runs"]
        }
        assert runs["one"]["aliases"] == ["m@champion"]
        assert runs["other"]["aliases"] == []
