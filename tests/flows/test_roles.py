"""A model is what it was trained as; given as something else it is refused before any work."""

import pytest

from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.config.feedback import FeedbackConfig
from rlhf_core.errors import ModelError, RegistryError
from rlhf_core.schema import RunContext
from rlhf_flows.collect import sample_pairs
from rlhf_flows.commands import sample
from rlhf_flows.engine.inputs import CollectInputs, EvaluateInputs, PolicyInputs, RewardInputs
from rlhf_flows.engine.references import find_model
from rlhf_flows.engine.runs.settings import RunSettings
from rlhf_flows.stages import evaluate_stage, policy_stage, reward_stage
from tests.flows.tiny import CONFIG, make_tiny
from tests.releases import register_release

GIVEN = [
    (evaluate_stage, EvaluateInputs, "policy", "reward"),
    (evaluate_stage, EvaluateInputs, "policy", "sft"),
    (evaluate_stage, EvaluateInputs, "sft", "policy"),
    (evaluate_stage, EvaluateInputs, "judge", "reward"),
    (evaluate_stage, EvaluateInputs, "reward", "judge"),
    (policy_stage, PolicyInputs, "sft", "reward"),
    (policy_stage, PolicyInputs, "reward", "judge"),
    (reward_stage, RewardInputs, "sft", "policy"),
]


@pytest.fixture
def made(mlflow_home):
    make_tiny(mlflow_home)
    return register_release(mlflow_client())


@pytest.fixture
def settings():
    return RunSettings(file=CONFIG)


def everything(folder):
    return sorted(str(path) for path in folder.rglob("*") if "mlflow.db" not in path.name)


@pytest.mark.parametrize(("stage", "inputs", "role", "given"), GIVEN)
def test_a_stage_refuses_a_model_of_another_role(
    made, mlflow_home, settings, stage, inputs, role, given
):
    before = everything(mlflow_home)
    message = f"{made[given]} was trained as {given}, expected {role}: it was given as {role}"
    with pytest.raises(RegistryError, match=message):
        stage.fn(settings, inputs(**{role: made[given]}))
    assert everything(mlflow_home) == before


@pytest.mark.parametrize("given", ["reward", "judge"])
def test_what_gives_no_text_is_not_sampled_or_collected_from(
    made, mlflow_home, settings, given, monkeypatch
):
    monkeypatch.setattr(sample, "begin", lambda log_level: None)
    before = everything(mlflow_home)
    message = f"{made[given]} was trained as {given}, expected sft or policy"
    with pytest.raises(RegistryError, match=message):
        sample.sample(None, made[given], "Hello?")
    config = settings.config.model_copy(
        update={
            "feedback": FeedbackConfig(
                labeler={"kind": "label_studio", "url": "http://127.0.0.1:1"}
            )
        }
    )
    for inputs in (CollectInputs(model=made[given]), CollectInputs(against=made[given])):
        mlflow_client().set_registered_model_alias("rlhf-policy", "champion", "1")
        with pytest.raises(RegistryError, match=message):
            sample_pairs(config, inputs)
    assert everything(mlflow_home) == before


def test_the_name_of_a_registered_model_proves_nothing(made, mlflow_home, settings):
    mlflow_client().set_model_version_tag("rlhf-judge", "1", "rlhf.stage", "reward")
    mlflow_client().set_registered_model_alias("rlhf-judge", "candidate", "1")
    context = RunContext(run_id="r", directory=mlflow_home / "runs/r")
    with pytest.raises(RegistryError, match="was trained as reward, expected judge"):
        find_model(settings.config, context, "judge", None)


def test_a_folder_is_told_by_what_it_computes(made, mlflow_home, settings):
    head = mlflow_home / "head"
    head.mkdir()
    (head / "config.json").write_text('{"reward_shift": 0.0}')
    with pytest.raises(ModelError, match="head gives scores, and no text, expected policy"):
        evaluate_stage.fn(settings, EvaluateInputs(policy=str(head)))
    with pytest.raises(ModelError, match="data/base gives text, and no scores, expected judge"):
        evaluate_stage.fn(settings, EvaluateInputs(judge="data/base"))


def test_a_version_that_was_not_trained_here_is_refused(made, settings):
    mlflow_client().delete_model_version_tag("rlhf-policy", "1", "rlhf.stage")
    with pytest.raises(RegistryError, match="was not trained by this pipeline, expected policy"):
        evaluate_stage.fn(settings, EvaluateInputs(policy=made["policy"]))
