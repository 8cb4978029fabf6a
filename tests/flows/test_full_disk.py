"""A disk that fills up under a run on servers: the run says so, and goes on once there is room.

Without servers ``test_faults.py`` has it, at every change.
"""

import pytest
from mlflow import MlflowClient

from rlhf_core.models.files import weights_sha256
from tests.disks import SmallDisk
from tests.flows.registered import check_runs
from tests.flows.served import Served
from tests.flows.tiny import CONFIG, make_tiny

pytestmark = [pytest.mark.nightly, pytest.mark.xdist_group("faults")]

ROOM_BYTES = 256 * 1024
"""Enough for settings and references, too little for a checkpoint."""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    made = Served.prepare(
        tmp_path_factory.mktemp("full") / "work", fake_stages=False, OMP_NUM_THREADS="1"
    )
    make_tiny(made.path)
    made.disk = SmallDisk(made.path / "runs")
    try:
        with made.running():
            yield made
    finally:
        made.disk.take_away()


def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(served, undisturbed):
    runs = served.path / "runs"
    with served.disk.with_room(ROOM_BYTES):
        run = served.trigger("rlhf-sft/sft", settings={"file": CONFIG})
        state = served.wait(run)["state"]
    assert state["type"] == "FAILED", served.logs()
    assert "No space left on device" in state["message"]
    assert "make room" in state["message"]
    name = served.run(run)["name"].split()[1]
    assert not [path for path in (runs / name).rglob("*") if path.suffix in (".tmp", ".old")]

    served.retry(run)
    assert served.wait(run)["state"]["type"] == "COMPLETED", served.logs()
    assert weights_sha256(runs / name / "sft/model") == undisturbed.weights("run-1")["sft"]
    client = MlflowClient(served.servers.mlflow_url, served.servers.mlflow_url)
    (version,) = client.search_model_versions("name='rlhf-sft'")
    assert version.status == "READY"
    check_runs(client)
