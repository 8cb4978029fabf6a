"""What the receiver of Label Studio's events takes, and what it refuses."""

import pytest
from starlette.testclient import TestClient

from rlhf_core.adapters.labelling.label_webhook import WebhookReceiver
from rlhf_core.adapters.serving.json_requests import LARGEST_REQUEST

EVENT = {
    "action": "ANNOTATION_CREATED",
    "annotation": {"id": 17, "task": 19, "completed_by": 1, "result": [], "was_cancelled": False},
    "task": {"id": 19, "data": {}},
    "project": {"id": 2, "title": "rlhf abc", "organization": 1},
}


@pytest.fixture
def receiver():
    """The numbers of the projects it was told of, and how to ask it."""
    told = []

    def notice(project):
        told.append(project)
        return ["abc"] if project == 2 else []

    def ask(secret=None, hosts=None):
        app = WebhookReceiver(notice, secret, hosts).app
        return TestClient(app, raise_server_exceptions=False)

    return told, ask


@pytest.mark.parametrize(
    "action", ["ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED"]
)
def test_events_that_bring_votes_are_passed_on(receiver, action):
    told, ask = receiver
    answer = ask().post("/", json={**EVENT, "action": action})
    assert (answer.status_code, answer.json()["collections"]) == (202, ["abc"])
    assert told == [2]


@pytest.mark.parametrize("action", ["TASKS_CREATED", "ANNOTATIONS_DELETED", "PROJECT_UPDATED"])
def test_other_events_are_taken_and_change_nothing(receiver, action):
    told, ask = receiver
    answer = ask().post("/", json={**EVENT, "action": action})
    assert (answer.status_code, answer.json()["status"]) == (200, "ignored")
    assert not told


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "the request is no JSON"),
        (b"\xff", 400, "the request is no JSON"),
        (b"[1]", 400, "body"),
        (b"{}", 400, "action: Field required"),
        (b'{"action": 3}', 400, "action: "),
        (b'{"action": "ANNOTATION_CREATED"}', 400, "switch on Send payload"),
        (b'{"action": "ANNOTATION_CREATED", "project": 2}', 400, "project: "),
        (b'{"action": "ANNOTATION_CREATED", "project": {"id": "2"}}', 400, "project.id: "),
        (b'{"action": "ANNOTATION_CREATED", "project": {"id": 0}}', 400, "project.id: "),
        (b'{"action": "ANNOTATION_CREATED", "project": {"id": 7}}', 404, "sent to project 7"),
        (b" " * (LARGEST_REQUEST + 1), 413, "larger than"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(receiver, body, status, said):
    told, ask = receiver
    answer = ask().post("/", content=body, headers={"content-type": "application/json"})
    message = answer.json()["error"]["message"]
    assert (answer.status_code, "\n" in message) == (status, False)
    assert said in message
    assert set(told) <= {7}


def test_what_a_page_in_a_browser_can_send_unasked_is_refused(receiver):
    told, ask = receiver
    plain = ask().post("/", content=b"{}", headers={"content-type": "text/plain"})
    named = ask(hosts=["localhost"]).post("http://evil.example/", json=EVENT)
    assert (plain.status_code, named.status_code) == (415, 400)
    assert not told


@pytest.mark.parametrize("given", [None, "", "wrong", "sécret", "secret "])
def test_without_the_secret_nothing_is_read(receiver, given):
    told, ask = receiver
    headers = {} if given is None else {"X-RLHF-Secret": given.encode()}
    answer = ask(secret="secret").post("/", content=b"{", headers=headers)
    assert answer.status_code == 401
    assert not told


def test_with_the_secret_an_event_is_taken(receiver):
    told, ask = receiver
    answer = ask(secret="secret").post("/", json=EVENT, headers={"x-rlhf-secret": "secret"})
    assert (answer.status_code, told) == (202, [2])


def test_only_events_are_answered(receiver):
    _, ask = receiver
    http = ask()
    assert http.get("/").status_code == 405
    assert http.post("/other", json=EVENT).status_code == 404
    assert http.get("/health").json() == {"status": "ok"}
