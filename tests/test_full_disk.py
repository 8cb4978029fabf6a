"""What a full disk does to every library, told in one line with the file."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import sqlalchemy

from rlhf_core.errors import DataError, StorageError
from rlhf_core.storage.full_disk import fullest, in_one_line, refused_write, writing
from tests.disks import no_larger_files

BIG = 400_000


def by_python(folder):
    (folder / "rows.jsonl").write_bytes(bytes(BIG))


def by_parquet(folder):
    table = pa.table({"x": [np.random.default_rng(0).bytes(BIG)]})
    pq.write_table(table, folder / "rows.parquet")


def by_safetensors(folder):
    safetensors.numpy.save_file({"x": np.zeros(BIG, np.uint8)}, folder / "x.safetensors")


def by_copying_a_folder(folder):
    shutil.copytree(folder.parent / "source", folder, dirs_exist_ok=True)


@pytest.mark.parametrize(
    ("write", "file"),
    [
        (by_python, ""),
        (by_parquet, ""),
        (by_safetensors, ""),
        (by_copying_a_folder, "/rows.jsonl"),
    ],
)
def test_whoever_writes_the_file_is_named_as_it_will_be_called(tmp_path, write, file):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/rows.jsonl").write_bytes(bytes(BIG))
    target, work = tmp_path / "dataset", tmp_path / ".dataset.tmp"
    work.mkdir()
    with (
        pytest.raises(StorageError) as refusal,
        no_larger_files(100_000),
        writing(target, work),
    ):
        write(work)
    said = str(refusal.value)
    assert said.startswith(f"{target}{file} cannot be written: File too large; raise the limit")
    assert "\n" not in said


def sqlite_full():
    with sqlalchemy.create_engine("sqlite://").begin() as connection:
        connection.execute(sqlalchemy.text("PRAGMA max_page_count = 2"))
        connection.execute(sqlalchemy.text("CREATE TABLE x (y)"))
        connection.execute(sqlalchemy.text("INSERT INTO x VALUES (zeroblob(100000))"))


def hidden_behind_another():
    try:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x")
    except OSError as error:
        raise RuntimeError("stage failed") from error


def rust():
    raise Exception("No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("fail", "file"),
    [
        (sqlite_full, None),
        (hidden_behind_another, "/data/x"),
        (rust, None),
    ],
)
def test_a_full_disk_is_known_in_every_librarys_words(tmp_path, fail, file):
    with pytest.raises(StorageError) as refusal, in_one_line([tmp_path]):
        fail()
    said = f"{file or tmp_path} cannot be written: No space left on device; free space there"
    assert str(refusal.value).startswith(said)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "no such file", "x"),
        PermissionError(errno.EACCES, "denied", "/somebody/elses"),
        ValueError("28 rows"),
        DataError("x.jsonl: no space left for doubt"),
        StorageError("told already"),
    ],
)
def test_other_errors_stay_what_they_are(tmp_path, error):
    assert refused_write(error) is None
    for context in (in_one_line([tmp_path]), writing(tmp_path / "x")):
        with pytest.raises(type(error)) as raised, context:
            raise error
        assert raised.value is error


def test_a_folder_that_takes_no_files_is_named(tmp_path):
    (tmp_path / "data").write_text("a file where a folder should be")
    said = r"data/x cannot be written: Not a directory"
    with pytest.raises(StorageError, match=said), writing(tmp_path / "data/x"):
        (tmp_path / "data/x").write_text("")


def test_what_is_told_once_keeps_its_file(tmp_path):
    work = tmp_path / ".d.tmp"
    told = StorageError.about(work / "spill.jsonl", OSError(errno.ENOSPC, "No space left"))
    said = r"d/spill\.jsonl cannot be written"
    with pytest.raises(StorageError, match=said), writing(tmp_path / "d", work):
        raise told


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs two file systems")
def test_of_several_places_the_fullest_is_named(tmp_path, monkeypatch):
    room = {"/dev/shm": 1, str(tmp_path): 0}

    class Room:
        f_frsize = 4096

        def __init__(self, path):
            self.f_bavail = room[str(path)]

    monkeypatch.setattr(os, "statvfs", Room)
    assert fullest([Path("/dev/shm"), tmp_path / "not/yet"]) == tmp_path / "not/yet"
