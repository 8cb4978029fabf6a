from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.models import load_causal
from rlhf_core.rollout.sample import sample_responses
from rlhf_core.schema import Message
from rlhf_core.stages.evaluate import evaluate_policy
from rlhf_core.stages.evaluation.best_of_n import answer_several_times, best_of_n, highest
from rlhf_core.stages.evaluation.report import compared_answers, pick_samples
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.stages.models.scoring import score_texts

pytestmark = pytest.mark.xdist_group("evaluated")

GATE = {"metric": "policy/win_rate_over_best_of_n", "at_least": 0.01, "min_samples": 5}


@pytest.fixture
def asked(stage_config):
    raw = stage_config().model_dump()
    raw["evaluation"] |= {"best_of_n": 3, "temperature": 3.0}  # so hot that answers differ
    return PipelineConfig.model_validate(raw)


def test_the_reward_model_chooses_and_the_judge_compares(
    four_models, asked, stage_context, small_splits
):
    raw = asked.model_dump()
    raw["gates"]["policy"] = [GATE]
    config = PipelineConfig.model_validate(raw)
    result = evaluate_policy(
        config, small_splits, context=stage_context, champion=None, **four_models
    )
    rows = compared_answers(result)
    prompts, best = [row.prompt for row in rows], [row.best_of_n for row in rows]
    sft = four_models["sft"]
    drawn = answer_several_times(
        load_causal(sft.path), model_renderer(sft.path).tokenizer, prompts, num_answers=3,
        max_new_tokens=16, temperature=3.0, seed=config.seed,
    )  # fmt: skip
    texts = [[answer.text for answer in column] for column in drawn]
    scores = np.stack(score_texts(four_models["reward"].path, prompts, texts, budget=500))
    assert best == [texts[place][row] for row, place in enumerate(scores.argmax(axis=0))]
    assert len(set(scores.argmax(axis=0))) > 1
    reward = [row.best_of_n_scores["reward"] for row in rows]
    assert reward == pytest.approx(scores.max(axis=0).tolist(), abs=1e-5)
    judge = four_models["judge"].path
    by_judge = score_texts(
        judge, prompts, [best, [row.sft for row in rows], [row.policy for row in rows]], budget=500
    )
    metrics = result.report.metrics
    assert metrics["policy/best_of_n_win_rate"].value == _share(by_judge[0], by_judge[1])
    over = metrics["policy/win_rate_over_best_of_n"]
    assert over.value == _share(by_judge[2], by_judge[0])
    assert over.low < over.high
    assert over.num_samples == len(rows)
    assert metrics["policy/best_of_n_kl_bound"].value == pytest.approx(np.log(3) - 2 / 3)
    assert "gold/win_rate_over_best_of_n" in metrics
    assert result.decision.results[0].gate == GATE["metric"]
    logged = mlflow_client().get_run(result.tracking_url.rsplit("/", 1)[-1]).data.metrics
    assert logged["policy/win_rate_over_best_of_n"] == over.value
    shown = [one for group in pick_samples(rows).values() for one in group]
    assert all(one.best_of_n for one in shown)


def _share(first, second):
    return float(np.mean((first > second) + 0.5 * (first == second)))


def test_without_the_setting_nothing_is_drawn(evaluated):
    _, result = evaluated
    assert not [name for name in result.report.metrics if "best_of_n" in name]
    assert all(row.best_of_n is None for row in compared_answers(result))


def test_fewer_answers_or_prompts_are_the_first_of_more(saved_models):
    folder = saved_models["sft"][0]
    model, tokenizer = load_causal(folder), model_renderer(folder).tokenizer
    prompts = [(Message(role="user", content=f"When does the pool {i} open?"),) for i in range(3)]
    how = {"max_new_tokens": 8, "temperature": 3.0, "seed": 4}
    more = answer_several_times(model, tokenizer, prompts, num_answers=4, **how)
    fewer = answer_several_times(model, tokenizer, prompts[:2], num_answers=2, **how)
    texts = [[answer.text for answer in column[:2]] for column in more[:2]]
    assert [[answer.text for answer in column] for column in fewer] == texts
    assert len({answer.token_ids for column in more for answer in column}) > 3
    single = sample_responses(model, tokenizer, prompts, **how)
    assert [one.token_ids for one in single] not in [
        [one.token_ids for one in column] for column in more
    ]


def test_the_first_of_equal_scores_is_chosen_and_no_score_is_an_error():
    scores = [np.array([1.0, 0.0, 2.0]), np.array([1.0, 3.0, 2.0]), np.array([0.0, 3.0, 9.0])]
    assert highest(scores).tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="prompt 2 no finite score"):
        highest([*scores, np.array([0.0, np.nan, 0.0])])


@pytest.mark.parametrize(
    ("changes", "policy", "told"),
    [
        ({"best_of_n": 1}, {}, "greater than or equal to 2"),
        ({"best_of_n": 4, "temperature": 0.0}, {}, "greedy answers are all the same"),
        ({"best_of_n": 4}, {"algorithm": "dpo"}, "best_of_n: dpo trains no reward model"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(changes, policy, told, stage_config):
    raw = stage_config().model_dump()
    raw["evaluation"] |= changes
    raw["policy"] = policy or raw["policy"]
    with pytest.raises(ValidationError, match=told):
        PipelineConfig.model_validate(raw)


def test_a_gate_on_it_needs_the_setting(stage_config):
    raw = stage_config().model_dump()
    raw["gates"]["policy"] = [GATE]
    with pytest.raises(ValidationError, match="is not measured with these settings"):
        PipelineConfig.model_validate(raw)
    raw["evaluation"]["best_of_n"] = 2
    bound = {"metric": "policy/best_of_n_kl_bound", "at_most": 1.0}
    assert PipelineConfig.model_validate(raw)
    raw["gates"]["policy"] = [bound]
    with pytest.raises(ValidationError, match="is not measured with these settings"):
        PipelineConfig.model_validate(raw)


def test_without_a_reward_model_nobody_chooses(asked):
    with pytest.raises(ConfigError, match="no reward model is there to choose"):
        best_of_n(asked, {}, None, [], [], Path())
