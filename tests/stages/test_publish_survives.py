"""Publishing killed at any moment, or started twice at once: whole versions, each batch once."""

import json
import os
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlhf_core.adapters.datasets.dvc_versions import list_tags
from rlhf_core.stages.versions.versions import fetch_version, list_versions
from tests.stages.data_helpers import call, dvc, make_repository, rows, write

NUM_KILLS = 4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("data_versions"),
    pytest.mark.usefixtures("forked_tools"),
]
"""A fork that is killed ends as a process does that Python started, with git and DVC below it."""


@pytest.fixture
def repository(tmp_path) -> Path:
    return make_repository(tmp_path / "repository")


def batch(repository: Path, number: int) -> Path:
    """Ten comparisons of their own, outside of the repository."""
    start = 60 + 10 * number
    return write(repository.parent / f"batch-{number}.jsonl", rows(range(start, start + 10)))


@pytest.fixture
def add(repository, forked):
    """Start ``rlhf data add`` with a batch; it can be killed."""
    forked.start()

    def start(file: Path, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [forked.folder / "rlhf", "data", "add", str(file)],
            cwd=repository,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def kill(process: subprocess.Popen) -> bool:
    """Kill what ``add`` started, and wait for the end of all that writes to its streams.

    Returns:
        Whether it was still at work.
    """
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def batches_of(repository: Path) -> list[list[str]]:
    """Prompts of every batch of the last version, each batch sorted."""
    (tag, *_), folder = list_tags(repository)[-1], Path("data/raw/preferences")
    call("git", "merge", "-q", "--ff-only", tag, cwd=repository)
    dvc("checkout", "-q", cwd=repository)
    found = sorted((repository / folder).glob("batch-*.jsonl"))
    return [
        sorted(json.loads(line)["prompt"][0]["content"] for line in path.open()) for path in found
    ]


def questions(number: int) -> list[str]:
    return sorted(f"Question {i}?" for i in range(60 + 10 * number, 70 + 10 * number))


def test_two_at_once_become_two_versions_with_both_batches(repository, forked_tools):
    def publish(number):
        forked_tools.rlhf("data", "add", str(batch(repository, number)), cwd=repository)

    with ThreadPoolExecutor() as people:
        list(people.map(publish, (0, 1)))
    versions = list_versions(repository)
    assert [(version.version, version.rows) for version in versions] == [
        ("data-v1", 70),
        ("data-v2", 80),
    ]
    assert sorted(batches_of(repository)) == sorted([questions(0), questions(1)])
    assert call("git", "status", "--porcelain", cwd=repository) == ""


def test_what_a_kill_leaves_is_gone_after_the_next_call(repository, add, tmp_path):
    temporary, versions = tmp_path / "temporary", repository / ".rlhf" / "data"
    temporary.mkdir()
    process = add(batch(repository, 0), TMPDIR=str(temporary))
    deadline = time.monotonic() + 120
    while not list(versions.glob(".publish.*.tmp/data/raw/preferences/*.dvc")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert kill(process)
    assert len(list(versions.glob(".publish.*.tmp"))) == 1
    assert list(temporary.iterdir()) == []
    process = add(batch(repository, 0), TMPDIR=str(temporary))
    assert process.communicate()[1].count("error") == 0
    assert process.returncode == 0
    assert not list(versions.glob(".*.tmp"))
    assert list(temporary.iterdir()) == []
    assert call("git", "status", "--porcelain", cwd=repository) == ""
    fetch_version("data-v1", repository)
    assert not list(versions.glob(".*.tmp"))


@pytest.mark.nightly  # at every change: where a version is made
def test_a_kill_at_any_moment_leaves_whole_versions_and_no_batch_twice(repository, add):
    started = time.monotonic()
    assert add(batch(repository, 0)).wait() == 0
    duration = time.monotonic() - started
    rng, killed = random.Random(0), 0
    for number in range(1, NUM_KILLS + 1):
        process = add(batch(repository, number))
        # What comes after the first is quicker: its programs are read already.
        time.sleep(0.6 * duration * (number - 1 + rng.random()) / NUM_KILLS)
        killed += kill(process)
        for version in list_versions(repository):
            assert fetch_version(version.version, repository).dvc_md5 == version.dvc_md5
    assert killed
    for number in range(1, NUM_KILLS + 1):
        process = add(batch(repository, number))
        _, stderr = process.communicate()
        assert process.returncode == 0 or "already there as batch-" in stderr
    assert sorted(batches_of(repository)) == sorted(map(questions, range(NUM_KILLS + 1)))
    assert list_versions(repository)[-1].rows == 60 + 10 * (NUM_KILLS + 1)
