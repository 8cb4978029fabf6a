"""One set of servers for all that people do: through the API and in the pages."""

import shutil

import pytest

from tests.browser.pages import open_page, require_chromium
from tests.flows.served import CONFIG, EVERY_STAGE, FAKES, ROOT, SETTINGS, Served
from tests.forked import Forked


@pytest.fixture(scope="module")
def page():
    """A page of a headless Chromium."""
    require_chromium()
    with open_page() as opened:
        yield opened


@pytest.fixture(scope="package")
def engine(tmp_path_factory):
    """Flow runs without the seconds of a processor that two starts of Python take for each."""
    made = Forked(tmp_path_factory.mktemp("engine"), load="load_flows", sources=(FAKES, ROOT))
    made.start()
    yield made.folder / "prefect.engine"
    made.end()


@pytest.fixture(scope="package")
def served(tmp_path_factory, engine, forked, prefect_database):
    work = tmp_path_factory.mktemp("served") / "work"
    made = Served.prepare(work, training_pool="gpu", engine=engine)
    (made.path / "config.yaml").write_text(CONFIG)
    (made.path / "configs").unlink()
    shutil.copytree(ROOT / "configs", made.path / "configs")
    (made.path / "configs/demo-approval.yaml").write_text(CONFIG)
    (made.path / ".rlhf/prefect").mkdir(parents=True)
    shutil.copy(prefect_database, made.path / ".rlhf/prefect")
    with made.running():
        made.forked = forked
        yield made


@pytest.fixture(scope="package")
def approved(served):
    """A pipeline whose policy stage broke once, and evaluation after it, retried each time."""
    (served.path / "fail-policy").touch()
    (served.path / "fail-evaluate").touch()
    run = served.trigger("rlhf-pipeline/manual", settings=SETTINGS)
    broken = served.wait(run)
    assert broken["state"]["type"] == "FAILED"
    assert "policy broke" in broken["state"]["message"]
    assert served.calls() == EVERY_STAGE[:5]
    served.retry(run)
    broken = served.wait(run)
    assert broken["state"]["type"] == "FAILED"
    assert served.calls() == ["policy", "evaluate"], "each was started once by this attempt"
    served.retry(run)
    waiting = served.wait(run, "PAUSED")
    assert waiting["state"]["name"] == "Suspended"
    assert '"decision": "ASKED"' in (served.path / "approval.json").read_text()
    assert served.calls() == ["evaluate"]
    return run
