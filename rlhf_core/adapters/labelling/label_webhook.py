"""Label Studio's webhook, received: which project has new votes, told to whoever looks at them.

What an event says of the votes is not used: events get lost (Label Studio sends each once and waits
a second), come twice and out of order, so that the votes are those of the server.
"""

import secrets
from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rlhf_core.adapters.serving.json_requests import EXCEPTION_HANDLERS, ApiError, read_body

VOTES = frozenset({"ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED"})
"""Actions after which a pair may have more votes. The others are taken and change nothing: a
webhook for all actions is what Label Studio proposes."""
SECRET = "X-RLHF-Secret"
"""Header that the webhook is set up with."""


class _Project(BaseModel):
    id: Annotated[int, Field(ge=1, strict=True)]


class LabelEvent(BaseModel):
    """What is read of an event; Label Studio sends task, annotation and project with it."""

    action: Annotated[str, Field(min_length=1, max_length=200)]
    project: _Project | None = None


class WebhookReceiver:
    """The application; ``app`` is what a web server runs.

    Args:
        notice: told the number of a project with new votes; returns the collections that are
            looked at because of it.
        secret: that every event has to bring in ``X-RLHF-Secret``; None asks for none.
        hosts: names by which it may be called; None: any.
    """

    def __init__(
        self,
        notice: Callable[[int], Sequence[str]],
        secret: str | None,
        hosts: list[str] | None,
    ) -> None:
        self._notice, self._secret = notice, secret
        middleware = (
            [] if hosts is None else [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]
        )
        self.app = Starlette(
            routes=[
                Route("/", self._event, methods=["POST"]),
                Route("/health", self._health),
            ],
            middleware=middleware,
            exception_handlers=EXCEPTION_HANDLERS,
        )

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _event(self, request: Request) -> Response:
        self._require_secret(request)
        event = await read_body(request, LabelEvent)
        if event.action not in VOTES:
            return JSONResponse({"status": "ignored", "action": event.action})
        if event.project is None:
            raise ApiError(
                400, "project: missing; switch on Send payload in Label Studio's webhook"
            )
        number = event.project.id
        collections = await run_in_threadpool(self._notice, number)
        if not collections:
            raise ApiError(
                404,
                f"project.id: no collection of this project folder was sent to project {number}",
            )
        said = {"status": "accepted", "collections": list(collections)}
        return JSONResponse(said, status_code=202)

    def _require_secret(self, request: Request) -> None:
        if self._secret is None:
            return
        given = request.headers.get(SECRET, "").encode()
        if not secrets.compare_digest(given, self._secret.encode()):
            raise ApiError(401, f"the header {SECRET} is not the receiver's")
