"""Digests and revisions against the real DVC and the real git."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlhf_core.adapters.versioning import directory_md5, git_revision
from rlhf_core.dataprep.files import md5_of


def call(*command: str, cwd: Path) -> str:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path) -> Path:
    call("git", "init", "-q", cwd=tmp_path)
    call("git", "config", "user.email", "test@example.org", cwd=tmp_path)
    call("git", "config", "user.name", "test", cwd=tmp_path)
    return tmp_path


def dvc(*arguments: str, cwd: Path) -> None:
    call(sys.executable, "-m", "dvc", *arguments, cwd=cwd)


def test_digests_are_those_dvc_records(repository):
    folder = repository / "prepared"
    for name, text in {"b.jsonl": "1\n", "a/x.txt": "ü", "a-b": "", "a.b/y": "2\r\n"}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    (repository / "alone.jsonl").write_text("{}\n")
    dvc("init", "-q", cwd=repository)
    dvc("add", "-q", "prepared", "alone.jsonl", cwd=repository)

    def recorded(name):
        return yaml.safe_load((repository / f"{name}.dvc").read_text())["outs"][0]["md5"]

    assert directory_md5(folder) == recorded("prepared")
    assert md5_of(repository / "alone.jsonl") == recorded("alone.jsonl")


def test_the_revision_is_the_commit_checked_out(repository):
    assert git_revision(repository) is None
    call("git", "commit", "-q", "--allow-empty", "-m", "first", cwd=repository)
    expected = call("git", "rev-parse", "HEAD", cwd=repository).strip()
    below = repository / "below"
    below.mkdir()
    assert git_revision(below) == expected


def test_outside_a_repository_there_is_no_revision(tmp_path):
    assert git_revision(tmp_path) is None
