"""One row of a CSV file never takes others along: what is broken is filtered out, no text lost."""

import csv
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_core.config import SourceConfig
from rlhf_core.dataprep.sources import read_comparisons
from rlhf_core.dataprep.sources.look import look_at
from rlhf_core.dataprep.sources.rewrite import rewrite_rows
from rlhf_core.dataprep.sources.rows import FilteredRow
from rlhf_core.dataprep.sources.tables import Broken, Layout, delimited_pieces
from rlhf_core.errors import DataError

UNQUOTED_LAYOUT = Layout(quotes=False)
HEADER = "prompt,response_a,response_b,choice\n"


def read(path, text: str) -> tuple[list[str], list[FilteredRow]]:
    """Prompts of the rows that were read, and what was filtered out."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    items = list(read_comparisons(SourceConfig(path=path, format="flat")))
    aside = [item for item in items if isinstance(item, FilteredRow)]
    return [item.prompt[-1].content for item in items if item not in aside], aside


def rows(*numbers: int, plain: bool = True) -> str:
    made = io.StringIO()
    writer = csv.writer(made, quoting=csv.QUOTE_MINIMAL if plain else csv.QUOTE_ALL)
    writer.writerows([f"Q{i}?", f"Yes, {i}." if i % 2 else f"y{i}", "no", "a"] for i in numbers)
    return made.getvalue()


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(
    "broken",
    [
        'Q4?,"yes,no,a\r\n',
        '"Q4?,yes,no,a\r\n',
        'Q4?,yes,no,"a\r\n',
        'Q4?,"yes\nand, then\nmore,no,a\r\n',
        '"Q4?","yes","no","a\r\n',
        '"Q4?","yes,"no","a"\r\n',
        'Q4?,"yes" he said,no,a\r\n',
        'Q4?,"yes\n",no,a,b,c\r\n',
    ],
)
def test_an_unclosed_quote_takes_its_own_row_alone(tmp_path, broken, plain):
    before, after = rows(1, 2, 3, plain=plain), rows(5, 6, 7, 8, plain=plain)
    prompts, aside = read(tmp_path / "rows.csv", HEADER + before + broken + after)
    assert prompts == [f"Q{i}?" for i in (1, 2, 3, 5, 6, 7, 8)]
    assert {row.reason for row in aside} == {"broken_row"}
    assert aside[0].line == 5
    assert all("line 5" in row.detail for row in aside if "opens" in row.detail)


def test_the_last_row_and_every_second_row_may_be_the_broken_ones(tmp_path):
    path = tmp_path / "rows.csv"
    prompts, [aside] = read(path, HEADER + rows(1, 2) + 'Q3?,"yes,no,a')
    assert (prompts, aside.line) == (["Q1?", "Q2?"], 4)
    assert "the quote that opens on line 4 is never closed" in aside.detail
    text = "".join(rows(i) + f'Q{i}?,"yes,no,a\n' for i in range(9))
    prompts, aside = read(path, HEADER + text)
    assert (len(prompts), len(aside)) == (9, 9)


def test_a_text_that_the_file_cuts_is_no_rows(tmp_path):
    cut = 'Q3?,"First, take it.\nThen, with care, and slowly, open it.\nAnd so, on, and, on'
    prompts, aside = read(tmp_path / "rows.csv", HEADER + rows(1, 2) + cut)
    assert prompts == ["Q1?", "Q2?"]
    assert [row.line for row in aside] == [4, 5, 6]
    assert "what follows cannot be distinguished from text" in aside[2].detail
    assert "opens on line 4" in aside[2].detail


def test_the_rest_of_a_broken_text_is_no_row(tmp_path):
    broken = 'Q3?,""yes\nand, then, more, text\nand so on",no,a\n'
    prompts, aside = read(tmp_path / "rows.csv", HEADER + rows(1, 2) + broken + rows(4, 5))
    assert prompts == ["Q1?", "Q2?", "Q4?", "Q5?"]
    assert [row.line for row in aside] == [4, 5, 6]
    assert "may be the rest of its text" in aside[1].detail


def test_a_header_with_an_unclosed_quote_is_one_line_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"rows\.csv, line 1: .*the quote that opens on line 1 is"):
        read(tmp_path / "rows.csv", 'prompt,"response_a,response_b,choice\n' + rows(1, 2))


def test_a_line_that_is_not_utf8_is_filtered_out(tmp_path):
    latin = "Q3?,caf\xe9,no,a\n".encode("latin-1")
    text = (HEADER + rows(1, 2)).encode() + latin + rows(4).encode()
    prompts, [aside] = read(tmp_path / "rows.csv", text)
    assert (prompts, aside.line) == (["Q1?", "Q2?", "Q4?"], 4)
    assert "not UTF-8" in aside.detail
    with pytest.raises(DataError, match="line 1: not UTF-8"):
        read(tmp_path / "rows.csv", "prompt,caf\xe9\n".encode("latin-1"))


TEXT = st.text(alphabet='ab ,;."\n', max_size=12)
QUIET = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@QUIET
@given(
    cells=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=6),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    at=st.floats(0, 1),
    change=st.sampled_from(["none", "cut", "drop", "quote"]),
)
def test_pieces_are_all_of_a_file_and_whole_rows_are_as_written(
    tmp_path, cells, quoting, at, change
):
    made = io.StringIO()
    csv.writer(made, quoting=quoting).writerows([("x", "y", "z"), *cells])
    text = made.getvalue()
    header = text.index("\n") + 1
    place = header + int(at * (len(text) - header))
    if change == "cut":
        text = text[:place]
    elif change != "none":
        text = text[:place] + '"' * (change == "quote") + text[place + (change == "drop") :]
    path = tmp_path / "any.csv"
    path.write_text(text, newline="")
    pieces = list(delimited_pieces(path, Layout(",")))
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.line for piece in pieces] == [
        1 + sum(earlier.text.count("\n") for earlier in pieces[:number])
        for number in range(len(pieces))
    ]
    if change == "none":
        found = [piece.row for piece in pieces if isinstance(piece.row, dict)]
        assert [tuple(row.values()) for row in found] == cells
    assert not any(isinstance(piece.row, Broken) and not piece.row.why for piece in pieces)


UNQUOTED = (
    "prompt\tresponse_a\tresponse_b\tchoice\n"
    'Q1?\t"Yes" he said, 1\t"No\ta\n'
    'Q2?\tYes\tHe said "no"\tb\n'
    'Q3?\t"Yes", he said\t"no" to me\ta\n'
)


def test_quotes_are_text_in_a_table_that_was_written_without(tmp_path):
    path = tmp_path / "rows.tsv"
    _, aside = read(path, UNQUOTED)
    assert aside
    found = look_at(path)
    assert (found.usable, found.filtered) == (3, {})
    assert found.settings == {"path": str(path), "quotes": False, "format": "flat"}
    assert found.notes[0].startswith("double quotes are taken for text")
    assert found.add_options() == " --format flat --no-quotes"
    items = list(read_comparisons(SourceConfig(**found.settings)))
    assert [item.response_a for item in items] == ['"Yes" he said, 1', "Yes", '"Yes", he said']
    changes = {2: {"a": "Q9?", "b": '"x', "c": None, "d": "a"}, 3: None}
    assert rewrite_rows(path, changes, UNQUOTED_LAYOUT) == 2
    lines = path.read_text().splitlines()
    assert lines[1:] == ['Q9?\t"x\t\ta', UNQUOTED.splitlines()[3]]


def test_one_broken_row_makes_no_text_of_quotes(tmp_path):
    path = tmp_path / "rows.csv"
    wrapped = "".join(f'"Q{i}?","Yes {i}","no","a"\n' for i in range(9))
    path.write_text(HEADER + wrapped + 'Q9?,"Yes" 9,no,a\n')
    found = look_at(path)
    assert (found.usable, found.filtered) == (9, {"broken_row": 1})
    assert "quotes" not in found.settings
    # The quotes keep commas: without them one row is left, whose quote begins a cell alone.
    kept = "".join(f'Q{i}?,"Yes, {i}, it is","No, never",a\n' for i in range(9))
    path.write_text(HEADER + kept + '"He" said hi,x,y,a\n')
    found = look_at(path)
    assert (found.usable, found.filtered) == (9, {"broken_row": 1})
    assert "quotes" not in found.settings


def test_the_layout_with_fewer_broken_rows_is_taken(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text(UNQUOTED + "Q4?\tYes\tNo\ta\ttoo many\n")
    found = look_at(path)
    assert found.settings["quotes"] is False
    assert (found.usable, found.filtered) == (3, {"broken_row": 1})
