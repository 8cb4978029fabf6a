import base64
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest

from rlhf_flows.commands import doctor
from rlhf_flows.commands.doctor_servers import check_prefect, check_supervisor
from rlhf_flows.engine.environment import HEARTBEAT_VARIABLE, RELIED_ON
from rlhf_flows.servers.pools import read_pools
from rlhf_flows.servers.processes import Process
from rlhf_flows.servers.servers import Servers, write_servers

ROOT = Path(__file__).parents[2]
SHIPPED = read_pools(ROOT / "prefect.yaml")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prefect.yaml").symlink_to(ROOT / "prefect.yaml")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return tmp_path


@pytest.fixture
def prefect(home, monkeypatch):
    """A Prefect server that is all right; a test takes something away from its answers."""
    deployments = [name.split(" ") for name in SHIPPED.deployments]
    answers = {
        "/api/automations/filter": [],
        "/api/work_pools/filter": [{"name": pool} for pool in SHIPPED.limits],
        "/api/deployments/filter": [{"entrypoint": e, "name": n} for e, n in deployments],
    }
    for pool in SHIPPED.limits:
        answers[f"/api/work_pools/{pool}/workers/filter"] = [{"name": "w", "status": "ONLINE"}]

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            body = json.dumps(answers.get(self.path)).encode()
            allowed = answers.get("login") in (None, self.headers.get("authorization"))
            self.send_response(401 if not allowed else 200 if self.path in answers else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
    yield answers
    server.shutdown()


def failing(findings):
    return {finding.what: finding.found for finding in findings if not finding.healthy}


def test_without_servers_there_is_nothing_to_mend(home):
    assert failing([*check_supervisor(), *check_prefect()]) == {}


def test_servers_workers_and_deployments_that_are_all_there_are_healthy(prefect):
    findings = list(check_prefect())
    assert failing(findings) == {}
    assert {finding.what for finding in findings} >= {"pool rlhf", "deployments"}


def test_a_pool_that_nobody_made_or_listens_to_is_named(prefect):
    prefect["/api/work_pools/filter"] = [{"name": "rlhf"}]
    prefect["/api/work_pools/rlhf/workers/filter"] = [{"name": "w", "status": "OFFLINE"}]
    assert failing(check_prefect()) == {
        "pool rlhf": "no worker listens",
        "pool rlhf-training": "it does not exist",
    }


def test_deployments_that_do_not_say_how_often_their_runs_speak_up_are_named(prefect):
    """The automation would take their runs for dead."""
    prefect["/api/automations/filter"] = [{"enabled": True, "trigger": {"within": 90}}]
    assert "not said" in failing(check_prefect())["heartbeats"]
    for deployment in prefect["/api/deployments/filter"]:
        deployment["job_variables"] = {"env": RELIED_ON}
    assert failing(check_prefect()) == {}
    prefect["/api/deployments/filter"][0]["job_variables"] = {"env": {HEARTBEAT_VARIABLE: "180"}}
    assert "180" in failing(check_prefect())["heartbeats"]


def test_a_missing_deployment_is_named(prefect):
    prefect["/api/deployments/filter"].pop(0)
    assert failing(check_prefect()) == {"deployments": f"missing: {SHIPPED.deployments[0]}"}


def test_a_prefect_server_that_does_not_answer_is_said_in_one_line(home, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    (finding,) = check_prefect()
    assert "cannot be reached" in finding.found
    assert "rlhf up" in finding.fix


def test_a_server_that_asks_for_a_password_gets_it_or_the_mend_names_the_variable(
    prefect, monkeypatch
):
    prefect["login"] = "Basic " + base64.b64encode(b"team:SECRET").decode()
    (refused,) = check_prefect()
    assert "401" in refused.found
    assert "PREFECT_API_AUTH_STRING" in refused.found
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "team:SECRET")
    assert failing(check_prefect()) == {}


def test_passwords_in_addresses_are_not_shown(prefect, home, monkeypatch):
    def shown():
        return " ".join(finding.found for finding in [*check_prefect(), *doctor._mlflow()])

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:SECRET@127.0.0.1:1")
    address = os.environ["PREFECT_API_URL"].replace("://", "://user:SECRET@")
    monkeypatch.setenv("PREFECT_API_URL", address)
    assert "SECRET" not in shown()
    prefect.pop("/api/work_pools/filter")
    assert "404" in shown()
    assert "SECRET" not in shown()
    monkeypatch.setenv("PREFECT_API_URL", "http://user:SECRET@127.0.0.1:1/api")
    assert "http://127.0.0.1:1/api cannot be reached" in shown()
    assert "SECRET" not in shown()


@pytest.fixture
def gone(home, monkeypatch):
    """Two packages that are not installed: one the project names, one that only the pins name."""
    version = metadata.version

    def find(name):
        if name in ("mlflow", "alembic"):
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", find)


def test_more_threads_than_cores_are_named(home, monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert "8" in failing(doctor._threads())["threads"]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert failing(doctor._threads()) == {}


@pytest.mark.parametrize("pinned", [True, False])
def test_a_required_package_that_is_missing_is_named(gone, home, pinned):
    """One of the pins may be missing: it belongs to something that not everybody installs."""
    if pinned:
        (home / "constraints.txt").symlink_to(ROOT / "constraints.txt")
    found = failing(doctor._packages())["packages"]
    assert "mlflow is missing" in found
    assert "alembic" not in found
    assert "moto" not in found


def test_a_package_that_is_not_as_pinned_is_named(home):
    (home / "constraints.txt").write_text("pyyaml==0.1\nno-such-package==1.0\n")
    assert "pyyaml" in failing(doctor._packages())["packages"]
    assert "no-such-package" not in failing(doctor._packages())["packages"]


def test_a_checkout_that_nobody_installed_is_named(home, monkeypatch):
    monkeypatch.setattr(doctor, "DISTRIBUTION", "no-such-project")
    assert failing(doctor._packages()) == {"packages": "no-such-project is missing"}


def test_settings_that_cannot_be_looked_at_for_a_missing_package_are_named(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "rlhf_core.stages.preflight", None)
    config = ROOT / "configs/demo.yaml"
    assert "preflight" in failing(doctor._settings(config))[f"settings {config}"]


def test_a_killed_supervisor_and_its_dead_child_are_named(home):
    gone = Process(pid=os.getpid(), started=1.0)
    alive = Process.of(os.getpid())
    children = {"prefect": alive, "worker-rlhf": gone}
    write_servers(Servers(prefect_port=1, mlflow_port=2, supervisor=gone, children=children))
    assert set(failing(check_supervisor())) == {"supervisor", "process worker-rlhf"}


def test_required_gates_and_looks_are_told(home):
    from rlhf_core.adapters.registry.required_gates import require_gates
    from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
    from rlhf_core.config import GateConfig, RequiredGates

    gate = GateConfig(metric="policy/win_rate", at_least=0.55)
    require_gates("rlhf", RequiredGates(policy=(gate,)), by="Ada")
    client = mlflow_client()
    client.create_registered_model("rlhf-looks")
    for number in range(18):
        tags = {"rlhf.question": f"q{number}", "rlhf.held_out": "h" * 64}
        client.create_model_version("rlhf-looks", source="file:///nowhere", tags=tags)
    found = {finding.what: finding for finding in doctor._mlflow()}
    required = found["required gates (rlhf)"]
    assert required.found.startswith("policy/win_rate at_least 0.55 (set by Ada, ")
    looks = found["held-out prompts (rlhf)"]
    assert not looks.healthy
    assert "look 18" in looks.found
    assert "of which most are new" in looks.fix


def test_the_project_is_the_one_that_the_folder_s_deployments_run(home):
    """Models of another than `rlhf` were not looked at: an alias moved by hand was no finding."""
    (home / "prefect.yaml").unlink()
    assert doctor._project(None) == "rlhf"
    shipped = (ROOT / "prefect.yaml").read_text(encoding="utf-8")
    (home / "prefect.yaml").write_text(shipped.replace("configs/demo.yaml", "own.yaml"))
    demo = ROOT / "configs/demo.yaml"
    (home / "own.yaml").write_text(f"extends: {demo}\nproject: town\n")
    assert doctor._project(None) == "town"
    (home / "other.yaml").write_text(f"extends: {demo}\nproject: other\n")
    assert doctor._project(home / "other.yaml") == "other"
    (home / "prefect.yaml").write_text("deployments: 3")
    assert doctor._project(None) == "rlhf"
