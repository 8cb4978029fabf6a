"""Conversations published as lists written as text: what is a turn, and what is a text in JSON."""

import json

import pytest

from rlhf_core.config import DemonstrationsConfig, SourceConfig
from rlhf_core.dataprep.sources import read_comparisons, read_demonstrations
from rlhf_core.dataprep.sources.look import look_at
from rlhf_core.dataprep.sources.rows import FilteredRow
from rlhf_core.schema import Comparison
from tests.dataprep.shape_helpers import read_as_found, write_as


def one_hot(prompt: list, response_a: list, response_b: list) -> dict:
    written = {"prompt": prompt, "response_a": response_a, "response_b": response_b}
    texts = {name: json.dumps(value) for name, value in written.items()}
    return {**texts, "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}


def texts_of(item: Comparison) -> list[str]:
    return [*(turn.content for turn in item.prompt), item.response_a, item.response_b]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_lists_written_as_text_are_turns_in_every_container(tmp_path, ending):
    rows = [
        one_hot(["How do I cook?"], ["Boil it."], ["Fry it."]),
        one_hot(["When?", "Where?"], ["Now.", "Here."], ["Now.", "There."]),
        one_hot(["Why?"], [None], ["So."]),
        one_hot(["Why?", "And?"], [None, "So."], ["So.", "So."]),
    ]
    found = look_at(write_as(tmp_path, ending, rows))
    assert (found.usable, found.filtered) == (2, {"empty_response": 2})
    items = [item for item in read_as_found(found) if isinstance(item, Comparison)]
    assert [texts_of(item) for item in items[:2]] == [
        ["How do I cook?", "Boil it.", "Fry it."],
        ["When?", "Now.", "Where?", "Here.", "There."],
    ]
    assert [item.response_a for item in items[2:]] == [""]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("prompt", "response_a", "response_b"),
    [
        ('["b", "a"]', "Sorted: a, b.", "I cannot."),
        ("Sort b, a as JSON.", '["a", "b"]', '["b", "a"]'),
        ('["b", "a"]', '["a", "b"]', "I cannot."),
        ('["b", "a"]', '["a", "b"]', '["a"]'),
        ("Write a test case.", '[{"input": "2 3", "output": "5"}]', "I cannot."),
        ("Write a test case.", '{"input": "2 3", "output": "5"}', "I cannot."),
        ('{"input": "2 3", "output": "5"}', "Right.", "Wrong."),
    ],
)
def test_a_list_that_somebody_asked_or_answered_stays_text(
    tmp_path, ending, prompt, response_a, response_b
):
    row = {"prompt": prompt, "response_a": response_a, "response_b": response_b, "choice": "a"}
    path = write_as(tmp_path, ending, [row])
    [item] = read_comparisons(SourceConfig(path=path, format="flat"))
    assert isinstance(item, Comparison)
    assert texts_of(item) == [prompt, response_a, response_b]


def test_pairs_and_lists_of_votes_are_read_alike(tmp_path):
    texts = {"prompt": '["Q?"]', "chosen": '["Good."]', "rejected": '["Bad."]'}
    path = write_as(tmp_path, "jsonl", [texts, texts | {"rejected": "[null]"}])
    first, second = read_comparisons(SourceConfig(path=path, format="pairs"))
    assert {first.response_a, first.response_b} == {"Good.", "Bad."}
    assert "" in (second.response_a, second.response_b)
    votes = {"prompt": '["Q?"]', "response_a": '["A."]', "response_b": '["B."]', "votes": ["a"]}
    [item] = read_comparisons(SourceConfig(path=write_as(tmp_path, "jsonl", [votes])))
    assert not isinstance(item, FilteredRow)
    assert texts_of(item) == ["Q?", "A.", "B."]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_questions_with_their_answers_are_turns_where_a_chat_is_written(tmp_path, ending):
    turns = [{"input": "When?", "output": "Now."}, {"input": "Where?", "output": "Here."}]
    path = write_as(tmp_path, ending, [{"conversation": json.dumps(turns)}])
    [(_, item)] = read_demonstrations(DemonstrationsConfig(path=path, format="messages"))
    told = [*(turn.content for turn in item.prompt), item.response]
    assert told == ["When?", "Now.", "Where?", "Here."]
