"""The table of stages, from which runs are started, planned, listed and cleaned away."""

from pathlib import Path
from typing import get_args

import pytest

from rlhf_core.config import load_config
from rlhf_core.config.stages import STAGES, reads_of, section_of, stages_of
from rlhf_core.schema import StageName

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def config():
    return load_config(CONFIGS / "demo.yaml")


@pytest.fixture
def without_reward():
    return load_config(CONFIGS / "demo-dpo.yaml")


def test_each_stage_stands_after_those_that_it_reads():
    assert tuple(STAGES) == get_args(StageName)
    done = set()
    for stage, kind in STAGES.items():
        assert done.issuperset(kind.reads)
        assert set(kind.reads_if) <= set(kind.reads)
        done.add(stage)


def test_a_stage_that_nobody_reads_is_no_part_of_the_pipeline(config, without_reward):
    assert stages_of(config) == tuple(STAGES)
    left = tuple(stage for stage in STAGES if stage != "reward")
    assert stages_of(without_reward) == left
    assert "reward" not in reads_of("evaluate", without_reward)


def test_the_judge_is_read_by_a_policy_that_is_chosen_by_it(config):
    chosen_by_nobody = load_config(CONFIGS / "demo.yaml", {"policy.selection.num_prompts": "0"})
    assert "judge" in reads_of("policy", config)
    assert "judge" not in reads_of("policy", chosen_by_nobody)
    assert "judge" in reads_of("evaluate", chosen_by_nobody)


def test_a_judge_without_settings_of_its_own_has_those_of_the_reward_model(config):
    own = load_config(CONFIGS / "demo.yaml", {"judge.num_epochs": "3"})
    assert section_of("judge", config) == "reward"
    assert section_of("judge", own) == "judge"
    assert own.training_of("judge").num_epochs == 3
    assert own.training_of("reward") == config.training_of("judge")
