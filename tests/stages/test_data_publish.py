"""Publishing a version, each test in a repository of its own: real git, DVC and S3 server."""

import json
import shutil
from pathlib import Path

import pytest

from rlhf_core.config import SourceConfig
from rlhf_core.errors import DataError
from rlhf_core.stages.versions.publish import publish
from rlhf_core.stages.versions.versions import fetch_version
from tests.stages.data_helpers import call, dvc, make_repository, rows, write
from tests.team import object_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("data_versions"),
    pytest.mark.usefixtures("forked_tools"),
]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path) -> Path:
    return make_repository(tmp_path / "repository")


def state(root: Path) -> tuple[str, str, str]:
    return tuple(
        call("git", *arguments, cwd=root)
        for arguments in (("rev-parse", "HEAD"), ("tag",), ("status", "--porcelain"))
    )


def test_what_preparation_refuses_is_told_and_publishes_nothing(repository):
    path = repository / "configs" / "small.yaml"
    path.write_text(path.read_text().replace("min_pairs: 10", "min_pairs: 1000"))
    call("git", "commit", "-qam", "ask for more", cwd=repository)
    before = state(repository)
    says = "60 pairs left of 60 rows, expected at least 1000"
    with pytest.raises(DataError, match=says) as refused:
        publish(None, directory=repository)
    assert (repository / str(refused.value).rsplit("reasons in ", 1)[1]).is_file()
    assert state(repository) == before


def test_a_batch_that_preparation_passes_over_is_not_published(repository, tmp_path):
    """The settings behind dvc.yaml decide what is read; they need not name the batches."""
    path = repository / "configs" / "small.yaml"
    path.write_text(path.read_text().replace("  batches: data/raw/preferences\n", ""))
    call("git", "commit", "-qam", "no batches", cwd=repository)
    before = state(repository)
    batch = SourceConfig(path=write(tmp_path / "b.jsonl", rows(range(60, 70))))
    says = "batch-0001.jsonl would not be part .* set data.batches: data/raw/preferences"
    for fraction in (1.0, 0.5):
        with pytest.raises(DataError, match=says):
            publish(batch, min_kept_fraction=fraction, directory=repository)
    assert state(repository) == before


def test_what_a_refused_batch_clashes_with_is_named_and_kept(repository, tmp_path):
    """Two people number their sheets from 0; the scratch clone with the rows is gone by then."""
    for name, numbers in (("ann", range(60, 80)), ("bob", range(80, 100))):
        numbered = [{"comparison_id": str(i), **row} for i, row in enumerate(rows(numbers))]
        write(tmp_path / f"{name}.jsonl", numbered)
    publish(SourceConfig(path=tmp_path / "ann.jsonl"), directory=repository)
    before = state(repository)
    says = "comparison_id '0' of bob, line 1 stands for other texts in ann, line 1; give one"
    with pytest.raises(DataError, match=says) as refused:
        publish(SourceConfig(path=tmp_path / "bob.jsonl"), directory=repository)
    assert "comparisons.jsonl, data/raw/preferences: " in str(refused.value)
    kept = repository / str(refused.value).rsplit(" ", 1)[-1]
    assert len(kept.read_text().splitlines()) == 40
    assert (kept.parent / "docs" / "index.html").is_file()
    assert state(repository) == before


def test_local_changes_keep_the_branch_but_not_the_version(repository, tmp_path):
    """The batch is of another format: batches are canonical, whatever they came as.

    The next version goes on from the last one all the same, as it does after a kill.
    """
    folder = repository / "data" / "raw" / "preferences"
    folder.mkdir()
    (folder / ".gitignore").write_text("mine\n")
    lines = [
        {
            "chosen": f"\n\nHuman: {i}?\n\nAssistant: y",
            "rejected": f"\n\nHuman: {i}?\n\nAssistant: n",
        }
        for i in range(8)
    ]
    same = {"chosen": lines[0]["chosen"], "rejected": lines[0]["chosen"]}
    batch = SourceConfig(path=write(tmp_path / "hh.jsonl", [same, *lines]), format="hh")
    result = publish(batch, directory=repository)
    assert not result.branch_moved
    assert result.set_aside == {"identical_responses": 1}
    assert (result.version.version, result.version.rows) == ("data-v1", 68)
    assert (folder / ".gitignore").read_text() == "mine\n"

    second = SourceConfig(path=write(tmp_path / "b.jsonl", rows(range(60, 65))))
    result = publish(second, directory=repository)
    version = result.version
    assert (version.version, version.rows, version.batch) == ("data-v2", 73, "batch-0002.jsonl")
    assert (version.came, version.went) == (5, 0)

    (folder / ".gitignore").unlink()
    call("git", "merge", "-q", "data-v2", cwd=repository)
    dvc("checkout", "-q", cwd=repository)
    written = [json.loads(line) for line in (folder / "batch-0001.jsonl").read_text().splitlines()]
    assert [(row["source"], row["line"]) for row in written] == [("hh", i) for i in range(2, 10)]
    unusable = (repository / "data" / "raw" / "set-aside" / "batch-0001.jsonl").read_text()
    row = json.loads(unusable)
    assert (row["source"], row["line"], row["reason"]) == ("hh", 1, "identical_responses")
    assert json.loads(row["row"]) == same
    tracked = call("git", "ls-files", "data/raw/set-aside", cwd=repository).split()
    assert [Path(name).name for name in tracked] == [".gitignore", "batch-0001.jsonl.dvc"]


def test_a_version_is_prepared_by_the_code_of_its_commit(repository):
    """Not by what lies in the working tree, or is installed."""
    for package in ("rlhf_core", "rlhf_flows"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, repository / package, ignore=ignored)
    stage = repository / "rlhf_core" / "stages" / "prepare.py"
    mine = stage.read_text()
    committed = mine.replace(
        "    output = config.data.output\n", '    raise RlhfError("so says the commit")\n', 1
    )
    assert committed != mine
    stage.write_text(committed)
    call("git", "add", "-A", cwd=repository)
    call("git", "commit", "-qm", "code", cwd=repository)
    stage.write_text(mine)
    with pytest.raises(DataError, match="so says the commit"):
        publish(None, directory=repository)


@pytest.fixture
def s3(monkeypatch, tmp_path_factory, forked):
    """A real S3 server on this machine."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with object_store(tmp_path_factory.mktemp("s3"), forked=forked) as address:
        yield address


def test_versions_live_on_an_s3_server_by_configuration_alone(repository, tmp_path, s3):
    dvc("remote", "modify", "storage", "url", "s3://datasets/data", cwd=repository)
    dvc("remote", "modify", "storage", "endpointurl", s3, cwd=repository)
    call("git", "commit", "-qam", "data on S3", cwd=repository)
    batch = SourceConfig(path=write(tmp_path / "b.jsonl", rows(range(60, 70))))
    version = publish(batch, directory=repository).version
    assert not (tmp_path / "storage").exists()
    clone = tmp_path / "clone"
    call("git", "clone", "-q", str(repository), str(clone), cwd=tmp_path)
    assert fetch_version("data-v1", directory=clone).dvc_md5 == version.dvc_md5
