"""Prefect is just restarting while a new client is opened: its connection is refused at first."""

import socket
import threading
from contextlib import nullcontext
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from uuid import uuid4

import httpx
import pytest
import tenacity
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Scheduled

from rlhf_core.adapters import retries
from rlhf_core.errors import OrchestrationError
from rlhf_flows import promotion
from rlhf_flows.engine import remote
from rlhf_flows.engine.environment import CLIENT_RETRIES
from rlhf_flows.engine.lost_server import PATIENCE_SECONDS, until_prefect_answers

NUM_REFUSALS = 3


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Time passes only where somebody sleeps; returns the pauses."""
    pauses = []
    clock = SimpleNamespace(sleep=pauses.append, monotonic=lambda: sum(pauses))
    monkeypatch.setattr(retries, "time", clock)
    monkeypatch.setattr(tenacity, "time", clock)
    return pauses


def refusing(call, num_refusals=NUM_REFUSALS):
    """``call``, but its first attempts find nobody."""
    left = [None] * num_refusals

    def attempt(*arguments, **options):
        if left:
            left.pop()
            raise httpx.ConnectError("[Errno 111] Connection refused")
        return call(*arguments, **options)

    return attempt


@pytest.fixture
def client(monkeypatch):
    """Every new client is refused a few times; returns what one that gets through answers."""
    answers = SimpleNamespace()

    class Client:
        def __enter__(self):
            return answers

        def __exit__(self, *error):
            pass

    for module in (promotion, remote):
        monkeypatch.setattr(module, "get_client", refusing(lambda sync_client: Client()))
        monkeypatch.setattr(module, "flow_run", SimpleNamespace(id=uuid4(), run_count=1))
    return answers


def test_a_refused_call_is_repeated_after_ever_longer_pauses(clock):
    assert until_prefect_answers("asking", refusing(lambda: "answer")) == "answer"
    assert clock == [0.5, 1.0, 2.0]


def test_a_server_that_stays_lost_is_given_up_after_about_four_minutes(clock):
    with pytest.raises(httpx.ConnectError):
        until_prefect_answers("asking", refusing(lambda: "answer", 1000))
    assert 200 < sum(clock) <= PATIENCE_SECONDS
    assert sum(2**attempt for attempt in range(1, CLIENT_RETRIES + 1)) == pytest.approx(
        PATIENCE_SECONDS, rel=0.1
    ), "a client that was connected once gives up at about the same time"


def answering(status):
    """What Prefect's client raises where the server answers with the status."""
    request = httpx.Request("POST", "http://prefect/api/flow_runs/filter")
    return httpx.HTTPStatusError(
        f"answered {status}", request=request, response=httpx.Response(status, request=request)
    )


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408, 429])
def test_a_server_whose_database_is_gone_is_waited_for_alike(clock, status):
    answers = iter([answering(status), answering(status), "answer"])

    def call():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert until_prefect_answers("asking", call) == "answer"
    assert clock == [0.5, 1.0]


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, OrchestrationError, "set PREFECT_API_AUTH_STRING"),
        (403, OrchestrationError, "403"),
        (409, httpx.HTTPStatusError, "answered 409"),
    ],
)
def test_what_waiting_does_not_mend_is_not_waited_for(clock, status, kind, said):
    def call():
        raise answering(status)

    with pytest.raises(kind, match=said):
        until_prefect_answers("asking", call)
    assert clock == []


def test_other_errors_are_not_repeated(clock):
    with pytest.raises(ZeroDivisionError):
        until_prefect_answers("asking", lambda: 1 / 0)
    assert clock == []


def test_the_next_stage_is_started_although_the_server_was_just_restarting(monkeypatch, client):
    run = SimpleNamespace(id=uuid4(), idempotency_key="other", state=Completed())
    client.read_flow_runs = lambda flow_run_filter: [run]
    keys = []

    def start(name, *, idempotency_key, **options):
        keys.append(idempotency_key)
        return run

    monkeypatch.setattr(remote, "run_deployment", refusing(start))
    assert remote.run_deployed_stage.fn("sft", "rlhf-sft", {}) == str(run.id)
    assert len(keys) == 1


def test_an_answer_is_read_and_its_alarm_lifted_although_the_server_was_just_restarting(
    monkeypatch, client
):
    done = []
    answer = promotion.Approval(decision="PROMOTE", reviewer="somebody", comment="good")
    now, key = datetime.now(UTC), "suspended-approval-abc-0-response"
    given = SimpleNamespace(key=key, created=now, value=answer.model_dump_json())
    client.filter_flow_run_input = lambda *_: [given]
    client.read_flow_run = lambda run: SimpleNamespace(state=Scheduled())
    client.set_flow_run_state = lambda run, state, force: done.append(state.name)
    alarm = SimpleNamespace(id=uuid4())
    monkeypatch.setattr(promotion, "run_deployment", refusing(lambda *_, **__: alarm))
    monkeypatch.setattr(promotion, "_deadline", lambda *_: datetime.max.replace(tzinfo=UTC))
    monkeypatch.setattr(promotion, "_page", lambda *_: "page")
    config = SimpleNamespace(promotion=SimpleNamespace(wait_hours=24))
    evaluated = SimpleNamespace(model=SimpleNamespace(sha256="abc"))
    assert promotion._answer(config, evaluated, None) == (answer, now)
    assert done == ["Cancelled"]


def test_an_alarm_rings_although_the_server_was_just_restarting(monkeypatch, client, clock):
    monkeypatch.setattr(promotion, "get_client", lambda sync_client: nullcontext(client))
    client.read_flow_run = refusing(lambda run: SimpleNamespace(state=Completed()))
    promotion.answer_when_time_is_up.fn(uuid4(), 24.0)
    assert len(clock) == NUM_REFUSALS


def test_a_new_client_of_prefect_itself_gets_through_to_a_server_that_comes_back(monkeypatch):
    class Runs(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404, "no token is needed")

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *arguments):
            pass

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        address = holder.getsockname()
    servers = []

    def come_back(seconds):
        if not servers:
            servers.append(ThreadingHTTPServer(address, Runs))
            threading.Thread(target=servers[0].serve_forever, daemon=True).start()

    monkeypatch.setattr(retries.time, "sleep", come_back)
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{address[1]}/api"}):
        assert remote._started(["key"]) == []
    (server,) = servers
    server.shutdown()
    server.server_close()
