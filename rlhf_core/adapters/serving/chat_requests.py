"""What clients of the OpenAI API may ask of a chat, and how its tokens are counted."""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from rlhf_core.rollout.chat import ChatRequest
from rlhf_core.schema import Conversation, Message

SEEDS = 1 << 64
LONGEST_COMMENT = 10_000
"""Characters."""


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Turn(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part]

    def message(self) -> Message:
        """Return the turn as the product has it."""
        parts = (
            self.content
            if isinstance(self.content, list)
            else [_Part(type="text", text=self.content)]
        )
        role = "system" if self.role == "developer" else self.role
        return Message(role=role, content="".join(part.text for part in parts))


class _StreamOptions(BaseModel):
    include_usage: StrictBool = False


class ChatOptions(BaseModel):
    """Numbers of a request, in the ranges that OpenAI has; None is what OpenAI takes for it."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None

    def about(self, messages: Conversation, stop: str | Sequence[str] | None) -> ChatRequest:
        """Return the request for an answer to a conversation, ended by any text of ``stop``."""
        return ChatRequest(
            messages=messages,
            num_answers=self.n or 1,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=secrets.randbits(32) if self.seed is None else self.seed % SEEDS,
            max_tokens=self.max_tokens,
            stop=[stop] if isinstance(stop, str) else stop or (),
        )


class ChatBody(ChatOptions):
    """A request. What would change the answer and is not done here is refused."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: list[_Turn] = Field(min_length=1)
    seed: int | None = None  # of a client, negative or not
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: StrictBool | None = None
    stream_options: _StreamOptions | None = None
    # Changes nothing in the answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Taken where it asks for nothing.
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None

    def request(self) -> ChatRequest:
        """Return what is asked."""
        asked = self.about(tuple(turn.message() for turn in self.messages), self.stop)
        return replace(asked, max_tokens=self.max_completion_tokens or self.max_tokens)


class FeedbackBody(BaseModel):
    """What people think of an answer."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(min_length=1, max_length=200)]
    rating: Literal["up", "down"]
    index: Annotated[int, Field(ge=0, strict=True)] | None = None
    comment: Annotated[str, Field(max_length=LONGEST_COMMENT)] | None = None


def usage(read: int, said: int) -> dict[str, int]:
    """Return the count of tokens that were read and said."""
    return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}
