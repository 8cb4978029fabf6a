"""Several commands that are the first in a folder, all at the same moment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NUM_PROCESSES = 5
COMMANDS = f"""
import os, sys
import mlflow
from rlhf_core.adapters.earlier_run import experiment_id
from rlhf_core.adapters.mlflow_client import create_unless_there, mlflow_client
starts, lets_go = os.pipe()
for _ in range({NUM_PROCESSES}):
    if not os.fork():
        os.close(lets_go)
        os.read(starts, 1)
        number = experiment_id("rlhf")
        create_unless_there(lambda: mlflow_client().create_registered_model("rlhf-sft"))
        os.write(1, f"{{number}}\\n".encode())
        os._exit(0)
os.close(lets_go)
sys.exit(any([os.wait()[1] for _ in range({NUM_PROCESSES})]))
"""
"""One process imports MLflow, which takes seconds; the others are forks of it."""


@pytest.mark.slow
def test_tables_experiment_and_model_are_made_once_by_many(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.split()
    assert len(said) == NUM_PROCESSES
    assert len(set(said)) == 1, said
