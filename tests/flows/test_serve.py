"""`rlhf serve`, asked by a real client of the OpenAI API."""

import os
import re
import signal
import socket
import subprocess
import threading
from pathlib import Path

import httpx
import openai
import pytest

from rlhf_core.adapters.registry.registry import register_model
from rlhf_core.adapters.serving.chat_server import ApiServer, Found, ServedModel
from rlhf_core.adapters.serving.kept_answers import KeptAnswers
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.adapters.tracking.tracking import open_run
from rlhf_core.config import UnpairedConfig, load_config
from rlhf_core.dataprep.sources import read_unpaired
from rlhf_core.errors import ConfigError
from rlhf_core.models.files import weights_sha256
from rlhf_core.rollout import engine
from rlhf_core.schema import CHAMPION, RunContext, UnpairedExample
from rlhf_flows.commands import serve
from tests.flows.served import until
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
BASE = ROOT / "data/base"
QUESTION = [{"role": "user", "content": "When does the castle open?"}]


@pytest.fixture(scope="module")
def served():
    found = Found("models:/rlhf-policy/3", "rlhf-policy", weights_sha256(BASE), BASE)
    return ServedModel("models:/rlhf-policy@champion", found, device="cpu")


@pytest.fixture(scope="module")
def ask(served):
    """Ask for a chat completion of an application that runs in this process."""
    from starlette.testclient import TestClient

    with TestClient(ApiServer(served, None, None).app) as http:
        client = openai.OpenAI(base_url="http://testserver/v1", api_key="x", http_client=http)
        create = client.with_options(max_retries=0).chat.completions.create

        def made(**request):
            return create(**{"model": "rlhf-policy", "messages": QUESTION, **request})

        yield made


@pytest.fixture
def registry(mlflow_home, monkeypatch):
    """Two versions of the base model, the first of them champion; returns how to move the alias."""
    (mlflow_home / "data").symlink_to(ROOT / "data")
    config = load_config(ROOT / "configs/demo.yaml")
    for number in ("one", "two"):
        context = RunContext(run_id=number, directory=mlflow_home / "runs" / number)
        with open_run(config, context, "policy", inputs={}) as run:
            register_model(
                run, directory=BASE, name="rlhf-policy", kind="causal",
                sha256=weights_sha256(BASE), tags={},
            )  # fmt: skip

    def move(version):
        mlflow_client().set_registered_model_alias("rlhf-policy", CHAMPION, version)

    move("1")
    return move


@pytest.fixture
def start(tmp_path, forked):
    """Start the command; it is ended with the test."""
    running = []
    forked.start()

    def begin(*arguments, env=None):
        command = [forked.folder / "rlhf", "serve", "models:/rlhf-policy@champion", *arguments]
        process = subprocess.Popen(
            command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def content(answer):
    return answer.choices[0].message.content


def test_a_champion_that_moves_is_followed_without_dropping_an_answer(registry, start):
    process = start("--port", "0", "--follow", "--look-every", "0.2")
    url = re.search(r"http\S+", wait_for(process, "serving rlhf-policy (models:/rlhf-policy/1)"))[0]
    client = openai.OpenAI(base_url=url, api_key="x", max_retries=0)
    assert [model.id for model in client.models.list()] == ["rlhf-policy"]
    long = {"temperature": 2.0, "seed": 5, "n": 16, "messages": QUESTION, "model": "rlhf-policy"}
    stream = client.chat.completions.create(**long, stream=True)
    parts = [next(stream)]
    registry("2")
    reader = threading.Thread(target=lambda: parts.extend(stream))
    reader.start()
    wait_for(process, "serving rlhf-policy (models:/rlhf-policy/2)")
    raw = client.chat.completions.with_raw_response.create(
        model="models:/rlhf-policy@champion", messages=QUESTION, temperature=0
    )
    assert raw.headers["x-rlhf-model"] == "models:/rlhf-policy/2"
    assert content(raw.parse()) == "The castle opens at 11 am."
    reader.join()
    ends = [c.finish_reason for part in parts for c in part.choices if c.finish_reason]
    assert len(ends) == 16
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.stderr.read().strip() == "ended"


def rate(client, name, rating, **more):
    body = {"id": name, "rating": rating, **more}
    return client.post("/feedback", body=body, cast_to=httpx.Response).json()


def rated_in(place):
    rows = read_unpaired([UnpairedConfig(path=place)])
    return [item for _, item in rows if isinstance(item, UnpairedExample)]


def test_without_follow_the_server_says_so_and_stays(registry, start, tmp_path):
    process = start(
        *("--port", "0", "--look-every", "0.2", "--feedback", "kept"),
        env={"RLHF_SERVE_API_KEY": "secret"},
    )
    assert "every prompt and answer is kept in kept" in wait_for(process, "--feedback")
    url = re.search(r"http\S+", wait_for(process, "serving"))[0]
    registry("2")
    said = wait_for(process, "is now models:/rlhf-policy/2")
    assert "still serving models:/rlhf-policy/1: restart, or serve with --follow" in said
    with pytest.raises(openai.AuthenticationError, match="API key"):
        openai.OpenAI(base_url=url, api_key="other", max_retries=0).models.list()
    (model,) = openai.OpenAI(base_url=url, api_key="secret").models.list()
    assert model.root == "models:/rlhf-policy/1"
    client = openai.OpenAI(base_url=url, api_key="secret", max_retries=0)
    answer = client.chat.completions.create(model="rlhf-policy", messages=QUESTION, temperature=0)
    rate(client, answer.id, "up")
    with pytest.raises(openai.AuthenticationError, match="API key"):
        rate(client.with_options(api_key="other"), answer.id, "down")
    assert [item.label for item in rated_in(tmp_path / "kept")] == [True]
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0


def test_vllm_is_started_with_the_line_that_is_printed(registry, start, tmp_path):
    fake = tmp_path / "bin" / "vllm"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "got $@"\nexec sleep 600\n')
    fake.chmod(0o755)
    path = f"{fake.parent}:{os.environ['PATH']}"
    process = start("--engine", "vllm", "--port", "8123", "--look-every", "0.2", env={"PATH": path})
    line = process.stdout.readline().split()
    assert line[:2] == ["vllm", "serve"]
    assert weights_sha256(Path(line[2])) == weights_sha256(BASE)
    names = line[line.index("--served-model-name") + 1 : line.index("--host")]
    assert names[:2] == ["rlhf-policy", "models:/rlhf-policy@champion"]
    assert line[-2:] == ["--port", "8123"]
    assert process.stdout.readline().split()[1:] == line[1:]
    registry("2")
    assert "still serving models:/rlhf-policy/1: restart" in wait_for(process, "is now")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0


def test_what_a_request_asks_for_decides_the_answer(ask):
    assert content(ask(temperature=0)) == content(ask(temperature=1.5, top_p=1e-6))
    drawn = [content(ask(temperature=1.5, seed=seed)) for seed in range(6)]
    assert drawn == [content(ask(temperature=1.5, seed=seed)) for seed in range(6)]
    assert len(set(drawn)) > 1
    cut = ask(temperature=0, max_tokens=2)
    assert (content(cut), cut.choices[0].finish_reason) == ("The castle", "length")
    assert cut.usage.completion_tokens == 2
    stopped = ask(temperature=0, stop=["opens", "zz"])
    assert (content(stopped), stopped.choices[0].finish_reason) == ("The castle ", "stop")
    in_parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]
    assert content(ask(temperature=0, messages=in_parts)) == content(ask(temperature=0))


def test_a_streamed_answer_is_the_whole_one_in_pieces(ask):
    asked = {"temperature": 1.5, "seed": 4, "n": 3, "max_tokens": 40, "stop": ["e "]}
    whole = ask(**asked)
    texts, ends, usage = [""] * 3, [None] * 3, None
    for chunk in ask(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_requests_take_turns_and_do_not_change_each_other(served):
    long = engine.ChatRequest(
        messages=_messages(), num_answers=4, temperature=2.0, seed=1, max_tokens=200
    )
    short = engine.ChatRequest(messages=_messages(), temperature=0.0)
    order, done = [], threading.Event()

    def hear(name):
        def heard(what):
            if what.is_last:
                order.append(name)
                if len(order) == 2:
                    done.set()

        return heard

    served.submit(long, hear("long"))
    served.submit(short, hear("short"))
    assert done.wait(60)
    assert order == ["short", "long"]


def _messages():
    from rlhf_core.schema import Message

    return tuple(Message(**turn) for turn in QUESTION)


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [
        ({"model": "gpt"}, openai.NotFoundError, "the model 'gpt' does not exist here"),
        ({"temperature": 3}, openai.BadRequestError, "temperature: "),
        ({"top_p": 0}, openai.BadRequestError, "top_p: "),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens: "),
        ({"max_tokens": 9999}, openai.BadRequestError, "maximum context length is 512"),
        ({"messages": []}, openai.BadRequestError, "messages: "),
        (
            {"messages": [{"role": "cat", "content": "x"}]},
            openai.BadRequestError,
            "messages.0.role",
        ),
        ({"logit_bias": {"1": 2}}, openai.BadRequestError, "does not know it"),
        ({"logprobs": True}, openai.BadRequestError, "logprobs: "),
        ({"extra_body": {"top_k": 3}}, openai.BadRequestError, "top_k: this server does not know"),
        (
            {"messages": [{"role": "user", "content": "<|eos|>"}], "stream": True},
            openai.BadRequestError,
            "special token",
        ),
    ],
)
def test_an_error_has_openais_form(ask, wrong, kind, said):
    with pytest.raises(kind, match=said) as raised:
        ask(**wrong)
    assert raised.value.body["type"] == "invalid_request_error"


def test_a_foreign_page_and_a_foreign_name_are_refused(served):
    from starlette.testclient import TestClient

    with TestClient(ApiServer(served, None, ["127.0.0.1"]).app) as http:
        assert http.get("/v1/models").status_code == 400
    with TestClient(ApiServer(served, None, None).app) as http:
        plain = {"content-type": "text/plain"}
        assert http.post("/v1/chat/completions", content="{}", headers=plain).status_code == 415
        broken = http.post(
            "/v1/chat/completions",
            content="{",
            headers=plain | {"content-type": "application/json"},
        )
        assert "no JSON" in broken.json()["error"]["message"]
        assert http.get("/v1/other").json()["error"]["type"] == "invalid_request_error"


@pytest.fixture
def keeping(served, tmp_path):
    """A client of an application that keeps answers, and where it does."""
    from starlette.testclient import TestClient

    place = tmp_path / "kept.jsonl"
    with TestClient(ApiServer(served, None, None, KeptAnswers(place)).app) as http:
        client = openai.OpenAI(base_url="http://testserver/v1", api_key="x", http_client=http)
        yield client.with_options(max_retries=0), place


def test_thumbs_come_back_as_labels_of_what_was_answered(keeping):
    client, place = keeping
    asked = {"model": "rlhf-policy", "temperature": 1.5, "seed": 3, "user": "kim", "n": 2}
    system = {"role": "system", "content": "Be brief."}
    whole = client.chat.completions.create(**asked, messages=[system, *QUESTION])
    stream = client.chat.completions.create(**asked, messages=QUESTION, stream=True)
    texts = ["", ""]
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    rate(client, whole.id, "up", index=1, comment="clear")
    rate(client, chunk.id, "up", index=0)
    told = rate(client, chunk.id, "down", index=0)
    assert {**told, "rated": 0} == {
        **{"object": "feedback", "id": chunk.id, "index": 0},
        **{"rating": "down", "comment": None, "rated": 0},
    }
    first, second = rated_in(place)
    assert ([turn.role for turn in first.prompt], first.label) == (["system", "user"], True)
    assert first.response == whole.choices[1].message.content
    assert (second.prompt, second.response, second.label) == (_messages(), texts[0], False)
    assert "kim" not in place.read_text()
    assert client.get("/../health", cast_to=httpx.Response).json()["feedback"] is True


@pytest.mark.parametrize(
    ("body", "kind", "said", "code"),
    [
        ({}, openai.NotFoundError, "no answer 'chatcmpl-0' is kept", "answer_not_found"),
        ({"rating": "great"}, openai.BadRequestError, "rating: ", None),
        ({"stars": 5}, openai.BadRequestError, "stars: this server does not know", None),
        ({"name": ""}, openai.BadRequestError, "id: ", None),
    ],
)
def test_feedback_that_cannot_be_kept_is_told(keeping, body, kind, said, code):
    client, place = keeping
    with pytest.raises(kind, match=said) as raised:
        rate(client, **{"name": "chatcmpl-0", "rating": "up", **body})
    assert (raised.value.body["type"], raised.value.code) == ("invalid_request_error", code)
    assert not place.read_bytes()


def test_nothing_is_kept_unless_it_is_asked_for(served, ask, tmp_path, monkeypatch):
    from starlette.testclient import TestClient

    monkeypatch.chdir(tmp_path)
    answer = ask(temperature=0)
    with TestClient(ApiServer(served, None, None).app) as http:
        told = http.post("/v1/feedback", json={"id": answer.id, "rating": "up"})
        assert http.get("/health").json()["feedback"] is False
    assert (told.status_code, list(tmp_path.iterdir())) == (404, [])
    assert "serve with --feedback FILE" in told.json()["error"]["message"]


def test_strangers_rate_nothing_that_is_trained_on(monkeypatch, capsys):
    from rlhf_flows.commands.serve import _require_key

    with (
        socket.create_server(("0.0.0.0", 0)) as everywhere,
        socket.create_server(("127.0.0.1", 0)) as here,
    ):
        _require_key(here, "127.0.0.1", keeps=True)
        assert not capsys.readouterr().err
        _require_key(everywhere, "0.0.0.0", keeps=False)
        assert "RLHF_SERVE_API_KEY asks for a key" in capsys.readouterr().err
        with pytest.raises(ConfigError, match=r"with --feedback: .* set RLHF_SERVE_API_KEY"):
            _require_key(everywhere, "0.0.0.0", keeps=True)
        monkeypatch.setenv("RLHF_SERVE_API_KEY", "a key")
        _require_key(everywhere, "0.0.0.0", keeps=True)


def test_an_answer_comes_though_the_disk_takes_no_more(keeping, monkeypatch, caplog):
    client, place = keeping
    monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    answer = client.chat.completions.create(model="rlhf-policy", messages=QUESTION, temperature=0)
    assert content(answer)
    assert "answer_not_kept" in caplog.text
    assert not place.read_bytes()


def test_a_champion_that_cannot_be_read_is_told_once_and_looked_for_again(monkeypatch, capsys):
    """Another user's files, a share that is away: no error of ours, and they may come back."""
    first, second = (Found(f"models:/m/{number}", "m", "", Path()) for number in (1, 2))
    lost = PermissionError(13, "Permission denied", "model.safetensors")
    answers, moved = [lost, lost, second], []

    def find(reference, known):
        now = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(now, OSError):
            raise now
        return now

    monkeypatch.setattr(serve, "_find", find)
    with serve._Watch("models:/m@champion", first, 0.01, moved.append):
        until(lambda: moved, "the new champion was not found")
    assert moved == [second]
    assert capsys.readouterr().err.count("models:/m@champion cannot be followed now") == 1


def test_a_port_that_is_taken_is_told_in_one_line(registry, start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start("--port", str(taken.getsockname()[1]))
        assert process.wait() == 2
    assert "take another port" in process.stderr.read()
