"""Answers and thumbs on disk: whole lines, several servers, files that change underneath."""

import os
import threading

import pytest
from pydantic import ValidationError

from rlhf_core.adapters.serving.chat_requests import FeedbackBody
from rlhf_core.adapters.serving.kept_answers import KeptAnswer, KeptAnswers, UnknownAnswerError
from rlhf_core.config import UnpairedConfig
from rlhf_core.dataprep.sources import read_prompts, read_unpaired
from rlhf_core.dataprep.sources.rows import FilteredRow
from rlhf_core.errors import ConfigError, DataError, StorageError
from rlhf_core.schema import Message


def answer(name, index=0, reason="stop"):
    return KeptAnswer(
        id=name,
        index=index,
        created=1,
        model="models:/m/1",
        prompt=(Message(role="user", content=f"About {name}?"),),
        completion=f"Answer {index} of {name}.",
        finish_reason=reason,
    )


def labels(place):
    items = [item for _, item in read_unpaired([UnpairedConfig(path=place)])]
    return [item.reason if isinstance(item, FilteredRow) else item.label for item in items]


@pytest.mark.parametrize("name", ["kept.jsonl", "folder"])
def test_what_is_kept_is_read_as_it_is_and_the_last_rating_counts(tmp_path, name):
    kept = KeptAnswers(tmp_path / name)
    for each in (answer("a"), answer("b"), answer("c", reason="length")):
        kept.keep([each])
    kept.rate("a", None, "down", None)
    kept.rate("c", None, "up", None)
    rated = kept.rate("a", 0, "up", "well said")
    assert (rated.label, rated.comment, rated.completion) == (True, "well said", "Answer 0 of a.")
    expected = ["superseded", "no_votes", "superseded", "superseded", "cut_short", True]
    assert labels(tmp_path / name) == expected
    prompts = {item.prompt[-1].content for _, item in read_prompts(tmp_path / name)}
    assert prompts == {"About a?", "About b?", "About c?"}


def test_only_the_owner_may_read_what_is_made(tmp_path):
    KeptAnswers(tmp_path / "folder").keep([answer("a")])
    (made,) = (tmp_path / "folder").glob("*.jsonl")
    assert (made.stat().st_mode & 0o777, made.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    shared = tmp_path / "shared.jsonl"
    shared.touch(mode=0o640)
    shared.chmod(0o640)
    KeptAnswers(shared).keep([answer("a")])
    assert shared.stat().st_mode & 0o777 == 0o640


def test_a_rating_finds_the_answer_of_another_server_and_of_one_before(tmp_path):
    one, two = KeptAnswers(tmp_path / "k.jsonl"), KeptAnswers(tmp_path / "k.jsonl")
    one.keep([answer("a")])
    assert two.rate("a", None, "up", None).label
    assert KeptAnswers(tmp_path / "k.jsonl").rate("a", None, "down", None).rating == "down"
    with pytest.raises(UnknownAnswerError, match="no answer 'z' is kept here"):
        two.rate("z", None, "up", None)


def test_of_several_answers_one_has_to_be_named(tmp_path):
    kept = KeptAnswers(tmp_path / "k.jsonl")
    kept.keep([answer("a", index) for index in range(3)])
    with pytest.raises(DataError, match="a has 3 answers; say which by index, from 0"):
        kept.rate("a", None, "up", None)
    assert kept.rate("a", 2, "up", None).completion == "Answer 2 of a."
    with pytest.raises(UnknownAnswerError, match="'a' with index 3"):
        kept.rate("a", 3, "up", None)


def test_many_writers_lose_and_mix_nothing(tmp_path):
    servers = [KeptAnswers(tmp_path / "k.jsonl") for _ in range(4)]

    def work(number):
        for n in range(25):
            servers[number].keep([answer(f"{number}-{n}")])
            servers[number].rate(f"{number}-{n}", None, "up", None)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, labels(tmp_path / "k.jsonl"))) == ["True"] * 100 + ["superseded"] * 100


def test_a_line_that_a_killed_server_left_spoils_no_other(tmp_path):
    path = tmp_path / "k.jsonl"
    KeptAnswers(path).keep([answer("a")])
    with path.open("a") as stream:
        stream.write('{"id": "b", "ind')
    kept = KeptAnswers(path)
    kept.keep([answer("c")])
    assert kept.rate("a", None, "up", None).label
    assert labels(path) == ["superseded", "broken_row", "no_votes", True]


def test_a_file_that_was_changed_or_moved_is_read_anew(tmp_path):
    path = tmp_path / "k.jsonl"
    kept = KeptAnswers(path)
    kept.keep([answer("a")])
    kept.keep([answer("b")])
    lines = path.read_text().splitlines(keepends=True)
    (tmp_path / "new").write_text(lines[1])  # as after a withdrawal
    os.replace(tmp_path / "new", path)
    assert kept.rate("b", None, "up", None).completion == "Answer 0 of b."
    with pytest.raises(UnknownAnswerError):
        kept.rate("a", None, "up", None)
    path.unlink()
    with pytest.raises(UnknownAnswerError):
        kept.rate("b", None, "up", None)
    kept.keep([answer("d")])
    assert labels(path) == ["no_votes"]


def test_a_place_that_takes_nothing_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=r"--feedback .*: cannot be written: Not a directory; name"
    ):
        KeptAnswers(tmp_path / "file" / "k.jsonl")
    (tmp_path / "k.jsonl").mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        KeptAnswers(tmp_path / "k.jsonl")


def test_a_full_disk_keeps_whole_lines_alone(tmp_path, monkeypatch):
    path = tmp_path / "k.jsonl"
    kept = KeptAnswers(path)
    kept.keep([answer("a")])
    before, write = path.read_bytes(), os.write

    def full(file, lines):
        if len(lines) > 60:
            return write(file, lines[:60])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match=r"k\.jsonl cannot be written: No space left"):
        kept.keep([answer("b")])
    monkeypatch.undo()
    assert path.read_bytes() == before


@pytest.mark.parametrize("index", [True, False, "1", 1.0, -1])
def test_the_index_of_a_rated_answer_is_a_whole_number_and_nothing_like_one(index):
    body = {"id": "chatcmpl-1", "rating": "up"}
    assert FeedbackBody.model_validate({**body, "index": 1}).index == 1
    with pytest.raises(ValidationError, match="index"):
        FeedbackBody.model_validate({**body, "index": index})
