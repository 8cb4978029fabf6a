"""Looks at held-out prompts, topics, and gates a project requires, in whole evaluations."""

import pytest

from rlhf_core.adapters.registry.looks import SAMPLING, read_looks, sets_looked_at
from rlhf_core.adapters.registry.required_gates import require_gates
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.config import GateConfig, RequiredGates
from rlhf_core.errors import DataError, MissingMetricError, RegistryError
from rlhf_core.evaluation.samples import ComparedAnswer
from rlhf_core.stages.evaluation.independence import require_topics
from rlhf_core.stages.promote import promote_model
from rlhf_core.stages.sft import train_sft
from rlhf_core.storage.records import read_records
from tests.stages.conftest import judged

pytestmark = pytest.mark.xdist_group("evaluated")


def trained(config, splits, models, context):
    """Train the first stage."""
    return train_sft(config, splits, context)


def with_seed(config, seed):
    return config.model_copy(update={"seed": seed})


def test_another_seed_is_no_second_chance_for_the_same_weights(
    proven_models, stage_config, stage_context, small_splits
):
    hold = {"policy": [{"metric": "policy/win_rate", "at_least": 0.9, "min_samples": 100}]}
    first = judged(stage_config(**hold), small_splits, proven_models, stage_context)
    assert first.decision.verdict != "PROMOTE"
    again = judged(with_seed(stage_config(**hold), 7), small_splits, proven_models, stage_context)
    assert again.report.metrics == first.report.metrics
    assert again.decision.verdict == first.decision.verdict
    assert "another seed or size is no new evidence" in again.decision.reasons[-1]
    assert "seed 0" in again.decision.reasons[-1]
    assert [row.won for row in read_records(again.report.samples, ComparedAnswer)]
    tags = mlflow_client().get_model_version("rlhf-policy", "1").tags
    assert "no new evidence" in tags["rlhf.verdict_reasons"]


def test_the_same_answers_may_be_asked_by_other_gates(
    proven_models, stage_config, stage_context, small_splits
):
    hold = {"policy": [{"metric": "policy/win_rate", "at_least": 0.5, "min_samples": 100}]}
    first = judged(stage_config(**hold), small_splits, proven_models, stage_context)
    second = judged(stage_config(), small_splits, proven_models, stage_context)
    assert (first.decision.verdict, second.decision.verdict) == ("HOLD", "PROMOTE")
    assert first.report.look == second.report.look
    assert second.report.metrics == first.report.metrics


def test_other_answers_are_not_drawn_for_what_was_not_measured_then(
    evaluated, stage_config, stage_context, small_splits
):
    models, _ = evaluated
    gate = {"metric": "policy/win_rate", "at_least": 0.5, "confidence": 0.9, "min_samples": 100}
    other = stage_config(policy=[gate])
    says = r"looks/1: .* measured with seed 0, .*; evaluate with the same, .* measured again: .*90%"
    with pytest.raises(MissingMetricError, match=says):
        judged(with_seed(other, 7), small_splits, models, stage_context)
    again = judged(other, small_splits, models, stage_context)
    assert again.report.metrics["policy/win_rate"].confidence == pytest.approx(0.9)


def test_a_second_candidate_has_to_be_surer(evaluated, stage_config, stage_context, small_splits):
    models, first = evaluated
    other = {**models, "policy": models["sft"]}
    second = judged(stage_config(), small_splits, other, stage_context)
    assert (first.report.look.number, second.report.look.number) == (1, 2)
    assert second.report.metrics["policy/win_rate"].confidence == pytest.approx(1 - 0.05 / 4)
    assert second.decision.results[0].rule.startswith("lower bound >= 1e-09 (98.75%")
    assert "look 2 at held-out prompts" in second.decision.reasons[-1]
    kinds = mlflow_client().search_model_versions("name = 'rlhf-looks'")
    assert sorted(int(version.version) for version in kinds) == [1, 2]


def test_a_look_is_on_record_before_the_first_score(
    proven_models, stage_config, stage_context, small_splits, monkeypatch
):
    def fail(*_args, **_kwargs):
        raise RuntimeError("killed while sampling")

    monkeypatch.setattr("rlhf_core.stages.evaluate.compare_answers", fail)
    with pytest.raises(RuntimeError):
        judged(stage_config(), small_splits, proven_models, stage_context)
    assert [entry.number for entry in read_looks("rlhf")] == [1]
    assert [look.number for look in sets_looked_at("rlhf")] == [1]
    with pytest.raises(RuntimeError):
        judged(with_seed(stage_config(), 7), small_splits, proven_models, stage_context)
    draws = [entry.tags[SAMPLING].partition(",")[0] for entry in read_looks("rlhf")]
    assert draws == ["seed 0", "seed 7"]


def test_prompts_of_one_topic_are_resampled_together(
    proven_models, stage_config, stage_context, small_splits
):
    config = stage_config()
    by_style = config.evaluation.model_copy(update={"topics": "style"})
    result = judged(
        config.model_copy(update={"evaluation": by_style}),
        small_splits,
        proven_models,
        stage_context,
    )
    of_prompts = result.report.metrics.keys() - {"policy/judge_error_correlation"}  # of pairs
    assert {result.report.metrics[name].num_samples for name in of_prompts} == {2}
    assert "Units are topics (style): 2 of them in 12 prompts" in result.report.units
    assert "12 of the prompts are on a topic that training prompts have too" in result.report.units


@pytest.mark.parametrize("does", [judged, trained])
def test_topics_that_no_prompt_has_are_refused_before_anything_is_done(
    does, proven_models, stage_config, stage_context, small_splits
):
    config = stage_config()
    unknown = config.evaluation.model_copy(update={"topics": "intent"})
    config = config.model_copy(update={"evaluation": unknown})
    with pytest.raises(DataError, match="no prompt has a tag 'intent'; tags are style"):
        does(config, small_splits, proven_models, stage_context)
    assert read_looks("rlhf") == []


def test_topics_by_likeness_ask_for_no_tag(stage_config, small_splits):
    config = stage_config()
    alike = config.evaluation.model_copy(update={"topics": "near-duplicates"})
    for prompts in (small_splits.prompts_heldout, small_splits.prompts_train):
        prompts.path.write_text("")
    require_topics(config.model_copy(update={"evaluation": alike}), small_splits)


def test_what_a_project_requires_is_asked_whatever_the_settings_say(
    proven_models, stage_config, stage_context, small_splits
):
    required = GateConfig(metric="policy/length_ratio", at_most=9.0, min_samples=500)
    require_gates("rlhf", RequiredGates(policy=(required,)), by="Ada")
    weaker = {
        "policy": [
            {"metric": "policy/win_rate", "at_least": 1e-9, "min_samples": 5},
            {"metric": "policy/length_ratio", "at_most": 99.0, "min_samples": 5},
        ]
    }
    decision = judged(stage_config(**weaker), small_splits, proven_models, stage_context).decision
    assert decision.verdict == "HOLD"
    assert "12 samples are too few, the gate asks for 500" in decision.reasons[0]
    assert any("required by the project" in result.rule for result in decision.results)


def test_promotion_asks_again_what_the_project_requires_by_then(
    evaluated, stage_config, stage_context, small_splits
):
    models, _ = evaluated
    required = GateConfig(metric="policy/length_ratio", at_most=9.0, min_samples=5)
    require_gates("rlhf", RequiredGates(policy=(required,)), by="Ada")
    with pytest.raises(RegistryError, match=r"not held to what rlhf requires: policy/length_ratio"):
        promote_model("models:/rlhf-policy/1")
    judged(stage_config(), small_splits, models, stage_context)
    assert promote_model("models:/rlhf-policy/1").moved
