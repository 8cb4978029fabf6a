"""Versions against the real git, the real DVC and a real S3 server."""

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from rlhf_core.adapters import versioning
from rlhf_core.config import SourceConfig, load_config
from rlhf_core.dataprep.files import read_records
from rlhf_core.errors import DataError
from rlhf_core.schema import PreferencePair
from rlhf_core.stages.data_versions import bring_back, compare, list_versions, publish, restore
from rlhf_core.stages.prepare import prepare_data
from tests.stages.data_helpers import call, dvc, make_repository, rows, write

pytestmark = pytest.mark.slow

RLHF = str(Path(sys.executable).parent / "rlhf")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Three versions: as it was, with a batch, with a batch that contradicts and repeats."""
    folder = tmp_path_factory.mktemp("versions")
    root = make_repository(folder / "repository")
    publish(None, directory=root)
    batch = write(folder / "b1.jsonl", rows(range(60, 90)))
    added = call(RLHF, "data", "add", str(batch), "--json", str(folder / "added.json"), cwd=root)
    assert "--set data.version=data-v2" in added
    second = rows(range(90, 95)) + rows([3], winner="b") + rows([4])
    publish(SourceConfig(path=write(folder / "b2.jsonl", second)), directory=root)
    return root


def test_the_log_says_what_each_version_brought(published):
    log = list_versions(published)
    assert [(v.version, v.rows, v.pairs, v.batch) for v in log] == [
        ("data-v1", 60, 60, None),
        ("data-v2", 90, 90, "batch-0001.jsonl"),
        ("data-v3", 97, 94, "batch-0002.jsonl"),
    ]
    assert [(v.came, v.went, v.relabelled) for v in log] == [(60, 0, 0), (30, 0, 0), (5, 1, 0)]


def test_the_branch_moved_and_the_tree_is_clean(published):
    assert call("git", "status", "--porcelain", cwd=published) == ""
    head = call("git", "rev-parse", "HEAD", cwd=published).strip()
    assert head == list_versions(published)[-1].commit
    batch = published / "data" / "raw" / "preferences" / "batch-0002.jsonl"
    assert len(batch.read_text().splitlines()) == 7


def test_a_version_is_brought_back_without_touching_the_tree(published, monkeypatch):
    monkeypatch.chdir(published)
    scratch = write(published / "data" / "raw" / "comparisons.jsonl", rows(range(5)))
    try:
        config = load_config(Path("configs/small.yaml"), {"data.version": "data-v1"})
        splits = prepare_data(config)
        assert scratch.read_text().count("\n") == 5
    finally:
        call("git", "checkout", "-q", "data/raw/comparisons.jsonl", cwd=published)
    assert not (published / "data" / "prepared").exists()
    assert splits.git_revision == list_versions(published)[0].commit
    assert splits.dvc_md5 == list_versions(published)[0].dvc_md5
    pairs = [
        len(read_records(getattr(splits, f"{half}_{side}"), PreferencePair))
        for half in ("reward", "judge")
        for side in ("train", "heldout")
    ]
    assert sum(pairs) == 60


def test_the_difference_names_every_pair(published):
    diff = compare("data-v2", "data-v3", directory=published)
    assert sorted(pair.prompt for pair in diff.came) == [f"Question {i}?" for i in range(90, 95)]
    assert [pair.prompt for pair in diff.went] == ["Question 3?"]
    assert (len(diff.relabelled), diff.num_same) == (0, 89)
    back = compare("data-v3", "data-v2", directory=published)
    assert (back.came, back.went) == (diff.went, diff.came)


def test_a_dataset_is_restored_from_its_md5_alone(published):
    wanted = list_versions(published)[1]
    first = restore(wanted.dvc_md5, directory=published)
    shutil.rmtree(first.directory)
    again = restore(wanted.dvc_md5, directory=published)
    assert (again.sha256, again.dvc_md5) == (wanted.sha256, wanted.dvc_md5)
    assert versioning.directory_md5(again.directory) == wanted.dvc_md5
    with pytest.raises(DataError, match="it was never published"):
        restore("0" * 32 + ".dir", directory=published)


def test_a_lost_cache_is_filled_from_the_remote(published, tmp_path):
    clone = tmp_path / "clone"
    call("git", "clone", "-q", str(published), str(clone), cwd=tmp_path)
    dvc(
        "remote",
        "modify",
        "--local",
        "storage",
        "url",
        str(published.parent / "storage"),
        cwd=clone,
    )
    splits = bring_back("data-v2", directory=clone)
    assert splits.dvc_md5 == list_versions(published)[1].dvc_md5


def test_an_unknown_version_lists_the_known(published):
    with pytest.raises(DataError, match="no such version; known: data-v1, data-v2, data-v3"):
        bring_back("data-v9", directory=published)


def test_outside_a_repository_there_are_no_versions(tmp_path):
    with pytest.raises(DataError, match="not in a git repository under DVC"):
        list_versions(tmp_path)


@pytest.fixture
def repository(tmp_path) -> Path:
    return make_repository(tmp_path / "repository")


def state(root: Path) -> tuple[str, str, str]:
    return tuple(
        call("git", *arguments, cwd=root)
        for arguments in (("rev-parse", "HEAD"), ("tag",), ("status", "--porcelain"))
    )


def test_a_bad_batch_publishes_nothing(published, tmp_path):
    before = state(published)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "x"}\n')
    with pytest.raises(DataError, match=r"broken\.jsonl, line 1: missing column"):
        publish(SourceConfig(path=broken), directory=published)
    with pytest.raises(DataError, match=r"already there as batch-0001\.jsonl"):
        publish(SourceConfig(path=published.parent / "b1.jsonl"), directory=published)
    assert state(published) == before


def test_what_preparation_refuses_is_told_and_publishes_nothing(repository):
    path = repository / "configs" / "small.yaml"
    path.write_text(path.read_text().replace("min_pairs: 10", "min_pairs: 1000"))
    call("git", "commit", "-qam", "ask for more", cwd=repository)
    before = state(repository)
    with pytest.raises(DataError, match="60 pairs left of 60 rows, expected at least 1000"):
        publish(None, directory=repository)
    assert state(repository) == before


def test_a_version_with_fewer_rows_must_be_asked_for(published):
    write(published / "data" / "raw" / "comparisons.jsonl", rows(range(40)))
    call("git", "commit", "-qam", "drop rows", cwd=published)
    try:
        with pytest.raises(DataError, match="would have 77 rows, data-v3 has 97"):
            publish(None, min_kept_fraction=0.9, directory=published)
    finally:
        call("git", "reset", "-q", "--hard", "data-v3", cwd=published)
    assert len(list_versions(published)) == 3


def test_a_batch_that_is_not_here_is_never_left_out_silently(published, monkeypatch):
    monkeypatch.chdir(published)
    batch = Path("data/raw/preferences/batch-0001.jsonl")
    kept = batch.read_bytes()
    batch.unlink()
    try:
        with pytest.raises(DataError, match=r"batch-0001\.jsonl: not here; run `dvc pull"):
            prepare_data(load_config(Path("configs/small.yaml")))
    finally:
        batch.write_bytes(kept)


def test_local_changes_keep_the_branch_but_not_the_version(repository, tmp_path):
    """The batch is of another format: batches are canonical, whatever they came as."""
    (repository / "data" / "raw" / "preferences").mkdir()
    (repository / "data" / "raw" / "preferences" / ".gitignore").write_text("mine\n")
    lines = [
        {
            "chosen": f"\n\nHuman: {i}?\n\nAssistant: y",
            "rejected": f"\n\nHuman: {i}?\n\nAssistant: n",
        }
        for i in range(8)
    ]
    lines.append({"chosen": lines[0]["chosen"], "rejected": lines[0]["chosen"]})
    batch = SourceConfig(path=write(tmp_path / "hh.jsonl", lines), format="hh")
    result = publish(batch, directory=repository)
    assert not result.branch_moved
    assert result.set_aside == {"identical_responses": 1}
    assert (result.version.version, result.version.rows) == ("data-v1", 68)
    ignored = repository / "data" / "raw" / "preferences" / ".gitignore"
    assert ignored.read_text() == "mine\n"


@pytest.fixture
def s3(monkeypatch):
    """A real S3 server on this machine."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            try:
                request = urllib.request.Request(f"{address}/versions", method="PUT")
                urllib.request.urlopen(request, timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


def test_versions_live_on_an_s3_server_by_configuration_alone(repository, tmp_path, s3):
    dvc("remote", "modify", "storage", "url", "s3://versions/data", cwd=repository)
    dvc("remote", "modify", "storage", "endpointurl", s3, cwd=repository)
    call("git", "commit", "-qam", "data on S3", cwd=repository)
    batch = SourceConfig(path=write(tmp_path / "b.jsonl", rows(range(60, 70))))
    version = publish(batch, directory=repository).version
    assert not (tmp_path / "storage").exists()
    clone = tmp_path / "clone"
    call("git", "clone", "-q", str(repository), str(clone), cwd=tmp_path)
    assert bring_back("data-v1", directory=clone).dvc_md5 == version.dvc_md5


def test_the_commands_print_what_was_done(published):
    added = json.loads((published.parent / "added.json").read_text())
    assert added["version"]["came"] == 30
    log = call(RLHF, "data", "log", cwd=published)
    assert "data-v1" in log
    assert "batch-0001" in log
    diff = call(RLHF, "data", "diff", "data-v1", "data-v2", cwd=published)
    assert "30 came, 0 went, 0 changed their winner, 60 stayed" in diff
    assert "reward_train" in call(RLHF, "data", "get", "data-v1", cwd=published)
