"""What people click in the Prefect UI; pictures are kept in pytest's folder ``pictures``."""

import json

import pytest

from rlhf_flows.engine.inputs import PipelineInputs
from rlhf_flows.engine.runs.settings import RunSettings
from rlhf_flows.promotion import Approval
from tests.browser.pages import Prefect

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.xdist_group("served")]

FIELDS = [*PipelineInputs.model_fields.values(), *RunSettings.model_fields.values()]


@pytest.fixture(scope="module")
def ui(page, served):
    return Prefect(page, served)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def form(ui, pictures):
    """The custom run form of the nightly deployment; returns what stands on it."""
    ui.open_deployment("rlhf-pipeline/nightly")
    ui.open_form()
    ui.read(FIELDS[-1].description)
    ui.shoot(pictures / "run-form.png", full_page=True)
    return ui.page.inner_text("body")


@pytest.fixture(scope="module")
def failed(ui, form):
    """A run that was started from the form and whose preparation broke; returns its id."""
    (ui.served.path / "fail-prepare").touch()
    run = ui.submit()
    assert ui.served.wait(run)["state"]["type"] == "FAILED"
    return run


@pytest.fixture(scope="module")
def suspended(ui, approved):
    """A pipeline that waits for a person; all of its stages are in ``test_served.py``."""
    run = ui.served.run(approved)
    if run["state"]["type"] == "PAUSED":
        return approved
    inputs = {"run": run["name"].split()[1], "repeat_from": "evaluate"}
    again = ui.served.trigger("rlhf-pipeline/manual", inputs=inputs)
    ui.served.wait(again, "PAUSED")
    return again


def test_the_run_form_says_what_each_field_is(form):
    missing = [field.description for field in FIELDS if field.description not in form]
    assert missing == []


def test_a_failed_run_offers_retry_and_says_what_broke(ui, failed, pictures):
    ui.open_run(failed)
    ui.page.get_by_role("button", name="Retry", exact=True).wait_for()
    ui.read("prepare broke")
    ui.shoot(pictures / "failed-run.png")


def test_retry_repeats_what_failed_and_follows(ui, failed):
    (ui.served.path / "verdict-sft").write_text("REJECT")  # nothing follows it
    ui.open_run(failed)
    ui.served.calls()
    ui.retry(failed)
    assert ui.served.wait(failed)["state"]["name"] == "REJECT"
    (ui.served.path / "verdict-sft").unlink()
    assert ui.served.calls() == ["prepare", "sft"]


def test_a_run_that_waits_for_a_person_says_so(ui, suspended, pictures):
    ui.open_run(suspended)
    ui.read("Suspended")
    ui.shoot(pictures / "run-graph.png")


def test_a_stage_shows_its_gates_as_an_artifact(ui, suspended, pictures):
    *_, stage = ui.served.runs("rlhf-evaluate")
    ui.open_run(stage["id"])
    ui.page.get_by_text("Artifacts", exact=True).click()
    ui.page.get_by_text("evaluate-result").first.click()
    ui.page.get_by_text("lower bound").first.wait_for()
    ui.shoot(pictures / "artifact.png")
    text = ui.page.inner_text("body")
    assert "evaluate/quality" in text
    assert "0.7 [0.65, 0.75], n = 300" in text


def test_a_person_approves_in_a_form_that_shows_the_gates(ui, suspended, pictures):
    ui.open_run(suspended)
    form = ui.open_resume_form()
    form.get_by_text("evaluate/quality").first.wait_for()
    text = form.inner_text()
    for field in Approval.model_fields.values():
        assert field.description in text
    ui.fill_resume_form(form, decision="PROMOTE", reviewer="the reviewer", comment="reads well")
    ui.shoot(pictures / "approval.png")
    ui.resume(form)
    assert ui.served.wait(suspended)["state"]["name"] == "Completed"
    answer = json.loads((ui.served.path / "approval.json").read_text())
    assert (answer["decision"], answer["reviewer"]) == ("PROMOTE", "the reviewer")


def test_the_pages_ask_nobody_outside(ui, suspended):
    assert ui.page.strangers == []
