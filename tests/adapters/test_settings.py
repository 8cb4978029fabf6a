import os

import pytest

from rlhf_core.adapters.settings import (
    ENVIRONMENT_DEFAULTS,
    PATIENT_THREADS,
    load_settings,
    set_environment_defaults,
)
from rlhf_core.errors import ConfigError


def test_telemetry_is_off_unless_a_person_says_otherwise(monkeypatch):
    for name in ENVIRONMENT_DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GX_ANALYTICS_ENABLED", "true")
    variables = set_environment_defaults()
    assert variables["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["DO_NOT_TRACK"] == "true"
    assert variables["GX_ANALYTICS_ENABLED"] == "true"


@pytest.mark.parametrize(
    ("chosen", "then"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
    ],
)
def test_waiting_threads_give_their_core_up_unless_a_person_says_otherwise(
    monkeypatch, chosen, then
):
    for name in PATIENT_THREADS:
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    set_environment_defaults()
    found = {name: os.environ[name] for name in PATIENT_THREADS if name in os.environ}
    for name in PATIENT_THREADS:
        monkeypatch.delenv(name, raising=False)
    assert found == then


def test_settings_are_read_when_asked_and_not_on_import(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert load_settings().mlflow_tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert load_settings().embedded
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert not load_settings().embedded


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("RLHF_TRACKING_PATIENCE", "five", "a valid number"),
        ("RLHF_TRACKING_PATIENCE", "-17", "greater than 0"),
        ("RLHF_SHARE_CHECKPOINTS", "ja", "a valid boolean"),
    ],
)
def test_a_variable_that_cannot_be_read_is_named_without_its_value(
    monkeypatch, name, value, expected
):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^environment: {name}: .*{expected}") as refused:
        load_settings()
    assert value not in str(refused.value)
