import json
import re

import pytest
from typer.testing import CliRunner

from rlhf_core.config import PipelineConfig, load_config, load_with_origins
from rlhf_core.config.reference import REQUIRED, all_settings, nearest, unusual
from rlhf_core.errors import ConfigError
from rlhf_flows.commands.cli import app

BASE = """\
project: demo
model: {base: models/base}
data:
  preferences: {path: raw.jsonl}
policy:
  algorithm: ppo
  kl_coef: 0.1
gates:
  sft: [{metric: sft/heldout_nll, at_most: 3.0}]
  reward: [{metric: reward/heldout_accuracy, at_least: 0.55}]
  policy: [{metric: policy/win_rate, at_least: 0.55}]
"""
CHILD = """\
extends: base.yaml
policy: {kl_coef: 0.2}
"""


@pytest.fixture
def settings_file(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "child.yaml").write_text(CHILD)
    return tmp_path / "child.yaml"


def test_defaults_are_those_of_the_section_around_them():
    found = {(one.key, one.only_with): one.default for one in all_settings(PipelineConfig)}
    assert found["policy.optimizer.adam_beta2", "algorithm: ppo"] == "0.999"
    assert found["policy.optimizer.adam_beta2", "algorithm: dpo"] == "0.95"
    assert found["sft.optimizer.adam_beta2", ""] == "0.95"
    assert found["model.base", ""] == REQUIRED
    assert found["policy.compute.lora", "algorithm: ppo"] == "null"
    assert found["gates.policy[].min_samples", ""] == "100"


def test_every_setting_says_what_it_means():
    """Sections say it in their class, and these keys by their name."""
    silent = {one.key for one in all_settings(PipelineConfig) if not one.description}
    assert sorted(silent) == []


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("policy.betta", "policy.beta"),
        ("kl_coef", "policy.kl_coef"),
        ("policy.clip_epz", "policy.clip_eps"),
        ("polcy.kl_coef", "policy.kl_coef"),
        ("sedd", "seed"),
        ("entirely.unlike.anything", None),
    ],
)
def test_an_unknown_key_is_told_what_it_may_stand_for(key, meant):
    assert nearest(key, PipelineConfig) == meant


def test_each_value_has_its_origin(settings_file):
    overrides = {"policy.num_epochs": "2"}
    config, found = load_with_origins(settings_file, overrides)
    assert config.policy.kl_coef == 0.2
    origins = {one.key: (one.value, one.origin) for one in found}
    folder = settings_file.parent
    assert origins["policy.kl_coef"] == ("0.2", f"{folder}/child.yaml, line 2")
    assert origins["policy.algorithm"] == ("ppo", f"{folder}/base.yaml, line 6")
    assert origins["policy.num_epochs"] == ("2", "--set policy.num_epochs=2")
    assert origins["policy.gamma"] == ("1.0", "default")
    assert origins["gates.policy.0.at_least"] == ("0.55", f"{folder}/base.yaml, line 11")
    assert origins["gates.policy.0.min_samples"] == ("100", "default")


def test_config_show_writes_what_is_in_force(settings_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["config", "show", "child.yaml", "--set", "seed=7", "--json", "all.json"]
    done = CliRunner().invoke(app, [*command, "--written"])
    assert done.exit_code == 0
    assert "seed = 7" in done.stdout
    assert "default" not in done.stdout
    assert json.loads((tmp_path / "all.json").read_text())["policy"]["kl_coef"] == 0.2


@pytest.mark.parametrize("algorithm", ["dpo", "ppo"])
def test_what_a_stage_s_own_optimizer_has_by_default_is_not_unusual(tmp_path, algorithm):
    path = tmp_path / "settings.yaml"
    path.write_text(BASE)
    changes = {
        "policy": f"{{algorithm: {algorithm}, optimizer: {{learning_rate: 3.0e-4}}}}",
        "reward.optimizer.schedule": "linear",
        "evaluation.judge": "models:/judge/1",
    }
    found = unusual(load_config(path, changes))
    assert found["policy"]["optimizer"] == {"learning_rate": 3e-4}
    assert found["reward"] == {"optimizer": {"schedule": "linear"}}
    other = load_config(path, changes | {"policy.optimizer.schedule": "cosine"})
    assert unusual(other)["policy"]["optimizer"] == {"learning_rate": 3e-4, "schedule": "cosine"}


def test_config_explain_says_what_a_setting_means():
    done = CliRunner().invoke(app, ["config", "explain", "policy.kl_watch"])
    assert "policy.kl_watch.action = stop (algorithm: ppo)" in done.stdout
    assert "returns to the last checkpoint" in done.stdout


def test_the_version_is_printed():
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.stdout.startswith("rlhf-pipeline 0.")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("policy.kl_coef", "abc", "policy.kl_coef: Input should be a valid number (found 'abc')"),
        ("polcy.kl_coef", "0.1", "polcy: no such setting; did you mean policy?"),
        (
            "policy",
            "{algoritm: dpo, beta: 0.1}",
            "policy: algorithm is missing; is algoritm meant to be it?",
        ),
        (
            "gates.policy",
            "[{metric: policy/win_rate, atleast: 0.5}]",
            "gates.policy.0.atleast: no such setting; did you mean gates.policy[].at_least?",
        ),
        (
            "gates.policy",
            "[{metric: policy/winrate, at_least: 0.5}]",
            "policy/winrate is not measured with these settings; did you mean policy/win_rate or",
        ),
    ],
)
def test_what_is_refused_is_named_as_it_is_written(tmp_path, key, value, says):
    path = tmp_path / "settings.yaml"
    path.write_text(BASE)
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_config(path, {key: value})
