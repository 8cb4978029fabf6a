"""What people read in the Prefect UI."""

import pytest

from rlhf_core.schema import RunContext
from rlhf_flows.engine import artifacts
from rlhf_flows.engine.artifacts import file_report, report_line, show_handed, show_outcome
from rlhf_flows.engine.inputs import PipelineInputs
from rlhf_flows.pipeline import rlhf_pipeline


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
    show_handed("policy", model, config, context)
    assert "policy/kl | 1.5" in shown["policy-model"]
    assert shown["policy-mlflow"] == "http://mlflow/r"


def test_a_dataset_links_to_its_data_docs(shown, stages, settings, context):
    config = settings.config
    show_handed("prepare", stages.prepare_data(config), config, context)
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
