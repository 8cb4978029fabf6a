"""The suites against a real Great Expectations context."""

import pandas as pd
import pytest

from rlhf_core.adapters.datasets.validation import (
    validate_prepared_pairs,
    validate_prepared_prompts,
    validate_raw_comparisons,
)


def raw(**changes) -> pd.DataFrame:
    columns = {
        "comparison_id": [f"c{i}" for i in range(10)],
        "source": ["s"] * 10,
        "line": list(range(1, 11)),
        "prompt": ["q"] * 10,
        "response_a": ["a"] * 10,
        "response_b": ["b"] * 10,
        "num_votes": [3] * 10,
        "repeated_votes": [0] * 10,
        "content": [f"k{i}" for i in range(10)],
    }
    for column, values in changes.items():
        columns[column][: len(values)] = values
    return pd.DataFrame(columns)


def pairs(**changes) -> pd.DataFrame:
    columns = {
        "comparison_id": [f"c{i}" for i in range(4)],
        "dialogue_key": ["p0", "p0", "p1", "p2"],
        "half": ["reward", "reward", "judge", "judge"],
        "chosen": ["x"] * 4,
        "rejected": ["y"] * 4,
        "probability": [1.0, 0.5, 0.6, 1.0],
    }
    for column, values in changes.items():
        columns[column][: len(values)] = values
    return pd.DataFrame(columns)


def failed(report) -> dict[str, tuple]:
    return {check.name: check.failing_ids for check in report.checks if not check.passed}


def test_clean_rows_pass():
    assert validate_raw_comparisons(raw(), 0.2).passed
    assert validate_prepared_pairs(pairs()).passed


@pytest.mark.parametrize(
    ("changes", "name", "ids"),
    [
        ({"prompt": ["", " ", "\n"]}, "prompt is not blank", ("c0", "c1", "c2")),
        ({"response_a": ["", " ", "\t"]}, "response_a is not blank", ("c0", "c1", "c2")),
        ({"response_b": ["a", "a ", " a"]}, "responses differ", ("c0", "c1", "c2")),
        ({"num_votes": [0, 0, 0]}, "there is a vote", ("c0", "c1", "c2")),
        ({"comparison_id": ["c1"]}, "an id stands for one comparison", ("c1",)),
    ],
)
def test_a_broken_file_fails_by_name_with_its_rows(changes, name, ids):
    report = validate_raw_comparisons(raw(**changes), 0.2)
    assert not report.passed
    assert failed(report)[name] == ids


def test_a_few_unusable_rows_are_tolerated_and_more_are_not():
    assert validate_raw_comparisons(raw(num_votes=[0, 0]), 0.2).passed
    assert not validate_raw_comparisons(raw(num_votes=[0, 0]), 0.1).passed


def test_a_repeated_row_may_share_its_id():
    assert validate_raw_comparisons(raw(comparison_id=["c1"], content=["k1"]), 0.2).passed


def test_a_warning_does_not_stop():
    report = validate_raw_comparisons(raw(repeated_votes=[1]), 0.2)
    assert report.passed
    assert "no annotator votes twice on one comparison" in failed(report)


@pytest.mark.parametrize(
    ("changes", "name", "ids"),
    [
        ({"comparison_id": ["c1"]}, "ids are unique", ("c1",)),
        ({"chosen": ["y"]}, "chosen differs from rejected", ("c0",)),
        ({"rejected": [" "]}, "rejected is not blank", ("c0",)),
        ({"probability": [0.4]}, "the winner is more probable than not", ("c0",)),
        ({"half": ["judge"]}, "a dialogue is in one half only", ("c0", "c1")),
    ],
)
def test_prepared_pairs_must_hold_without_exception(changes, name, ids):
    report = validate_prepared_pairs(pairs(**changes))
    assert not report.passed
    assert failed(report) == {name: ids}


def test_a_leak_is_found():
    frame = pd.DataFrame(
        {
            "row_id": ["1", "2", "3"],
            "file": ["reward_train", "prompts_heldout", "reward_train"],
            "side": ["train", "heldout", "train"],
            "dialogue_key": ["p", "p", "q"],
        }
    )
    assert failed(validate_prepared_prompts(frame)) == {
        "a dialogue is on one side only": ("1", "2")
    }
    assert validate_prepared_prompts(frame[1:]).passed


def test_a_missing_column_fails_and_says_so():
    report = validate_raw_comparisons(raw().drop(columns="num_votes"), 0.2)
    [check] = [check for check in report.checks if check.name == "there is a vote"]
    assert not check.passed
    assert "num_votes" in check.detail


def test_no_rows_fail():
    assert not validate_raw_comparisons(raw()[:0], 0.2).passed
