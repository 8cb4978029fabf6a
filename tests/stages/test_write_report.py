import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_core.config import GatesConfig
from rlhf_core.errors import ConfigError
from rlhf_core.evaluation.gates import decide
from rlhf_core.evaluation.samples import ComparedAnswer
from rlhf_core.schema import Estimate, EvaluationReport, Message, ModelRef, StageResult
from rlhf_core.stages.evaluate import evaluate_policy, evaluate_reward, evaluate_sft
from rlhf_core.stages.evaluation.report import NUM_SAMPLES, _draw, pick_samples, write_report

NO_GATES = GatesConfig(sft=(), reward=(), policy=())


@pytest.mark.slow
def test_a_finished_run_becomes_one_page(four_models, stage_config, stage_context, small_splits):
    config, directory = stage_config(), stage_context.directory
    results = {
        "sft": evaluate_sft(config, small_splits, four_models["sft"], stage_context),
        "judge": evaluate_reward(
            config, small_splits, four_models["judge"], stage_context, role="judge"
        ),
        "evaluate": evaluate_policy(
            config, small_splits, context=stage_context, champion=None, **four_models
        ),
        "policy": four_models["policy"],
    }
    for stage, result in results.items():
        (directory / stage).mkdir(parents=True, exist_ok=True)
        (directory / stage / "result.json").write_text(result.model_dump_json())
    (directory / "config.json").write_text(config.model_dump_json())
    page = write_report(directory)
    html = page.read_text()
    assert page == directory / "report.html"
    assert "Win rate over SFT" not in html  # it is in the picture
    assert html.count("data:image/svg+xml") >= 3
    assert "When does the library number" in html
    assert "models:/rlhf-sft/1" in html
    assert "gold/win_rate" in html
    assert "could not" not in html


def test_a_report_needs_no_torch():
    code = "import sys, rlhf_core.stages.evaluation.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a run"):
        write_report(tmp_path)


def test_a_run_that_has_only_begun_still_gives_a_page(tmp_path, stage_config):
    (tmp_path / "config.json").write_text(stage_config().model_dump_json())
    assert "NO DECISION" in write_report(tmp_path).read_text()


def test_a_picture_that_fails_is_a_note_on_the_page():
    def broken(title):
        raise ValueError(f"no such symbol in {title}")

    notes = []
    assert _draw(notes, broken, "Vices") == []
    assert notes == ["No picture of 'Vices': ValueError: no such symbol in Vices"]


def test_pictures_that_all_fail_leave_a_page(tmp_path, stage_config, monkeypatch):
    model = ModelRef(
        name="rlhf-policy", version="7", uri="file:m", path=Path("m"), sha256="s", kind="causal",
        run_id="",
    )  # fmt: skip
    estimate = Estimate(value=0.6, low=0.5, high=0.7, num_samples=300)
    measured = EvaluationReport(
        stage="policy",
        model=model,
        metrics={"policy/win_rate": estimate, "policy/flattery": estimate,
                 "policy/flattery_increase": estimate},
    )  # fmt: skip
    result = StageResult(
        stage="evaluate", model=model, report=measured, decision=decide((), measured),
        seconds=1.0, tracking_url="",
    )  # fmt: skip
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate" / "result.json").write_text(result.model_dump_json())
    (tmp_path / "config.json").write_text(
        stage_config().model_copy(update={"gates": NO_GATES}).model_dump_json()
    )
    monkeypatch.setattr("rlhf_core.stages.evaluation.report.interval_plot", None)
    assert "No picture of" in write_report(tmp_path).read_text()


def row(index, judge, reward, won):
    return ComparedAnswer(
        prompt_id=f"p{index}", prompt=(Message(role="user", content="?"),), tags={},
        policy=f"policy {index}", sft="sft", policy_length=3, sft_length=2, policy_finished=True,
        sft_finished=True, won=won, scores={"judge": (judge, 0.0), "reward": (reward, 0.0)},
    )  # fmt: skip


def test_samples_are_chosen_by_the_numbers():
    rows = [row(0, 0.1, 0.0, 1.0), row(1, 2.0, 0.0, 1.0), row(2, -1.0, 5.0, 0.0)]
    rows += [row(3, -3.0, -1.0, 0.0), row(4, 0.0, 0.0, 0.5)]
    chosen = pick_samples(rows)
    texts = {why: [sample.policy for sample in samples] for why, samples in chosen.items()}
    assert texts["Clearest wins of the policy"] == ["policy 1", "policy 0"]
    assert texts["Clearest losses of the policy"] == ["policy 3", "policy 2"]
    assert texts["Liked more by its reward model, less by the judge"] == ["policy 2"]
    assert len(pick_samples(rows * 9)["In the order of the prompts"]) == NUM_SAMPLES
