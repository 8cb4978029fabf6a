"""Prefect's server for one command: ``python -m flows.temporary_server PORT``.

It ends when its standard input does: with the command that started it, however that one ends.
Prefect's own temporary server lives on for ever when the command is killed.
"""

import os
import signal
import subprocess
import sys
import threading

from rlhf_core.adapters.settings import child_environment

MARKS = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}
"""What Prefect itself tells its temporary server."""
STOP_SECONDS = 10.0


def end_with_this_process() -> None:
    """Let temporary servers that Prefect starts from here end with this process."""
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import get_current_settings

    def start(server: SubprocessASGIServer) -> "subprocess.Popen[bytes]":
        settings = get_current_settings()
        return subprocess.Popen(
            [sys.executable, "-m", "flows.temporary_server", str(server.port)],
            stdin=subprocess.PIPE,
            env=child_environment() | MARKS | settings.to_environment_variables(exclude_unset=True),
        )

    SubprocessASGIServer._run_uvicorn_command = start  # type: ignore[method-assign,assignment]


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
    last_resort = threading.Timer(STOP_SECONDS, os._exit, args=(1,))
    last_resort.daemon = True
    last_resort.start()


def main(port: int) -> None:
    """Serve until told to stop or left alone."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    import uvicorn

    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=port,
        log_level="error",
        lifespan="on",
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
