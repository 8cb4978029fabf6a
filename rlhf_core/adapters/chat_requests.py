"""What clients of the OpenAI API may ask of a chat, and the errors that they read."""

import json
import secrets
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError
from starlette.requests import Request

from rlhf_core.rollout.chat import ChatRequest
from rlhf_core.schema import Message

LARGEST_REQUEST = 16 * 1024 * 1024
SEEDS = 1 << 64
LONGEST_COMMENT = 10_000
"""Characters."""

Body = TypeVar("Body", bound=BaseModel)


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


class ApiError(Exception):
    """An error as OpenAI's clients read it."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class FeedbackBody(BaseModel):
    """What people think of an answer."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(min_length=1, max_length=200)]
    rating: Literal["up", "down"]
    index: Annotated[int, Field(ge=0, strict=True)] | None = None
    comment: Annotated[str, Field(max_length=LONGEST_COMMENT)] | None = None


async def read_body(request: Request, kind: type[Body]) -> Body:
    """Read a request.

    Raises:
        ApiError: names the field that is wrong.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ApiError(415, "expected content-type application/json")
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > LARGEST_REQUEST:
            raise ApiError(413, f"the request is larger than {LARGEST_REQUEST} bytes")
    try:
        return kind.model_validate(json.loads(raw))
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][:3])
        unknown = first["type"] == "extra_forbidden"
        said = "this server does not know it" if unknown else first["msg"]
        raise ApiError(400, f"{param or 'body'}: {said}", param=param or None) from error
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the request is no JSON: {error}") from error
