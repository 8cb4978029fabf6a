"""What clients of the OpenAI API may ask of a chat."""

import secrets
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from rlhf_core.rollout.chat import ChatRequest
from rlhf_core.schema import Message

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


class ChatBody(BaseModel):
    """A request. What would change the answer and is not done here is refused."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: list[_Turn] = Field(min_length=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: int | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
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
        """Return what is asked; what is left out is as OpenAI has it."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return ChatRequest(
            messages=tuple(turn.message() for turn in self.messages),
            num_answers=self.n or 1,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=secrets.randbits(32) if self.seed is None else self.seed % SEEDS,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            stop=stop,
        )


class FeedbackBody(BaseModel):
    """What people think of an answer."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(min_length=1, max_length=200)]
    rating: Literal["up", "down"]
    index: Annotated[int, Field(ge=0, strict=True)] | None = None
    comment: Annotated[str, Field(max_length=LONGEST_COMMENT)] | None = None
