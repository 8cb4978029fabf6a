"""Containers: each gives rows with their lines, or one clear error."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_core.dataprep.sources.containers import file_names, read_rows, source_files
from rlhf_core.errors import DataError
from tests.dataprep.test_formats import CANONICAL, read


def test_parquet_gives_the_rows_of_the_same_jsonl(tmp_path, write_jsonl):
    rows = [{**CANONICAL, "comparison_id": str(i)} for i in range(2_500)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.parquet") == read(write_jsonl("rows.jsonl", rows))


def test_a_folder_and_a_pipe_that_are_named_as_data_are_refused(tmp_path, write_jsonl):
    """One was a traceback, the other was waited for, for ever."""
    (tmp_path / "folder/more.jsonl").mkdir(parents=True)
    (tmp_path / "pipes").mkdir()
    os.mkfifo(tmp_path / "pipes/more.jsonl")
    for place, kind in (
        ("folder", "a folder"),
        ("pipes", "no regular file"),
        ("pipes/more.jsonl", "no regular file"),
    ):
        with pytest.raises(DataError, match=f"more.jsonl: {kind}, named as data; rename it"):
            source_files(tmp_path / place)


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"rows\.parquet, after row 0: damaged Parquet"):
        read(tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    "column",
    [
        pa.array([10**15], pa.timestamp("s")),
        pa.array([1], pa.timestamp("us", tz="Nowhere/Land")),
        pa.array([10**9], pa.date32()),
        pa.array([10**18], pa.duration("s")),
    ],
)
def test_a_parquet_value_beyond_python_is_one_clear_error(tmp_path, column):
    row = {"prompt": ["Q?"], "chosen": ["good"], "rejected": ["bad"], "when": column}
    pq.write_table(pa.table(row), tmp_path / "rows.parquet")
    said = r"row 1: a value that Python cannot hold in column 'when'"
    with pytest.raises(DataError, match=said) as raised:
        read(tmp_path / "rows.parquet", format="pairs")
    assert "\n" not in str(raised.value)


def test_a_parquet_row_beyond_python_takes_no_other_row_along(tmp_path):
    when = pa.array([1, 10**9, 2], pa.date32())
    rows = {name: [name[0]] * 3 for name in ("prompt", "chosen", "rejected")} | {"when": when}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    _, aside, last = read(tmp_path / "rows.parquet", format="pairs")
    assert (aside.reason, aside.line, last.line) == ("broken_row", 2, 3)
    assert '"prompt' in aside.row.replace("\\", "")


def test_packed_parquet_is_refused(tmp_path):
    (tmp_path / "rows.parquet.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"expected a plain \.parquet file"):
        read(tmp_path / "rows.parquet.gz")


def test_a_folder_is_read_in_name_order(tmp_path, write_jsonl):
    for name in ("batch-0002.jsonl", "batch-0001.jsonl.gz", "notes.md"):
        write_jsonl(f"raw/{name}", [CANONICAL])
    assert [item.source for item in read(tmp_path / "raw")] == ["batch-0001", "batch-0002"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no data files in this folder"):
        read(tmp_path / "none")


def test_what_lies_among_data_and_is_none_is_passed_over(tmp_path, write_jsonl, caplog):
    caplog.set_level("INFO", logger="rlhf_core")
    write_jsonl("raw/rows.jsonl", [CANONICAL])
    others = ("._rows.jsonl", ".rows.csv", "~$votes.xlsx", "dataset_infos.json", "state.json")
    for name in others:
        (tmp_path / "raw" / name).write_bytes(b"\x00\x05\x16 {")
    (tmp_path / "raw" / "empty.json").touch()
    assert [item.source for item in read(tmp_path / "raw")] == ["rows"]
    assert all(f"{name}: " in caplog.text for name in (*others, "empty.json"))
    with pytest.raises(DataError, match=r"\._rows\.jsonl, line 1"):
        read(tmp_path / "raw" / "._rows.jsonl")  # whoever names a file means it


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (("a/votes.csv", "a/texts.csv"), ("votes", "texts")),
        (("wk1/votes.csv", "wk2/votes.csv", "texts.csv"), ("wk1-votes", "wk2-votes", "texts")),
        (("a/x/votes.csv", "b/x/votes.csv.gz"), ("a-x-votes", "b-x-votes")),
        (("a/votes.csv", "a/votes.jsonl"), ("votes.csv", "votes.jsonl")),
        (("a/x.csv", "a/x.json", "b/x.csv"), ("a-x.csv", "a-x.json", "b-x.csv")),
        (("x.csv", "a/x.csv"), ("x", "a-x")),
        (
            ("r/wk1-votes.csv", "r/wk1/votes.csv", "r/wk2/votes.csv", "r/texts.csv"),
            ("wk1-votes.csv", "wk1/votes.csv", "wk2-votes", "texts"),
        ),
        (("a/b/c.csv", "a-b/c.csv", "z/b/c.csv"), ("a/b/c.csv", "a-b/c.csv", "z-b-c")),
        (
            ("w/v.csv", "w/v.json", "x/v.csv", "w-v.csv.csv", "w-v.csv", "x-v.csv.csv"),
            ("w/v.csv", "w-v.json", "x/v.csv", "w-v.csv.csv", "w-v", "x-v.csv.csv"),
        ),
    ],
)
def test_files_of_one_name_are_told_apart(files, names):
    paths = tuple(map(Path, files))
    assert file_names((*paths, paths[0])) == dict(zip(paths, names, strict=True))


def test_an_unknown_ending_is_refused(tmp_path):
    (tmp_path / "rows.docx").write_text("")
    with pytest.raises(DataError, match=r"unknown ending; expected one of \.jsonl"):
        read(tmp_path / "rows.docx")


def test_two_columns_with_one_name_are_refused(tmp_path):
    path = tmp_path / "votes.csv"
    path.write_text("prompt,choice,choice,prompt,who,,\nQ?,a,b,R?,ann,,\n")
    with pytest.raises(DataError, match=r"line 1: columns with the same name: choice, prompt;"):
        read(path, format="flat")


def test_blank_lines_count_as_lines(tmp_path):
    path = tmp_path / "votes.csv"
    path.write_text(
        '\nprompt,response_a,response_b,choice\n\n"Q\n?",yes,no,a\n\n\nR?,yes,no,b\nS?,x\n'
    )
    rows = read_rows(path)
    assert [next(rows).line, next(rows).line] == [4, 8]
    broken = next(rows)
    assert (broken.line, broken.reason) == (9, "broken_row")
    assert "expected 4 fields as in the header, found 2" in broken.detail


@pytest.mark.parametrize(
    "name", ["votes.ndjson", "votes.NDJSON", "votes.JSONL", "votes.Jsonl.GZ", "votes.jsonl.gz"]
)
def test_json_lines_have_several_endings(write_jsonl, name):
    path = write_jsonl("rows.gz" if name.lower().endswith("gz") else "rows", [CANONICAL])
    [item] = read(path.rename(path.with_name(name)))
    assert item.source == "votes"


@pytest.mark.parametrize("name", ["votes.tsv", "votes.TSV"])
def test_the_source_of_a_table_is_named_without_its_ending(tmp_path, name):
    (tmp_path / name).write_text("prompt\tresponse_a\tresponse_b\tchoice\nQ?\tyes\tno\ta\n")
    [item] = read(tmp_path, format="flat")
    assert item.source == "votes"


def test_an_object_over_several_lines_is_no_row(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{\n"id": 1}\n')
    with pytest.raises(DataError, match=r"found '\{.*'; if each line is an object, name the file"):
        list(read_rows(path))
    path.write_text("3")
    with pytest.raises(DataError, match=r"expected a list of objects, found '3'$"):
        list(read_rows(path))
