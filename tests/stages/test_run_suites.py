"""Suites in an evaluation: both models answer every item, and the verdict hears of it."""

import json

import pytest

from rlhf_core.adapters.mlflow_client import mlflow_client
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.evaluation.suites import SuiteAnswer, suites_digest
from rlhf_core.stages.evaluate import evaluate_policy
from rlhf_core.stages.evaluation.report import write_report
from rlhf_core.stages.evaluation.suites import check_suites
from rlhf_core.storage.records import read_records


@pytest.fixture
def with_suite(stage_config, tmp_path):
    """Settings with a list of items, and its file."""

    def make(items, gates=(), **suite):
        path = tmp_path / "town.jsonl"
        path.write_text("\n".join(map(json.dumps, items)))
        plain = stage_config()
        settings = plain.model_dump()
        settings["evaluation"]["suites"] = [{"name": "town", "path": path, **suite}]
        settings["gates"]["policy"] = [*settings["gates"]["policy"], *gates]
        return PipelineConfig.model_validate(settings)

    return make


QUESTIONS = [f"When does the {place} open?" for place in ("mill", "zoo", "pool", "castle")]


def test_both_models_answer_each_item_and_what_changed_comes_first(
    four_models, with_suite, stage_context, small_splits
):
    from rlhf_core.models import load_causal
    from rlhf_core.rollout.sample import sample_responses
    from rlhf_core.schema import Message
    from rlhf_core.stages.base_model import model_renderer

    path = four_models["sft"].path
    said = sample_responses(
        load_causal(path), model_renderer(path).tokenizer,
        [(Message(role="user", content=QUESTIONS[0]),)],
        max_new_tokens=16, temperature=0.0, seed=9,
    )[0].text  # fmt: skip
    items = [{"prompt": QUESTIONS[0], "must_match": {"text": said}, "tags": ["harmless"]}]
    items += [{"prompt": question, "must_not_match": "~~"} for question in QUESTIONS[1:]]
    config = with_suite(items, items_are="all")
    models = {**four_models, "champion": four_models["sft"]}
    result = evaluate_policy(config, small_splits, context=stage_context, **models)
    record = result.report.suites["town"]
    rows = read_records(record.answers, SuiteAnswer)
    first = next(row for row in rows if row.item == "line 1")
    assert record.baseline == four_models["sft"].uri
    assert (first.baseline, first.baseline_score) == (said, 1.0)
    assert [row.change != 0 for row in rows] == sorted(row.change != 0 for row in rows)[::-1]
    metrics = result.report.metrics
    assert metrics["suite/town/difference"].value == sum(row.change for row in rows) / 4
    assert {one.gate for one in result.decision.results} >= {
        "suite/town/difference", "suite/town/harmless/difference",
    }  # fmt: skip
    run = result.tracking_url.rsplit("/", 1)[-1]
    found = [one.path for one in mlflow_client().list_artifacts(run, "evaluation/suites")]
    assert found == ["evaluation/suites/town.jsonl"]
    (stage_context.stage_directory("evaluate") / "result.json").write_text(result.model_dump_json())
    (stage_context.directory / "config.json").write_text(config.model_dump_json())
    page = write_report(stage_context.directory).read_text()
    assert "harmless/difference" in page
    assert QUESTIONS[3] in page


def test_a_prompt_that_has_no_room_is_named(four_models, with_suite, stage_context, small_splits):
    config = with_suite([{"prompt": "why " * 300, "must_match": "a"}])
    with pytest.raises(DataError, match=r"town\.jsonl, line 1: the prompt cannot .*max_length"):
        evaluate_policy(
            config, small_splits, context=stage_context, **{**four_models, "champion": None}
        )


def gate(metric, **bound):
    return {"metric": metric, "at_least": -0.2, **bound}


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        ([gate("suite/town/evil/difference")], r"no item of \S+ has the tag 'evil'; tags are safe"),
        ([gate("suite/city/difference")], r"suite/city/difference is not measured .*suite/town/"),
        ([gate("suite/town/win_rate")], "is not measured"),
        ([gate("suite/town/difference", at_least=-1.0)], "cannot fail"),
    ],
)
def test_a_gate_on_what_no_suite_measures_is_refused(with_suite, gates, said):
    items = [{"prompt": "x", "must_match": "a", "tags": ["safe"]}]
    with pytest.raises((ConfigError, ValueError), match=said):
        check_suites(with_suite(items, gates))


def test_gates_on_a_suite_and_its_tags_are_taken(with_suite):
    items = [{"prompt": "x", "must_match": "a", "tags": ["safe"]}]
    gates = [gate("suite/town/score", at_least=0.2), gate("suite/town/safe/difference")]
    check_suites(with_suite(items, gates))


def test_two_suites_of_one_name_are_refused(with_suite):
    settings = with_suite([]).model_dump()
    settings["evaluation"]["suites"] *= 2
    with pytest.raises(ValueError, match="two suites are called 'town'"):
        PipelineConfig.model_validate(settings)


def test_a_list_that_changed_is_another_evaluation(with_suite):
    one = with_suite([{"prompt": "x", "must_match": "a"}]).evaluation.suites
    before = suites_digest(one)
    with_suite([{"prompt": "x", "must_match": "b"}])
    assert suites_digest(one) != before
    assert suites_digest(()) == ""
