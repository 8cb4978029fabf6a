"""`rlhf data add`: what is typed becomes the source that is read."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlhf_core.config import SourceConfig
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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
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
