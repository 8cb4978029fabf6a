"""Versions looked back at: listed, compared and brought back, by the real git and DVC."""

import json
import os
import shutil
from pathlib import Path

import pytest

from rlhf_core.adapters.datasets import versioning
from rlhf_core.adapters.datasets.dvc_versions import commit_of, publishing_base
from rlhf_core.adapters.registry.versions import find_version as find_model
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.config import SourceConfig, load_config
from rlhf_core.errors import DataError
from rlhf_core.schema import PreferencePair, RunContext
from rlhf_core.stages.prepare import prepare_data
from rlhf_core.stages.versions.publish import publish
from rlhf_core.stages.versions.versions import (
    compare,
    fetch_version,
    find_fetched,
    list_versions,
    restore,
    restore_for_model,
)
from rlhf_core.storage.records import read_records
from tests.forked import WITHOUT_PICTURES
from tests.stages.data_helpers import AUTHOR, call, dvc, make_repository, rows, write

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("data_versions")]

BASE = Path(__file__).parents[2] / "data" / "base"


@pytest.fixture(scope="module")
def published(tmp_path_factory, forked_tools) -> Path:
    """Three versions: as it was, with a batch, with a batch and a label fixed in the raw file."""
    folder = tmp_path_factory.mktemp("versions")
    root = make_repository(folder / "repository")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(WITHOUT_PICTURES)  # a model leads back to those of data-v1
        publish(None, directory=root)
    batch = write(folder / "b1.jsonl", rows(range(60, 90)))
    added = forked_tools.rlhf(
        "data", "add", str(batch), "--json", str(folder / "added.json"), cwd=root
    )
    assert "--set data.version=data-v2" in added
    assert "batch-0001.jsonl" in added
    fixed = rows([0, 1, 2]) + rows([3], winner="b") + rows(range(4, 59))
    write(root / "data" / "raw" / "comparisons.jsonl", fixed)
    call("git", "commit", "-qam", "fix a label, drop a row", cwd=root)
    publish(SourceConfig(path=write(folder / "b2.jsonl", rows(range(90, 95)))), directory=root)
    return root


def test_the_log_says_what_each_version_brought(published):
    log = list_versions(published)
    assert [(v.version, v.rows, v.pairs, v.batch) for v in log] == [
        ("data-v1", 60, 60, None),
        ("data-v2", 90, 90, "batch-0001.jsonl"),
        ("data-v3", 94, 94, "batch-0002.jsonl"),
    ]
    assert [(v.came, v.went, v.relabelled) for v in log] == [(60, 0, 0), (30, 0, 0), (5, 1, 1)]


SIGNER = """#!/bin/sh
cat > /dev/null
printf '\\n[GNUPG:] SIG_CREATED \\n' >&2
printf -- '-----BEGIN PGP SIGNATURE-----\\n\\nAAAA\\n-----END PGP SIGNATURE-----\\n'
"""


def test_signed_tags_are_versions_too(tmp_path):
    """`tag.gpgSign` in somebody's git makes every tag a signed one."""
    root = make_repository(tmp_path / "repository")
    signer = tmp_path / "signer"
    signer.write_text(SIGNER)
    signer.chmod(0o755)
    call("git", "config", "gpg.program", str(signer), cwd=root)
    call("git", "config", "tag.gpgSign", "true", cwd=root)
    summary = dict.fromkeys(("rows", "pairs", "came", "went", "relabelled"), 0)
    summary |= {"batch": None, "alpha": None, "pairs": 60, "sha256": "a", "dvc_md5": "b.dir"}
    body = json.dumps(summary, indent=1)
    call("git", "tag", "-a", "data-v1", "-m", "data-v1: 60 pairs", "-m", body, cwd=root)
    assert "BEGIN PGP SIGNATURE" in call("git", "cat-file", "tag", "data-v1", cwd=root)
    assert [(found.version, found.pairs) for found in list_versions(root)] == [("data-v1", 60)]


def test_the_branch_moved_and_the_tree_is_clean(published):
    assert call("git", "status", "--porcelain", cwd=published) == ""
    head = call("git", "rev-parse", "HEAD", cwd=published).strip()
    assert head == list_versions(published)[-1].commit
    batch = published / "data" / "raw" / "preferences" / "batch-0002.jsonl"
    assert len(batch.read_text().splitlines()) == 5
    kept = call("git", "ls-files", "data/raw/preferences", cwd=published).split()
    assert [Path(name).name for name in kept] == [
        ".gitignore",
        "batch-0001.jsonl.dvc",
        "batch-0002.jsonl.dvc",
    ]


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
    assert [pair.prompt for pair in diff.went] == ["Question 59?"]
    fixed = [(pair.prompt, pair.chosen, pair.rejected) for pair in diff.relabelled]
    assert fixed == [("Question 3?", "Not 3.", "Answer 3.")]
    counts = (diff.num_came, diff.num_went, diff.num_relabelled, diff.num_same)
    assert counts == (5, 1, 1, 88)
    back = compare("data-v3", "data-v2", directory=published)
    assert (back.came, back.went) == (diff.went, diff.came)
    assert [pair.chosen for pair in back.relabelled] == ["Answer 3."]
    few = compare("data-v2", "data-v3", directory=published, limit=2)
    assert (few.num_came, len(few.came), few.num_relabelled) == (5, 2, 1)


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
    assert find_fetched("data-v2", directory=clone) is None
    splits = fetch_version("data-v2", directory=clone)
    assert find_fetched("data-v2", directory=clone) == splits
    assert splits.dvc_md5 == list_versions(published)[1].dvc_md5


def test_an_unknown_version_lists_the_known(published):
    with pytest.raises(DataError, match="no such version; known: data-v1, data-v2, data-v3"):
        fetch_version("data-v9", directory=published)


def test_outside_a_repository_there_are_no_versions(tmp_path):
    with pytest.raises(DataError, match="not in a git repository under DVC"):
        list_versions(tmp_path)


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


def test_a_version_with_fewer_rows_must_be_asked_for(published):
    write(published / "data" / "raw" / "comparisons.jsonl", rows(range(40)))
    call("git", "commit", "-qam", "drop rows", cwd=published)
    try:
        with pytest.raises(DataError, match="would have 75 rows, data-v3 has 94"):
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


def test_the_commands_print_what_was_done(published, forked_tools):
    """Whole words, whatever the terminal's width is taken to be."""
    added = json.loads((published.parent / "added.json").read_text())
    assert added["version"]["came"] == 30
    assert Path(added["directory"]).is_dir()
    narrow = {**os.environ, "COLUMNS": "60"}
    log = forked_tools.rlhf("data", "log", cwd=published, env=narrow)
    for version in list_versions(published):
        assert version.version in log
        assert version.commit[:10] in log
        assert version.batch is None or version.batch in log
    diff = forked_tools.rlhf("data", "diff", "data-v2", "data-v3", cwd=published, env=narrow)
    assert "5 came, 1 went, 1 changed their winner, 88 stayed" in diff
    assert "Question 90?" in diff
    got = forked_tools.rlhf("data", "get", "data-v1", cwd=published, env=narrow)
    assert "reward_train" in got
    assert list_versions(published)[0].dvc_md5.removesuffix(".dir") in got


def at(published: Path, version: str, folder: Path) -> Path:
    """A clone whose branch stands at a version, with all tags."""
    call("git", "clone", "-q", str(published), str(folder), cwd=published)
    call("git", "reset", "-q", "--hard", version, cwd=folder)
    return folder


def test_a_branch_without_the_last_version_publishes_nothing(published, tmp_path):
    """Else its batches would be lost silently and their numbers given to others."""
    clone = at(published, "data-v2", tmp_path / "clone")
    assert publishing_base(clone) == "data-v3"
    (clone / "README").write_text("mine")
    call("git", "add", "README", cwd=clone)
    call("git", *AUTHOR, "commit", "-qm", "apart", cwd=clone)
    with pytest.raises(DataError, match="data-v3 is not part of the checked-out branch"):
        publish(None, directory=clone)
    call("git", *AUTHOR, "merge", "-q", "-m", "together", "data-v3", cwd=clone)
    assert publishing_base(clone) == "HEAD"


def test_a_batch_that_went_must_be_asked_for(published, tmp_path):
    clone = at(published, "data-v3", tmp_path / "clone")
    storage = str(published.parent / "storage")
    dvc("remote", "modify", "--local", "storage", "url", storage, cwd=clone)
    call("git", "rm", "-q", "data/raw/preferences/batch-0001.jsonl.dvc", cwd=clone)
    call("git", *AUTHOR, "commit", "-qm", "without it", cwd=clone)
    with pytest.raises(DataError, match=r"data-v3 has batch-0001\.jsonl, the checked-out branch"):
        publish(None, directory=clone)


def test_a_commit_that_lost_the_record_hides_no_dataset(published, tmp_path):
    """The newest commit that touches the digest is the one that deleted dvc.lock."""
    clone = at(published, "data-v3", tmp_path / "clone")
    call("git", "rm", "-q", "dvc.lock", cwd=clone)
    call("git", *AUTHOR, "commit", "-qm", "prepare it anew", cwd=clone)
    latest = list_versions(published)[-1]
    assert commit_of(clone, latest.dvc_md5) == latest.commit


def test_a_model_leads_back_to_its_dataset_by_its_tags_alone(
    published, mlflow_home, tmp_path, monkeypatch
):
    """SFT trains on data-v1 while the tree has data-v3 and changes of its own."""
    from rlhf_core.stages.sft import train_sft

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{mlflow_home / 'mlflow.db'}")
    monkeypatch.chdir(published)
    mine = write(Path("data/raw/mine.jsonl"), rows(range(3)))
    before = state(published)
    try:
        changes = {"data.version": "data-v1", "model.base": str(BASE), "sft.num_epochs": "1"}
        config = load_config(Path("configs/small.yaml"), changes)
        context = RunContext(run_id="20260101-000000-abcd", directory=tmp_path / "run")
        splits = prepare_data(config)
        result = train_sft(config, splits, context)
        assert state(published) == before
    finally:
        mine.unlink()

    version = list_versions(published)[0]
    client = mlflow_client()
    run = client.get_run(result.model.run_id)
    entity = run.inputs.dataset_inputs[0].dataset
    assert (entity.name, entity.source_type) == ("data-v1", "dvc")
    assert entity.digest == version.dvc_md5.removesuffix(".dir")
    assert json.loads(entity.source)["git_revision"] == version.commit
    kept = {file.path for file in client.list_artifacts(run.info.run_id, "dataset/pictures")}
    assert "dataset/pictures/lengths.png" in kept

    tags = find_model(result.model.uri).tags
    assert tags["rlhf.dataset_version"] == "data-v1"
    clone = tmp_path / "clone"
    call("git", "clone", "-q", str(published), str(clone), cwd=tmp_path)
    storage = str(published.parent / "storage")
    dvc("remote", "modify", "--local", "storage", "url", storage, cwd=clone)
    restored = restore_for_model(result.model.uri, directory=clone)
    assert restored.directory.is_relative_to(clone)
    assert contents(restored.directory) == contents(splits.directory)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def clone_of(published, folder, *options):
    call("git", "clone", "-q", *options, f"file://{published}", str(folder), cwd=published)
    call("git", "config", "user.email", "bob@example.org", cwd=folder)
    call("git", "config", "user.name", "Bob", cwd=folder)
    return folder


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--no-tags"], r"data-v1 exists \(origin names it\).*first: git fetch --tags$"),
        (["--depth=1", "--no-tags"], r"first: git fetch --tags --unshallow$"),
        (["--depth=1"], r"first: git fetch --tags --unshallow$"),
    ],
)
def test_a_clone_that_cannot_know_all_versions_gives_no_number(published, tmp_path, options, says):
    with pytest.raises(DataError, match=says):
        publishing_base(clone_of(published, tmp_path / "clone", *options))


def test_the_history_itself_says_which_versions_there_are(published, tmp_path):
    clone = clone_of(published, tmp_path / "clone", "--no-tags")
    call("git", "remote", "remove", "origin", cwd=clone)
    with pytest.raises(DataError, match=r"data-v1 exists \(a commit names it\)"):
        publishing_base(clone)


def test_a_full_clone_publishes_and_a_remote_out_of_reach_is_named(published, tmp_path):
    clone = clone_of(published, tmp_path / "clone")
    assert publishing_base(clone) == "HEAD"
    call("git", "remote", "set-url", "origin", str(tmp_path / "gone"), cwd=clone)
    with pytest.raises(DataError, match="origin cannot be asked which versions there are"):
        publishing_base(clone)
