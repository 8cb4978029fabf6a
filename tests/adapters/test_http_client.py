"""Servers that label: waited for while they are busy or lost, and told in one line otherwise."""

import threading
import time

import pytest

from rlhf_core.adapters import http_client
from rlhf_core.adapters.endpoints.chat import open_chat
from rlhf_core.adapters.labelling.label_studio import open_label_studio
from rlhf_core.config import AiLabelerConfig, LabelStudioLabelerConfig
from rlhf_core.errors import ConfigError, LabelError
from rlhf_core.schema import Message
from tests.feedback.servers import Chat, LabelStudio, serving

QUESTION = [Message(role="user", content="Which?")]
BUSY = (429, {"error": "too many"}, {"Retry-After": "1"})
DOWN = (503, "starting")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(http_client, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.delenv("RLHF_JUDGE_API_KEY", raising=False)
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)


def ai(url, **changes):
    settings = {"url": f"{url}/v1", "model": "m", "principles": ["Be kind."], **changes}
    return AiLabelerConfig.model_validate({"patience_seconds": 20, **settings})


def ask(url, **changes):
    with open_chat(ai(url, **changes)) as chat:
        return chat.ask(QUESTION), chat.num_tokens


def test_the_endpoint_gets_the_question_as_its_protocol_says(monkeypatch):
    monkeypatch.setenv("RLHF_JUDGE_API_KEY", "secret")
    chat = Chat(lambda messages: "fine")
    with serving(chat) as url:
        assert ask(url) == ("fine", 10)
        ask(url, temperature=None, max_tokens=None)
    plain = {"model": "m", "messages": [{"role": "user", "content": "Which?"}]}
    assert chat.asked == [{**plain, "temperature": 0.0, "max_tokens": 512}, plain]
    assert chat.keys == {"Bearer secret"}


def test_a_busy_or_starting_endpoint_is_asked_again():
    chat = Chat(lambda messages: "fine")
    chat.trouble = [DOWN, BUSY, DOWN]
    started = time.monotonic()
    with serving(chat) as url:
        assert ask(url)[0] == "fine"
    assert time.monotonic() - started >= 1  # as Retry-After asked for


def test_an_endpoint_that_stays_lost_is_given_up_in_one_line():
    chat = Chat(lambda messages: "fine")
    chat.trouble = [DOWN] * 1_000
    with serving(chat) as url, pytest.raises(LabelError) as lost:
        ask(url, patience_seconds=0.2)
    assert str(lost.value) == (
        f"{url}/v1: /chat/completions answers 503: starting (patience_seconds 0.2);"
        " repeat the command to go on from here"
    )
    with pytest.raises(LabelError, match="ConnectError"):
        ask(url, patience_seconds=0.2)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((401, {"error": {"message": "no such key"}}), "answers 401: .*no such key.*check the key"),
        ((404, {"detail": "Not Found"}), "chat/completions answers 404: Not Found$"),
        ((301, "moved", {"Location": "/v2"}), "answers 301"),
        ((200, "<html>"), "answers no JSON: <html>; is this the address of the API"),
        ((200, {"choices": []}), "expected choices with a message"),
        ((200, [1]), "expected choices with a message"),
    ],
)
def test_a_refusal_is_told_at_once(answer, says, monkeypatch):
    monkeypatch.setenv("RLHF_JUDGE_API_KEY", "very-secret")
    chat = Chat(lambda messages: "fine")
    chat.trouble = [answer]
    with serving(chat) as url, pytest.raises(LabelError, match=says) as refused:
        ask(url)
    assert "very-secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


NO_DATABASE = {"error": {"message": "No connected db.", "type": "no_db_connection", "code": "400"}}
"""What litellm without a database says to a key that is not its own, with status 400."""


@pytest.mark.parametrize(
    "refusal",
    [
        (400, NO_DATABASE),
        (401, {"detail": "no"}),
        (403, "no"),
        (400, {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}),
        (404, {"error": "Unauthorized"}),
        (422, {"detail": "Authentication credentials were not provided."}),
        (500, {"error": {"message": "Authentication Error, Invalid proxy server token passed"}}),
        (200, {"error": {"message": "User not found.", "code": 401}}),
        (200, {"error": {"message": "No cookie", "type": "authentication_error"}}),
        (200, {"error": "expired token"}),
    ],
)
def test_a_refused_key_names_its_variable_whatever_the_status(monkeypatch, refusal):
    for key, advice in (("secret", "check the key in"), (None, "no key was sent: set")):
        if key:
            monkeypatch.setenv("RLHF_JUDGE_API_KEY", key)
        else:
            monkeypatch.delenv("RLHF_JUDGE_API_KEY")
        with serving(lambda *_: refusal) as url, pytest.raises(LabelError) as refused:
            ask(url, patience_seconds=0.05)
        assert f"{advice} RLHF_JUDGE_API_KEY" in str(refused.value)


@pytest.mark.parametrize(
    ("refusal", "advised"),
    [
        ((500, "Internal Server Error"), True),  # litellm 1.108 to a question without a key
        ((404, {"detail": "the model m does not exist"}), False),
        ((402, {"error": {"message": "budget of this API key is used up"}}), False),
        ((400, {"error": "maximum context length is 10 tokens; authored by m"}), False),
    ],
)
def test_what_is_not_about_a_key_says_nothing_of_it(monkeypatch, refusal, advised):
    with serving(lambda *_: refusal) as url:
        with pytest.raises(LabelError) as without_key:
            ask(url, patience_seconds=0.05)
        monkeypatch.setenv("RLHF_JUDGE_API_KEY", "secret")
        with pytest.raises(LabelError) as with_key:
            ask(url, patience_seconds=0.05)
    assert ("RLHF_JUDGE_API_KEY" in str(without_key.value)) == advised
    assert "RLHF_JUDGE_API_KEY" not in str(with_key.value)


def test_questions_that_wait_end_when_the_push_is_stopped():
    chat = Chat(lambda messages: "fine")
    chat.trouble = [(503, "starting", {"Retry-After": "15"})] * 10
    with serving(chat) as url, open_chat(ai(url)) as endpoint:
        threading.Timer(0.3, endpoint.stop).start()
        started = time.monotonic()
        with pytest.raises(LabelError):
            endpoint.ask(QUESTION)
    assert time.monotonic() - started < 10


def studio_at(url, **changes):
    settings = {"url": url, "patience_seconds": 5, **changes}
    return open_label_studio(LabelStudioLabelerConfig.model_validate(settings))


def test_a_personal_token_is_exchanged_again_whenever_its_short_one_has_ended(monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "a.good.token")
    app = LabelStudio()
    with serving(app) as url, studio_at(url) as studio:
        assert studio.find_project("rlhf abc") is None
        number = studio.make_project("rlhf abc", "about", "<View/>", 2)
        app.access = "access-1"
        assert studio.find_project("rlhf abc") == number
        assert app.projects[number]["maximum_annotations"] == 2


def test_a_legacy_token_is_sent_as_such(monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0123abcd")
    seen = []

    def app(method, path, query, body, headers):
        seen.append(headers["Authorization"])
        return 200, {"results": []}

    with serving(app) as url, studio_at(url) as studio:
        studio.find_project("x")
    assert seen == ["Token 0123abcd"]


def test_a_wrong_or_missing_token_is_told_with_what_to_do(monkeypatch):
    with serving(LabelStudio()) as url:
        with pytest.raises(ConfigError, match="set LABEL_STUDIO_API_KEY"), studio_at(url):
            pass
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", "a.bad.token")
        with pytest.raises(LabelError, match="Token is invalid"), studio_at(url) as studio:
            studio.find_project("x")


def test_tasks_are_listed_page_by_page(monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "a.good.token")
    monkeypatch.setattr("rlhf_core.adapters.labelling.label_studio._PAGE", 2)
    for size in (0, 2, 5):
        app = LabelStudio()
        with serving(app) as url, studio_at(url) as studio:
            number = studio.make_project("abc", "", "<View/>", 1)
            if size:
                numbers = studio.add_tasks(number, [{"n": i} for i in range(size)])
                assert numbers == list(range(1, size + 1))
            assert [data["n"] for _, data in studio.tasks(number)] == list(range(size))


def test_an_import_whose_answer_was_lost_is_not_sent_again(monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "a.good.token")
    app = LabelStudio()
    with serving(app) as url, studio_at(url) as studio:
        number = studio.make_project("abc", "", "<View/>", 1)
        app.trouble = [(429, {"detail": "slowly"}), "lose the answer"]
        with pytest.raises(LabelError, match="502: lost; repeat the command"):
            studio.add_tasks(number, [{"n": 1}])
    assert (app.imports, len(app.tasks)) == (1, 1)


@pytest.mark.parametrize("variable", ["RLHF_JUDGE_API_KEY", "LABEL_STUDIO_API_KEY"])
@pytest.mark.parametrize("key", ["very\nsecret", "very-sécret"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(monkeypatch, variable, key):
    monkeypatch.setenv(variable, key)
    opened = {
        "RLHF_JUDGE_API_KEY": open_chat(ai("http://127.0.0.1:9")),
        "LABEL_STUDIO_API_KEY": studio_at("http://127.0.0.1:9"),
    }[variable]
    with pytest.raises(ConfigError, match=f"{variable}: expected one line of ASCII") as refused:
        opened.__enter__()
    assert key not in str(refused.value)


def test_a_line_break_after_a_key_is_no_part_of_it(monkeypatch):
    monkeypatch.setenv("RLHF_JUDGE_API_KEY", "secret\n")
    chat = Chat(lambda messages: "fine")
    with serving(chat) as url:
        ask(url)
    assert chat.keys == {"Bearer secret"}


@pytest.mark.parametrize(
    ("exchange", "says"),
    [
        ((404, "<html>Not Found</html>"), "/api/token/refresh answers 404"),
        ((200, "<html>hello"), "/api/token/refresh answers no token; is the url of"),
        ((200, {"detail": "hello"}), "/api/token/refresh answers no token; is the url of"),
    ],
)
def test_another_server_than_label_studio_is_told_at_once(monkeypatch, exchange, says):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "a.good.token")
    with (
        serving(lambda *_: exchange) as url,
        studio_at(url, patience_seconds=0.1) as studio,
        pytest.raises(LabelError, match=says),
    ):
        studio.find_project("x")


@pytest.mark.parametrize("content", [[], {"other": 1}, None, {"results": 3, "tasks": 3}])
def test_answers_of_another_form_are_told_in_one_line(monkeypatch, content):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0123abcd")
    with serving(lambda *_: (200, content)) as url, studio_at(url) as studio:
        asked = (
            lambda: studio.find_project("x"),
            lambda: studio.make_project("x", "", "", 1),
            lambda: list(studio.tasks(1)),
            lambda: studio.add_tasks(1, [{}]),
            lambda: studio.annotated_tasks(1),
        )
        for ask_for in asked[: 4 if content == [] else 5]:
            with pytest.raises(LabelError, match=r"not what .* answers"):
                ask_for()
