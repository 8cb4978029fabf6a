import json
from importlib import import_module
from pathlib import Path

import pytest
from prefect import flow
from prefect.utilities.callables import parameter_schema
from typer.testing import CliRunner

from rlhf_core.config import PipelineConfig, PreparationConfig
from rlhf_core.config.base import LIMITS
from rlhf_core.errors import ConfigError
from rlhf_flows.commands.cli import app
from rlhf_flows.engine.runs.folder import open_run
from rlhf_flows.engine.runs.settings import RunSettings
from rlhf_flows.servers.pools import read_pools

DEPLOYED = {
    name.split()[0] for name in read_pools(Path(__file__).parents[2] / "prefect.yaml").deployments
}
FORMS = sorted(DEPLOYED - {"flows/promotion.py:answer_when_time_is_up"})
"""Flows that people start; the pipeline starts the other one."""


def changed(config_path, **changes):
    return RunSettings.model_validate({"file": config_path, "changes": changes}).config


def test_what_is_left_empty_stays_as_the_file_says(config_path):
    plain = RunSettings(file=config_path).config
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
    assert settings.config.seed == 2


WRONG = [
    ("changes", {"seed": -1}, "seed: "),
    ("changes", {"sed": 1}, "did you mean seed?"),
    ("changes", {"policy": {"kl_coef": -0.1}}, "--set policy.kl_coef=-0.1: "),
    ("overrides", ["policy.kl_cof=0.1"], "did you mean policy.kl_coef?"),
    ("overrides", ["policy.kl_coef=much"], "--set policy.kl_coef=much: "),
]


@pytest.mark.parametrize(("field", "wrong", "said"), WRONG)
def test_a_wrong_setting_is_one_line_that_names_it(config_path, field, wrong, said):
    with pytest.raises(ConfigError) as refused:
        _ = RunSettings.model_validate({"file": config_path, field: wrong}).config
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_was_left_empty_in_the_form_of_an_earlier_build_stays_as_the_file_says(config_path):
    empty = {"seed": None, "policy": {"kl_coef": 0.25, "optimizer": None}}
    plain = RunSettings(file=config_path).config
    policy = plain.policy.model_copy(update={"kl_coef": 0.25})
    assert changed(config_path, **empty) == plain.model_copy(update={"policy": policy})


def test_an_override_without_value_is_refused(config_path):
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        _ = RunSettings(file=config_path, overrides=("seed",)).config


def test_a_setting_is_split_in_one_way_wherever_it_is_given(config_path):
    """`rlhf config show` took the last of two, which a run refuses."""
    words = ["config", "show", str(config_path), "--set", "seed=1", "--set"]
    for other, said in (("seed=2", "seed is set to 1 already; keep one"), ("seed", "expected KEY")):
        shown = CliRunner().invoke(app, [*words, other])
        assert isinstance(shown.exception, ConfigError)
        assert said in str(shown.exception)
        with pytest.raises(ConfigError, match=said):
            _ = RunSettings(file=config_path, overrides=("seed=1", other)).config


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
    ).config
    sent = RunSettings(values=config.model_dump(mode="json")).model_dump(mode="json")
    monkeypatch.chdir(tmp_path)
    assert RunSettings.model_validate(sent).config == config


def test_settings_by_value_that_cannot_be_used_are_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"settings\.values: seed"):
        _ = RunSettings(values={"seed": "none"}).config


@pytest.fixture
def loads(monkeypatch):
    """Settings that were made from text, each time."""
    found = []
    for kind in (PipelineConfig, PreparationConfig):
        for name in ("model_validate_json", "model_validate"):
            real = getattr(kind, name)

            def counted(*arguments, real=real, kind=kind, **options):
                found.append(kind.__name__)
                return real(*arguments, **options)

            monkeypatch.setattr(kind, name, counted)
    return found


@pytest.mark.usefixtures("stages", "without_engine")
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("command", ["run", "prepare", "sft", "reward", "policy", "evaluate"])
def test_a_command_reads_its_settings_once(command, again, config_path, loads, stages):
    said = [command, str(config_path)]
    if command != "run":
        assert CliRunner().invoke(app, ["run", str(config_path), "--run-id", "one"]).exit_code == 0
        said += ["--run-id", "one", *(["--force"] if again else [])]
        loads.clear()
    elif again:
        said += ["--run-id", "one", "--set", "policy.kl_coef=0.2"]
    done = CliRunner().invoke(app, said)
    assert done.exit_code == 0, done.output
    assert loads == ["PipelineConfig"]


def test_settings_stay_one_object_through_prefects_engine(config_path, loads, prefect_server):
    seen = []

    @flow
    def below(settings: RunSettings):
        seen.append(settings.config)

    @flow
    def above(settings: RunSettings):
        seen.append(settings.config)
        below(settings)

    above(RunSettings(file=config_path))
    assert seen[0] is seen[1]
    assert loads == ["PipelineConfig"]


def test_a_run_whose_file_an_earlier_build_wrote_otherwise_goes_on(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    context = open_run(settings.config, "one")
    kept = context.directory / "config.json"
    kept.write_text(json.dumps(json.loads(kept.read_text())))
    assert open_run(settings.config, "one") == context


def test_the_form_offers_the_projects_settings_files_and_takes_another(tmp_path, monkeypatch):
    from rlhf_flows.pipeline import rlhf_pipeline

    (tmp_path / "configs").mkdir()
    for name in ("mine.yaml", "prefect.yaml", ".hidden.yaml", "configs/demo.yaml", "notes.md"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    offered = parameter_schema(rlhf_pipeline.fn).model_dump()["definitions"]["RunSettings"]
    chosen, named = offered["properties"]["file"]["anyOf"]
    assert chosen["enum"] == ["configs/demo.yaml", "mine.yaml"]
    assert (named["type"], "enum" in named) == ("string", False)
