"""Suites in an evaluation: both models answer every item, and the verdict hears of it."""

import json

import pytest

from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.evaluation.suites import SuiteAnswer, suite_results, suites_digest
from rlhf_core.models import load_causal, save_model
from rlhf_core.rollout.sample import sample_responses
from rlhf_core.schema import EvaluationReport, Message
from rlhf_core.stages.evaluate import evaluate_policy
from rlhf_core.stages.evaluation.report import write_report
from rlhf_core.stages.evaluation.suites import check_suites, with_suites
from rlhf_core.stages.models.renderers import model_renderer
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


def test_another_seed_of_the_run_moves_no_bound_of_a_suite(four_models, with_suite, tmp_path):
    wanted = ({"must_match": "~~"}, {"must_not_match": "~~"})
    config = with_suite([{"prompt": f"Tell me {i}", **wanted[i % 2]} for i in range(24)])
    report = EvaluationReport(stage="policy", model=four_models["policy"], metrics={})
    scores = {
        with_suites(
            one, check_suites(one), {**four_models}, report, tmp_path
        ).metrics["suite/town/score"]
        for one in (config.model_copy(update={"seed": seed}) for seed in range(3))
    }  # fmt: skip
    assert len(scores) == 1
    assert scores.pop().low not in (0.0, 0.5)


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


@pytest.fixture
def with_tasks(stage_config, tmp_path):
    """Settings with a multiple choice and a written answer of lm-evaluation-harness."""
    pytest.importorskip("lm_eval")
    rows = [
        {
            "place": place,
            "choices": [f"It opens at {hour}." for hour in range(7, 11)],
            "gold": i % 4,
        }
        for i, place in enumerate(("mill", "zoo", "pool", "castle", "tower", "market"))
    ]
    (tmp_path / "places.jsonl").write_text("\n".join(map(json.dumps, rows)))
    both = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "places.jsonl"}},
        "test_split": "test",
        "doc_to_text": "When does the {{place}} open?",
    }
    chosen = {"task": "chosen", "output_type": "multiple_choice", "doc_to_choice": "choices"}
    written = {"task": "written", "output_type": "generate_until", "doc_to_target": "{{place}}"}
    (tmp_path / "chosen.yaml").write_text(json.dumps(both | chosen | {"doc_to_target": "gold"}))
    kept = {"metric_list": [{"metric": "exact_match"}], "generation_kwargs": {"until": ["."]}}
    (tmp_path / "written.yaml").write_text(json.dumps(both | written | kept))

    def make(**suite):
        settings = stage_config().model_dump()
        tasks = [str(tmp_path / f"{name}.yaml") for name in ("chosen", "written")]
        suite = {"kind": "lm_eval", "name": "known", "tasks": tasks, "items_are": "all", **suite}
        settings["evaluation"]["suites"] = [suite]
        return PipelineConfig.model_validate(settings)

    return make


def by_the_harness(model, tasks):
    """Scores as the harness computes them with its own model, loader and loop."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    found = TaskManager(include_defaults=False).load(list(tasks))
    found["tasks"]["written"].set_config("generation_kwargs", {"max_gen_toks": 16}, update=True)
    tokenizer = model_renderer(model.path).tokenizer
    own = HFLM(pretrained=load_causal(model.path), tokenizer=tokenizer, batch_size=8)
    return lm_eval.evaluate(own, found, apply_chat_template=True, bootstrap_iters=0)["results"]


def test_tasks_of_the_harness_score_as_there_and_go_on_where_they_stopped(
    four_models, with_tasks, stage_context
):
    config = with_tasks(batch_size=1)
    suites, folder = check_suites(config), stage_context.directory
    before = empty_report(four_models["policy"])
    report = with_suites(config, suites, four_models, before, folder)
    own = by_the_harness(four_models["policy"], config.evaluation.suites[0].tasks)
    assert report.metrics["suite/known/chosen/score"].value == own["chosen"]["acc,none"]
    assert report.metrics["suite/known/written/score"].value == own["written"]["exact_match,none"]
    rows = read_records(report.suites["known"].answers, SuiteAnswer)
    assert len(rows) == 12
    assert not any("<|" in turn.content for row in rows for turn in row.prompt)
    assert "nats 'It opens at 7.'" in next(row for row in rows if row.tags == ("chosen",)).candidate

    journals = sorted(folder.glob("suite-answers/*.jsonl"))
    whole = [journal.read_text() for journal in journals]
    assert len(whole) == 2
    for journal in journals:
        journal.write_text(journal.read_text()[:-20])
    assert with_suites(config, suites, four_models, before, folder).metrics == report.metrics
    # Only what the journals lacked was asked again: no line of them is there twice.
    assert [journal.read_text() for journal in journals] == whole


def test_a_candidate_that_lost_its_capability_is_held_back_and_an_equal_one_is_not(
    four_models, with_tasks, stage_context, tmp_path
):
    sft, folder = four_models["sft"], stage_context.directory
    damaged = load_causal(sft.path)
    damaged.model.norm.weight.data.neg_()  # what was probable is improbable
    sha256 = save_model(damaged, model_renderer(sft.path).tokenizer, tmp_path / "damaged")
    config = with_tasks(tasks=str(tmp_path / "chosen.yaml"))

    def measured(candidate):
        models = {"policy": candidate, "sft": sft}
        return with_suites(config, check_suites(config), models, empty_report(sft), folder)

    # The right choice is the one that SFT finds most probable, so it passes all of them.
    answers = read_records(measured(sft).suites["known"].answers, SuiteAnswer)
    likely = {int(row.item.split()[1]): row.baseline.splitlines()[0] for row in answers}
    rows = [json.loads(line) for line in (tmp_path / "places.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["gold"] = row["choices"].index(likely[number].partition("nats ")[2].strip("'"))
    (tmp_path / "places.jsonl").write_text("\n".join(map(json.dumps, rows)))
    moved = {"path": tmp_path / "damaged", "sha256": sha256}
    for candidate, verdict in ((sft, "PROMOTE"), (sft.model_copy(update=moved), "REJECT")):
        report = measured(candidate)
        assert report.suites["known"].baseline_score == 1.0
        (result,) = suite_results(config.evaluation.suites, (), report)
        assert (result.gate, result.verdict) == ("suite/known/difference", verdict)


def test_what_evaluates_nothing_loads_no_tasks(with_tasks, with_suite):
    config = with_tasks(tasks="gone.yaml")
    assert check_suites(config, tasks=False) == []
    with pytest.raises(ConfigError, match=r"gone\.yaml cannot be read"):
        check_suites(config)
    items = [{"prompt": "x", "must_match": "a"}]
    assert len(check_suites(with_suite(items), tasks=False)) == 1


def empty_report(model):
    return EvaluationReport(stage="policy", model=model, metrics={})


def test_an_item_that_does_not_fit_the_model_is_named(four_models, with_tasks, stage_context):
    config = with_tasks(max_new_tokens=600)
    report = empty_report(four_models["policy"])
    with pytest.raises(DataError, match=r"written: an item of .* answer of 600 does not fit .*512"):
        with_suites(config, check_suites(config), four_models, report, stage_context.directory)
