"""Serving HTTP from a command: its port, its names, its end."""

import signal
import socket
from typing import Any

from rlhf_core.errors import ConfigError
from rlhf_core.garbage import loading_ends

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def listen(host: str, port: int) -> socket.socket:
    """Take the port, so that one that is taken is refused before anything is loaded.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: cannot listen there: {error.strerror or error}; "
            "take another port"
        ) from error
    return listening


def address_of(listening: socket.socket) -> str:
    """Return the address as people type it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listening: socket.socket) -> bool:
    """Return whether this machine alone can ask."""
    return listening.getsockname()[0] in LOOPBACK


def own_names(listening: socket.socket) -> list[str] | None:
    """Return by which names it may be asked; None where any machine may.

    A page in a browser of this machine could ask it by a name of its own otherwise.
    """
    return [*LOOPBACK, "[::1]"] if is_loopback(listening) else None


def make_server(app: Any, grace_seconds: int) -> Any:
    """Return uvicorn's server of an application; its ``run(sockets=[...])`` ends on a signal.

    Args:
        app: of Starlette.
        grace_seconds: so long may take what was begun when it is ended.
    """
    import uvicorn

    loading_ends()
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=grace_seconds
    )
    # uvicorn raises a signal again once it has ended; by then there is nothing left to do.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return uvicorn.Server(config)
