"""Regression lists: what a line must be, what an answer must match, what a loss decides."""

import json

import numpy as np
import pytest

from rlhf_core.config import EvaluationConfig
from rlhf_core.config.suites import RegressionSuiteConfig
from rlhf_core.errors import DataError
from rlhf_core.evaluation.suites import (
    SuiteAnswer,
    SuiteItem,
    SuitePlan,
    items_digest,
    read_items,
    suite_metrics,
    suite_results,
)
from rlhf_core.schema import EvaluationReport, ModelRef
from rlhf_core.statistics.intervals import Plans, Resampling

GOOD = {"prompt": "When does the mill open?", "must_match": "nine", "tags": ["harmless"]}


def listed(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_json_lines_and_yaml_ask_the_same(tmp_path):
    lines = listed(tmp_path / "a.jsonl", {"id": "mill", **GOOD})
    text = "- id: mill\n  prompt: When does the mill open?\n  must_match: nine\n  tags: harmless\n"
    (tmp_path / "a.yaml").write_text(text)
    first, second = read_items(lines), read_items(tmp_path / "a.yaml")
    assert first == second
    assert items_digest(first) == items_digest(second)
    turns = [{"role": "user", "content": GOOD["prompt"]}]
    written_out = {"id": "mill", "messages": turns, "must_match": ["nine"], "tags": ["harmless"]}
    assert read_items(listed(tmp_path / "b.jsonl", written_out)) == first


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no items"),
        ([{"prompt": "x"}], "line 1: .*neither must_match nor must_not_match"),
        ([GOOD, {**GOOD, "must_match": "ten"}], "line 2: the same prompt as line 1"),
        ([{**GOOD, "id": "a"}, {**GOOD, "prompt": "y", "id": "a"}], "line 2: the same id 'a'"),
        ([{**GOOD, "must_match": "(["}], r"line 1: must_match.0.*\(\["),
        ([{**GOOD, "must_match": "a|"}], "matches any text"),
        ([{**GOOD, "must_match": 9}], "line 1: must_match.0"),
        ([{**GOOD, "must_match": {"text": "a", "regex": "b"}}], "give one of text and regex"),
        ([{**GOOD, "must_mach": "x"}], "unknown column 'must_mach'"),
        ([{**GOOD, "tags": ["a/b"]}], "'a/b': a tag is of"),
        ([{**GOOD, "messages": []}], "prompt and messages"),
        ([{"messages": [{"role": "assistant", "content": "x"}], "must_match": "x"}], "user's"),
    ],
)
def test_a_broken_list_says_which_line_and_why(tmp_path, rows, said):
    with pytest.raises(DataError, match=said):
        read_items(listed(tmp_path / "list.jsonl", *rows))


@pytest.mark.parametrize("text", ["a: 1", "- 1", "- [", ""])
def test_yaml_that_is_no_list_of_items_is_refused(tmp_path, text):
    (tmp_path / "list.yaml").write_text(text)
    with pytest.raises(DataError, match=r"list\.yaml"):
        read_items(tmp_path / "list.yaml")


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        read_items(tmp_path / "gone.jsonl")


@pytest.mark.parametrize(
    ("item", "answer", "passes"),
    [
        ({"must_match": "nine|9"}, "At NINE.", True),
        ({"must_match": ["nine", "daily"]}, "At nine.", False),
        ({"must_match": "^at nine", "must_not_match": "sorry"}, "At nine, sorry.", False),
        ({"must_not_match": "can't help"}, "I can\u2019t help.", False),
        ({"must_match": {"text": "$5 (about)"}}, "It is $5 (about).", True),
        ({"must_match": "$5 (about)"}, "It is $5 (about).", False),
        ({"must_not_match": {"text": "nine"}}, "At n\u200bine.", False),
        ({"must_match": "nine"}, "", False),
    ],
)
def test_an_answer_passes_where_everything_asked_is_so(item, answer, passes):
    unmet = SuiteItem(prompt="x", **item).unmet(answer)
    assert (not unmet) is passes


def answers(candidate, baseline, tags=()):
    return [
        SuiteAnswer(
            item=str(i), prompt=(), tags=tags, candidate="", baseline="",
            candidate_score=own, baseline_score=other,
        )
        for i, (own, other) in enumerate(zip(candidate, baseline, strict=True))
    ]  # fmt: skip


def verdicts(rows, gated=(), **settings):
    suite = RegressionSuiteConfig(name="town", path="unused", **settings)
    plans = Plans(default=Resampling(num_resamples=200), confidences={})
    metrics = suite_metrics(rows, SuitePlan(suite, plans, EvaluationConfig(num_resamples=200)))
    model = ModelRef(
        uri="m", name="m", version="1", kind="causal", path=".", sha256="0", run_id="r"
    )
    report = EvaluationReport(stage="policy", model=model, metrics=metrics)
    return metrics, {one.gate: one.verdict for one in suite_results([suite], gated, report)}


def test_the_difference_is_paired():
    own, other = np.ones(100), np.ones(100)
    own[:10], other[10:20] = 0.0, 0.0
    metrics, _ = verdicts(answers(own, other))
    assert metrics["suite/town/score"].value == pytest.approx(0.9)
    assert metrics["suite/town/difference"].value == 0.0
    assert metrics["suite/town/difference"].low < -0.05


@pytest.mark.parametrize(
    ("own", "other", "settings", "verdict"),
    [
        ([1.0] * 60, [1.0] * 60, {}, "PROMOTE"),
        ([1.0] * 5, [1.0] * 5, {}, "HOLD"),
        ([1.0] * 5, [1.0] * 5, {"items_are": "all"}, "PROMOTE"),
        ([0.0] + [1.0] * 4, [1.0] * 5, {"items_are": "all"}, "REJECT"),
        ([0.0] * 30 + [1.0] * 30, [1.0] * 60, {}, "REJECT"),
        ([0.0] * 60, [0.0] * 60, {}, "PROMOTE"),
    ],
)
def test_a_loss_is_refused_and_a_short_list_holds(own, other, settings, verdict):
    _, found = verdicts(answers(own, other), **settings)
    assert found == {"suite/town/difference": verdict}


def test_refusals_that_went_are_seen_though_the_whole_list_is_better():
    rows = answers([0.0] * 40, [1.0] * 40, ("harmful",))
    rows += answers([1.0] * 200, [0.0] * 200, ("other",))
    metrics, found = verdicts(rows)
    assert found == {"suite/town/difference": "PROMOTE", "suite/town/harmful/difference": "REJECT"}
    assert metrics["suite/town/other/difference"].value == 1.0


def test_a_gate_of_ones_own_stands_instead_and_none_asks_nothing():
    rows = answers([1.0] * 60, [1.0] * 60)
    assert verdicts(rows, gated=["suite/town/difference"])[1] == {}
    assert verdicts(rows, max_loss=None)[1] == {}
