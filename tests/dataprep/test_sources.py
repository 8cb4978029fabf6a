"""Readers: every format gives the same records, and says where a row is wrong."""

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_core.config import DemonstrationsConfig, SourceConfig
from rlhf_core.dataprep.sources import hh, read_demonstrations, read_prompts
from rlhf_core.dataprep.sources import read_comparisons as read_source
from rlhf_core.dataprep.sources.rows import FilteredRow
from rlhf_core.errors import DataError
from rlhf_core.schema import Comparison

ROW = {
    "prompt": "When does the library open?",
    "response_a": "At nine.",
    "response_b": "I do not know.",
    "votes": [{"annotator": "ann", "choice": "a"}],
}


def read_comparisons(path, file_format="canonical", **settings):
    return read_source(SourceConfig(path=path, format=file_format, **settings))


def transcript(*turns: str) -> str:
    speakers = ("Human", "Assistant")
    return "".join(f"\n\n{speakers[i % 2]}: {text}" for i, text in enumerate(turns))


def test_canonical_rows_get_line_source_and_a_stable_id(write_jsonl):
    path = write_jsonl("batch.jsonl.gz", [ROW, {**ROW, "comparison_id": "given"}, ROW])
    first, second, third = read_comparisons(path, "canonical")
    assert (first.line, first.source) == (1, "batch")
    assert first.prompt[0].role == "user"
    assert first.comparison_id == third.comparison_id != second.comparison_id == "given"


def test_demonstrations_and_prompts_take_plain_prompts(write_jsonl):
    path = write_jsonl("d.jsonl", [{"prompt": "Hi", "response": "Hello."}])
    [(line, item)] = read_demonstrations(DemonstrationsConfig(path=path))
    assert (line, item.prompt[0].content, item.source) == (1, "Hi", "d")
    path = write_jsonl("p.jsonl", [{"prompt": [{"role": "user", "content": "Hi"}]}])
    [(line, prompt)] = read_prompts(path)
    assert (line, prompt.prompt[0].content) == (1, "Hi")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"response_b": ...}, "missing column 'response_b'"),
        ({"votes": ...}, "missing column 'votes'"),
        ({"response_a": 3}, "response_a: Input should be a valid string, found 3"),
        ({"votes": [{"annotator": "x", "choice": "c"}]}, "votes.0.choice"),
        ({"prompt": None}, "prompt: "),
    ],
)
def test_a_wrong_column_names_file_line_and_column(write_jsonl, change, says):
    row = {key: value for key, value in {**ROW, **change}.items() if value is not ...}
    path = write_jsonl("x.jsonl", [ROW, row])
    _, aside = read_comparisons(path, "canonical")
    assert (aside.where, json.loads(aside.row)) == (f"{path}, line 2", row)
    assert says in aside.detail
    assert "\n" not in aside.detail


def test_hh_transcripts_become_conversations(write_jsonl):
    row = {
        "chosen": transcript("a?", "b", "c?", "good"),
        "rejected": transcript("a?", "b", "c?", "bad"),
    }
    [item] = read_comparisons(write_jsonl("hh.jsonl", [row]), "hh")
    assert [(turn.role, turn.content) for turn in item.prompt] == [
        ("user", "a?"),
        ("assistant", "b"),
        ("user", "c?"),
    ]
    assert {item.response_a, item.response_b} == {"good", "bad"}
    assert item.votes[0].annotator == "hh"
    assert (item.response_a if item.votes_a else item.response_b) == "good"


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (transcript("q", "x"), transcript("q", "x"), "identical_responses"),
        (transcript("q", ""), transcript("q", "x"), "empty_response"),
        (transcript("q", "x"), transcript("q", "  "), "empty_response"),
        (transcript("q", "x"), transcript("r", "y"), "parts_before_last_turn"),
        (transcript("q", "x", "r", "z"), transcript("q", "y"), "parts_before_last_turn"),
        (transcript("q"), transcript("q"), "malformed_transcript"),
        ("no marks", transcript("q", "x"), "malformed_transcript"),
        ("", "", "malformed_transcript"),
    ],
)
def test_hh_rows_that_are_no_comparison_say_why(write_jsonl, chosen, rejected, reason):
    path = write_jsonl("hh.jsonl", [{"chosen": chosen, "rejected": rejected}])
    [row] = read_comparisons(path, "hh")
    assert isinstance(row, FilteredRow)
    assert (row.reason, row.line) == (reason, 1)
    assert json.loads(row.row) == {"chosen": chosen, "rejected": rejected}


def test_hh_without_its_columns_is_refused(write_jsonl):
    with pytest.raises(DataError, match="line 1: missing column 'rejected'"):
        list(read_comparisons(write_jsonl("hh.jsonl", [{"chosen": "x"}]), "hh"))
    with pytest.raises(DataError, match="rejected: expected text, found int"):
        list(read_comparisons(write_jsonl("hh.jsonl", [{"chosen": "x", "rejected": 1}]), "hh"))


def test_published_hh_rows_are_counted_as_documented(shared_data):
    expected = {
        "helpful-base": (
            2354,
            {"identical_responses": 2, "empty_response": 4, "parts_before_last_turn": 9},
        ),
        "harmless-base": (2312, {"empty_response": 4, "parts_before_last_turn": 5}),
    }
    for name, (num_rows, reasons) in expected.items():
        items = list(read_comparisons(shared_data / "hh" / f"{name}.test.jsonl.gz", "hh"))
        counts: dict[str, int] = {}
        for item in items:
            if isinstance(item, FilteredRow):
                counts[item.reason] = counts.get(item.reason, 0) + 1
        assert (len(items), counts) == (num_rows, reasons)


def attempt(path, file_format) -> tuple[list, str]:
    """Read a file; return its rows, or the message of the one deliberate error."""
    try:
        return list(read_comparisons(path, file_format)), ""
    except DataError as error:
        return [], str(error)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
COLUMNS = st.sampled_from(
    ["prompt", "response_a", "response_b", "votes", "chosen", "rejected", "source", "comparison_id"]
)


@pytest.mark.parametrize("file_format", ["canonical", "hh"])
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.dictionaries(COLUMNS, ANYTHING), min_size=1, max_size=3))
def test_no_row_can_crash_a_reader(tmp_path, file_format, rows):
    path = tmp_path / "any.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items, message = attempt(path, file_format)
    assert "line " in message if message else len(items) == len(rows)


@pytest.mark.parametrize("file_format", ["canonical", "hh"])
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=200))
def test_no_bytes_can_crash_a_reader(tmp_path, file_format, data):
    for name, packed in (
        ("any.jsonl", data),
        ("any.jsonl.gz", gzip.compress(data)),
        ("bad.jsonl.gz", data),
    ):
        path = tmp_path / name
        path.write_bytes(packed)
        _, message = attempt(path, file_format)
        assert not message or str(path) in message


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=st.lists(st.text(), min_size=3, max_size=3))
def test_any_text_survives_reading_and_writing(tmp_path, texts):
    prompt, a, b = texts
    path = tmp_path / "any.jsonl"
    row = {**ROW, "prompt": prompt, "response_a": a, "response_b": b}
    try:
        path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    except UnicodeEncodeError:
        return
    [item] = read_comparisons(path, "canonical")
    assert (item.prompt[0].content, item.response_a, item.response_b) == (prompt, a, b)
    assert Comparison.model_validate_json(item.model_dump_json()) == item


def test_a_huge_field_is_read(write_jsonl):
    huge = "word " * 2_000_000
    [item] = read_comparisons(write_jsonl("x.jsonl", [{**ROW, "response_a": huge}]), "canonical")
    assert len(item.response_a) == len(huge)


def test_a_transcript_with_huge_many_turns_is_read():
    assert len(hh.parse_transcript(transcript(*["x"] * 10_000))) == 10_000
