"""A small repository under git and DVC, with the real ``rlhf prepare`` as its stage."""

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from rlhf_core.adapters.datasets import versioning

CONFIG = """
model: {base: unused}
data:
  preferences: {path: data/raw/comparisons.jsonl}
  batches: data/raw/preferences
  heldout_fraction: 0.2
  min_pairs: 10
  cleaning: {tokens: false}
policy: {algorithm: ppo}
gates: {sft: [], reward: [], policy: []}
"""
DVC = """
stages:
  prepare:
    cmd: rlhf prepare configs/small.yaml
    deps: [configs/small.yaml, data/raw]
    outs:
      - data/prepared: {persist: true}
"""
STORAGE = """
[core]
    analytics = false
    remote = storage
['remote "storage"']
    url = ../../storage
"""
AUTHOR = ("-c", "user.name=Ann", "-c", "user.email=ann@example.org")


def row(number: int, winner: str = "a") -> dict:
    return {
        "prompt": f"Question {number}?",
        "response_a": f"Answer {number}.",
        "response_b": f"Not {number}.",
        "votes": [{"annotator": f"w{i}", "choice": winner} for i in range(3)],
    }


def rows(numbers, winner: str = "a") -> list[dict]:
    return [row(number, winner) for number in numbers]


def write(path: Path, items: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def call(*command: str, cwd: Path, env: dict | None = None) -> str:
    answer = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def dvc(*arguments: str, cwd: Path) -> str:
    """Run DVC as the product does: a fork where the test has ``forked_tools``."""
    return versioning.dvc(*arguments, cwd=cwd)


def make_repository(root: Path) -> Path:
    """Make the repository with its first commit; 60 comparisons, no version yet."""
    return shutil.copytree(Path(_first_repository().name) / "repository", root, symlinks=True)


@cache
def _first_repository() -> TemporaryDirectory:
    """The repository that all others are copies of; it goes with this process."""
    folder = TemporaryDirectory(prefix="repository-")
    root = Path(folder.name) / "repository"
    root.mkdir()
    call("git", "init", "-q", "-b", "main", cwd=root)
    call("git", "config", "user.email", "ann@example.org", cwd=root)
    call("git", "config", "user.name", "Ann", cwd=root)
    dvc("init", "-q", cwd=root)
    (root / ".dvc" / "config").write_text(STORAGE)
    (root / "configs").mkdir()
    (root / "configs" / "small.yaml").write_text(CONFIG)
    (root / "dvc.yaml").write_text(DVC)
    (root / ".gitignore").write_text("/.rlhf/\n/data/prepared\n/data/prepared-*\n.*.lock\n*.tmp\n")
    write(root / "data" / "raw" / "comparisons.jsonl", rows(range(60)))
    call("git", "add", "-A", cwd=root)
    call("git", "commit", "-q", "-m", "first", cwd=root)
    return folder
