"""Servers of other makers as one fork each: MLflow's with its uvicorn, and moto's object store.

Started anew, MLflow's takes ten seconds of a processor: its command imports MLflow, and so does the
uvicorn that it starts. Here the same command runs in a fork of what has imported both, and its
uvicorn in the same process.
"""

import os
import sys
import time

import requests

from rlhf_core.adapters.settings import set_environment_defaults
from tests.team import free_port

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
            self.process = self.forked.begin(*command, cwd=self.folder, env=environment, log=log)
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
