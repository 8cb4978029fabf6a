"""Any data file loses the rows it should and no other, in the container it came in."""

import gzip
import json

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from rlhf_core.config import SourceConfig
from rlhf_core.dataprep.sources import read_comparisons
from rlhf_core.dataprep.sources.containers import read_rows
from rlhf_core.dataprep.sources.rewrite import rewrite_rows
from rlhf_core.dataprep.sources.tables import Layout
from rlhf_core.schema import Withdrawal
from rlhf_core.stages.versions.withdraw import Removal

ROWS = [
    {
        "id": f"r{number}",
        "prompt": f'Qü, "{number}"?\nTell.',
        "annotator": "ann" if number % 2 else "bob",
    }
    for number in range(6)
]
FORMER, LATTER = ROWS[:2], ROWS[4:]


def as_workbook(path, rows):
    book = openpyxl.Workbook()
    for row in ([*rows[0]], *(row.values() for row in rows)):
        book.active.append(list(row))
    book.save(path)


def as_table(rows, sign):
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in line] for line in lines]
    return "".join(sign.join(line) + "\r\n" for line in quoted)


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
        return path
    if path.suffix == ".xlsx":
        as_workbook(path, rows)
        return path
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = json.dumps(rows, indent=1) if path.name == "rows.json" else lines
    if ".csv" in path.name or path.suffix == ".tsv":
        text = as_table(rows, "\t" if path.suffix == ".tsv" else ";")
    packs = {".gz": gzip.compress, ".zst": zstandard.compress}
    path.write_bytes(packs.get(path.suffix, bytes)(text.encode()))
    return path


def rows_in(path):
    return [dict(row.value) for row in read_rows(path)]


NAMES = ["rows.jsonl", "rows.ndjson", "rows.jsonl.gz", "rows.jsonl.zst", "rows.json", "lines.json"]
NAMES += ["rows.csv", "rows.csv.gz", "rows.csv.zst", "rows.tsv", "rows.parquet", "rows.xlsx"]


@pytest.mark.parametrize("name", NAMES)
def test_rows_go_and_change_and_the_others_stay(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    lines = [row.line for row in read_rows(path)]
    changed = {**ROWS[3], "annotator": "eve"}
    assert rewrite_rows(path, {lines[2]: None, lines[3]: changed}, Layout()) == 5
    assert rows_in(path) == [*FORMER, changed, *LATTER]
    assert not [file for file in tmp_path.iterdir() if file != path]
    assert rewrite_rows(path, {row.line: None for row in read_rows(path)}, Layout()) == 0


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.tsv"])
def test_text_that_does_not_change_stays_byte_for_byte(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    [*_, last] = read_rows(path)
    lines = path.read_bytes().splitlines(keepends=True)
    rewrite_rows(path, {last.line: None}, Layout())
    assert path.read_bytes() == b"".join(lines[: last.line - 1])


def test_a_list_under_a_key_keeps_what_is_around_it(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"data": ROWS, "version": 1.5, "tags": ["x"]}, indent=1))
    assert rewrite_rows(path, {1: None}, Layout()) == 5
    assert rows_in(path) == ROWS[1:]
    left = json.loads(path.read_text())
    assert left == {"data": ROWS[1:], "version": 1.5, "tags": ["x"]}


def test_parquet_keeps_its_types_and_compression(tmp_path):
    table = pa.table({"n": pa.array([1, 2, 3], pa.int16()), "v": pa.array([[b"a"], None, [b"b"]])})
    pq.write_table(table, tmp_path / "t.parquet", compression="zstd")
    rewrite_rows(tmp_path / "t.parquet", {2: None}, Layout())
    file = pq.ParquetFile(tmp_path / "t.parquet")
    assert file.read().equals(table.take([0, 2]))
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


@pytest.mark.parametrize("name", NAMES)
def test_a_person_is_found_in_every_container(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    found = Removal(Withdrawal(annotators=("ann",))).changes(path, None)
    lines = [row.line for row in read_rows(path)]
    assert found == {lines[number]: None for number in (1, 3, 5)}
    found = Removal(Withdrawal(rows=("r3",))).changes(path, None)
    assert found == {lines[3]: None}


def test_the_settings_say_which_column_names_the_person(tmp_path):
    path = tmp_path / "sheet.csv"
    path.write_text("q,a,b,best,who,w7\nQ?,x,y,1,ann,2\nR?,x,y,2,bob,1\n")
    columns = {"prompt": "q", "response_a": "a", "response_b": "b", "choice": "best"}
    source = SourceConfig(
        path=path, format="flat", columns={**columns, "annotator": "who"}, choices={1: "a", 2: "b"}
    )
    assert Removal(Withdrawal(annotators=("ann",))).changes(path, None) == {}
    assert Removal(Withdrawal(annotators=("ann",))).changes(path, source) == {2: None}
    people = source.model_copy(update={"columns": columns, "annotators": ("who", "w7")})
    found = Removal(Withdrawal(annotators=("w7",))).changes(path, people)
    assert found[3] == {"q": "R?", "a": "x", "b": "y", "best": "2", "who": "bob", "w7": None}
    rewrite_rows(path, found, Layout())
    assert path.read_text() == "q,a,b,best,who,w7\nQ?,x,y,1,ann,\nR?,x,y,2,bob,\n"


@pytest.mark.parametrize("votes", [list, json.dumps, repr])
def test_of_a_list_of_votes_only_the_person_s_go(tmp_path, votes):
    given = [{"annotator": "ann", "choice": "a"}, {"annotator": "bob", "choice": "b"}]
    rows = [{"prompt": "Q?", "votes": votes(given)}, {"prompt": "R?", "votes": votes(given[:1])}]
    path = write(tmp_path / "rows.jsonl", rows)
    found = Removal(Withdrawal(annotators=("ann",))).changes(path, None)
    assert found[2] is None
    left = found[1]["votes"]
    assert (left if votes is list else json.loads(left)) == given[1:]


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
@pytest.mark.parametrize("is_mapped", [True, False])
def test_of_lists_beside_each_other_the_person_s_places_go(tmp_path, ending, is_mapped):
    def row(users: list[str]) -> dict:
        lists = {"v": ["a", "b"][: len(users)], "v.users": users, "v.status": ["submitted"] * 2}
        lists["v.status"] = lists["v.status"][: len(users)]
        return {"prompt": "Q?", **{name: json.dumps(value) for name, value in lists.items()}}

    path = write(tmp_path / f"rows.{ending}", [row(["ann", "bob"]), row(["ann"]), row(["bob"])])
    columns = {"votes": "v", "vote_annotators": "v.users", "vote_statuses": "v.status"}
    source = SourceConfig(path=path, columns=columns) if is_mapped else None
    found = Removal(Withdrawal(annotators=("ann",))).changes(path, source)
    [first, second] = [found[line] for line in sorted(found)]
    assert {name: json.loads(first[name]) for name in columns.values()} == {
        "v": ["b"],
        "v.users": ["bob"],
        "v.status": ["submitted"],
    }
    assert second is None


def test_an_export_loses_the_person_s_annotations_alone(tmp_path):
    tasks = [
        {"id": 1, "annotations": [{"completed_by": {"id": 3}}, {"completed_by": 4}]},
        {"id": 2, "annotations": [{"completed_by": 3}]},
    ]
    path = write(tmp_path / "rows.json", tasks)
    found = Removal(Withdrawal(annotators=("3",))).changes(path, None)
    assert found == {1: {"id": 1, "annotations": [{"completed_by": 4}]}, 2: None}


def test_a_row_is_known_by_the_id_that_preparation_gives_it(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text(json.dumps({"prompt": "Q?", "responses": ["x", "y"], "ranks": [1, 2]}) + "\n")
    source = SourceConfig(path=path, format="ranked")
    [item] = read_comparisons(source)
    assert Removal(Withdrawal(rows=(item.comparison_id,))).changes(path, source) == {1: None}
