"""Which judge decides, which one chooses the checkpoint, and what is refused."""

import pytest

from rlhf_core.errors import ConfigError, RegistryError
from rlhf_flows.engine.inputs import (
    EvaluateInputs,
    PipelineInputs,
    PolicyInputs,
    RewardInputs,
    SftInputs,
)
from rlhf_flows.engine.runs.settings import RunSettings
from rlhf_flows.pipeline import rlhf_pipeline
from rlhf_flows.stages import evaluate_stage, policy_stage, reward_stage, sft_stage

pytestmark = pytest.mark.usefixtures("without_engine")


def judge_that_decided(stages):
    return stages.compared["judge"].uri


@pytest.mark.parametrize(
    ("asked", "given", "decides"),
    [
        ([], None, "models:/rlhf-judge/1"),
        (["evaluation.judge=run"], None, "the run's own"),
        (["evaluation.judge=models:/other-judge/1"], None, "models:/other-judge/1"),
        ([], "models:/other-judge/1", "models:/other-judge/1"),
    ],
)
def test_the_judge_of_the_champions_release_decides_until_another_is_named(
    stages, config_path, asked, given, decides
):
    rlhf_pipeline(RunSettings(file=config_path), PipelineInputs(run="first"))
    first = judge_that_decided(stages)
    champion = stages.champion
    stages.models[champion] = stages.compared["policy"]
    stages.judges[champion] = first
    stages.models["models:/other-judge/1"] = stages.compared["judge"].model_copy(
        update={"uri": "models:/other-judge/1", "sha256": "e" * 64}
    )
    settings = RunSettings(file=config_path, overrides=("seed=1", *asked))
    rlhf_pipeline(settings, PipelineInputs(run="second"))
    assert stages.compared["champion"].uri == champion
    own = stages.compared["judge"].uri
    if given:
        evaluate_stage(settings, EvaluateInputs(run="second", judge=given))
    assert judge_that_decided(stages) == (own if decides == "the run's own" else decides)
    assert first == "models:/rlhf-judge/1"
    assert decides != "the run's own" or own != first


def test_a_judge_that_is_given_and_another_in_the_settings_are_refused(stages, config_path):
    own = RunSettings(file=config_path, overrides=("evaluation.judge=run",))
    rlhf_pipeline(own, PipelineInputs(run="one"))
    judge = judge_that_decided(stages)
    with pytest.raises(ConfigError, match=rf"{judge}: evaluation\.judge .* names another"):
        evaluate_stage(own, EvaluateInputs(run="one", judge=judge))


def test_the_runs_own_judge_chooses_the_checkpoint_whoever_the_champion_is(stages, config_path):
    settings = RunSettings(file=config_path)
    rlhf_pipeline(settings, PipelineInputs(run="one"))
    own = stages.chooser.uri
    assert own == "models:/rlhf-judge/1"
    champion = stages.champion
    stages.models[champion] = stages.compared["policy"]
    stages.judges[champion] = "models:/other-judge/1"
    other = stages.compared["judge"].model_copy(update={"uri": "models:/other-judge/1"})
    stages.models["models:/other-judge/1"] = other
    rlhf_pipeline(settings, PipelineInputs(run="one"))
    assert stages.calls.count("policy") == 1
    made = {"sft": "models:/rlhf-sft/1", "reward": "models:/rlhf-reward/1"}
    named = RunSettings(file=config_path, overrides=("evaluation.judge=models:/other-judge/1",))
    policy_stage(named, PolicyInputs(run="two", new_run=True, **made))
    assert stages.chooser == other
    off = RunSettings(file=config_path, overrides=("policy.selection.num_prompts=0",))
    policy_stage(off, PolicyInputs(run="three", new_run=True, **made))
    assert stages.chooser is None


def test_a_policy_without_a_judge_says_how_to_get_one_or_to_do_without(stages, settings):
    sft = sft_stage(settings, SftInputs(run="one"))
    reward_stage(settings, RewardInputs(run="one", sft=sft.model.uri))
    with pytest.raises(RegistryError, match=r"reward CONFIG --role judge.*selection\.num_prompts"):
        policy_stage(settings, PolicyInputs(run="one"))
