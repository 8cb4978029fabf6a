"""Several commands that are the first in a folder, all at the same moment."""

import os

import pytest

from rlhf_core.adapters.tracking.earlier_run import experiment_id
from rlhf_core.adapters.tracking.mlflow_client import create_unless_there, mlflow_client
from tests.releases import in_child

NUM_PROCESSES = 5


def be_first(starts, lets_go, says):
    """Wait for the moment at which all begin, then say the experiment's number."""
    os.close(lets_go)
    os.read(starts, 1)
    number = experiment_id("rlhf")
    create_unless_there(lambda: mlflow_client().create_registered_model("rlhf-sft"))
    os.write(says, f"{number}\n".encode())


@pytest.mark.slow
def test_tables_experiment_and_model_are_made_once_by_many(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    starts, lets_go = os.pipe()
    heard, says = os.pipe()
    children = [in_child(be_first, starts, lets_go, says) for _ in range(NUM_PROCESSES)]
    for end in (starts, lets_go, says):
        os.close(end)
    for child in children:
        child.join()
    with open(heard) as stream:
        said = stream.read().split()
    assert [child.exitcode for child in children] == [0] * NUM_PROCESSES
    assert len(said) == NUM_PROCESSES
    assert len(set(said)) == 1, said
