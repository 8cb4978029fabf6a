from pathlib import Path

import pytest
import yaml

from rlhf_core.errors import ConfigError
from rlhf_flows.servers.pools import read_pools

SHIPPED = Path(__file__).parents[2] / "prefect.yaml"


@pytest.fixture
def changed(tmp_path):
    """The shipped file with some definitions changed."""

    def write(**definitions):
        content = yaml.safe_load(SHIPPED.read_text())
        content["definitions"] |= definitions
        path = tmp_path / "prefect.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def test_the_shipped_pools_leave_room_for_the_stage_a_pipeline_waits_for():
    pools = read_pools(SHIPPED)
    assert pools.limits == {"rlhf": 3, "rlhf-training": 1}
    assert pools.pipeline_queue == "pipelines"
    assert "flows/stages.py:sft_stage sft" in pools.deployments


def test_the_training_pool_has_the_name_the_file_gives_it(changed):
    pools = read_pools(changed(training={"name": "gpu"}))
    assert pools.limits == {"rlhf": 3, "gpu": 1}


def test_two_roles_in_one_pool_add_up(changed):
    assert read_pools(changed(training={"name": "rlhf"})).limits == {"rlhf": 4}


@pytest.mark.parametrize(
    ("definitions", "message"),
    [
        ({"limits": {"orchestration": 1, "training": 1}}, "greater than or equal to 2"),
        ({"limits": {"orchestration": 3}}, "training"),
        ({"pipelines": {"name": "other", "work_queue_name": "pipelines"}}, "pool of orchestration"),
        ({"training": None}, "definitions"),
    ],
)
def test_a_file_that_would_deadlock_or_says_too_little_is_refused(changed, definitions, message):
    with pytest.raises(ConfigError, match=message):
        read_pools(changed(**definitions))
