"""Push and pull against the real Label Studio, where this machine has one."""

import os
import queue
import shutil
import socket
import subprocess
import threading
import time

import httpx
import pytest
import uvicorn

from rlhf_core.adapters.labelling.label_webhook import WebhookReceiver
from rlhf_core.schema import Comparison
from rlhf_core.stages.labels.pull import count_ready, pull_labels
from rlhf_core.stages.labels.push import push_labels
from rlhf_core.storage.records import read_records

pytestmark = pytest.mark.slow

VARIABLE = "RLHF_LABEL_STUDIO"
ACCOUNT = {"email": "ann@example.org", "password": "secret-123"}
START_SECONDS = 300
"""The first start of a server makes its tables."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of its own on SQLite, and a personal access token."""
    program = shutil.which(os.environ.get(VARIABLE, "label-studio"))
    if program is None:
        pytest.skip(f"no label-studio on PATH, and {VARIABLE} names no executable")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, folder = f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("label-studio")
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "COLLECT_ANALYTICS": "False",
        "LATEST_VERSION_CHECK": "0",
        "SSRF_PROTECTION_ENABLED": "false",  # else no webhook goes to 127.0.0.1
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    command = [program, "start", "--no-browser", "--internal-host", "127.0.0.1",
               "--port", str(port), "--username", ACCOUNT["email"],
               "--password", ACCOUNT["password"]]  # fmt: skip
    with (folder / "log.txt").open("w") as log:
        started = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield url, _token(url, started, folder / "log.txt")
    finally:
        started.terminate()
        started.wait(30)


def _token(url, started, log):
    """Log in as a person does, and make a token."""
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(base_url=url, follow_redirects=True, timeout=60) as session:
        while True:
            assert started.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            try:
                session.get("/user/login/").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(1)
        form = {**ACCOUNT, "csrfmiddlewaretoken": session.cookies["csrftoken"]}
        session.post("/user/login/", data=form, headers={"Referer": url}).raise_for_status()
        headers = {"Referer": url, "X-CSRFToken": session.cookies["csrftoken"]}
        return session.post("/api/token/", json={}, headers=headers).json()["token"]


def _client(url, token):
    access = httpx.post(f"{url}/api/token/refresh", json={"refresh": token}).json()["access"]
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {access}"}, timeout=60)


def test_people_vote_on_the_server_and_their_votes_come_back(
    server, collection, configured, monkeypatch, tmp_path
):
    url, token = server
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
    monkeypatch.setattr("rlhf_core.stages.labels.label_studio._AT_ONCE", 4)
    config = configured({"kind": "label_studio", "url": url})
    first = push_labels(config, "abc")
    assert (first.asked, first.before) == (6, 0)
    (collection / "label_studio.json").unlink()
    assert push_labels(config, "abc").asked == 0

    project = int(first.place.rsplit("/", 1)[1])
    with _client(url, token) as people:
        listing = {"project": project, "page_size": 100}
        tasks = people.get("/api/tasks", params=listing).json()["tasks"]
        assert len(tasks) == 6
        for task in tasks[:5]:
            longer = max(("response_a", "response_b"), key=lambda name: len(task["data"][name]))
            side = "left" if longer == "response_a" else "right"
            result = {"from_name": "choice", "to_name": "prompt", "type": "choices"}
            result["value"] = {"choices": [side]}
            path = f"/api/tasks/{task['id']}/annotations/"
            people.post(path, json={"result": [result], "lead_time": 7.5}).raise_for_status()

    pulled = pull_labels(config, "abc", output=tmp_path / "batch.jsonl")
    assert pulled.pairs_by_votes == {0: 1, 1: 5}
    batch = read_records(tmp_path / "batch.jsonl", Comparison)
    # The second answers of the fixture's pairs are the longer ones.
    assert [vote.choice for pair in batch for vote in pair.votes] == ["b"] * 5
    assert batch[0].votes[0].seconds == 7.5


@pytest.fixture
def received():
    """A receiver of webhooks on a port of its own, and the projects that it was told of."""
    told = queue.Queue()
    receiver = WebhookReceiver(lambda project: told.put(project) or ["abc"], "a secret", None)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        web = uvicorn.Server(uvicorn.Config(receiver.app, log_config=None))
        thread = threading.Thread(target=web.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/", told
        web.should_exit = True
        thread.join()


def test_its_webhook_tells_of_votes_that_are_there_by_then(
    server, collection, configured, monkeypatch, received
):
    url, token = server
    address, told = received
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
    config = configured({"kind": "label_studio", "url": url})
    project = int(push_labels(config, "abc").place.rsplit("/", 1)[1])
    with _client(url, token) as people:
        hook = {"url": address, "project": project, "headers": {"X-RLHF-Secret": "a secret"}}
        people.post("/api/webhooks/", json=hook).raise_for_status()
        listing = {"project": project, "page_size": 100}
        tasks = people.get("/api/tasks", params=listing).json()["tasks"]
        task = next(task["id"] for task in tasks if not task["is_labeled"])
        before, _ = count_ready(config, "abc")
        result = {"from_name": "choice", "to_name": "prompt", "type": "choices"}
        result["value"] = {"choices": ["left"]}
        path = f"/api/tasks/{task}/annotations/"
        made = people.post(path, json={"result": [result]}).raise_for_status().json()
        assert told.get() == project
        assert count_ready(config, "abc") == (before + 1, 6)
        path = f"/api/annotations/{made['id']}/"
        people.patch(path, json={"result": [result]}).raise_for_status()
        assert told.get() == project
