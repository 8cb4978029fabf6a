"""`rlhf data add`: what is typed becomes the source that is read."""

import csv
import shlex
import sys
from pathlib import Path

import openpyxl
import pytest
from typer.testing import CliRunner

from rlhf_core.config import SourceConfig
from rlhf_core.config.data import JoinConfig
from rlhf_core.dataprep.sources.look import look_at
from rlhf_core.stages.versions import publish as data_publish
from rlhf_core.stages.versions import versions as data_versions
from rlhf_core.stages.versions.diff import ChangedPair, DatasetDiff
from rlhf_flows.commands.cli import app, main


class Published(Exception):
    """Stands for the publication, which needs a repository."""


@pytest.fixture
def sources(monkeypatch) -> list[SourceConfig]:
    """Every source that would have been published."""
    seen: list[SourceConfig] = []

    def publish(source, **_):
        seen.append(source)
        raise Published

    monkeypatch.setattr(data_publish, "publish", publish)
    return seen


def add(*arguments: str) -> None:
    done = CliRunner().invoke(app, ["data", "add", *arguments])
    assert isinstance(done.exception, Published), done.output


def test_a_source_with_its_own_words_is_added(sources):
    add(
        *("votes.csv", "--format", "flat", "--column", "prompt=question"),
        *("--choice", "first=a", "--choice", "x=y=tie", "--strength", "a bit=0.5", "--no-quotes"),
    )
    hub = ("--subset", "en", "--split", "test", "--revision", "v1")
    add("hf://datasets/x/y", "--format", "pairs", *hub)
    assert sources == [
        SourceConfig(
            path=Path("votes.csv"),
            format="flat",
            columns={"prompt": "question"},
            choices={"first": "a", "x=y": "tie"},
            strengths={"a bit": 0.5},
            quotes=False,
        ),
        SourceConfig(
            path=Path("hf://datasets/x/y"),
            format="pairs",
            subset="en",
            split="test",
            revision="v1",
        ),
    ]


def write_csv(path: Path, rows: list[list], delimiter: str) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


@pytest.mark.parametrize("container", ["csv", "xlsx", "joined csv"])
def test_what_is_written_down_for_a_file_is_understood(sources, tmp_path, container):
    """Of a new project's README; a file with a column for each person could not be added by it."""
    header = ["id", "prompt", "response_a", "response_b", "ann", "ben", "cyd"]
    rows = [header, *([n, f"Q {n}?", f"Yes, {n}.", f"No, {n}.", *"abb"] for n in range(40))]
    path, join = tmp_path / f"votes.{container.removeprefix('joined ')}", None
    if container == "xlsx":
        workbook = openpyxl.Workbook()
        workbook.active.append(["nothing of interest"])
        sheet = workbook.create_sheet("2026")  # a number, if it were not quoted
        for row in rows:
            sheet.append(row)
        workbook.save(path)
    elif container == "csv":
        write_csv(path, rows, ";")
    else:
        write_csv(path, [[row[0], *row[4:]] for row in rows], ",")
        join = JoinConfig(path=tmp_path / "texts.csv", on=("id", "id"))
        write_csv(join.path, [row[:4] for row in rows], ",")
    found = look_at(path, join)
    assert found.usable == 40
    assert found.settings["annotators"] == ["ann", "ben", "cyd"]
    add(str(path), *shlex.split(found.add_options()))
    assert sources == [SourceConfig.model_validate(found.settings)]


@pytest.mark.parametrize("given", [",", "|", '";"', "\t"])
def test_a_delimiter_is_taken_as_it_is_written(sources, given):
    add("votes.csv", "--format", "flat", "--set", f"delimiter={given}", "--set", "sheet=2024")
    (source,) = sources
    assert (source.delimiter, source.sheet) == (given.strip('"'), "2024")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "sheet"], "--set sheet: expected KEY=VALUE"),
        (["--set", "sheet=a", "--set", "sheet=b"], "sheet is set to a already; keep one"),
        (["--choice", "x=a", "--choice", "x=b"], "--choice x=b: x is a already; keep one"),
        (["--set", "shett=a"], "shett: Extra inputs are not permitted"),
        (["--set", "columns={}"], "--set columns={}: columns has an option of its own"),
        (["--column", "foo"], "--column foo: expected OURS=THEIRS"),
        (["--column", "prompt="], "--column prompt=: expected OURS=THEIRS"),
        (["--choice", "=a"], "--choice =a: expected WORD=SIDE"),
        (
            ["--choice", "first=c"],
            "choices.first: Input should be 'a', 'b', 'tie' or 'none', found 'c'",
        ),
        (["--strength", "much"], "--strength much: expected WORD=N"),
        (["--strength", "much=x"], "strengths.much: Input should be a valid number"),
        (["--format", "flatt"], "format: Input should be 'canonical'"),
    ],
)
def test_a_wrong_option_is_one_clear_line(sources, monkeypatch, capsys, arguments, says):
    monkeypatch.setattr(sys, "argv", ["rlhf", "data", "add", "votes.csv", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not sources


def test_texts_that_look_like_markup_are_shown_as_they_are(monkeypatch):
    """A closing tag ended the command, ``:smile:`` became a picture."""
    odd = {name: f"[/{name}] [b]:smile: \\" for name in ("comparison_id", "source", "prompt")}
    pair = ChangedPair(**odd, file="reward_train", chosen="", rejected="")
    counts = {"num_came": 1, "num_went": 0, "num_relabelled": 0, "num_same": 0}
    found = DatasetDiff(**counts, came=(pair,), went=(), relabelled=())
    monkeypatch.setattr(data_versions, "compare", lambda *_, **__: found)
    done = CliRunner().invoke(app, ["data", "diff", "data-v1", "data-v2"])
    assert done.exit_code == 0, done.output
    for text in odd.values():
        assert text in done.stdout
