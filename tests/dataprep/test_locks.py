"""One holder at a time, whoever locks the file and however the holder ends."""

import fcntl
import logging
import subprocess
import sys
import threading

import pytest

from rlhf_core.errors import RlhfError, StorageError
from rlhf_core.storage.locks import locked

BUSY = RlhfError("somebody else is at it")
HOLD = """
import sys
from pathlib import Path
from rlhf_core.storage.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock until it is killed."""
    command = [sys.executable, "-c", HOLD, tmp_path / "lock"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"held\n"
    yield child
    child.kill()
    child.communicate()


def test_a_kill_frees_the_lock_and_who_waits_says_so(tmp_path, holder, caplog):
    path = tmp_path / "lock"
    with pytest.raises(RlhfError, match="somebody else is at it"), locked(path, busy=BUSY):
        pass
    threading.Timer(0.3, holder.kill).start()
    with caplog.at_level(logging.INFO), locked(path):
        pass
    assert f"waiting_for_lock file={path}" in caplog.text


def test_a_build_that_locks_the_file_by_flock_is_kept_out_and_keeps_out(tmp_path):
    path = tmp_path / "lock"
    with locked(path), path.open("w") as earlier, pytest.raises(BlockingIOError):
        fcntl.flock(earlier, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with path.open("w") as earlier:
        fcntl.flock(earlier, fcntl.LOCK_EX)
        with pytest.raises(RlhfError, match="somebody else"), locked(path, busy=BUSY):
            pass


def test_an_error_in_the_block_is_the_callers_and_frees_the_lock(tmp_path):
    path = tmp_path / "folder" / "lock"
    with pytest.raises(FileNotFoundError), locked(path):
        (tmp_path / "gone").read_text()
    with locked(path, busy=BUSY):
        pass


def test_a_folder_that_takes_no_files_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"), locked(tmp_path / "file" / "lock"):
        pass
