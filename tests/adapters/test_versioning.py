"""Digests and revisions against the real DVC and the real git."""

import ast
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


ROOT = Path(__file__).parents[2]
NO_MATTER = {
    "rlhf_core.adapters.settings": "where servers are",
    "rlhf_core.adapters.versioning": "names what was prepared",
    "rlhf_core.functional": "imported by the models",
    "rlhf_core.models": "preparation loads no weights",
    "rlhf_core.errors": "words",
}
"""What preparation imports and yet does not decide its bytes."""


def imports_of(module: str) -> set[str]:
    tree = ast.parse(file_of(module).read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.startswith("rlhf_core.") and file_of(name).is_file()}


def file_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_dvc_knows_all_code_that_decides_the_dataset():
    """Else `dvc repro` would call an old dataset up to date."""
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["prepare"]
    known = [ROOT / dep for dep in stage["deps"]]
    assert all(path.exists() for path in known)
    done, todo = set(), {"rlhf_core.stages.prepare"}
    while todo:
        module = todo.pop()
        if module in done or any(f"{module}.".startswith(f"{name}.") for name in NO_MATTER):
            continue
        done.add(module)
        file = file_of(module)
        in_stages = module.startswith("rlhf_core.stages.")
        if not in_stages or "prepare" in module:  # others are asked for a published version
            todo |= imports_of(module)
        assert file.name == "__init__.py" or any(file.is_relative_to(path) for path in known), (
            module
        )
    assert "rlhf_core.dataprep.votes" in done


def test_compiled_files_are_no_change_of_the_code():
    compiled = "rlhf_core/dataprep/__pycache__/keys.cpython-311.pyc"
    answer = call(sys.executable, "-m", "dvc", "check-ignore", compiled, cwd=ROOT)
    assert answer.strip() == compiled
