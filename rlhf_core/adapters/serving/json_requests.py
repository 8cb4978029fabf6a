"""Requests with a JSON body as our servers read them, and the errors that they answer."""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

LARGEST_REQUEST = 16 * 1024 * 1024

Body = TypeVar("Body", bound=BaseModel)


class ApiError(Exception):
    """An error as OpenAI's clients read it."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


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


def _answer(error: ApiError) -> Response:
    return JSONResponse(error.body, status_code=error.status)


async def _say(request: Request, error: Any) -> Response:
    return _answer(error)


async def _say_http(request: Request, error: Any) -> Response:
    where = f"{request.method} {request.url.path}"
    return _answer(ApiError(error.status_code, f"{where}: {error.detail}"))


async def _say_fault(request: Request, error: Exception) -> Response:
    return _answer(ApiError(500, "the server failed; its log says why"))


EXCEPTION_HANDLERS: dict[Any, Any] = {
    ApiError: _say,
    HTTPException: _say_http,
    Exception: _say_fault,
}
"""Of an application: whatever goes wrong is told as JSON."""
