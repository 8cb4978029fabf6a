"""SIGKILL under real workers, then Retry: one pipeline run survives stages, worker and itself."""

import json
import random
import uuid

import pytest
from mlflow import MlflowClient

from tests.browser.pages import open_page, open_version, require_chromium
from tests.flows.mortal import MARK, marked
from tests.flows.registered import check_runs, check_versions
from tests.flows.served import ROOT, Served, until
from tests.flows.tiny import CONFIG, make_tiny, weights_of

pytestmark = [pytest.mark.nightly, pytest.mark.xdist_group("faults")]

SEED = 5
FLOW = "prefect.engine"
VICTIMS = {
    "sft": (25, []),
    "reward": (25, ["rlhf-training"]),
    "policy": (25, []),
    "evaluate": (8, [FLOW]),
}
"""Stage to the last effect before which it may be killed, and words in the command lines of what
is killed with it: the worker that watches it, the pipeline that waits for it. Every stage is killed
many times, without servers, in ``test_faults.py``.
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    deaths = folder / "deaths"
    made = Served.prepare(
        folder / "work",
        fake_stages=False,
        PYTHONPATH=f"{ROOT / 'tests/flows/mortal_site'}:{ROOT}",
        OMP_NUM_THREADS="1",
        RLHF_TEST_DEATHS=str(deaths),
        **{MARK: uuid.uuid4().hex},
    )
    make_tiny(made.path)
    dice = random.Random(SEED)
    deaths.mkdir()
    for stage, (last, others) in VICTIMS.items():
        plan = {"at_effect": dice.randint(1, last), "others": others}
        (deaths / stage).write_text(json.dumps(plan))
    made.deaths = deaths
    made.rlhf("up", "--prefect-port", "0", "--mlflow-port", "0")
    yield made
    made.rlhf("down")
    assert marked(made.environment[MARK]) == []


def num_crashed(served):
    """Runs of stages that were killed and are marked so."""
    runs = [run for stage in VICTIMS for run in served.runs(f"rlhf-{stage}")]
    return sum(run["state"]["type"] == "CRASHED" for run in runs)


def test_a_pipeline_killed_again_and_again_ends_as_if_nothing_had_happened(served, undisturbed):
    run = served.trigger("rlhf-pipeline/manual", settings={"file": CONFIG})
    finished = served.wait(run)
    for _ in VICTIMS:
        if finished["state"]["type"] != "COMPLETED":
            served.retry(run)
            finished = served.wait(run)
    assert finished["state"]["name"] == "Completed", f"{finished['state']}\n{served.logs()}"
    assert list(served.deaths.iterdir()) == []
    assert num_crashed(served) == len(VICTIMS)
    name = finished["name"].split()[1]
    assert weights_of(served.path / "runs" / name) == undisturbed.weights("run-1")
    client = MlflowClient(served.servers.mlflow_url, served.servers.mlflow_url)
    check_versions(client)
    check_runs(client)


def test_no_process_of_a_killed_run_is_left(served):
    def flows():
        return [each for each in marked(served.environment[MARK]) if FLOW in each.cmdline()]

    until(lambda: not flows(), lambda: f"the end of {flows()}")


@pytest.mark.browser
def test_the_champion_shows_in_mlflow(served, tmp_path):
    require_chromium()
    with open_page() as page:
        open_version(page, served, "rlhf-policy", 1)
        text = page.inner_text("body")
        page.screenshot(path=tmp_path / "champion.png")
        assert page.strangers == []
    assert "@ champion" in text or "champion" in text.split()
