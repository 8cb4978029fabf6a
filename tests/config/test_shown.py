"""What people wrote is shown wherever somebody looks at it, and obeyed nowhere."""

import csv
import logging
from types import SimpleNamespace

import pytest

from rlhf_core.schema.shown import shown, shown_cell, shown_code, shown_link, shown_markdown

HARMLESS = [
    "plain",
    "tab\tand\nline",
    "größer",
    "हिन्दी",
    "日本語",
    "👩\u200d👧",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "🏳️",
]
OBEYED = {
    "\x1b[31mred": r"\x1b[31mred",
    "\x9b2J": r"\x9b2J",
    "bell\x07": r"bell\x07",
    "over\rwritten": r"over\x0dwritten",
    "\u202egnp.exe": r"\u202egnp.exe",
    "\u2066a\u2069": r"\u2066a\u2069",
    "\u200bempty\ufeff": r"\u200bempty\ufeff",
    "line\u2028end": r"line\u2028end",
    "\U000e0041": r"\U000e0041",
    "lone\ud800": r"lone\ud800",
    "\x00": r"\x00",
    "\x7f": r"\x7f",
}


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_writing_is_left_as_it_is(text):
    assert shown(text) == text


@pytest.mark.parametrize(("text", "seen"), OBEYED.items())
def test_what_a_terminal_or_page_would_obey_is_written_out(text, seen):
    assert shown(text) == seen


@pytest.mark.parametrize(
    "text", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1", "-"]
)
def test_a_cell_never_begins_a_formula(text):
    assert shown_cell(text).startswith("'")


@pytest.mark.parametrize("value", ["-0.5", "+3", "-1e-3", "1=1", "a-b", "", -0.5, 3, None, True])
def test_numbers_and_other_cells_are_left_as_they_are(value):
    assert shown_cell(value) is value


def rendered(text):
    """As a page with tables and links would be: CommonMark."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


HOSTILE = [
    "[press](javascript:run)",
    "![p](http://stranger.example/p)",
    "<img src=x>",
    "</td><b>",
    "**bold**",
    "`code`",
    "[a]: http://stranger.example",
    "# title",
    "\\[press](javascript:run)",
    "<https://stranger.example>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_a_text_and_makes_nothing_of_it(text):
    page = rendered(f"| name |\n|---|\n| {shown_markdown(text)} |\n\n- {shown_markdown(text)}\n")
    for made in ("<a ", "<img", "<strong", "<code", "<b>", "<h1", "</td><b"):
        assert made not in page
    assert page.count("<td>") == 1


def test_a_text_cannot_add_cells_or_lines_to_a_table():
    text = "x | y\n| z |"
    page = rendered(f"| a |\n|---|\n| {shown_markdown(text)} |\n")
    assert page.count("<td>") == 1
    assert "x | y | z |" in page
    page = rendered(f"| a |\n|---|\n| {shown_code('x | y ` z')} |\n")
    assert page.count("<td>") == page.count("<code>") == 1


@pytest.mark.parametrize(
    "address",
    ["javascript:run", "data:text/html,x", "http://a/) [b](javascript:x", "file:///x", ""],
)
def test_only_an_address_of_the_web_becomes_a_link(address):
    assert "<a " not in rendered(shown_link("report", address))


def test_an_address_of_the_web_becomes_a_link():
    assert 'href="http://a:5000/#/runs/1"' in rendered(
        shown_link("report", "http://a:5000/#/runs/1")
    )


def test_the_terminal_shows_control_characters(capsys, monkeypatch):
    from rlhf_flows.commands import tables

    monkeypatch.setattr(tables, "console", tables.ShowingConsole(width=60, highlight=False))
    tables.show_line("\x1b]0;title\x07 and \u202eback")
    table = tables.Table("name")
    table.add_row("\x1b[2J cleared")
    tables.show_table(table)
    told = capsys.readouterr().out
    assert r"\x1b]0;title\x07 and \u202eback" in told
    assert r"\x1b[2J cleared" in told
    assert not {"\x1b", "\x07", "\u202e"} & set(told)


def test_a_line_of_the_log_stays_one_line(caplog):
    from rlhf_flows.engine.logs import ShowingFormatter

    formatter = ShowingFormatter("%(levelname)s %(message)s")
    record = logging.LogRecord("a", logging.INFO, "f", 1, "from=%s", ("\x1b[2J\nERROR no",), None)
    assert formatter.format(record) == r"INFO from=\x1b[2J\nERROR no"


def test_tables_of_annotators_hold_no_formula(tmp_path):
    from rlhf_core.dataprep.votes.annotators import AnnotatorFacts
    from rlhf_core.stages.preparation.report import write_annotators

    fields = dict.fromkeys(AnnotatorFacts.__dataclass_fields__)
    facts = AnnotatorFacts(**fields | {"annotator": "=HYPERLINK(1)", "careless": ()})
    write_annotators(tmp_path / "annotators.csv", [facts])
    with (tmp_path / "annotators.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["annotator"] == "'=HYPERLINK(1)"


def test_the_entrance_of_data_docs_shows_what_rows_hold(tmp_path):
    from rlhf_core.adapters.datasets.data_docs import write_index

    check = SimpleNamespace(name="a\u202eb", passed=True, severity="block", detail="<b>\x1b[1m")
    report = SimpleNamespace(suite="votes", checks=[check])
    page = write_index(tmp_path, "data", [report]).read_text()
    assert r"a\u202eb" in page
    assert r"&lt;b&gt;\x1b[1m" in page
