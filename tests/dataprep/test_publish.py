"""A directory is replaced as a whole, whatever happens in between."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_core.errors import DataError
from rlhf_core.storage import folders as publish
from rlhf_core.storage.folders import exclusive, replacing_directory

SWAP = """
import itertools, sys
from pathlib import Path
from rlhf_core.storage.folders import exclusive, replacing_directory
target = Path(sys.argv[1])
for version in itertools.count():
    with exclusive(target), replacing_directory(target) as work:
        for name in range(20):
            (work / f"{name}").write_text(str(version))
    print(version, flush=True)
"""


def replace(target: Path, text: str) -> None:
    with exclusive(target), replacing_directory(target) as work:
        (work / "file").write_text(text)


def test_the_new_takes_the_place_of_the_old(tmp_path):
    target = tmp_path / "data" / "out"
    replace(target, "old")
    replace(target, "new")
    assert (target / "file").read_text() == "new"
    assert sorted(path.name for path in target.parent.iterdir()) == [".out.lock", "out"]


def test_an_error_leaves_the_old(tmp_path):
    target = tmp_path / "out"
    replace(target, "old")
    with pytest.raises(TypeError), exclusive(target), replacing_directory(target) as work:
        (work / "file").write_text(b"no text")
    assert (target / "file").read_text() == "old"
    assert not list(tmp_path.glob("*.tmp"))


def test_works_where_names_cannot_be_swapped(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "_exchange", lambda *_: False)
    target = tmp_path / "out"
    replace(target, "old")
    replace(target, "new")
    assert (target / "file").read_text() == "new"
    assert not (tmp_path / ".out.old").exists()


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EXDEV])
@pytest.mark.parametrize("swaps", [True, False])
def test_a_mount_point_is_named_with_what_to_mount_instead(tmp_path, monkeypatch, code, swaps):
    target = tmp_path / "data" / "out"
    replace(target, "old")

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(publish, "_exchange", refuse if swaps else lambda *_: False)
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(DataError, match=r"mount point.*mount .*/data instead") as raised:
        replace(target, "new")
    assert str(target) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (target / "file").read_text() == "old"
    assert sorted(path.name for path in target.parent.iterdir()) == [".out.lock", "out"]


def test_a_mount_point_is_refused_before_the_work(tmp_path, monkeypatch):
    target = tmp_path / "out"
    target.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == target)
    with pytest.raises(DataError, match="mount point"), replacing_directory(target):
        pytest.fail("the work has begun")
    assert list(tmp_path.iterdir()) == [target]


def test_any_other_refusal_stays_what_it_is(tmp_path, monkeypatch):
    target = tmp_path / "out"
    replace(target, "old")

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(publish, "_exchange", refuse)
    with pytest.raises(OSError, match="No space left"):
        replace(target, "new")


def test_a_swap_cut_short_is_undone(tmp_path):
    target = tmp_path / "out"
    replace(target, "old")
    target.rename(tmp_path / ".out.old")
    (tmp_path / ".out.77.tmp").mkdir()
    with exclusive(target):
        assert (target / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "out"]


def test_a_kill_at_any_moment_leaves_a_whole_version(tmp_path):
    target = tmp_path / "out"
    replace(target, "-1")
    for attempt in range(12):
        child = subprocess.Popen([sys.executable, "-c", SWAP, target], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(0.003 * attempt)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert len({path.read_text() for path in target.iterdir()}) == 1
        assert len(list(target.iterdir())) == 20
    with exclusive(target):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "out"]


def test_two_at_once_take_turns(tmp_path):
    target = tmp_path / "out"
    children = [
        subprocess.Popen([sys.executable, "-c", SWAP, target], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for child in children:
        for _ in range(20):
            child.stdout.readline()
            if target.exists():
                assert len({path.read_text() for path in _listing(target)}) <= 2
    for child in children:
        child.kill()
        child.wait()
        child.stdout.close()
    assert len({path.read_text() for path in target.iterdir()}) == 1


def _listing(target: Path) -> list[Path]:
    """Files that are still there; a swap may pass between listing and reading."""
    return [path for path in target.iterdir() if path.exists()]
