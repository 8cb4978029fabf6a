"""Label Studio's REST API, as its community edition 1.23 speaks it."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from rlhf_core.adapters.http_client import FixedKey, JsonClient, readable_key
from rlhf_core.adapters.settings import load_settings
from rlhf_core.config import LabelStudioLabelerConfig
from rlhf_core.errors import ConfigError, LabelError
from rlhf_core.storage.records import shorten

_PAGE = 500
"""Tasks listed at once."""


class LabelStudio:
    """A server with its projects."""

    def __init__(self, server: JsonClient) -> None:
        self._server = server

    @property
    def place(self) -> str:
        """Address of the server, without credentials."""
        return self._server.place

    def page_of(self, project: int) -> str:
        """Return where people find a project."""
        return f"{self.place}/projects/{project}"

    def find_project(self, title: str) -> int | None:
        """Return the number of the oldest project with exactly this title, if there is one."""
        answer = self._get("api/projects", title=title, page_size=_PAGE)
        with self._understanding(answer):
            found = [_number(item) for item in answer["results"] if item["title"] == title]
        return min(found, default=None)

    def require_project(self, project: int) -> None:
        """Refuse a project that is not there.

        Raises:
            LabelError: it is not, or is not shown to the token's owner.
        """
        self._get(f"api/projects/{project}")

    def make_project(self, title: str, description: str, form: str, votes_per_task: int) -> int:
        """Make a project and return its number.

        Args:
            title: what people see in the list.
            description: what the project is about.
            form: labelling configuration.
            votes_per_task: people that each task is shown to.
        """
        body = {
            "title": title,
            "description": description,
            "label_config": form,
            "maximum_annotations": votes_per_task,
        }
        answer = self._server.request("POST", "api/projects/", json=body, repeat=False)
        with self._understanding(answer):
            return _number(answer)

    def tasks(self, project: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield number and data of every task."""
        page, seen = 1, 0
        while True:
            answer = self._get("api/tasks", project=project, page=page, page_size=_PAGE)
            with self._understanding(answer):
                found = [(_number(task), dict(task["data"])) for task in answer["tasks"]]
                total = int(answer["total"])
            yield from found
            page, seen = page + 1, seen + len(found)
            if seen >= total or not found:
                return

    def add_tasks(self, project: int, data: Sequence[dict[str, Any]]) -> list[int]:
        """Add tasks; return their numbers, in order."""
        answer = self._server.request(
            "POST",
            f"api/projects/{project}/import",
            params={"return_task_ids": "true"},
            json=[{"data": item} for item in data],
            repeat=False,
        )
        with self._understanding(answer):
            numbers = list(map(int, answer["task_ids"]))
        if len(numbers) != len(data):
            raise LabelError(
                f"{self.place}: {len(data)} tasks sent, the server tells of {len(numbers)};"
                " repeat the command to send what is missing"
            )
        return numbers

    def annotated_tasks(self, project: int) -> list[dict[str, Any]]:
        """Return the JSON export: all tasks that somebody has answered or skipped."""
        answer = self._get(f"api/projects/{project}/export", exportType="JSON")
        with self._understanding(answer):
            return list(map(dict, answer))

    @contextmanager
    def _understanding(self, answer: object) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError, ValueError) as error:
            raise LabelError(
                f"{self.place}: not what Label Studio answers: {shorten(answer)}; is this the"
                " address of another server?"
            ) from error

    def _get(self, path: str, **params: object) -> Any:
        return self._server.request("GET", path, params=params)


@contextmanager
def open_label_studio(settings: LabelStudioLabelerConfig) -> Iterator[LabelStudio]:
    """Give the server that the settings name, with the token of the environment.

    Raises:
        ConfigError: there is no token.
    """
    key = load_settings().label_studio_api_key
    if key is None:
        raise ConfigError(
            "feedback.labeler: Label Studio wants a token; make one under Account & Settings,"
            " Personal Access Token, and set LABEL_STUDIO_API_KEY"
        )
    with JsonClient(
        settings.url,
        auth=_auth(settings.url, readable_key("LABEL_STUDIO_API_KEY", key)),
        variable="LABEL_STUDIO_API_KEY",
        timeout=settings.timeout_seconds,
        patience=settings.patience_seconds,
    ) as server:
        yield LabelStudio(server)


def _auth(url: str, token: str) -> httpx.Auth:
    """Personal access tokens are JSON web tokens, of three parts; the older ones are not."""
    if token.count(".") == 2:
        return PersonalToken(url, token)
    return FixedKey("Token", token)


class PersonalToken(httpx.Auth):
    """A token that is exchanged for one of five minutes, again whenever that has ended."""

    requires_response_body = True

    def __init__(self, url: str, token: str) -> None:
        self._exchange = f"{url.rstrip('/')}/api/token/refresh"
        self._token = token
        self._access = ""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request with the short token; with a new one if that is refused."""
        if self._access:
            request.headers["Authorization"] = f"Bearer {self._access}"
            answer = yield request
            if answer.status_code != httpx.codes.UNAUTHORIZED:
                return
        answer = yield httpx.Request("POST", self._exchange, json={"refresh": self._token})
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise LabelError(
                f"LABEL_STUDIO_API_KEY: the server refuses the token ({answer.text[:200]})"
            )
        if not answer.is_success:
            return  # the refusal stands for the answer, and is asked again where it may pass
        try:
            self._access = str(answer.json()["access"])
        except (ValueError, KeyError, TypeError) as error:
            raise LabelError(
                f"{self._exchange} answers no token; is the url of"
                " feedback.labeler that of Label Studio?"
            ) from error
        request.headers["Authorization"] = f"Bearer {self._access}"
        yield request


def _number(item: dict[str, Any]) -> int:
    return int(item["id"])
