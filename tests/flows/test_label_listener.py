"""Label Studio tells of votes, and what has enough of them is brought in: once."""

import os
import re
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.states import Completed, Failed, Pending

from rlhf_core.config import load_config
from rlhf_core.errors import ConfigError, LabelError
from rlhf_core.stages.labels.push import push_labels
from rlhf_core.stages.versions.versions import list_versions
from rlhf_flows.collect import collect_flow
from rlhf_flows.engine import label_listener
from rlhf_flows.engine.inputs import CollectInputs
from rlhf_flows.engine.label_listener import LabelListener, start_deployed_pull
from tests.feedback.conftest import make_collection
from tests.feedback.servers import LabelStudio, serving
from tests.stages.data_helpers import make_repository
from tests.waiting import wait_for

SECRET = {"X-RLHF-Secret": "a secret"}


@pytest.fixture
def studio():
    """Label Studio, and its address."""
    app = LabelStudio()
    with serving(app) as url:
        yield app, url


@pytest.fixture
def start(forked):
    """Start the command in a repository; it is ended with the test."""
    running = []
    forked.start()

    def begin(root, *arguments):
        command = [forked.folder / "rlhf", "label", "listen", "configs/small.yaml", *arguments]
        environment = {
            **os.environ, "LABEL_STUDIO_API_KEY": "a.good.token",
            "RLHF_LABEL_SECRET": SECRET["X-RLHF-Secret"],
        }  # fmt: skip
        process = subprocess.Popen(
            [*command, "--port", "0"], cwd=root, env=environment, text=True, stderr=subprocess.PIPE
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()


def address(process):
    return re.search(r"http\S+/", wait_for(process, "listening at"))[0]


@pytest.mark.slow
@pytest.mark.xdist_group("data_versions")
def test_the_last_vote_that_is_needed_publishes_once_and_a_restart_forgets_none(
    studio, start, forked_tools, tmp_path, monkeypatch
):
    app, url = studio
    root = make_repository(tmp_path / "repository")
    monkeypatch.chdir(root)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "a.good.token")
    path = root / "configs/small.yaml"
    feedback = {"labeler": {"kind": "label_studio", "url": url}, "votes_per_pair": 1}
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "feedback": feedback}))
    for name in ("abc", "late"):
        make_collection(root / "data/collected", name=name)
        push_labels(load_config(path), name)

    process = start(root)
    app.webhook, app.headers = address(process), SECRET
    for task in (1, 2, 3, 4, 5):
        app.annotate(task, 1, "left")
    wait_for(process, "votes_counted collection=abc ready=5 needed=6")
    app.annotate(6, 1, "right")
    with ThreadPoolExecutor(8) as crowd:
        list(crowd.map(lambda task: app.tell("ANNOTATION_UPDATED", task), [1, 2, 3, 4] * 4))
    wait_for(process, "labels_published collection=abc version=data-v1")
    assert {answer.status_code for answer in app.told} == {202}
    app.tell("ANNOTATION_UPDATED", 1)
    wait_for(process, "votes_counted collection=abc ready=0 needed=6")
    assert httpx.post(app.webhook, json={}).status_code == 401

    process.kill()
    process.communicate()
    for task in range(7, 13):
        app.annotate(task, 1, "tie")  # nobody hears of it
    again = start(root)
    wait_for(again, "labels_published collection=late version=data-v2")
    again.send_signal(signal.SIGTERM)
    assert "ended" in again.communicate()[1]
    assert again.returncode == 0
    assert [one.rows for one in list_versions(root)] == [66, 72]


def test_others_than_this_machine_need_a_secret(studio, with_feedback, forked, tmp_path):
    with_feedback({"kind": "label_studio", "url": studio[1]})
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    done = forked.run(
        *("rlhf", "label", "listen", "config.yaml", "--host", "0.0.0.0", "--port", "0"),
        cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 2
    assert "set RLHF_LABEL_SECRET" in done.stderr.splitlines()[-1]


@pytest.fixture
def sent(studio, with_feedback, tmp_path, monkeypatch):
    """Settings, and a collection of six pairs that was sent to project 1."""
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "a.good.token")
    monkeypatch.setattr(label_listener, "SETTLE_SECONDS", 0.01)
    make_collection(tmp_path / "collected")
    labeler = {"kind": "label_studio", "url": studio[1], "patience_seconds": 0}
    config = with_feedback(labeler, votes_per_pair=1).config
    push_labels(config, "abc")
    return config


@pytest.fixture
def listening(sent):
    """A listener that pulls here, and an event for everything it brought in."""
    made = LabelListener(sent, 0.5)
    pulled = threading.Event()
    made._pull = lambda name: pulled.set()
    yield made, pulled
    made.end()


def test_labelers_without_a_webhook_are_refused(with_feedback):
    with pytest.raises(ConfigError, match="kind is simulated: expected a tool that tells"):
        LabelListener(with_feedback().config, 0.9)


def test_only_collections_of_the_project_and_the_server_are_looked_at(sent, tmp_path):
    listener = LabelListener(sent, 0.9)
    assert listener.notice(1) == ["abc"]
    assert listener.notice(2) == []
    other = sent.feedback.labeler.model_copy(update={"url": "http://127.0.0.1:1"})
    feedback = sent.feedback.model_copy(update={"labeler": other})
    elsewhere = sent.model_copy(update={"feedback": feedback})
    assert LabelListener(elsewhere, 0.9).notice(1) == []
    (tmp_path / "collected/abc/label_studio.json").write_text("{")
    assert listener.notice(1) == []


def test_a_lost_label_server_is_asked_again(studio, listening, monkeypatch, caplog):
    app, _ = studio
    listener, pulled = listening
    monkeypatch.setattr(label_listener, "RETRY_SECONDS", 0.01)
    for task in (1, 2, 3):
        app.annotate(task, 1, "left")
    lost = app.error(500, "out of order")
    app.trouble = [lost] * 5
    listener.start()
    assert pulled.wait(60)
    assert caplog.text.count("labels_not_pulled collection=abc") == 1


def test_a_fault_of_our_own_does_not_end_the_listening(studio, listening, monkeypatch):
    app, _ = studio
    listener, pulled = listening
    monkeypatch.setattr(label_listener, "RETRY_SECONDS", 0.01)
    real, faults = label_listener.count_ready, [KeyError("a bug"), LabelError("lost")]

    def count(*arguments):
        if faults:
            raise faults.pop()
        return real(*arguments)

    monkeypatch.setattr(label_listener, "count_ready", count)
    for task in (1, 2, 3):
        app.annotate(task, 1, "left")
    listener.start()
    assert pulled.wait(60)


def test_events_that_come_during_a_look_lead_to_one_more(listening, monkeypatch):
    listener, _ = listening
    monkeypatch.setattr(label_listener, "SETTLE_SECONDS", 0.0)
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)
    monkeypatch.setattr(listener, "_look_at", lambda name: (begun.release(), go_on.acquire()))
    listener.start()
    begun.acquire()
    for _ in range(20):
        listener.notice(1)
    go_on.release(1)
    begun.acquire()
    go_on.release(19)
    listener.end()
    assert not begun.acquire(blocking=False)


@pytest.fixture
def deployed(prefect_server):
    """The deployment of the collecting flow on a real server, without anybody to run it."""
    from prefect.settings import PREFECT_API_URL

    collect_flow.to_deployment(name="collect").apply()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())
        yield


def runs_of(collection):
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs()
    return [run for run in found if collection in str(run.parameters.get("inputs"))]


def give(run, state):
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, state, force=True)


def test_where_servers_run_the_deployment_pulls_once_for_each_batch(
    deployed, sent, tmp_path, caplog
):
    for _ in range(3):
        start_deployed_pull(sent, "abc", 0.5)
    (run,) = runs_of(f"{tmp_path}/collected/abc")
    inputs = CollectInputs.model_validate(run.parameters["inputs"])
    assert (inputs.collection, inputs.at_least) == (str(tmp_path / "collected/abc"), 0.5)
    values = run.parameters["settings"]["values"]
    assert values["feedback"]["labeler"] == sent.feedback.labeler.model_dump(mode="json")

    for state in (Pending(), Failed()):
        give(run, state)
        start_deployed_pull(sent, "abc", 0.5)
    assert f"pull_failed collection=abc flow_run={run.name} state=FAILED: retry it" in caplog.text
    assert len(runs_of(f"{tmp_path}/collected/abc")) == 1

    give(run, Completed(name="WAITING"))  # a vote was taken back before it ran
    start_deployed_pull(sent, "abc", 0.5)
    assert len(runs_of(f"{tmp_path}/collected/abc")) == 2


def test_a_server_without_the_deployment_is_told_of(sent, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    monkeypatch.setattr(label_listener, "ask", lambda *_: [])
    with pytest.raises(ConfigError, match="no deployment rlhf-collect/collect; first: rlhf deploy"):
        start_deployed_pull(sent, "abc", 0.5)
