"""Arrays read value by value: the same values as read whole, wherever a block of the file ends."""

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.dataprep.sources.containers import read_rows
from rlhf_core.dataprep.sources.json_arrays import read_values
from rlhf_core.errors import DataError
from rlhf_core.storage import records as files

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=3), VALUES), max_size=5)
INDENTS = st.sampled_from([None, 2])


@pytest.mark.parametrize("number", [30, pytest.param(300, marks=pytest.mark.nightly)])
def test_where_blocks_end_does_not_matter(tmp_path, monkeypatch, number):
    path = tmp_path / "a.json"

    @settings(max_examples=number, deadline=None)
    @given(rows=OBJECTS, block=st.integers(1, 40), indent=INDENTS, plain=st.booleans())
    def reads(rows, block, indent, plain):
        text = json.dumps(rows, indent=indent, ensure_ascii=plain)
        path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(files, "_BLOCK", block)
        assert [json.loads(value) for _, value in read_values(path)] == rows
        path.write_text(text[:-1], encoding="utf-8")
        with pytest.raises(DataError, match=f"after item {len(rows)}: broken JSON"):
            list(read_values(path))

    reads()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'[{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}]", "after item 0: .*nested too deeply"),
        (b'[{"a": 1}, {"b": "\xff"}]', "after item 0: not UTF-8"),
        (b'[{"a": 1}] []', "after item 1: .*nothing behind the list"),
        (b'[{"a": 1},, {"a": 2}]', "after item 1: broken JSON"),
        (b'[{"a": 1} {"a": 2}]', "after item 1: .*the end of the list"),
        (b'{"a": 1,\n"b": 2}', "expected a list of objects, found '{.*name the file .jsonl"),
        (b"", "expected a list of objects, found ''"),
    ],
)
def test_what_is_no_list_of_objects_is_one_line(tmp_path, text, says):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(DataError, match=says) as refused:
        list(read_rows(path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[{"a": "\\ud800"}, {"a": 1}]', "broken JSON"),
        ('[{"a": {"b" 2}, "c": "]}"}, {"a": 1},]', "broken JSON"),
        ('[2, {"a": 1}]', "expected a JSON object, found int"),
    ],
)
def test_a_value_that_is_no_object_is_one_row(tmp_path, text, why):
    path = tmp_path / "a.json"
    path.write_text(text)
    broken, row = read_rows(path)
    assert (broken.line, broken.reason, row.value) == (1, "broken_row", {"a": 1})
    assert why in broken.detail


def test_objects_one_a_line_are_no_array(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('\n{"a": 1}\n{"a": 2}\n')
    assert [(row.line, row.unit) for row in read_rows(path)] == [(2, "line"), (3, "line")]


def test_numbers_are_as_long_as_they_are_written(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"id": 340282366920938463463374607431768211456}]')
    assert [row.value["id"] for row in read_rows(path)] == [2**128]


def test_a_broken_value_is_found_before_the_rest_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, {"a" 2}, ' + '{"a": "%s"}, ' % ("x" * 1_000) * 30_000)
    tracemalloc.start()
    try:
        values = read_values(path)
        assert [next(values)[1] for _ in range(2)] == ['{"a": 1}', '{"a" 2}']
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000


ROWS = [{"prompt": "Question?", "chosen": "good", "rejected": "bad"}] * 3


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"version": 1, "tags": ["x", 1], "rows": ROWS, "end": {"a": [1]}}, indent=1),
        json.dumps({"anything": ROWS}, indent=1),
        json.dumps({"data": ROWS, "version": 2}),
    ],
)
def test_the_rows_may_stand_under_a_key(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert [row.value for row in read_rows(path)] == ROWS


def test_an_object_with_two_lists_of_rows_is_refused(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS}, indent=1))
    with pytest.raises(DataError, match="lists of objects under 'train' and under 'test'"):
        list(read_rows(path))


def test_a_row_with_a_list_of_messages_is_a_row(tmp_path):
    path = tmp_path / "rows.json"
    row = {"messages": [{"role": "user", "content": "Question?"}], "chosen": "good"}
    path.write_text(json.dumps(row))
    assert [found.value for found in read_rows(path)] == [row]
