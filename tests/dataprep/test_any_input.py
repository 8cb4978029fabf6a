"""Whatever a file holds, a reader gives records, filters rows out, or says one clear line."""

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_core.config import DemonstrationsConfig, SourceConfig
from rlhf_core.dataprep.sources import read_comparisons, read_demonstrations, read_prompts
from rlhf_core.errors import DataError

TURNS = [{"role": "user", "content": "Q?"}]
ROWS = {
    "canonical": {
        "comparison_id": "1",
        "prompt": "Q?",
        "response_a": "yes",
        "response_b": "no",
        "votes": [{"annotator": "x", "choice": "b", "strength": 2.0, "seconds": 3}],
        "group": "",
    },
    "hh": {
        "chosen": "\n\nHuman: q\n\nAssistant: yes",
        "rejected": "\n\nHuman: q\n\nAssistant: no",
    },
    "pairs": {
        "prompt": TURNS,
        "chosen": [*TURNS, {"role": "assistant", "content": "yes"}],
        "rejected": [*TURNS, {"role": "assistant", "content": "no"}],
        "score_chosen": 9,
        "score_rejected": 4.5,
    },
    "ranked": {
        "prompt": "Q?",
        "responses": ["yes", "no", "perhaps"],
        "ranks": [2, 1, 2],
        "rankings": [{"annotator": "x", "ranks": [1, 2, 3]}],
        "annotator": "y",
    },
    "flat": {
        "comparison_id": "1",
        "prompt": "Q?",
        "response_a": "yes",
        "response_b": "no",
        "choice": "a",
        "strength": "much better",
        "annotator": "x",
        "seconds": "9.5",
    },
    "label_studio": {
        "id": 7,
        "data": {"prompt": "Q?", "response_a": "yes", "response_b": "no"},
        "annotations": [
            {
                "completed_by": {"id": 3},
                "lead_time": 12.5,
                "result": [
                    {"from_name": "c", "value": {"selected": "left"}},
                    {"from_name": "s", "value": {"rating": 2}},
                    {"from_name": "w", "value": {"choices": ["left", "right"]}},
                ],
            }
        ],
    },
}
NUMBERS = st.sampled_from([0, -1, 10**400, -(10**400), float("nan"), float("inf"), -0.0, True])
LEAVES = st.none() | NUMBERS | st.integers() | st.floats() | st.text() | st.just("x" * 100_000)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "ranks", "value", "choice"]), inner)
    ),
    max_leaves=5,
)
HOW_OFTEN = pytest.mark.parametrize("number", [40, pytest.param(400, marks=pytest.mark.nightly)])


def check(number, **strategies):
    """Call what is decorated with so many draws, at once."""
    quiet = settings(
        max_examples=number, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    return lambda body: quiet(given(**strategies)(body))()


def places(value, path=()):
    """Every place in a row, the row's own columns and all that lies below them."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


def changed(row: dict, path: tuple, value: object) -> dict:
    row = json.loads(json.dumps(row))
    place = row
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return row


@st.composite
def damaged(draw, file_format: str) -> dict:
    row = ROWS[file_format]
    for _ in range(draw(st.integers(1, 2))):
        row = changed(row, draw(st.sampled_from(list(places(row)))), draw(ANYTHING))
    return row


def outcome(path: Path, file_format: str) -> tuple[list, str]:
    """Records and rows filtered out, or the message of the one deliberate error."""
    try:
        return list(read_comparisons(SourceConfig(path=path, format=file_format))), ""
    except DataError as error:
        return [], str(error)


def require_sound(path: Path, items: list, message: str) -> None:
    assert items or message
    if message:
        assert message.startswith(str(path))
        assert "line 1" in message or "row 1" in message
        assert "\n" not in message
        assert len(message) < 2_000


@pytest.mark.parametrize("file_format", ROWS)
def test_the_undamaged_row_is_read(tmp_path, file_format):
    path = tmp_path / "row.jsonl"
    path.write_text(json.dumps(ROWS[file_format]) + "\n")
    items, message = outcome(path, file_format)
    assert not message
    assert items[0].votes


@HOW_OFTEN
@pytest.mark.parametrize("file_format", ROWS)
def test_no_value_in_any_place_can_crash_a_reader(tmp_path, file_format, number):
    path = tmp_path / "any.jsonl"

    @check(number, row=damaged(file_format))
    def reads(row):
        path.write_text(json.dumps(row) + "\n")
        require_sound(path, *outcome(path, file_format))


STRANGE = {
    "400 digits": "9" * 400,
    "6000 digits": "9" * 6_000,
    "not a number": "NaN",
    "infinity": "-Infinity",
    "huge text": json.dumps("x" * 10**6),
    "half a surrogate pair": '"\\ud800"',
    "deep": "[" * 5_000 + "]" * 5_000,
}


@pytest.mark.parametrize("written", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("file_format", ROWS)
def test_a_value_no_column_expects_is_one_line(tmp_path, file_format, written):
    path = tmp_path / "any.jsonl"
    for place in places(ROWS[file_format]):
        row = changed(ROWS[file_format], place, "@@")
        path.write_text(json.dumps(row).replace('"@@"', written) + "\n")
        require_sound(path, *outcome(path, file_format))


CELLS = st.text() | st.floats().map(str) | st.just("9" * 400) | st.just("y" * 200_000)


@HOW_OFTEN
def test_no_cell_can_crash_a_spreadsheet(tmp_path, number):
    path = tmp_path / "any.csv"

    def reads(cells):
        text = io.StringIO(newline="")
        csv.writer(text).writerows([list(ROWS["flat"]), cells])
        try:
            path.write_bytes(text.getvalue().encode())
        except UnicodeEncodeError:
            return
        items, message = outcome(path, "flat")
        assert not message or message.startswith(f"{path}, line ")
        assert message or len(items) == 1

    reads(["0", "Q?", "a", "b", "left", "1e400", "0", ""])
    check(number, cells=st.lists(CELLS, min_size=8, max_size=8))(reads)


@HOW_OFTEN
@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "parquet", "jsonl.zst", "csv.gz"])
def test_no_bytes_can_crash_a_container(tmp_path, ending, number):
    path = tmp_path / f"any.{ending}"

    @check(number, data=st.binary(max_size=300))
    def reads(data):
        path.write_bytes(data)
        items, message = outcome(path, "flat")
        assert not items or not message
        assert not message or str(path) in message


@pytest.mark.parametrize("file_format", ["canonical", "pairs", "ranked"])
def test_a_parquet_file_of_wrong_types_names_its_row(tmp_path, file_format):
    path = tmp_path / "any.parquet"
    for column in ROWS[file_format]:
        for value in (None, 1.5, [1], {"a": 1}, b"\xff", "text"):
            row = {**ROWS[file_format], column: value}
            row.pop("rankings", None)
            pq.write_table(pa.Table.from_pylist([row]), path)
            require_sound(path, *outcome(path, file_format))


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("canonical", {"demonstration_id": "1", "prompt": TURNS, "response": "yes"}),
        ("hh", {"chosen": "\n\nHuman: q\n\nAssistant: yes"}),
        ("messages", {"messages": [*TURNS, {"role": "assistant", "content": "yes"}]}),
        ("prompt", {"prompt_id": "1", "prompt": TURNS, "tags": {"style": "x"}}),
    ],
)
@HOW_OFTEN
def test_no_demonstration_and_no_prompt_can_crash_its_reader(tmp_path, kind, row, number):
    path = tmp_path / "any.jsonl"

    @check(number, value=ANYTHING, place=st.sampled_from(list(places(row))))
    def reads(value, place):
        path.write_text(json.dumps(changed(row, place, value)) + "\n")
        message = ""
        try:
            if kind == "prompt":
                list(read_prompts(path))
            else:
                list(read_demonstrations(DemonstrationsConfig(path=path, format=kind)))
        except DataError as error:
            message = str(error)
        assert not message or message.startswith(f"{path}, line 1")
        assert "\n" not in message
