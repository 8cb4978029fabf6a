"""What of the web may talk to Prefect's server: its own names, and its own pages.

Prefect answers whoever asks, by whatever name, and allows every page of a browser to ask; a page in
the browser of somebody who can reach the server could start runs. Its own settings close the pages
(CORS, CSRF), but not WebSockets, which know no CORS, and not a foreign name that leads here.
"""

import json
import logging
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from rlhf_core.errors import ConfigError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

logger = logging.getLogger(__name__)

HOSTS = "RLHF_PREFECT_HOSTS"
"""Variable with further names of the server, by commas: ``name`` or ``name:port``."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
CSRF = ("PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED", "PREFECT_SERVER_CSRF_PROTECTION_ENABLED")
PAGES = ("PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS")
"""Both names that Prefect gives each setting; it reads the first before the second."""
ADDRESSES = ("PREFECT_API_URL", "PREFECT_UI_API_URL")
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_ORIGIN = re.compile(r"https?://(?P<host>[^/\s]+)", re.ASCII)
_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"x-frame-options", b"SAMEORIGIN"))
_ANY_PAGE = (b"access-control-allow-origin", b"*")
_FORBIDDEN = 403
_POLICY_VIOLATION = 1008
_MOST_SHOWN = 100


def host_names(text: str) -> frozenset[str]:
    """Return the names in a list by commas, as they are compared.

    Raises:
        ValueError: one is no ``name`` or ``name:port``.
    """
    names = [part.strip().lower() for part in text.split(",") if part.strip()]
    for name in names:
        if not _HOST.fullmatch(name):
            raise ValueError(f"expected names, or name:port, by commas; found {name!r}")
    return frozenset(names)


def close_prefect(port: int) -> tuple[dict[str, str], Callable[[App], "OwnPages"]]:
    """Close the Prefect server that this process is about to start to foreign pages and names.

    It is called by this machine's loopback, the hosts of its addresses in the environment, and what
    ``RLHF_PREFECT_HOSTS`` lists. Variables that the person has set keep their value.

    Args:
        port: of the server.

    Returns:
        Prefect's settings, which stand in the environment too, and what wraps its application.

    Raises:
        ConfigError: a list would let every page in, or is none.
    """
    named = [[name for name in names if name in os.environ] or names[1:] for names in (CSRF, PAGES)]
    (csrf, *_), (pages, *_) = named
    os.environ.setdefault(csrf, "true")
    own = [f"http://{host}:{port}" for host in LOOPBACK]
    own += [f"{scheme}://{host}" for scheme, host in _addresses()]
    origins = os.environ.setdefault(pages, ",".join(dict.fromkeys(own)))
    if "*" in origins:
        raise ConfigError(
            f"{pages}: '*' would let every page of a browser start runs; list the addresses of "
            "the pages that may, e.g. https://prefect.example.org, or unset it"
        )
    try:
        names = host_names(os.environ.get(HOSTS, ""))
    except ValueError as error:
        raise ConfigError(f"{HOSTS}: {error}") from error
    hosts = {*LOOPBACK, *names, *(host for _, host in _addresses())}
    settings = {name: os.environ[name] for name in (csrf, pages)}
    return settings, lambda app: OwnPages(app, hosts, [page.strip() for page in origins.split(",")])


def _addresses() -> Iterator[tuple[str, str]]:
    """Yield scheme and ``host[:port]`` of the server's addresses, without user and password."""
    for name in ADDRESSES:
        parts = urlsplit(os.environ.get(name, ""))
        if parts.scheme in ("http", "https") and parts.hostname:
            yield parts.scheme, parts.netloc.rpartition("@")[2].lower()


class OwnPages:
    """An ASGI application that refuses requests by foreign names and from foreign pages.

    Args:
        app: the server.
        hosts: names it is called by; one without a port stands for all of its ports.
        origins: pages of other addresses that may ask it, as browsers write them.
    """

    def __init__(self, app: App, hosts: Iterable[str], origins: Iterable[str]) -> None:
        self.app = app
        self.hosts = frozenset(hosts)
        self.origins = frozenset(origin.lower() for origin in origins)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer, pass on, or refuse."""
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if problem := self._problem(scope["headers"]):
            logger.warning("refused path=%r reason=%r", scope["path"][:_MOST_SHOWN], problem)
            await (_refuse if kind == "http" else _close)(problem, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [tuple(header) for header in message.get("headers", ())]
                kept = [header for header in kept if header != _ANY_PAGE]
                message["headers"] = [*kept, *_HEADERS]
            await send(message)

        await self.app(scope, receive, answer)

    def _problem(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Say why a request is refused; None where it may be answered."""
        found: dict[bytes, list[str]] = {}
        for name, value in headers:
            found.setdefault(name.lower(), []).append(value.decode("latin-1").strip().lower())
        hosts = found.get(b"host", [])
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            shown = ", ".join(hosts)[:_MOST_SHOWN]
            return f"{shown!r} is no name of this server; {HOSTS} lists its names"
        origins = found.get(b"origin", [])
        if any(not self._may_ask(origin, hosts[0]) for origin in origins):
            shown = ", ".join(origins)[:_MOST_SHOWN]
            return f"pages of {shown!r} may not ask this server"
        # Without an origin: what a foreign page embeds. A person who follows a link navigates.
        embedded = found.get(b"sec-fetch-mode") != ["navigate"]
        if not origins and embedded and found.get(b"sec-fetch-site") == ["cross-site"]:
            return "pages of other sites may not embed this server"
        return None

    def _is_own(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        return match is not None and not self.hosts.isdisjoint({host, match["name"]})

    def _may_ask(self, origin: str, host: str) -> bool:
        match = _ORIGIN.fullmatch(origin)
        return match is not None and (match["host"] == host or origin in self.origins)


async def _refuse(problem: str, send: Send) -> None:
    body = json.dumps({"detail": problem}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": _FORBIDDEN, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _close(problem: str, send: Send) -> None:
    # Before the handshake was accepted the client sees it refused with 403.
    await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": problem})
