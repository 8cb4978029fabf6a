import pytest
from pydantic import ValidationError

from flows.run_settings import RunSettings, SettingChanges
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import ConfigError


def changed(config_path, **changes):
    return RunSettings.model_validate({"file": config_path, "changes": changes}).load()


def test_what_is_left_empty_stays_as_the_file_says(config_path):
    plain = RunSettings(file=config_path).load()
    assert changed(config_path) == plain
    assert changed(config_path, seed=7) == plain.model_copy(update={"seed": 7})


def test_a_change_reaches_a_nested_setting(config_path):
    config = changed(config_path, policy={"kl_coef": 0.25}, sft={"num_epochs": 3})
    assert config.policy.kl_coef == 0.25
    assert config.sft.num_epochs == 3


def test_a_list_can_be_changed(config_path):
    gates = [{"metric": "sft/heldout_nll", "at_most": 1.5}]
    assert changed(config_path, gates={"sft": gates}).gates.sft[0].at_most == 1.5


def test_short_overrides_win_over_the_form(config_path):
    settings = RunSettings.model_validate(
        {"file": config_path, "changes": {"seed": 1}, "overrides": ["seed=2"]}
    )
    assert settings.load().seed == 2


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"sed": 1}, {"policy": {"kl_coef": -0.1}}])
def test_limits_and_names_are_enforced_when_the_form_is_sent(config_path, wrong):
    with pytest.raises(ValidationError):
        changed(config_path, **wrong)


def test_an_override_without_value_is_refused(config_path):
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        RunSettings(file=config_path, overrides=("seed",)).load()


def test_the_form_can_say_everything_the_settings_can():
    assert set(SettingChanges.model_fields) == set(PipelineConfig.model_fields)


def test_descriptions_name_the_limits():
    schema = RunSettings.model_json_schema()["$defs"]
    assert "(at least 0)" in schema["PipelineChanges"]["properties"]["seed"]["description"]
    learning_rate = schema["OptimizerChanges"]["properties"]["learning_rate"]
    assert "more than 0" in learning_rate["description"]
