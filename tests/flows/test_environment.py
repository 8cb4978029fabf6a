import os

import pytest

from rlhf_core.errors import ConfigError
from rlhf_flows.engine.environment import (
    HEARTBEAT_VARIABLE,
    RELIED_ON,
    SILENT_SECONDS,
    WORKER_FOLDER,
    prepare_service,
    rely_on,
    worker_folder,
)


@pytest.fixture
def unset(monkeypatch):
    for name in (*RELIED_ON, WORKER_FOLDER, "PREFECT_LOGGING_SETTINGS_PATH"):
        monkeypatch.setenv(name, "")
    return monkeypatch


def test_what_the_product_relies_on_is_set_by_whatever_starts(unset):
    rely_on()
    assert {name: os.environ[name] for name in RELIED_ON} == RELIED_ON


@pytest.mark.parametrize("value", ["180", str(SILENT_SECONDS), "0", "-1", "often"])
def test_heartbeats_by_which_live_runs_would_be_taken_for_dead_are_refused(unset, value):
    unset.setenv(HEARTBEAT_VARIABLE, value)
    with pytest.raises(ConfigError, match=f"{HEARTBEAT_VARIABLE}={value}: .*unset it"):
        rely_on()


def test_more_frequent_heartbeats_are_left_as_they_are(unset):
    unset.setenv(HEARTBEAT_VARIABLE, "10")
    rely_on()
    assert os.environ[HEARTBEAT_VARIABLE] == "10"


def test_a_run_works_where_its_worker_was_started(unset, tmp_path):
    unset.chdir(tmp_path)
    prepare_service()
    unset.chdir("/")
    assert worker_folder() == tmp_path
