"""Several commands that are the first in a folder, all at the same moment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = """
import sys
from types import SimpleNamespace
import mlflow
from rlhf_core.adapters.earlier_run import experiment_id
from rlhf_core.adapters.mlflow_client import create_unless_there, mlflow_client
print("ready", flush=True)
sys.stdin.readline()
number = experiment_id("rlhf")
create_unless_there(lambda: mlflow_client().create_registered_model("rlhf-sft"))
print(number)
"""


@pytest.mark.slow
def test_tables_experiment_and_model_are_made_once_by_many(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND], cwd=tmp_path, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(5)
    ]  # fmt: skip
    for command in commands:
        assert command.stdout.readline() == "ready\n", command.communicate()
    for command in commands:
        command.stdin.write("\n")
        command.stdin.flush()
    ends = [command.communicate() for command in commands]
    assert [command.returncode for command in commands] == [0] * 5, ends
    assert len({said for said, _ in ends}) == 1, ends
