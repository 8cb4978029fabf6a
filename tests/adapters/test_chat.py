"""What chat endpoints really answer: reasoning, null, limits in every form, no system role."""

import time
from email.utils import formatdate

import httpx
import pytest

from rlhf_core.adapters import http_client
from rlhf_core.adapters.endpoints.chat import open_chat
from rlhf_core.adapters.retry_headers import asked_to_wait
from rlhf_core.config import AiLabelerConfig
from rlhf_core.errors import LabelError, QuestionRefusedError
from rlhf_core.schema import Message
from tests.feedback.servers import serving

QUESTION = [
    Message(role="system", content="Judge."),
    Message(role="user", content="Which?"),
]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(http_client, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.delenv("RLHF_JUDGE_API_KEY", raising=False)


def asked(app, times=1):
    with serving(app) as url:
        settings = {"url": f"{url}/v1", "model": "m", "principles": ["Be kind."]}
        with open_chat(AiLabelerConfig.model_validate({**settings, "patience_seconds": 5})) as chat:
            return [chat.ask(QUESTION) for _ in range(times)]


def answered(message, finish="stop"):
    return 200, {"choices": [{"message": message, "finish_reason": finish}]}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "<think>\nA or B?\n</think>\n\nB.\n[[B]]"}, "B.\n[[B]]"),
        ({"content": "A or B?\n</think>\n[[B]]"}, "[[B]]"),
        ({"content": "<think>A or"}, ""),
        ({"content": "It says <think>x</think>.\n[[A]]"}, "It says <think>x</think>.\n[[A]]"),
        ({"content": [{"type": "thinking", "thinking": "x"}, {"type": "text", "text": "B"}]}, "B"),
        ({"content": None, "reasoning_content": "[[A]]"}, ""),
        ({"reasoning": "A or B?"}, ""),
        ({"content": None, "refusal": "I will not."}, "I will not."),
    ],
)
def test_an_answer_is_what_was_said_and_not_the_reasoning(message, text):
    assert asked(lambda *_: answered(message)) == [text]


def test_reasoning_that_used_up_the_room_is_asked_again_with_more_room():
    rooms = []

    def app(method, path, query, body, headers):
        rooms.append(body["max_tokens"])
        enough = body["max_tokens"] >= 2048
        return answered({"content": "B"}) if enough else answered({"content": "<think>A"}, "length")

    assert asked(app) == ["B"]
    assert rooms == [512, 2048]


def test_a_question_whose_reasoning_never_ends_is_refused_with_the_reason():
    asks = []
    with pytest.raises(QuestionRefusedError, match=r"2048 tokens were used up .* raise max_tokens"):
        asked(lambda *_: asks.append(1) or answered({"content": None, "reasoning": "A"}, "length"))
    assert len(asks) == 2


def test_a_message_with_nothing_of_an_answer_is_of_another_form():
    with pytest.raises(LabelError, match="expected choices with a message"):
        asked(lambda *_: answered({"text": "B"}))


@pytest.mark.parametrize(
    "refusal",
    [
        (400, {"error": {"message": "System role not supported"}}),
        (500, {"detail": "jinja2.exceptions.TemplateError: System role not supported"}),
        (200, {"error": {"message": "System role not supported", "code": 400}}),
        (400, {"error": "Conversation roles must alternate user/assistant/user/assistant/..."}),
    ],
)
def test_instructions_go_into_the_users_turn_where_there_is_no_system_role(refusal):
    seen = []

    def app(method, path, query, body, headers):
        seen.append([(turn["role"], turn["content"]) for turn in body["messages"]])
        return refusal if body["messages"][0]["role"] == "system" else answered({"content": "B"})

    assert asked(app, times=2) == ["B", "B"]
    assert seen[1:] == [[("user", "Judge.\n\nWhich?")]] * 2


@pytest.mark.parametrize("code", [429, "503"])
def test_trouble_that_passes_is_waited_for_inside_a_200_too(code):
    answers = [
        (200, {"error": {"message": "overloaded", "code": code}}),
        answered({"content": "B"}),
    ]
    assert asked(lambda *_: answers.pop(0)) == ["B"]


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"retry-after": "7"}, 7),
        (503, {"retry-after": "0.5"}, 0.5),
        (429, {"retry-after": "@date"}, 30),
        (429, {"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 0),
        (429, {"retry-after": "Sunday, 06-Nov-94 08:49:37 GMT"}, 0),
        (429, {"retry-after": "Sun Nov  6 08:49:37 1994"}, 0),
        (429, {"retry-after": "0", "x-ratelimit-reset": "9"}, 0),
        (429, {"x-ratelimit-reset-requests": "1m30s"}, 90),
        (429, {"x-ratelimit-reset-tokens": "20ms"}, 0.02),
        (429, {"x-ratelimit-reset": "@epoch"}, 30),
        (429, {"x-ratelimit-reset": "@epoch_ms"}, 30),
        (429, {"ratelimit-reset": "12"}, 12),
        (
            429,
            {
                "x-ratelimit-reset-requests": "1h",
                "x-ratelimit-remaining-requests": "5",
                "x-ratelimit-reset-tokens": "6s",
                "x-ratelimit-remaining-tokens": "0",
            },
            6,
        ),
        (503, {"x-ratelimit-reset": "12"}, 0),
        (429, {"llm_provider-retry-after": "7"}, 7),
        (429, {"llm_provider-retry-after": "@date"}, 30),
        (429, {"llm_provider-retry-after-ms": "1500"}, 1.5),
        (429, {"llm_provider-retry-after": "60", "retry-after": "7"}, 7),
        (429, {"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        (503, {"retry-after-ms": "1500"}, 1.5),
        (429, {"retry-after-ms": "soon", "retry-after": "9"}, 9),
        (429, {"ratelimit": '"default";r=0;t=12'}, 12),
        (429, {"ratelimit": '"minute";r=0;t=7, "day";r=400;t=3600'}, 7),
        (429, {"ratelimit": '"a,b;t=1";r=0;t=8;pk=:cHVsbA==:'}, 8),
        (429, {"ratelimit": "problemPolicy;r=0;t=10", "retry-after": "2"}, 2),
        (429, {"ratelimit": '"d";r=0', "ratelimit-policy": '"d";q=10;w=6, "e";q=1;w=90'}, 6),
        (429, {"ratelimit-policy": '"burst";q=100;w=60,"daily";q=1000;w=86400'}, 60),
        (429, {"ratelimit": "limit=100, remaining=0, reset=15"}, 15),
        (200, {"ratelimit": '"default";r=0;t=12'}, 0),
        (429, {"ratelimit": "of some other form"}, 0),
        (429, {"retry-after": "soon"}, 0),
        (429, {}, 0),
    ],
)
def test_limits_are_read_in_every_form(status, headers, seconds):
    then = time.time() + 30
    forms = {
        "@date": formatdate(then, usegmt=True),
        "@epoch": f"{then:.0f}",
        "@epoch_ms": f"{then * 1e3:.0f}",
    }
    answer = httpx.Response(status, headers={k: forms.get(v, v) for k, v in headers.items()})
    assert asked_to_wait(answer) == pytest.approx(seconds, abs=1.5 if seconds >= 30 else 0)
