"""A real PostgreSQL of this machine on a free port, for as long as a test needs it."""

import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

BINARIES = sorted(path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb"))

needs_postgres = pytest.mark.skipif(
    not BINARIES, reason="no PostgreSQL server under /usr/lib/postgresql"
)


def _as_postgres(command, **options):
    """PostgreSQL refuses to run as root."""
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    return subprocess.run(
        [*user, *map(str, command)], check=True, capture_output=True, text=True, **options
    )


class Database(str):
    """Where PostgreSQL listens, as it stands in addresses; it can go away and come back."""

    def __new__(cls, address, stop, start, dump):
        made = super().__new__(cls, address)
        made._stop, made._start, made.dump = stop, start, dump
        return made

    @contextmanager
    def away(self):
        """Stop it until the block ends."""
        self._stop()
        try:
            yield
        finally:
            self._start()


@contextmanager
def running_postgres(*databases):
    """Give ``user@host:port`` of a server of its own that has the databases."""
    folder = Path(tempfile.mkdtemp(prefix="rlhf-postgres-"))
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, control = folder / "data", [BINARIES[-1] / "pg_ctl", "-D", folder / "data"]
    _as_postgres([BINARIES[-1] / "initdb", "-D", data, "-U", "postgres", "-A", "trust"], cwd=folder)
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder}"
    begin = [*control, "-w", "-t", "300", "-l", folder / "log", "-o", options, "start"]
    _as_postgres(begin, cwd=folder)
    login = ["-h", "127.0.0.1", "-p", port, "-U", "postgres"]
    try:
        for name in databases:
            _as_postgres([BINARIES[-1] / "createdb", *login, name], cwd=folder)
        yield Database(
            f"postgres@127.0.0.1:{port}",
            stop=lambda: _as_postgres([*control, "-m", "fast", "stop"], cwd=folder),
            start=lambda: _as_postgres(begin, cwd=folder),
            dump=lambda name: (
                _as_postgres([BINARIES[-1] / "pg_dump", *login, name], cwd=folder).stdout
            ),
        )
    finally:
        _as_postgres([*control, "-m", "immediate", "stop"], cwd=folder)
        shutil.rmtree(folder)
