"""A real Prefect server with real workers, as `rlhf up` starts them, in a folder of its own."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import requests

from flows.servers import Servers

ROOT = Path(__file__).parents[2]
RLHF = Path(sys.executable).with_name("rlhf")
FAKES = Path(__file__).parent / "fake_site"
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
PATIENCE_SECONDS = 300


@dataclass
class Served:
    """The folder, its servers, and what a person does in the Prefect UI."""

    path: Path
    environment: dict[str, str]

    @classmethod
    def prepare(cls, path, *, fake_stages=True, **variables):
        """Make the folder: the project's flows and settings, everything else its own."""
        path.mkdir(parents=True)
        for name in ("flows", "prefect.yaml", "configs"):
            (path / name).symlink_to(ROOT / name)
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MLFLOW_", "PREFECT_", "RLHF_"))
        }
        if fake_stages:
            environment["PYTHONPATH"] = str(FAKES)
        return cls(path, environment | variables)

    def rlhf(self, *arguments, check=0):
        done = subprocess.run(
            [str(RLHF), *arguments],
            cwd=self.path,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == check, f"{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout

    @property
    def servers(self):
        return Servers.model_validate_json((self.path / ".rlhf/servers.json").read_text())

    @property
    def api(self):
        return f"{self.servers.prefect_url}/api"

    def logs(self):
        """All logs of servers and workers."""
        found = sorted((self.path / ".rlhf/logs").glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text()[-4000:]}" for log in found)

    def post(self, path, body):
        answer = requests.post(f"{self.api}/{path}", json=body, timeout=30)
        assert answer.ok, answer.text
        return answer.json() if answer.content else None

    def get(self, path):
        answer = requests.get(f"{self.api}/{path}", timeout=30)
        assert answer.ok, answer.text
        return answer.json()

    def trigger(self, deployment, inputs=None, settings=None):
        """Press Run; returns the flow run's id."""
        found = self.get(f"deployments/name/{deployment}")
        parameters = {"settings": settings, "inputs": inputs or {}}
        made = self.post(f"deployments/{found['id']}/create_flow_run", {"parameters": parameters})
        return made["id"]

    def retry(self, run):
        """Press Retry."""
        state = {"type": "SCHEDULED", "name": "AwaitingRetry"}
        answer = self.post(f"flow_runs/{run}/set_state", {"state": state, "force": True})
        assert answer["status"] == "ACCEPT"

    def resume(self, run, **answer):
        """Press Resume with the form filled in."""
        return self.post(f"flow_runs/{run}/resume", {"run_input": answer})

    def run(self, run):
        return self.get(f"flow_runs/{run}")

    def runs(self, flow, **state):
        """Flow runs of one flow, oldest first."""
        body = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_ASC"}
        return self.post("flow_runs/filter", body)

    def wait(self, run, *states):
        """Wait until the run is in one of the states (types), final ones by default."""
        wanted = states or FINAL
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            found = self.run(run)
            if found["state"]["type"] in wanted:
                return found
            assert states == () or found["state"]["type"] not in FINAL, found["state"]
            time.sleep(0.5)
        raise AssertionError(f"still {found['state']}\n{self.logs()}")

    def process_of(self, run):
        """Process number of a flow run."""
        return int(self.run(run)["labels"]["rlhf.process"].rpartition(":")[2])

    def calls(self):
        """Stages that did their work since the last time somebody asked."""
        path = self.path / "calls.txt"
        called = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return called
