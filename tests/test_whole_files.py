import errno
import os

import pytest

from rlhf_core.errors import StorageError
from rlhf_core.storage.records import write_text


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_said_with_the_file_and_the_old_file_stays(tmp_path, monkeypatch, number):
    def fail(handle):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "result.json"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError) as refusal:
        write_text(path, "new")
    assert str(refusal.value).startswith(f"{path} cannot be written: {os.strerror(number)}; ")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(StorageError, match=r"result\.json cannot be written"):
        write_text(tmp_path / "runs" / "result.json", "new")
