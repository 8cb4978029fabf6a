"""Servers of other makers as one fork each: MLflow's with its uvicorn, and moto's object store.

Started anew, MLflow's takes ten seconds of a processor: its command imports MLflow, and so does the
uvicorn that it starts. Here the same command runs in a fork of what has imported both, and its
uvicorn in the same process.
"""

import os
import select
import signal
import socket
import sys
import time

import requests

from rlhf_core.adapters.settings import set_environment_defaults
from tests.forked import ask

USERS = "mlflow.server.auth"
APPLICATIONS = ("mlflow.server", "mlflow.server.fastapi_app", USERS)
"""Modules that read the environment when they are imported."""


def load():
    """Import what they import."""
    import mlflow.cli
    import mlflow.server.auth
    import mlflow.server.fastapi_app
    import moto.s3.urls
    import moto.server

    return mlflow, moto


def serve(tool):
    """Be ``mlflow server ...`` or ``moto.server ...``."""
    serve_mlflow() if tool == "mlflow" else serve_objects()


def serve_mlflow():
    """Be ``mlflow server ...``."""
    import mlflow.cli
    import mlflow.server
    import uvicorn.main

    def here(command, extra_env, **_):
        """Run ``python -m uvicorn ...``, which is to import the applications itself."""
        os.environ.update(extra_env)
        for name in APPLICATIONS:
            sys.modules.pop(name, None)
        uvicorn.main.main(command[3:])

    del sys.modules[USERS]

    mlflow.server._exec_cmd = here
    mlflow.cli.cli(sys.argv[1:])


def serve_objects():
    """Be ``moto.server ...``."""
    from moto.server import main

    main(sys.argv[1:])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A fork that serves, and is killed with the process that began it: a ``subprocess.Popen``.

    Args:
        forked: what has imported them.
        arguments: ``mlflow``, ``server`` or ``moto.server``, and what follows.
        cwd, env, log: where it runs, all its variables, and the stream of what it prints.
    """

    def __init__(self, forked, *arguments, cwd, env, log):
        request = {"arguments": list(map(str, arguments)), "folder": str(cwd)}
        link = forked.connect()
        with open(os.devnull) as nothing:
            streams = [nothing.fileno(), log.fileno(), log.fileno()]
            ask(link, request | {"environment": dict(env)}, streams)
        self.link, self.answers = link, link.makefile("rb", buffering=0)
        self.pid = int(self.answers.readline())
        self.returncode = None

    def poll(self):
        if select.select([self.link], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self):
        if self.returncode is None:
            self.returncode = int(self.answers.readline())
            self.answers.close()
            self.link.close()
        return self.returncode

    def terminate(self):
        os.kill(self.pid, signal.SIGTERM)


class MlflowServer:
    """MLflow on a free port with a store of its own; can be stopped and started again."""

    def __init__(self, folder, forked, database=None):
        self.folder, self.forked = folder, forked
        self.database = database or f"sqlite:///{folder}/mlflow.db"
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        command = [
            "mlflow", "server", "--host", "127.0.0.1", "--port", self.port, "--workers", "1",
            "--backend-store-uri", self.database,
            "--artifacts-destination", self.folder / "artifacts",
        ]  # fmt: skip
        environment = {**os.environ, **set_environment_defaults()}
        with (self.folder / "server.log").open("ab") as log:
            self.process = Server(self.forked, *command, cwd=self.folder, env=environment, log=log)
        while self.process.poll() is None:
            try:
                if requests.get(f"{self.uri}/health", timeout=1).ok:
                    return
            except requests.RequestException:
                time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text()[-2000:])

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None
