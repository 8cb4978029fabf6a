"""What people read in the Prefect UI."""

import pytest

from rlhf_core.schema import RunContext
from rlhf_flows.engine import artifacts
from rlhf_flows.engine.artifacts import (
    changed_answers,
    file_report,
    report_line,
    show_outcome,
    show_result,
)
from rlhf_flows.engine.inputs import PipelineInputs
from rlhf_flows.pipeline import rlhf_pipeline
from tests.stages.test_write_report import row


@pytest.fixture
def shown(monkeypatch):
    """Pages and links by key, as if a worker ran the flow."""
    found = {}
    monkeypatch.setattr(artifacts, "is_deployed", lambda: True)
    monkeypatch.setattr(
        artifacts, "create_markdown_artifact", lambda text, key: found.update({key: text})
    )
    monkeypatch.setattr(
        artifacts,
        "create_link_artifact",
        lambda address, link_text, key: found.update({key: address}),
    )
    return found


@pytest.fixture
def context(tmp_path):
    return RunContext(run_id="one", directory=tmp_path / "runs" / "one")


def test_a_policy_shows_what_its_training_measured_and_its_mlflow_run(
    shown, stages, settings, context
):
    config = settings.config
    model = stages.train_policy(config, None, stages._model("sft", context), None, context)
    show_result("policy", model, config, context)
    assert "policy/kl | 1.5" in shown["policy-model"]
    assert shown["policy-mlflow"] == "http://mlflow/r"


def test_a_dataset_links_to_its_data_docs(shown, stages, settings, context):
    config = settings.config
    show_result("prepare", stages.prepare_data(config), config, context)
    assert "[data docs](http://mlflow/data-docs/index.html)" in shown["prepare-dataset"]
    assert shown["prepare-data-docs"] == "http://mlflow/data-docs/index.html"


def test_the_outcome_links_to_the_report(shown, stages, settings):
    result = rlhf_pipeline(settings, PipelineInputs(run="one"))
    decided = result.stages["evaluate"]
    path, url = file_report(result.directory, decided)
    assert url == "http://mlflow/r/report.html"
    show_outcome(result.model_copy(update={"report": path, "report_url": url}))
    assert f"[report]({url})" in shown["pipeline-outcome"]
    assert shown["pipeline-report"] == url


def test_without_a_server_the_report_is_a_file(tmp_path):
    assert report_line(tmp_path / "report.html", None) == f"report: `{tmp_path}/report.html`"


def compared(stages, context, tmp_path, **changes):
    """An evaluation that left a file of answers; the second of them changed most."""
    rows = [row(0, 0.1, 0.0, 1.0), row(1, -2.0, 0.0, 0.0)]
    rows = [each.model_copy(update=changes) for each in rows]
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(f"{each.model_dump_json()}\n" for each in rows))
    result = stages._outcome("evaluate", stages._model("policy", context))
    report = result.report.model_copy(update={"samples": file})
    return result.model_copy(update={"report": report})


def test_the_answers_that_changed_most_are_shown_as_text(stages, context, tmp_path):
    title, most, *_ = changed_answers(compared(stages, context, tmp_path))
    assert title.startswith("**Changed most from SFT")
    assert "**candidate** (judge -2): policy 1" in most
    assert "**SFT** (judge 0): sft" in most
    changes = {"champion": "[a](http://b) " + "x" * 900, "champion_score": 0.5}
    title, most, *_ = changed_answers(compared(stages, context, tmp_path, **changes))
    assert title.startswith("**Changed most from the champion")
    assert r"**champion** (judge 0.5): [a\](http://b) xxx" in most
    assert len(most) < 700, "an answer does not push the form out of the window"
    (nothing,) = changed_answers(compared(stages, context, tmp_path, policy="sft"))
    assert nothing.startswith("No answer differs")
    assert changed_answers(stages._outcome("evaluate", stages._model("policy", context))) == []
