"""A model behind an OpenAI-compatible chat endpoint: vLLM, llama.cpp, Ollama, hosted ones."""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rlhf_core.adapters.http_client import (
    FixedKey,
    JsonClient,
    SystemRoleRefusedError,
    error_text,
    readable_key,
    refusal_of,
)
from rlhf_core.adapters.settings import load_settings
from rlhf_core.config import AiLabelerConfig
from rlhf_core.errors import LabelError, QuestionRefusedError
from rlhf_core.schema import Message

_KEY = "RLHF_JUDGE_API_KEY"
_SPOKEN = ("text", "output_text", "refusal")
_MORE_ROOM = 4
"""So many times the tokens for a question whose answer its reasoning left no room for."""
_REASONED = re.compile(r".*?</think(?:ing)?>", re.DOTALL)
_REASONING = re.compile(r"\s*<think(?:ing)?>")


class ChatEndpoint:
    """Answers conversations; may be used from several threads."""

    def __init__(self, server: JsonClient, settings: AiLabelerConfig) -> None:
        self._server = server
        self._settings = settings
        self._lock = threading.Lock()
        self._system_role = True
        self.num_tokens = 0
        """Of all questions and answers so far, where the endpoint counts them."""

    def ask(self, messages: Sequence[Message]) -> str:
        """Return the model's answer to a conversation, without its reasoning.

        Where the model's template knows no system role, instructions go into the user's turn, from
        the first refusal on.

        Raises:
            QuestionRefusedError: its reasoning leaves no room for an answer, or the question is
                too long.
            LabelError: the endpoint refuses, stays lost, or answers in another form.
        """
        if self._system_role:
            try:
                return self._ask(messages)
            except SystemRoleRefusedError:
                if messages[0].role != "system":
                    raise
                self._system_role = False
        return self._ask(_without_system(messages))

    def _ask(self, messages: Sequence[Message]) -> str:
        """Ask, and once more with more room where reasoning used up what there was."""
        room = self._settings.max_tokens
        text, ended = self._answer(messages, room)
        if not text and ended == "length" and room is not None:
            room *= _MORE_ROOM
            text, ended = self._answer(messages, room)
        if not text and ended == "length":
            limit = "the endpoint's limit of tokens was" if room is None else f"{room} tokens were"
            raise QuestionRefusedError(
                f"{self._server.place}: nothing was said, {limit} used up before the answer; "
                "raise max_tokens"
            )
        return text

    def _answer(self, messages: Sequence[Message], room: int | None) -> tuple[str, str]:
        """Return what the model says in at most so many tokens, and why it ended."""
        settings = self._settings
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": [message.model_dump() for message in messages],
        }
        # Some endpoints refuse a parameter that their model does not know.
        if settings.temperature is not None:
            body["temperature"] = settings.temperature
        if room is not None:
            body["max_tokens"] = room
        answer = self._server.request("POST", "chat/completions", json=body)
        place = self._server.place
        self._refuse_errors(answer)
        try:
            choice = answer["choices"][0]
            self._refuse_errors(choice)
            text = _text_of(choice["message"])
            num_tokens = int((answer.get("usage") or {}).get("total_tokens") or 0)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise LabelError(
                f"{place}: expected choices with a message, found {str(answer)[:200]}; repeat the"
                " command to go on from here"
            ) from error
        with self._lock:
            self.num_tokens += num_tokens
        return text, str(choice.get("finish_reason"))

    def _refuse_errors(self, answer: Any) -> None:
        """Refuse an error that came with status 200, as gateways pass on those of others.

        Raises:
            LabelError: there is one; ``QuestionRefusedError`` where it is about the question.
        """
        error = answer.get("error") if isinstance(answer, dict) else None
        if not error:
            return
        code, said = isinstance(error, dict) and error.get("code"), error_text(error)
        kind = refusal_of(said)
        advice = self._server.advice(code, str(error)) if kind is LabelError else ""
        place = self._server.place
        raise kind(f"{place}: answers with an error: {' '.join(said.split())[:200]}{advice}")

    def stop(self) -> None:
        """Let questions that wait for another attempt end at once."""
        self._server.stop()


def _without_system(messages: Sequence[Message]) -> Sequence[Message]:
    """Put the instructions before what the user says first."""
    if len(messages) < 2 or messages[0].role != "system":
        return messages
    first = messages[1]
    said = f"{messages[0].content}\n\n{first.content}"
    return (first.model_copy(update={"content": said}), *messages[2:])


def _text_of(message: Mapping[str, Any]) -> str:
    """Return what a message says: a text, a list of parts, or why nothing is said.

    Reasoning, in parts or fields of its own, is not what it says.
    """
    if not message.keys() & {"content", "refusal", "reasoning", "reasoning_content"}:
        raise KeyError("content")
    content = message.get("content")
    if isinstance(content, list):
        said = [
            str(part.get("text") or part.get("refusal") or "") if isinstance(part, dict) else part
            for part in content
            if not isinstance(part, dict) or part.get("type") in (*_SPOKEN, None)
        ]
        content = "".join(map(str, said))
    text = str(content or message.get("refusal") or "")
    # A block at the start alone is reasoning: an answer may quote one. Where the prompt's end opens
    # it, only its end is in the text; one that was cut has none, and nothing was said after it.
    if _REASONING.match(text) or ("</think" in text and "<think" not in text):
        ended = _REASONED.match(text)
        text = text[ended.end() :].lstrip() if ended else ""
    return text


@contextmanager
def open_chat(settings: AiLabelerConfig) -> Iterator[ChatEndpoint]:
    """Give the endpoint that the settings name, with the key of the environment."""
    key = load_settings().rlhf_judge_api_key
    with JsonClient(
        settings.url,
        auth=None if key is None else FixedKey("Bearer", readable_key(_KEY, key)),
        variable=_KEY,
        timeout=settings.timeout_seconds,
        patience=settings.patience_seconds,
    ) as server:
        yield ChatEndpoint(server, settings)
