"""How many processes train: it decides nothing of a run, and is refused where it cannot be."""

import pytest

from rlhf_core.config import GATED_STAGES, config_digest, load_config
from rlhf_core.errors import ConfigError
from tests.config.test_load import MINIMAL


@pytest.fixture
def minimal(tmp_path):
    path = tmp_path / "minimal.yaml"
    path.write_text(MINIMAL)
    return path


def test_how_many_processes_train_decides_nothing_of_a_run(minimal):
    plain = load_config(minimal)
    changes = {"distributed.processes": "2", "policy.distributed": "{processes: 4, shard: layers}"}
    several = load_config(minimal, changes)
    assert config_digest(several) == config_digest(plain)
    found = [several.distributed_of(stage).processes for stage in GATED_STAGES]
    assert found == [2, 2, 2, 4]
    found = [several.distributed_of(stage).shard for stage in GATED_STAGES]
    assert found == ["none", "none", "none", "layers"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"distributed.processes": "0"}, "distributed.processes: .* greater than or equal to 1"),
        ({"distributed.shard": "halves"}, "distributed.shard: Input should be"),
        ({"sft.distributed.procs": "2"}, "sft.distributed.procs: no such setting"),
        (
            {"distributed.processes": "3", "distributed.nnodes": "2"},
            "distributed.processes is 3, of all nodes together, and distributed.nnodes 2",
        ),
        (
            {"distributed.nnodes": "2", "distributed.processes": "2", "distributed.node_rank": "2"},
            "distributed.node_rank is 2, but nodes count from 0 to 1",
        ),
        ({"distributed.rdzv_endpoint": "host"}, "distributed.rdzv_endpoint: "),
        ({"distributed.rdzv_timeout": "0"}, "distributed.rdzv_timeout: "),
        (
            {"distributed.processes": "20"},
            "distributed.processes is 20 for policy, whose batches have 16 rows",
        ),
    ],
)
def test_processes_that_cannot_be_are_refused_in_one_line(minimal, changes, says):
    with pytest.raises(ConfigError, match=says):
        load_config(minimal, changes)
