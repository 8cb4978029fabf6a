"""A model behind an OpenAI-compatible chat endpoint: vLLM, llama.cpp, Ollama, hosted ones."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rlhf_core.adapters.label_http import FixedKey, LabelServer, readable_key
from rlhf_core.adapters.settings import load_settings
from rlhf_core.config import AiLabelerConfig
from rlhf_core.errors import LabelError
from rlhf_core.schema import Message


class ChatEndpoint:
    """Answers conversations; may be used from several threads."""

    def __init__(self, server: LabelServer, settings: AiLabelerConfig) -> None:
        self._server = server
        self._settings = settings
        self._lock = threading.Lock()
        self.num_tokens = 0
        """Of all questions and answers so far, where the endpoint counts them."""

    def ask(self, messages: Sequence[Message]) -> str:
        """Return the model's answer to a conversation.

        Raises:
            LabelError: the endpoint refuses, stays lost, or answers in another form.
        """
        settings = self._settings
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": [message.model_dump() for message in messages],
        }
        # Some endpoints refuse a parameter that their model does not know.
        if settings.temperature is not None:
            body["temperature"] = settings.temperature
        if settings.max_tokens is not None:
            body["max_tokens"] = settings.max_tokens
        answer = self._server.request("POST", "chat/completions", json=body)
        try:
            content = answer["choices"][0]["message"]["content"]
            num_tokens = int((answer.get("usage") or {}).get("total_tokens") or 0)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise LabelError(
                f"{self._server.place}: expected choices with a message, found {str(answer)[:200]}"
            ) from error
        with self._lock:
            self.num_tokens += num_tokens
        return str(content or "")

    def stop(self) -> None:
        """Let questions that wait for another attempt end at once."""
        self._server.stop()


@contextmanager
def open_chat(settings: AiLabelerConfig) -> Iterator[ChatEndpoint]:
    """Give the endpoint that the settings name, with the key of the environment."""
    key = load_settings().rlhf_judge_api_key
    with LabelServer(
        settings.url,
        auth=None if key is None else FixedKey("Bearer", readable_key("RLHF_JUDGE_API_KEY", key)),
        timeout=settings.timeout_seconds,
        patience=settings.patience_seconds,
    ) as server:
        yield ChatEndpoint(server, settings)
