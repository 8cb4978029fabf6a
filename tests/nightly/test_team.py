"""A whole night on a team's own servers: PostgreSQL, S3, MLflow with users, two machines.

The machines are two clones at two paths that share no folder: what one makes reaches the other by
MLflow, or is made again from its own raw data.
"""

import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import requests

from tests.flows.served import FINAL, until
from tests.flows.test_served_postgres import postgres  # noqa: F401 - a fixture
from tests.flows.tiny import CONFIG, TRAINED, make_tiny
from tests.postgres import needs_postgres
from tests.team import (
    ADMIN,
    Authority,
    answers,
    free_port,
    mlflow_with_users,
    object_store,
    running,
)

ROOT = Path(__file__).parents[2]
LOGIN = ("team", "Team-of-the-test-1")
NIGHT_SECONDS = 6 * 3600
"""Nothing is asserted about speed."""
FRONT_DOOR = "from rlhf_flows.commands.cli import main; main()"

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.xdist_group("team"),
    needs_postgres,
]


class Machine:
    """A clone with its own code, data and folders, and the team's addresses in its environment."""

    def __init__(self, path, addresses):
        path.mkdir(parents=True)
        for name in ("rlhf_flows", "rlhf_core"):
            shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "prefect.yaml", path)
        make_tiny(path)
        (path / ".rlhf").mkdir()
        self.path = path
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MLFLOW_", "PREFECT_", "RLHF_", "AWS_"))
        }
        own = {"PYTHONPATH": str(path), "PREFECT_HOME": str(path / ".rlhf/prefect")}
        self.environment = kept | addresses | own

    def rlhf(self, *arguments, check=0, **variables):
        done = subprocess.run(
            [sys.executable, "-c", FRONT_DOOR, *arguments],
            cwd=self.path,
            env=self.environment | variables,
            capture_output=True,
            text=True,
        )
        assert check in (None, done.returncode), f"{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def worker(self, pool, **variables):
        """A worker of the pool until the block ends, started as the documents say."""
        command = [sys.executable, "-m", "rlhf_flows.servers.patched_prefect", "worker", "start"]
        return running(
            [*command, "--pool", pool, "--limit", "3", "--name", f"{self.path.name}@{pool}"],
            self.path,
            f"worker-{pool}",
            lambda: True,
            environment=self.environment | variables,
        )

    def logs(self):
        return "\n".join(path.read_text()[-20000:] for path in self.path.glob("worker-*.log"))


class Team:
    """The servers, and what a person does in Prefect's pages."""

    def __init__(self, api, addresses):
        self.api, self.addresses = api, addresses

    def ask(self, method, path, body=None):
        token = {}
        if method != "GET":
            asked = requests.get(
                f"{self.api}/csrf-token", params={"client": "page"}, auth=LOGIN, timeout=300
            )
            if asked.ok:
                token = {
                    "Prefect-Csrf-Client": "page",
                    "Prefect-Csrf-Token": asked.json()["token"],
                }
        answer = requests.request(
            method, f"{self.api}/{path}", json=body, headers=token, auth=LOGIN, timeout=300
        )
        assert answer.ok, answer.text
        return answer.json()

    def start(self, deployment, inputs, settings):
        found = self.ask("GET", f"deployments/name/{deployment}")
        body = {"parameters": {"settings": settings, "inputs": inputs}}
        return self.ask("POST", f"deployments/{found['id']}/create_flow_run", body)["id"]

    def wait(self, run, machines, states=FINAL):
        def arrived():
            state = self.ask("GET", f"flow_runs/{run}")["state"]
            return state if state["type"] in states else None

        def logs():
            return "\n".join(machine.logs() for machine in machines)

        return until(arrived, logs, seconds=NIGHT_SECONDS)


@pytest.fixture(scope="module")
def team(tmp_path_factory, postgres):  # noqa: F811 - the fixture
    folder = tmp_path_factory.mktemp("servers")
    keys = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with ExitStack() as servers:
        store = servers.enter_context(object_store(folder))
        authority = Authority(folder)
        files = ("--no-serve-artifacts", "--default-artifact-root", "s3://artifacts/mlflow")
        database = {"MLFLOW_BACKEND_STORE_URI": f"postgresql://{postgres}/mlflow"}
        mlflow = servers.enter_context(
            mlflow_with_users(
                folder, authority, *files, **database, **keys, MLFLOW_S3_ENDPOINT_URL=store
            )
        )
        port = free_port()
        prefect = [sys.executable, "-m", "rlhf_flows.servers.patched_prefect", "server", "start"]
        servers.enter_context(
            running(
                [*prefect, "--host", "127.0.0.1", "--port", str(port)],
                folder,
                "prefect",
                answers(f"http://127.0.0.1:{port}/api/health"),
                PYTHONPATH=str(ROOT),
                PREFECT_HOME=str(folder / "prefect"),
                PREFECT_SERVER_API_AUTH_STRING=":".join(LOGIN),
                PREFECT_SERVER_DATABASE_CONNECTION_URL=f"postgresql+asyncpg://{postgres}/prefect",
            )
        )
        api = f"http://127.0.0.1:{port}/api"
        addresses = {
            "PREFECT_API_URL": api,
            "PREFECT_API_AUTH_STRING": ":".join(LOGIN),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_LOGGING_LEVEL": "INFO",
            "MLFLOW_TRACKING_URI": mlflow,
            "MLFLOW_TRACKING_USERNAME": ADMIN[0],
            "MLFLOW_TRACKING_PASSWORD": ADMIN[1],
            "MLFLOW_TRACKING_SERVER_CERT_PATH": str(authority.file),
            "MLFLOW_S3_ENDPOINT_URL": store,
            **keys,
        }
        yield Team(api, addresses)


@pytest.fixture(scope="module")
def machines(team, tmp_path_factory):
    """One that runs pipelines, one that trains; everything deployed from the first."""
    place = tmp_path_factory.mktemp("machines")
    first = Machine(place / "a" / "rlhf", team.addresses)
    second = Machine(place / "another" / "place" / "clone", team.addresses)
    first.rlhf("deploy", "--watch-heartbeats")
    return first, second


@pytest.fixture(scope="module")
def night(team, machines):
    """The run of a whole pipeline that both machines worked on."""
    first, second = machines
    with first.worker("rlhf"), second.worker("rlhf-training"):
        run = team.start("rlhf-pipeline/manual", {"run": "night"}, {"file": CONFIG})
        state = team.wait(run, machines)
    assert state["type"] == "COMPLETED", f"{state}\n{first.logs()}\n{second.logs()}"
    return state


def test_a_night_ends_in_a_champion_although_the_machines_share_no_folder(night, machines, team):
    first, second = machines
    assert night["name"] == "Completed", night
    assert not any((first.path / "runs/night" / stage / "model").exists() for stage in TRAINED)
    assert all((second.path / "runs/night" / stage / "model").is_dir() for stage in TRAINED)
    assert (first.path / "runs/night/report.html").is_file()
    assert "champion" in first.rlhf("lineage", "models:/rlhf-policy@champion")


def test_no_record_on_one_machine_names_the_other_ones_folders(night, machines):
    first, second = machines
    for mine, other in ((first, second), (second, first)):
        for path in (mine.path / "runs").rglob("result.json"):
            assert str(other.path) not in path.read_text(), path


def test_passwords_are_in_no_folder_and_no_log(night, machines):
    for machine in machines:
        for path in machine.path.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert ADMIN[1].encode() not in content, path
                assert LOGIN[1].encode() not in content, path


def test_passwords_are_in_no_database(night, postgres):  # noqa: F811 - the fixture
    for name, holds in (("mlflow", "rlhf-policy"), ("prefect", "rlhf-pipeline")):
        text = postgres.dump(name)
        assert holds in text
        for password in (ADMIN[1], LOGIN[1]):
            assert password not in text, name


def test_the_doctor_is_content_on_both_and_names_a_wrong_password(machines, team):
    first, second = machines
    with first.worker("rlhf"), second.worker("rlhf-training"):
        until(lambda: "no worker listens" not in first.rlhf("doctor", check=None), "workers")
        first.rlhf("doctor"), second.rlhf("doctor")
        assert "401" in second.rlhf("doctor", check=2, MLFLOW_TRACKING_PASSWORD="WRONG")


def test_a_worker_of_other_code_is_refused_in_one_line(team, machines):
    _, second = machines
    changed = second.path / "rlhf_core" / "errors.py"
    content = changed.read_text()
    changed.write_text(f"{content}\n# another version\n")
    try:
        with second.worker("rlhf-training"):
            run = team.start("rlhf-sft/sft", {}, {"file": CONFIG})
            state = team.wait(run, machines)
    finally:
        changed.write_text(content)
    assert state["type"] == "FAILED", state
    assert "this worker runs other code" in state["message"]
    assert "\n" not in state["message"]


LONG = ["sft.num_epochs=100", "sft.checkpoint_every=20"]
"""Long enough to be interrupted, with checkpoints on the way."""


def test_a_restart_of_both_databases_in_the_middle_of_a_run_is_waited_for(
    team,
    machines,
    postgres,  # noqa: F811 - the fixture
):
    first, second = machines
    with first.worker("rlhf"), second.worker("rlhf-training"):
        settings = {"file": CONFIG, "overrides": LONG}
        run = team.start("rlhf-pipeline/manual", {"run": "outage"}, settings)
        checkpoints = second.path / "runs/outage/sft/checkpoints"
        until(lambda: any(checkpoints.glob("step-*")), "training has begun")
        with postgres.away():
            time.sleep(20)
        state = team.wait(run, machines)
    assert state["type"] == "COMPLETED", f"{state}\n{first.logs()}\n{second.logs()}"


def test_a_third_machine_goes_on_from_the_last_checkpoint_of_one_that_is_gone(
    team, machines, tmp_path
):
    first, second = machines
    third = Machine(tmp_path / "third", team.addresses)
    share = {"RLHF_SHARE_CHECKPOINTS": "true"}
    settings = {"file": CONFIG, "overrides": LONG}
    with first.worker("rlhf"):
        with second.worker("rlhf-training", **share) as worker:
            run = team.start("rlhf-pipeline/manual", {"run": "moved"}, settings)
            checkpoints = second.path / "runs/moved/sft/checkpoints"
            until(lambda: len(list(checkpoints.glob("step-*"))) > 1, "checkpoints were written")
            pull_the_plug(worker)
        assert team.wait(run, machines)["type"] == "FAILED", "no heartbeat, so it is crashed"
        with third.worker("rlhf-training", **share):
            team.ask(
                "POST",
                f"flow_runs/{run}/set_state",
                {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": False},
            )
            until(
                lambda: team.ask("GET", f"flow_runs/{run}")["state"]["type"] not in FINAL,
                "the retry begins",
            )
            state = team.wait(run, [first, third])
    assert state["type"] == "COMPLETED", f"{state}\n{first.logs()}\n{third.logs()}"
    assert "checkpoint_restored" in third.logs()


def pull_the_plug(worker):
    """Kill a worker and all it has started, with no word to anybody."""
    family = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
    for process in family:
        process.kill()
    psutil.wait_procs(family)
