"""One row never refuses a file: it is filtered out with its reason; every row is accounted for."""

import json

import pytest

from rlhf_core.config import DemonstrationsConfig, SourceConfig
from rlhf_core.dataprep.sources import read_comparisons, read_demonstrations, read_prompts
from rlhf_core.dataprep.sources.look import look_at
from rlhf_core.dataprep.sources.rows import FileRows, FilteredRow
from rlhf_core.errors import DataError

GOOD = {"prompt": "Q?", "chosen": "good", "rejected": "bad"}
ASKED = {"role": "user", "content": "Q?"}


def chat(*turns: dict) -> dict:
    answer = {"role": "assistant", "content": "good"}
    return {"prompt": [*turns], "chosen": [answer], "rejected": "bad"}


def read(path, file_format: str = "pairs", **settings) -> tuple[list, FileRows]:
    files: dict[str, FileRows] = {}
    source = SourceConfig(path=path, format=file_format, **settings)
    items = list(read_comparisons(source, files=files))
    [counts] = files.values()
    assert counts.rows == counts.used + counts.filtered.total()
    return items, counts


LINES = {
    "{": ("broken_row", "broken JSON"),
    "[1]": ("broken_row", "expected a JSON object, found list"),
    '{"prompt": "Q?", "chosen": "x", "chosen": "y", "rejected": "z"}': (
        "broken_row",
        "the key 'chosen' is duplicated",
    ),
    '{"prompt": "\\ud800", "chosen": "x", "rejected": "y"}': ("broken_row", "broken JSON"),
    '{"prompt": "Q?", "chosen": "x", "rejected": "y",}': ("broken_row", "broken JSON"),
    '{"prompt": "Q?", "chosen": ' + "9" * 6_000 + ', "rejected": "y"}': (
        "broken_row",
        "broken JSON",
    ),
    '{"prompt": "Q?", "chosen": ' + "9" * 400 + ', "rejected": "y"}': (
        "unusable_value",
        "chosen: expected text or messages",
    ),
    '{"prompt": "Q?", "rejected": "y"}': ("missing_column", "missing column 'chosen'"),
    json.dumps({**GOOD, "score_chosen": 1, "score_rejected": 2}): (
        "reversed_scores",
        "score_chosen 1 is below score_rejected 2",
    ),
    json.dumps({**GOOD, "margin": -1}): ("unusable_value", "margin: expected a number >= 0"),
    json.dumps(chat({"role": "judge", "content": "Q?"})): (
        "unusable_message",
        "prompt.0: expected a message with role",
    ),
    json.dumps(chat({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]})): (
        "unusable_message",
        "prompt.0.content.0: expected text",
    ),
    json.dumps(
        chat(ASKED, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, ASKED)
    ): ("unusable_message", "prompt.1: a turn with tool_calls"),
}


@pytest.mark.parametrize(("line", "expected"), LINES.items(), ids=range(len(LINES)))
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_a_row_that_cannot_be_used_is_filtered_out(tmp_path, line, expected, ending):
    path = tmp_path / f"rows.{ending}"
    lines = [json.dumps(GOOD), line, json.dumps(GOOD)]
    path.write_text("\n".join(lines) if ending == "jsonl" else f"[{','.join(lines)},]")
    if ending == "json" and line == "{":
        with pytest.raises(DataError, match="after item 2: broken JSON"):
            read(path)
        return
    items, counts = read(path)
    assert len(items) == 3
    [aside] = [item for item in items if isinstance(item, FilteredRow)]
    assert (aside.line, aside.reason) == (2, expected[0])
    assert expected[1] in aside.detail
    assert (counts.rows, counts.used) == (3, 2)
    assert counts.first_fault.startswith(f"{path}, {'line' if ending == 'jsonl' else 'item'} 2: ")
    path.write_text(line + "\n" if ending == "jsonl" else f"[{line}]")
    with pytest.raises(DataError) as raised:
        read(path)
    assert expected[1] in str(raised.value)


def test_a_file_without_a_usable_row_is_the_error(write_jsonl):
    path = write_jsonl("rows.jsonl", [{"prompt": "Q?"}] * 3)
    with pytest.raises(DataError, match=r"none of its 3 rows can be used \(missing_column 3\)"):
        read(path)


@pytest.mark.parametrize("file_format", ["pairs", "canonical", "flat", "ranked", "hh"])
@pytest.mark.parametrize("row", [{"9" * 5_000: 1}, dict.fromkeys(map(str, range(5_000)), 1)])
def test_a_message_shows_no_book_of_column_names(write_jsonl, file_format, row):
    with pytest.raises(DataError) as raised:
        read(write_jsonl("rows.jsonl", [row]), file_format)
    assert "missing column" in str(raised.value)
    assert len(str(raised.value)) < 1_000


def test_neither_does_what_is_said_of_a_table(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(f"{'9' * 5_000},{'9' * 5_000}\n1,2\n")
    with pytest.raises(DataError, match=r"columns with the same name: 9+\.\.\.; rename") as raised:
        read(path)
    assert len(str(raised.value)) < 1_000
    path.write_text(f"{'9' * 5_000},b\n1,2\n")
    with pytest.raises(DataError, match=r"no shape that is known; found the columns 9+\.\.\.; map"):
        look_at(path)


def test_a_byte_order_mark_line_ends_and_blank_lines_are_no_matter(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{json.dumps(GOOD)}\r\n\r\n{json.dumps(GOOD)}".encode())
    items, _ = read(path)
    assert [item.line for item in items] == [1, 3]


def test_a_line_that_is_not_utf8_is_filtered_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + '{"prompt": "é"}\n'.encode("latin-1"))
    items, _ = read(path)
    assert "not UTF-8" in items[1].detail


def test_text_parts_are_text_and_tool_and_developer_turns_are_turns(write_jsonl):
    parts = [{"type": "text", "text": "When does "}, {"type": "text", "text": "it open?"}]
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "Let me look."},
        {"role": "tool", "content": "9:00"},
        {"role": "user", "content": "And?"},
    ]
    [item], _ = read(write_jsonl("rows.jsonl", [chat(*turns)]))
    assert [(turn.role, turn.content) for turn in item.prompt][:2] == [
        ("developer", "Be brief."),
        ("user", "When does it open?"),
    ]
    assert item.prompt[3].role == "tool"


TRANSCRIPTS = {
    "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Q?\n\nAssistant:": ["Hi", "Yes?", "Q?"],
    "Human: Hi\n\nAssistant: Yes?\n\nHuman: Q?\n\nAssistant:": ["Hi", "Yes?", "Q?"],
    "\n\nHuman: Q?": ["Q?"],
    "Be brief.\n\nHuman: Q?\n\nAssistant:": ["Be brief.", "Q?"],
    "What does Human: mean?": ["What does Human: mean?"],
    "Human: is a word": ["Human: is a word"],
    "Explain:\n\nHuman: a\n\nAssistant: b": ["Explain:\n\nHuman: a\n\nAssistant: b"],
    "\n\nHuman: say Assistant: or Human: twice\nHuman: no mark\n\nAssistant:": [
        "say Assistant: or Human: twice\nHuman: no mark"
    ],
}


@pytest.mark.parametrize(("prompt", "turns"), TRANSCRIPTS.items())
def test_a_transcript_in_the_prompt_is_split_at_its_marks(write_jsonl, prompt, turns):
    [item], _ = read(write_jsonl("rows.jsonl", [{**GOOD, "prompt": prompt, "chosen": " good"}]))
    assert [turn.content for turn in item.prompt] == turns


def test_a_mapping_renames_and_drops_nothing(write_jsonl):
    row = {"question": "Q?", "chosen": "x", "rejected": "y", "score_chosen": 5, "score_rejected": 5}
    path = write_jsonl("pairs.jsonl", [row])
    [item], _ = read(path, columns={"prompt": "question"})
    assert item.votes[0].choice == "tie"
    vote = {"q": "Q?", "response_a": "x", "response_b": "y", "choice": "a", "strength": 2}
    path = write_jsonl("flat.jsonl", [{**vote, "annotator": "ann"}])
    [item], _ = read(path, "flat", columns={"prompt": "q"})
    assert (item.votes[0].annotator, item.votes[0].strength) == ("ann", 2)


def test_what_a_mapping_leads_into_is_read_and_a_row_set_aside_names_no_columns(write_jsonl):
    row = {"prompt": "Q?", "responses": [{"text": "x", "rank": 1}, {"text": "y", "rank": 2}]}
    columns = {"responses": "responses.*.text", "ranks": "responses.*.rank"}
    path = write_jsonl("lists.jsonl", [row, {**row, "responses": 3}])
    _, counts = read(path, "ranked", columns=columns)
    assert counts.filtered == {"missing_column": 1}
    assert not counts.unused_columns


def test_a_mapping_that_no_row_knows_is_an_error(write_jsonl):
    row = {"prompt": "Q?", "response_a": "x", "response_b": "y", "choice": "a"}
    path = write_jsonl("flat.jsonl", [row, {**row, "who": "ann"}])
    items, _ = read(path, "flat", columns={"annotator": "who"})
    assert [item.votes[0].annotator for item in items] == ["unnamed", "ann"]
    with pytest.raises(DataError, match=r"columns: no row has 'whoo' \(our annotator\)"):
        read(path, "flat", columns={"annotator": "whoo"})


def test_columns_that_belong_to_a_prompt_are_read_and_others_are_named(write_jsonl):
    row = {
        "instruction": "Translate.",
        "input": "Bonjour",
        "system": "Be brief.",
        "history": [["Hi", "Hello."]],
        "tools": "[{}]",
        "notes": "",
        "chosen": "good",
        "rejected": "bad",
    }
    path = write_jsonl("rows.jsonl", [row, {**row, "notes": "x"}])
    items, counts = read(path, columns={"prompt": "instruction"})
    assert [(turn.role, turn.content) for turn in items[0].prompt] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello."),
        ("user", "Translate.\nBonjour"),
    ]
    assert counts.unused_columns == {"tools": 2, "notes": 1}


def test_a_path_leads_into_a_column(write_jsonl):
    row = {
        "input": {"messages": [ASKED]},
        "out": [{"content": "good"}, {"content": "bad"}],
    }
    columns = {"prompt": "input.messages", "chosen": "out.0.content", "rejected": "out.1.content"}
    items, _ = read(write_jsonl("rows.jsonl", [row, {**row, "out": []}]), columns=columns)
    assert {items[0].response_a, items[0].response_b} == {"good", "bad"}
    assert items[1].detail == ("missing column 'out.0.content' (our chosen); found input, out")
    assert json.loads(items[1].row) == {**row, "out": []}


def test_rows_are_named_by_what_they_are(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([{"prompt": "Q?", "chosen": "x"}]), tmp_path / "r.parquet")
    with pytest.raises(DataError, match=r"r\.parquet, row 1: missing column 'rejected'"):
        read(tmp_path / "r.parquet")
    (tmp_path / "r.json").write_text(json.dumps([{"prompt": "Q?", "chosen": "x"}]))
    with pytest.raises(DataError, match=r"r\.json, item 1: missing column 'rejected'"):
        read(tmp_path / "r.json")


def test_a_decimal_comma_is_one_where_semicolons_part_the_cells(tmp_path):
    head = "prompt;response_a;response_b;choice;strength"
    (tmp_path / "v.csv").write_text(f"{head}\nQ, or R?;1,5 km;2 km;a;1,5\n")
    [item], _ = read(tmp_path / "v.csv", "flat")
    assert (item.response_a, item.votes[0].strength) == ("1,5 km", 1.5)
    (tmp_path / "w.csv").write_text(f"{head.replace(';', '|')}\nQ?|x|y|a|1,5\n")
    [item], counts = read(tmp_path / "w.csv", "flat", delimiter="|")
    assert (item.votes[0].strength, counts.unread_cells) == (None, {"strength": 1})


def test_a_sheet_that_is_not_there_is_named(tmp_path):
    import openpyxl

    workbook = openpyxl.Workbook()
    workbook.active.title = "Monday"
    workbook.save(tmp_path / "v.xlsx")
    with pytest.raises(DataError, match="no sheet 'Tuesday'; found Monday"):
        read(tmp_path / "v.xlsx", "flat", sheet="Tuesday")
    (tmp_path / "x.xlsx").write_bytes(b"no workbook")
    with pytest.raises(DataError, match="not an Excel workbook"):
        read(tmp_path / "x.xlsx", "flat")


def test_demonstrations_and_prompts_set_rows_aside_as_well(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"messages": [ASKED, {"role": "assistant", "content": "A."}]},
        {"prompt": "Q?", "completion": "A."},
        {"instruction": "Q", "input": "?", "output": "A."},
        {"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]},
        {"messages": [{"role": "judge", "content": "x"}]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    read_items = read_demonstrations(DemonstrationsConfig(path=path, format="messages"))
    items = [item for _, item in read_items]
    assert [item.response for item in items[:4]] == ["A."] * 4
    assert [item.reason for item in items[4:]] == ["unusable_message", "broken_row"]
    path.write_text('{"prompt": "Q?"}\n{"prompt": 3}\n')
    assert [type(item).__name__ for _, item in read_prompts(path)] == ["Prompt", "FilteredRow"]
