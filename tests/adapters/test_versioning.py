"""Digests and revisions against the real DVC and the real git."""

import ast
import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from rlhf_core.adapters.datasets import versioning
from rlhf_core.adapters.datasets.dvc_versions import require_remote
from rlhf_core.adapters.datasets.versioning import directory_md5, git_revision
from rlhf_core.errors import DataError
from rlhf_core.stages.prepare import CODE
from rlhf_core.storage.records import md5_of
from tests.disks import no_larger_files


def call(*command: str, cwd: Path) -> str:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path) -> Path:
    call("git", "init", "-q", cwd=tmp_path)
    call("git", "config", "user.email", "test@example.org", cwd=tmp_path)
    call("git", "config", "user.name", "test", cwd=tmp_path)
    return tmp_path


@pytest.fixture
def dvc(forked):
    """DVC without its start-up; what tests are about starts it as the product does."""

    def run(*arguments: str, cwd: Path) -> str:
        done = forked.dvc(*arguments, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_digests_are_those_dvc_records(repository, dvc):
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
    "rlhf_core.adapters.datasets.versioning": "names what was prepared",
    "rlhf_core.functional": "imported by the models",
    "rlhf_core.models": "preparation loads no weights",
    "rlhf_core.errors": "words",
    "rlhf_core.garbage": "when memory is looked through",
    "rlhf_core.storage.own_folders": "says what may be replaced",
    "rlhf_core.storage.full_disk": "says which file a full disk does not take",
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


SETTINGS = "rlhf_core.config."
"""Their values are part of a preparation's fingerprint; what they compute is listed one by one."""
ASKED_FOR_DIGESTS = {
    "rlhf_core.stages.models.renderers": "says which folder the tokenizer is in",
    "rlhf_core.stages.models.digests": "the tokenizer's digest is in the fingerprint",
    "rlhf_core.stages.versions.versions": "brings a published dataset back",
}


def deciding_modules() -> set[str]:
    """What the preparation of a dataset imports, but for what does not matter."""
    done, todo = set(), {"rlhf_core.stages.prepare"}
    while todo:
        module = todo.pop()
        if module in done or any(f"{module}.".startswith(f"{name}.") for name in NO_MATTER):
            continue
        done.add(module)
        in_stages = module.startswith("rlhf_core.stages.")
        if not in_stages or "prepar" in module:  # others are asked for a published version
            todo |= imports_of(module)
    assert "rlhf_core.dataprep.votes.vote_table" in done
    return {module for module in done if file_of(module).name != "__init__.py"}


def test_dvc_knows_all_code_that_decides_the_dataset():
    """Else `dvc repro` would call an old dataset up to date."""
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["prepare"]
    known = [ROOT / dep for dep in stage["deps"]]
    assert all(path.exists() for path in known)
    for module in deciding_modules():
        assert any(file_of(module).is_relative_to(path) for path in known), module


def test_a_preparation_knows_all_code_that_decides_the_dataset():
    """Else it would take an old dataset for what today's code makes."""
    known = {path for pattern in CODE for path in (ROOT / "rlhf_core").glob(pattern)}
    unknown = {module for module in deciding_modules() if file_of(module) not in known}
    assert {name for name in unknown if not name.startswith(SETTINGS)} == set(ASKED_FOR_DIGESTS)


def test_compiled_files_are_no_change_of_the_code(dvc):
    compiled = "rlhf_core/dataprep/__pycache__/keys.cpython-311.pyc"
    assert dvc("check-ignore", compiled, cwd=ROOT).strip() == compiled


def test_what_dvc_says_of_a_full_disk_is_handed_on_with_what_to_do(repository, dvc):
    dvc("init", "--quiet", cwd=repository)
    dvc("config", "--local", "core.site_cache_dir", str(repository / "site"), cwd=repository)
    (repository / "rows.jsonl").write_bytes(os.urandom(3_000_000))
    said = r"^dvc add rows\.jsonl: .*File too large.*; raise the limit on the size of files"
    with pytest.raises(DataError, match=said), no_larger_files(2_000_000):
        versioning.dvc("add", "rows.jsonl", cwd=repository)
    dvc("add", "rows.jsonl", cwd=repository)


@pytest.mark.parametrize(
    "said",
    [
        "ERROR: failed to transfer 'ab' - [Errno 28] No space left on device: 'a' -> 'b'",
        "ERROR: unexpected error - database or disk is full: database or disk is full",
        "fatal: write error: Disk quota exceeded",
    ],
)
def test_a_full_disk_under_dvc_or_git_says_where_to_make_room(said):
    assert "free space where the files of DVC and git lie" in versioning._reason(said)


@pytest.fixture
def remote_repository(repository, dvc):
    """A repository under DVC whose remote is an S3 that nobody has keys of."""
    dvc("init", "--quiet", cwd=repository)
    dvc("remote", "add", "--quiet", "-d", "s3", "s3://datasets/one", cwd=repository)
    return repository


NO_KEYS = {
    "AWS_ACCESS_KEY_ID": "",
    "AWS_SECRET_ACCESS_KEY": "",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_SHARED_CREDENTIALS_FILE": "none",
    "AWS_CONFIG_FILE": "none",
}


def test_a_remote_without_keys_is_found_before_the_work_and_names_the_variables(
    remote_repository, dvc, monkeypatch
):
    for name, value in NO_KEYS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        require_remote(remote_repository)
    (remote_repository / "data.txt").write_text("rows")
    dvc("add", "data.txt", cwd=remote_repository)
    with pytest.raises(DataError, match=r"^dvc .*Unable to locate credentials; set AWS_"):
        versioning.dvc("push", cwd=remote_repository)


def test_a_remote_whose_extra_is_missing_names_it(remote_repository, dvc, tmp_path, monkeypatch):
    """As DVC says it in a process of its own; one that has loaded it cannot lose it again."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "dvc_s3.py").write_text("raise ModuleNotFoundError('no dvc_s3', name='dvc_s3')")
    (remote_repository / "data.txt").write_text("rows")
    dvc("add", "data.txt", cwd=remote_repository)
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    with pytest.raises(DataError, match=r"requires 'dvc-s3'.*pip install 'rlhf-pipeline\[s3\]'"):
        versioning.dvc("push", cwd=remote_repository)


def test_a_remote_that_takes_files_is_given_an_object_that_every_cache_may_hold(
    remote_repository, dvc, tmp_path
):
    store = tmp_path / "store"
    dvc("remote", "modify", "s3", "url", str(store), cwd=remote_repository)
    require_remote(remote_repository)
    (kept,) = (path for path in store.rglob("*") if path.is_file())
    assert kept.read_bytes() == b""
    assert kept.relative_to(store).as_posix() == "files/md5/d4/1d8cd98f00b204e9800998ecf8427e"
    require_remote(remote_repository)


def test_a_remote_without_the_newest_version_is_refused_and_not_made_anew(
    remote_repository, dvc, tmp_path
):
    """The folder of a disk that is not mounted would get what the next version needs, no more."""
    store, away = tmp_path / "store", tmp_path / "away"
    dvc("remote", "modify", "s3", "url", str(store), cwd=remote_repository)
    lock = {"stages": {"prepare": {"outs": [{"path": "data/prepared", "md5": "ab12.dir"}]}}}
    (remote_repository / "dvc.lock").write_text(json.dumps(lock))
    call("git", "add", "-A", cwd=remote_repository)
    call("git", "commit", "-q", "-m", "one", cwd=remote_repository)
    call("git", "tag", "-a", "data-v1", "-m", "one", cwd=remote_repository)
    (store / "files" / "md5" / "ab").mkdir(parents=True)
    (store / "files" / "md5" / "ab" / "12.dir").write_text("[]")
    require_remote(remote_repository)
    store.rename(away)
    with pytest.raises(DataError, match=r"does not have data-v1, .*dvc push --all-tags"):
        require_remote(remote_repository)
    assert not store.exists()


def test_dvc_without_a_reason_but_its_courtesy_is_said_so():
    assert versioning._reason("\nHaving any troubles? Hit us up at ...\n") == "no reason given"
