"""A real Prefect server with real workers, as `rlhf up` starts them, in a folder of its own."""

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from rlhf_flows.servers.processes import kept_in
from rlhf_flows.servers.servers import STATE, Servers
from tests.forked import Forked

ROOT = Path(__file__).parents[2]
RLHF = Path(sys.executable).with_name("rlhf")
FAKES = Path(__file__).parent / "fake_site"
CONFIG = """
model: {base: base}
data: {preferences: {path: raw.jsonl}}
policy: {algorithm: ppo}
promotion: {approval: person, wait_hours: 24}
gates:
  sft: [{metric: sft/heldout_nll, at_most: 2.0}]
  reward: [{metric: reward/heldout_accuracy, at_least: 0.6}]
  policy: [{metric: policy/win_rate, at_least: 0.55}]
"""
SETTINGS = {"file": "config.yaml"}
EVERY_STAGE = ["prepare", "sft", "reward", "judge", "policy", "evaluate", "promote"]
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
PATIENCE_SECONDS = 600
"""Nothing is asserted about speed: the machine may be busy with anything."""


def until(condition, what, seconds=PATIENCE_SECONDS):
    """Ask again and again, ever less often; return the first answer that is not empty."""
    deadline, pause = time.monotonic() + seconds, 0.2
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer
        time.sleep(pause)
        pause = min(1.0, 1.3 * pause)
    raise AssertionError(f"never: {what() if callable(what) else what}")


@dataclass
class Served:
    """The folder, its servers, and what a person does in the Prefect UI."""

    path: Path
    environment: dict[str, str]
    forked: Forked | None = None
    """What runs commands, where they are not started by Python."""

    @classmethod
    def prepare(cls, path, *, fake_stages=True, training_pool=None, engine=None, **variables):
        """Make the folder: the project's flows and settings, everything else its own.

        Workers start runs by ``engine``, an executable, and not by Python anew where it is given.
        """
        path.mkdir(parents=True)
        for name in ("flows", "rlhf_flows", "configs"):
            (path / name).symlink_to(ROOT / name)
        shipped = (ROOT / "prefect.yaml").read_text()
        if training_pool:
            shipped = shipped.replace("{name: rlhf-training}", f"{{name: {training_pool}}}")
        if engine:
            command = f"job_variables: {{command: {engine}}}"
            shipped, count = re.subn(r"&(\w+) {name: ([\w-]+)", rf"\g<0>, {command}", shipped)
            assert count == 3, "of orchestration, pipelines and training"
        (path / "prefect.yaml").write_text(shipped)
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MLFLOW_", "PREFECT_", "RLHF_"))
        }
        sources = [FAKES, ROOT] if fake_stages else [ROOT]
        environment["PYTHONPATH"] = os.pathsep.join(map(str, sources))
        return cls(path, environment | variables)

    @contextmanager
    def running(self):
        """Have the servers until the block ends, however it does."""
        try:
            self.up()
            yield self
        finally:
            self.down()

    def up(self):
        self.rlhf("up", "--prefect-port", "0", "--mlflow-port", "0")

    def down(self):
        """Stop everything; nothing that was started from here may be left."""
        self.rlhf("down")
        assert kept_in(str(self.path / STATE)) == []

    def rlhf(self, *arguments, check=0, **variables):
        place = {"cwd": self.path, "env": self.environment | variables}
        if self.forked:
            done = self.forked.run("rlhf", *arguments, **place)
        else:
            done = subprocess.run([RLHF, *arguments], capture_output=True, text=True, **place)
        assert done.returncode == check, f"{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout

    @property
    def servers(self):
        return Servers.model_validate_json((self.path / ".rlhf/servers.json").read_text())

    @property
    def api(self):
        return f"{self.servers.prefect_url}/api"

    def log_texts(self):
        """All logs of servers and workers, by name."""
        found = sorted((self.path / ".rlhf/logs").glob("*.log"))
        return {log.name: log.read_text(errors="replace") for log in found}

    def logs(self):
        """The last lines of all logs, to be shown where something went wrong."""
        return "\n".join(f"== {name}\n{text[-4000:]}" for name, text in self.log_texts().items())

    def ask(self, method, path, body=None):
        """Call the API; a 503 is repeated, as Prefect's own clients do."""

        def answered():
            headers = self._token() if method != "GET" else {}
            answer = requests.request(
                method, f"{self.api}/{path}", json=body, headers=headers, timeout=300
            )
            return None if answer.status_code == 503 else answer

        answer = until(answered, lambda: f"{path} without 503\n{self.logs()}")
        assert answer.ok, answer.text
        return answer.json() if answer.content else None

    def _token(self):
        """What the server's own page brings with everything that it changes."""
        asked = requests.get(f"{self.api}/csrf-token", params={"client": "page"}, timeout=300)
        token = asked.json()["token"] if asked.ok else ""
        return {"Prefect-Csrf-Client": "page", "Prefect-Csrf-Token": token}

    def is_answering(self):
        try:
            return requests.get(f"{self.api}/health", timeout=10).ok
        except requests.RequestException:
            return False

    def post(self, path, body):
        return self.ask("POST", path, body)

    def get(self, path):
        return self.ask("GET", path)

    def trigger(self, deployment, inputs=None, settings=None, **job_variables):
        """Press Run; returns the flow run's id."""
        found = self.get(f"deployments/name/{deployment}")
        parameters = {"settings": settings, "inputs": inputs or {}}
        body = {"parameters": parameters, "job_variables": job_variables}
        made = self.post(f"deployments/{found['id']}/create_flow_run", body)
        return made["id"]

    def retry(self, run):
        """Press Retry."""
        state = {"type": "SCHEDULED", "name": "AwaitingRetry"}
        assert self._set_state(run, state)["status"] == "ACCEPT"

    def cancel(self, run):
        """Press Cancel; a run without a process goes straight to the end."""
        self._set_state(run, {"type": "CANCELLING", "name": "Cancelling"})

    def _set_state(self, run, state):
        return self.post(f"flow_runs/{run}/set_state", {"state": state, "force": False})

    def finish_after_death(self, run):
        """Wait until the killed SFT run is marked, retry it, no longer slow, and see it through."""
        assert self.wait(run)["state"]["type"] == "CRASHED"
        (self.path / "slow-sft").unlink()
        self.calls()
        self.retry(run)
        assert self.wait(run)["state"]["type"] == "COMPLETED"
        assert self.calls().count("sft") == 1

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

        def arrived():
            found = self.run(run)
            if found["state"]["type"] in wanted:
                return found
            assert states == () or found["state"]["type"] not in FINAL, found["state"]
            return None

        return until(arrived, lambda: f"{wanted}, still {self.run(run)['state']}\n{self.logs()}")

    def wait_for_call(self, stage):
        """Wait until a worker is inside the stage."""
        until(lambda: stage in self.calls(), lambda: f"{stage} was called\n{self.logs()}")

    def process_of(self, run):
        """Process number of a flow run."""
        return int(self.run(run)["labels"]["rlhf.process"].rpartition(":")[2])

    def calls(self):
        """Stages that did their work since the last time somebody asked."""
        path, taken = self.path / "calls.txt", self.path / "calls-taken.txt"
        try:
            path.rename(taken)  # a line written meanwhile starts a new file
        except FileNotFoundError:
            return []
        return taken.read_text().split()
