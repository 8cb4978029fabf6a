"""A team's servers: MLflow with users over https, an object store, a private authority."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import requests
import trustme

from rlhf_core.adapters.settings import set_environment_defaults
from tests.servers import Server, free_port

ADMIN = ("admin", "Admin-of-the-test-1")
BUCKETS = ("artifacts", "datasets")
START_SECONDS = 600


@contextmanager
def running(command, folder, name, healthy, environment=None, forked=None, **variables):
    """Run a server until the block ends; wait until ``healthy`` says so.

    Args:
        command: program and arguments.
        folder: where it runs, and where its log lies.
        name: of the log.
        healthy: asked again and again.
        environment: all its variables; None takes those of this process.
        forked: where it is to be a fork, whose start-up takes no seconds; None starts a process.
        variables: what it has besides.
    """
    env = {**(environment or os.environ), **set_environment_defaults(), **variables}
    with (folder / f"{name}.log").open("ab") as log:
        if forked is None:
            process = subprocess.Popen(
                command, cwd=folder, stdout=log, stderr=log, start_new_session=True, env=env
            )
        else:
            process = Server(forked, *command[2:], cwd=folder, env=env, log=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not healthy():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / f"{name}.log").read_text()[-2000:])
            time.sleep(0.2)
        yield process
    finally:
        if process.poll() is None:
            if forked is None:
                os.killpg(process.pid, signal.SIGTERM)
            else:
                process.terminate()
            process.wait()


def answers(url, **options):
    def ask():
        try:
            return requests.get(url, timeout=10, **options).status_code < 500
        except requests.RequestException:
            return False

    return ask


class Authority:
    """A private certificate authority, and what it gave a server on this machine."""

    def __init__(self, folder):
        made = trustme.CA()
        given = made.issue_cert("localhost", "127.0.0.1")
        self.file, self.key, self.chain = (
            folder / name for name in ("authority.pem", "server.key", "server.pem")
        )
        made.cert_pem.write_to_path(self.file)
        given.private_key_pem.write_to_path(self.key)
        for part in given.cert_chain_pems:
            part.write_to_path(self.chain, append=True)


@contextmanager
def object_store(folder, port=None, forked=None):
    """moto's server, with the buckets made; gives its address."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, folder, "s3", answers(url), forked=forked):
        for bucket in BUCKETS:
            requests.put(f"{url}/{bucket}", timeout=60).raise_for_status()
        yield url


@contextmanager
def mlflow_with_users(folder, authority, *arguments, forked=None, **environment):
    """MLflow's own basic-auth, by https; everybody may read, its admin may write.

    Args:
        folder: for its databases and log.
        authority: who signed its certificate.
        arguments: where it keeps files.
        forked: as for ``running``.
        environment: what it is started with besides.
    """
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{folder}/users.db\n"
        f"admin_username = {ADMIN[0]}\nadmin_password = {ADMIN[1]}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        # Else every request takes the tenth of a second that a password's hash is made to take.
        "auth_cache_ttl_seconds = 3600\n"
    )
    port = free_port()
    url = f"https://127.0.0.1:{port}"
    environment.setdefault("MLFLOW_BACKEND_STORE_URI", f"sqlite:///{folder}/mlflow.db")
    certificate = f"--ssl-keyfile {authority.key} --ssl-certfile {authority.chain}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1",
        "--host", "127.0.0.1", "--port", str(port), "--uvicorn-opts", certificate, *arguments,
    ]  # fmt: skip
    healthy = answers(f"{url}/health", verify=str(authority.file))
    with running(
        command,
        folder,
        "mlflow",
        healthy,
        forked=forked,
        MLFLOW_AUTH_CONFIG_PATH=str(folder / "auth.ini"),
        MLFLOW_FLASK_SERVER_SECRET_KEY="of the test",
        **environment,
    ):
        yield url


def add_user(url, authority, name, password):
    body = {"username": name, "password": password}
    requests.post(
        f"{url}/api/2.0/mlflow/users/create", json=body, auth=ADMIN, verify=str(authority.file),
        timeout=60,
    ).raise_for_status()  # fmt: skip


def permit(url, authority, name, user):
    """Give a user the permission EDIT on a registered model."""
    body = {
        "username": user,
        "resource_type": "registered_model",
        "resource_id": name,
        "permission": "EDIT",
    }
    requests.post(
        f"{url}/api/3.0/mlflow/users/permissions/grant", json=body, auth=ADMIN,
        verify=str(authority.file), timeout=60,
    ).raise_for_status()  # fmt: skip
