"""OpenAI's chat completions over a registered model, which another may replace meanwhile."""

import asyncio
import json
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rlhf_core.adapters.serving.chat_requests import ChatBody, FeedbackBody, usage
from rlhf_core.adapters.serving.json_requests import EXCEPTION_HANDLERS, ApiError, read_body
from rlhf_core.adapters.serving.kept_answers import KeptAnswer, KeptAnswers, UnknownAnswerError
from rlhf_core.errors import DataError, ModelError, NoRoomError, RlhfError, StorageError
from rlhf_core.rollout.chat import ChatModel, ChatRequest
from rlhf_core.rollout.engine import ChatEngine, Ticket, Update
from rlhf_core.schema import Conversation
from rlhf_core.schema.model_uri import without_scheme

_LOOK_SECONDS = 1.0
"""How often a request that waits looks whether its client is still there."""
_DONE = "data: [DONE]\n\n"

Said = tuple[str, str]
"""An answer and its finish reason."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """What a reference stands for now."""

    uri: str
    """``models:/<name>/<version>``, or a folder."""
    name: str
    """Registered name, or that of the folder."""
    sha256: str
    path: Path


class ServedModel:
    """The model that is served; another may take its place while requests are being answered.

    Args:
        reference: as it was given: ``models:/<name>@<alias>``, a version, a folder.
        found: what it stands for.
        device: as ``model.device``.
    """

    def __init__(self, reference: str, found: Found, device: str = "auto") -> None:
        self.reference, self.found, self.device = reference, found, device
        self.began = int(time.time())
        self.now = found.uri
        """What the reference stands for as far as is known."""
        self._engine = ChatEngine(ChatModel.load(found.path, device))
        self._lock = threading.Lock()

    @property
    def names(self) -> frozenset[str]:
        """What a request may call the model."""
        given = {self.reference, self.found.uri, self.found.name}
        return frozenset(given | {without_scheme(name) for name in given})

    def submit(
        self, request: ChatRequest, on_update: Callable[[Update], None]
    ) -> tuple[Found, Ticket]:
        """Begin to answer a request; return by what, too."""
        with self._lock:
            return self.found, self._engine.submit(request, on_update)

    def replace(self, found: Found) -> None:
        """Answer by another model from now on; what was begun is finished by the one before.

        Raises:
            ModelError: it cannot be loaded; everything is as before.
        """
        engine = ChatEngine(ChatModel.load(found.path, self.device))
        with self._lock:
            before, self._engine = self._engine, engine
            self.found, self.now = found, found.uri
        before.close(wait=0)


class ApiServer:
    """The application; ``app`` is what a web server runs.

    Args:
        served: the model.
        key: that clients have to send; None asks for none.
        hosts: names by which it may be called; None: any.
        kept: where answers and their ratings are kept; None keeps nothing.
    """

    def __init__(
        self,
        served: ServedModel,
        key: str | None,
        hosts: list[str] | None,
        kept: KeptAnswers | None = None,
    ) -> None:
        self.served, self._key, self._kept = served, key, kept
        middleware = (
            [] if hosts is None else [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]
        )
        self.app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/models/{model:path}", self._model),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/feedback", self._feedback, methods=["POST"]),
            ],
            middleware=middleware,
            exception_handlers=EXCEPTION_HANDLERS,
        )

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", **self._serving()})

    def _serving(self) -> dict[str, Any]:
        served = self.served
        known = {"reference": served.reference, "model": served.found.uri, "now": served.now}
        return {**known, "feedback": self._kept is not None}

    async def _models(self, request: Request) -> Response:
        self._require_key(request)
        return JSONResponse({"object": "list", "data": [self._entry()]})

    async def _model(self, request: Request) -> Response:
        self._require_key(request)
        self._require_served(request.path_params["model"])
        return JSONResponse(self._entry())

    def _entry(self) -> dict[str, Any]:
        found = self.served.found
        said = {"id": found.name, "object": "model", "created": self.served.began}
        return {**said, "owned_by": "rlhf", "root": found.uri, "sha256": found.sha256}

    def _require_key(self, request: Request) -> None:
        if self._key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if not secrets.compare_digest(given, self._key.encode()):
            raise ApiError(401, "the API key is not the server's", code="invalid_api_key")

    def _require_served(self, name: str) -> None:
        served = self.served
        if name not in served.names:
            raise ApiError(
                404,
                f"the model {name!r} does not exist here; served is {served.found.name} "
                f"({served.found.uri})",
                param="model",
                code="model_not_found",
            )

    async def _chat(self, request: Request) -> Response:
        self._require_key(request)
        body = await read_body(request, ChatBody)
        self._require_served(body.model)
        updates: asyncio.Queue[Update] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def on_update(update: Update) -> None:
            try:
                loop.call_soon_threadsafe(updates.put_nowait, update)
            except RuntimeError:  # the server has ended
                ticket.cancelled = True

        asked = body.request()
        found, ticket = self.served.submit(asked, on_update)
        head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": f"sha256-{found.sha256[:16]}",
        }
        headers = {"x-rlhf-model": found.uri}
        keep = partial(self._keep, head, found, asked.messages)
        try:
            # A request that cannot be answered gets a status of its own, streamed or not.
            first = await _next(request, updates)
            if body.stream:
                with_usage = bool(body.stream_options and body.stream_options.include_usage)
                events = _Stream(head, with_usage, keep).events(ticket, first, updates)
                return StreamingResponse(events, media_type="text/event-stream", headers=headers)
            answered = await _whole(request, first, updates, body.n or 1)
            await keep([_said(choice) for choice in answered["choices"]])
        except BaseException:
            ticket.cancelled = True
            raise
        return JSONResponse({**head, "object": "chat.completion", **answered}, headers=headers)

    async def _keep(
        self, head: Mapping[str, Any], found: Found, prompt: Conversation, said: Sequence[Said]
    ) -> None:
        """Keep complete answers, if that was asked for; people get theirs, kept or not."""
        if self._kept is None:
            return
        common = {"id": head["id"], "created": head["created"], "model": found.uri}
        answers = [
            KeptAnswer(**common, index=at, prompt=prompt, completion=text, finish_reason=reason)
            for at, (text, reason) in enumerate(said)
        ]
        try:
            await run_in_threadpool(self._kept.keep, answers)
        except StorageError as error:
            logger.error("answer_not_kept id=%s: %s", head["id"], error)

    async def _feedback(self, request: Request) -> Response:
        self._require_key(request)
        if self._kept is None:
            raise ApiError(404, "this server keeps no feedback; serve with --feedback FILE")
        body = await read_body(request, FeedbackBody)
        try:
            rated = await run_in_threadpool(
                self._kept.rate, body.id, body.index, body.rating, body.comment
            )
        except UnknownAnswerError as error:
            said = f"{error}; ids are those of the chat completions of servers with this --feedback"
            raise ApiError(404, said, param="id", code="answer_not_found") from error
        except DataError as error:
            raise ApiError(400, str(error), param="index") from error
        except StorageError as error:
            raise ApiError(500, str(error)) from error
        answer = rated.model_dump(include={"id", "index", "rating", "comment", "rated"})
        return JSONResponse({"object": "feedback", **answer})


async def _next(request: Request, updates: "asyncio.Queue[Update]") -> Update:
    while True:
        try:
            update = await asyncio.wait_for(updates.get(), _LOOK_SECONDS)
        except TimeoutError:
            if await request.is_disconnected():
                raise ApiError(499, "the client has left") from None
            continue
        if update.error is not None:
            raise _as_api_error(update.error)
        return update


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, NoRoomError):
        return ApiError(400, str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, DataError | ModelError):
        return ApiError(400, str(error), param="messages")
    logger.error("request_failed", exc_info=error)
    said = str(error) if isinstance(error, RlhfError) else "the server failed; its log says why"
    return ApiError(500, said)


async def _whole(
    request: Request, first: Update, updates: "asyncio.Queue[Update]", num: int
) -> dict[str, Any]:
    texts, reasons, update = [""] * num, [""] * num, first
    while True:
        for delta in update.deltas:
            texts[delta.index] += delta.text
            reasons[delta.index] = delta.finish_reason or ""
        if update.usage is not None:
            break
        update = await _next(request, updates)
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": reason,
        }
        for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
    ]
    return {"choices": choices, "usage": usage(*update.usage)}


def _said(choice: Mapping[str, Any]) -> Said:
    return choice["message"]["content"], choice["finish_reason"]


@dataclass(frozen=True)
class _Stream:
    """A streamed answer, as server-sent events."""

    head: Mapping[str, Any]
    with_usage: bool
    keep: Callable[[Sequence[Said]], Awaitable[None]]

    async def events(
        self, ticket: Ticket, first: Update, updates: "asyncio.Queue[Update]"
    ) -> AsyncIterator[str]:
        """Yield the events; a client that leaves ends the answer."""
        said = [("", "")] * ticket.request.num_answers
        try:
            for index in range(len(said)):
                yield self._choice(index, {"role": "assistant", "content": ""})
            update = first
            while not update.is_last:
                for event in self._events_of(update, said):
                    yield event
                update = await updates.get()
            if update.error is not None:
                yield f"data: {json.dumps(_as_api_error(update.error).body)}\n\n"
                return
            if self.with_usage:
                yield self._event([], usage=usage(*(update.usage or (0, 0))))
            await self.keep(said)
            yield _DONE
        finally:
            ticket.cancelled = True

    def _events_of(self, update: Update, said: list[Said]) -> Iterator[str]:
        for delta in update.deltas:
            said[delta.index] = said[delta.index][0] + delta.text, delta.finish_reason or ""
            if delta.text:
                yield self._choice(delta.index, {"content": delta.text})
            if delta.finish_reason:
                yield self._choice(delta.index, {}, delta.finish_reason)

    def _choice(self, index: int, delta: dict[str, str], reason: str | None = None) -> str:
        said = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._event([said])

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        counted = {"usage": None} if self.with_usage else {}
        said = {"object": "chat.completion.chunk", "choices": choices, **counted, **more}
        return f"data: {json.dumps({**self.head, **said})}\n\n"
