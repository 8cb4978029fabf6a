from importlib import import_module
from pathlib import Path

import pytest
from prefect.utilities.callables import parameter_schema

from rlhf_core.config.base import LIMITS
from rlhf_core.errors import ConfigError
from rlhf_flows.engine.run_settings import RunSettings
from rlhf_flows.servers.pools import read_pools

DEPLOYED = {
    name.split()[0] for name in read_pools(Path(__file__).parents[2] / "prefect.yaml").deployments
}
FORMS = sorted(DEPLOYED - {"flows/promotion.py:answer_when_time_is_up"})
"""Flows that people start; the pipeline starts the other one."""


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


WRONG = [
    ("changes", {"seed": -1}, "seed: "),
    ("changes", {"sed": 1}, "did you mean seed?"),
    ("changes", {"policy": {"kl_coef": -0.1}}, "--set policy.kl_coef: "),
    ("overrides", ["policy.kl_cof=0.1"], "did you mean policy.kl_coef?"),
    ("overrides", ["policy.kl_coef=much"], "--set policy.kl_coef: "),
]


@pytest.mark.parametrize(("field", "wrong", "said"), WRONG)
def test_a_wrong_setting_is_one_line_that_names_it(config_path, field, wrong, said):
    with pytest.raises(ConfigError) as refused:
        RunSettings.model_validate({"file": config_path, field: wrong}).load()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_was_left_empty_in_the_form_of_an_earlier_build_stays_as_the_file_says(config_path):
    empty = {"seed": None, "policy": {"kl_coef": 0.25, "optimizer": None}}
    plain = RunSettings(file=config_path).load()
    policy = plain.policy.model_copy(update={"kl_coef": 0.25})
    assert changed(config_path, **empty) == plain.model_copy(update={"policy": policy})


def test_an_override_without_value_is_refused(config_path):
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        RunSettings(file=config_path, overrides=("seed",)).load()


def inner(schema):
    """What a value may be, where there is a choice, and what a list or mapping holds."""
    held = (schema.get("items"), schema.get("additionalProperties"))
    choices = (*schema.get("anyOf", ()), *schema.get("oneOf", ()))
    return [one for one in (*choices, *held) if isinstance(one, dict)]


def sections(schema, definitions):
    """Sections that a setting may be: itself, one of a choice, or what a list holds."""
    if "$ref" in schema:
        yield definitions[schema["$ref"].rpartition("/")[2]]
    for one in inner(schema):
        yield from sections(one, definitions)


def settings_in(schema, definitions, prefix=""):
    """Every setting below a schema: its name with dots, and its own schema."""
    for name, setting in schema.get("properties", {}).items():
        yield f"{prefix}{name}", setting
        for section in sections(setting, definitions):
            yield from settings_in(section, definitions, f"{prefix}{name}.")


def limits_in(schema):
    yield from (str(schema[rule]) for rule in LIMITS if rule in schema)
    for one in inner(schema):
        yield from limits_in(one)


@pytest.mark.parametrize("entrypoint", FORMS)
def test_a_form_describes_every_field_and_says_its_limits(entrypoint):
    """Prefect's form enforces limits and shows descriptions alone."""
    module, flow = entrypoint.replace(".py:", ":").replace("/", ".").split(":")
    schema = parameter_schema(getattr(import_module(module), flow)).model_dump()
    definitions = schema["definitions"]
    for name in ("settings", "inputs"):
        (section,) = sections(schema["properties"][name], definitions)
        assert section["description"]
        for field, setting in settings_in(section, definitions):
            words = setting.get("description", "")
            assert words.partition("(")[0].strip(), f"{name}.{field} has no description"
            said = words.rpartition("(")[2]
            assert all(limit in said for limit in limits_in(setting)), f"{name}.{field}: {words}"


def test_the_form_is_a_file_lines_and_inputs():
    """Prefect's server checks a form with every run; one of all settings took half a second."""
    from rlhf_flows.pipeline import rlhf_pipeline

    schema = parameter_schema(rlhf_pipeline.fn).model_dump()
    assert set(schema["definitions"]) == {"RunSettings", "PipelineInputs"}


def test_settings_travel_by_value_to_a_machine_that_has_no_file_of_them(tmp_path, monkeypatch):
    config = RunSettings(
        file=Path(__file__).parents[2] / "configs/demo.yaml", overrides=("seed=7",)
    ).load()
    sent = RunSettings(values=config.model_dump(mode="json")).model_dump(mode="json")
    monkeypatch.chdir(tmp_path)
    assert RunSettings.model_validate(sent).load() == config


def test_settings_by_value_that_cannot_be_used_are_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"settings\.values: seed"):
        RunSettings(values={"seed": "none"}).load()
