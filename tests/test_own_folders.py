"""Only what is ours is replaced."""

import os

import pytest

from rlhf_core.errors import DataError
from rlhf_core.storage.own_folders import RUNS, OwnFolder, require_replaceable

OURS = OwnFolder("the dataset", lambda folder: (folder / "ours").is_file(), ("ours", "rows"))


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    (tmp_path / "outer/here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "outer/here")


def make(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("x")
    return folder


@pytest.mark.parametrize("names", [(), ("ours",), ("ours", "rows")])
def test_an_empty_folder_and_one_of_ours_may_be_replaced(tmp_path, names):
    require_replaceable(make(tmp_path / "folder", *names), OURS)
    require_replaceable(tmp_path / "new/folder", OURS)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("notes.txt",), "holds 'notes.txt' and no manifest of ours"),
        (("rows",), "holds 'rows' and no manifest of ours"),
        (("ours", "thesis.txt"), "holds 'thesis.txt', which is not ours"),
        ((".hidden",), "holds '.hidden' and no manifest"),
    ],
)
def test_a_folder_of_somebody_else_may_not(tmp_path, names, message):
    with pytest.raises(DataError, match=message):
        require_replaceable(make(tmp_path / "folder", *names), OURS)


def test_a_file_or_a_folder_below_one_may_not(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        require_replaceable(tmp_path / "file", OURS)
    with pytest.raises(DataError, match="file is a file"):
        require_replaceable(tmp_path / "file/folder", OURS)


def test_a_link_may_not_wherever_it_leads(tmp_path):
    make(tmp_path / "folder", "ours")
    for name, leads_to in (("link", "folder"), ("broken", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / leads_to)
        with pytest.raises(DataError, match="is a link"):
            require_replaceable(tmp_path / name, OURS)


@pytest.mark.parametrize("name", [".", "..", "../..", "/", "not-there/../..", "../here"])
def test_the_working_directory_and_what_holds_it_may_not(tmp_path, name):
    make(tmp_path / "outer/here", "ours")
    with pytest.raises(DataError, match="working directory"):
        require_replaceable(type(tmp_path)(name), OURS)


def test_what_holds_an_input_or_lies_in_one_may_not(tmp_path):
    make(tmp_path / "raw/batches", "rows.jsonl")
    spared = {"data.preferences.path": tmp_path / "raw/batches/rows.jsonl"}
    for folder in ("raw", "raw/batches"):
        with pytest.raises(DataError, match=r"is or holds data\.preferences\.path"):
            require_replaceable(tmp_path / folder, OURS, spared)
    with pytest.raises(DataError, match=r"lies in data\.batches"):
        require_replaceable(tmp_path / "raw/new", OURS, {"data.batches": tmp_path / "raw"})
    require_replaceable(tmp_path / "raw/new", OURS, spared)


def test_what_holds_the_runs_may_not_but_it_may_lie_among_them(tmp_path):
    with pytest.raises(DataError, match="is or holds the folder of the runs"):
        require_replaceable(tmp_path / "work", OURS, {RUNS: tmp_path / "work/runs"})
    make(tmp_path / "work/runs")
    require_replaceable(tmp_path / "work/runs/data", OURS, {RUNS: tmp_path / "work/runs"})


def test_a_link_among_the_parents_is_followed(tmp_path):
    make(tmp_path / "real/raw", "rows.jsonl")
    os.symlink(tmp_path / "real", tmp_path / "alias")
    spared = {"data.preferences.path": tmp_path / "real/raw/rows.jsonl"}
    with pytest.raises(DataError, match=r"is or holds data\.preferences\.path"):
        require_replaceable(tmp_path / "alias/raw", OURS, spared)
