"""Prefect's server for one command: ``python -m rlhf_flows.servers.temporary_server``.

It ends when its standard input does, with the command that started it, however that one ends, and
not before: what stops a service, a job or a container asks all processes at once to end, and a
command whose server is gone first would wait for it for minutes. Prefect's own temporary server
lives on for ever when the command is killed, may take the port of another command's, and has every
client import the whole server.
"""

import errno
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, cast

import requests

from rlhf_core.adapters.settings import child_environment
from rlhf_core.errors import ConfigError, OrchestrationError, StorageError
from rlhf_core.storage.full_disk import room_at
from rlhf_core.storage.locks import locked
from rlhf_flows.engine.environment import prefect_home
from rlhf_flows.servers.own_pages import close_prefect

MARKS = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}
"""What Prefect itself tells its temporary server."""
WITHOUT_AUTOMATIONS = {"PREFECT_API_SERVICES_TRIGGERS_ENABLED": "false"}
"""Nothing to look for in events: half of the server's start goes into getting ready for it."""
DATABASES = (
    "PREFECT_API_DATABASE_CONNECTION_URL",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL",
    "PREFECT_API_DATABASE_NAME",
    "PREFECT_SERVER_DATABASE_NAME",
)
"""Variables that name another database than the one in Prefect's folder."""
HOST = "127.0.0.1"
STOP_SECONDS = 10.0
ROOM_BYTES = 16 * 1024**2
"""Room for its database, which takes 5 MiB when it is new and grows with every run."""


class TemporaryServer:
    """A server that is starting; its port takes connections from the first moment."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rlhf_flows.servers.temporary_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
            # Ctrl-C in a terminal goes to its whole foreground group. The command hears it and
            # tells this server how its run ended; one that died first would be asked for minutes.
            start_new_session=True,
        )
        with cast(IO[bytes], self.process.stdout) as answer:
            self.port = answer.readline().decode().strip()

    def wait(self) -> str:
        """Wait until the server answers; returns the address of its API.

        Raises:
            OrchestrationError: it ended instead.
        """
        url = f"http://{HOST}:{self.port}/api"
        try:
            requests.get(f"{url}/health", timeout=None).raise_for_status()
        except requests.RequestException as error:
            raise OrchestrationError(
                "Prefect's temporary server did not start; what it said stands above. "
                "`rlhf doctor` checks the set-up"
            ) from error
        return url

    def end(self) -> None:
        """Let it end, and wait for that."""
        cast(IO[bytes], self.process.stdin).close()
        self.process.wait()


@contextmanager
def temporary_server() -> Iterator[TemporaryServer]:
    """Start a server that ends with the block, or with this process if that is killed.

    Raises:
        StorageError: the disk of its database is full.
    """
    _require_room(prefect_home() / "prefect.db")
    server = TemporaryServer()
    try:
        yield server
    finally:
        server.end()


def _environment() -> dict[str, str]:
    """Return the server's variables; what a person has set of them stays."""
    given = child_environment() | MARKS
    elsewhere = any(given.get(name) for name in DATABASES)
    if elsewhere or _has_automations(prefect_home() / "prefect.db"):
        return given
    return WITHOUT_AUTOMATIONS | given


def _has_automations(database: Path) -> bool:
    """Whether `rlhf up` or a person has made automations in this database of Prefect's."""
    if not database.is_file():
        return False
    try:
        address = f"{database.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True)) as opened:
            return bool(opened.execute("SELECT 1 FROM automation LIMIT 1").fetchone())
    except sqlite3.Error:  # half made, locked or damaged: as the server finds it
        return True


def _require_room(database: Path) -> None:
    """Refuse a disk on which Prefect's server would end in the middle of its migrations."""
    if room_at(database) < ROOM_BYTES:
        raise StorageError.about(database, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def _end_with_input(stop: Callable[[], None]) -> None:
    sys.stdin.buffer.read()
    last_resort = threading.Timer(STOP_SECONDS, os._exit, args=(1,))
    last_resort.daemon = True
    last_resort.start()
    stop()


def main() -> None:
    """Say which port it is, then serve until it is stopped or its client is gone."""
    os.umask(0o077)  # its database is its owner's alone
    listening = socket.create_server((HOST, 0))
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody reads on
    import uvicorn

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    servers: list[uvicorn.Server] = []

    def stop() -> None:
        if not servers:
            os._exit(0)  # it has not begun to serve
        servers[0].should_exit = True

    threading.Thread(target=_end_with_input, args=(stop,), daemon=True).start()
    try:
        _, closed = close_prefect(listening.getsockname()[1])
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from error
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    class OneAtATime(uvicorn.Server):
        """Starts when no other is starting: Prefect's migrations do not exclude each other."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            with locked(get_current_settings().home / ".starting.lock"):
                await super().startup(sockets)

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Leave signals ignored, where uvicorn would end by them."""
            yield

    config = uvicorn.Config(closed(create_app()), log_level="error", lifespan="on")
    servers.append(OneAtATime(config))
    servers[0].run(sockets=[listening])


if __name__ == "__main__":
    main()
