"""Where datasets lie: each in a folder of its own, the newest in the output as well."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from rlhf_core.errors import DataError, StorageError
from rlhf_core.stages.preparation import checks as prepare_checks
from rlhf_core.stages.preparation.dataset import read_splits
from rlhf_core.stages.prepare import prepare_data
from tests.disks import no_larger_files
from tests.stages.prepare_helpers import comparisons, make_config, write


@pytest.fixture
def config(tmp_path):
    write(tmp_path / "pairs.jsonl", comparisons())
    return make_config(tmp_path)


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def with_data(config, **changes):
    return config.model_copy(update={"data": config.data.model_copy(update=changes)})


def test_a_second_preparation_leaves_the_first_dataset_where_it_was(prepared, tmp_path):
    config, first = prepared
    before = files_of(first.directory)
    second = prepare_data(with_data(config, heldout_fraction=0.4))
    assert first.sha256 != second.sha256
    assert read_splits(first.directory) == first
    assert files_of(first.directory) == before
    assert files_of(tmp_path / "prepared") == files_of(second.directory)
    for splits in (first, second):
        assert splits.directory.absolute() == tmp_path / f"prepared-{splits.sha256[:12]}"


def test_going_back_to_earlier_settings_finds_the_dataset_and_shows_it(prepared, tmp_path, caplog):
    config, first = prepared
    prepare_data(with_data(config, heldout_fraction=0.4))
    with caplog.at_level("INFO"):
        assert prepare_data(config) == first
    assert "prepared_data_reused" in caplog.text
    assert files_of(tmp_path / "prepared") == files_of(first.directory)


def test_the_same_rows_from_something_else_do_not_take_the_report_away(prepared):
    config, first = prepared
    report = first.report.read_bytes()
    other = prepare_data(with_data(config, votes=config.data.votes.model_copy(
        update={"num_resamples": config.data.votes.num_resamples + 1}
    )))  # fmt: skip
    assert other.sha256 == first.sha256
    assert other.directory != first.directory
    assert first.report.read_bytes() == report


def test_whoever_edits_the_output_harms_no_run(prepared, tmp_path):
    config, splits = prepared
    with (tmp_path / "prepared/reward_train.jsonl").open("a") as stream:
        stream.write("{}\n")
    assert read_splits(splits.directory) == splits
    assert prepare_data(config) == splits
    assert files_of(tmp_path / "prepared") == files_of(splits.directory)


def test_a_dataset_that_came_by_dvc_is_used_and_kept(prepared, caplog):
    config, splits = prepared
    shutil.rmtree(splits.directory)
    with caplog.at_level("INFO"):
        assert prepare_data(config) == splits
    assert "prepared_data_reused" in caplog.text


def test_a_dataset_from_before_is_kept_when_other_settings_replace_the_output(prepared):
    config, first = prepared
    shutil.rmtree(first.directory)
    prepare_data(with_data(config, heldout_fraction=0.4))
    assert read_splits(first.directory) == first


@pytest.mark.parametrize("damage", ["row", "docs"])
def test_a_damaged_folder_of_a_dataset_is_mended(prepared, damage):
    config, splits = prepared
    before = files_of(splits.directory)
    if damage == "row":
        (splits.directory / "reward_train.jsonl").write_text("")
    else:
        shutil.rmtree(splits.directory / "docs")
    assert prepare_data(config) == splits
    assert files_of(splits.directory) == before


TREASURES = {
    "home": lambda at: (at / "thesis.txt").write_text("x"),
    "raw": lambda at: write(at / "pairs.jsonl", comparisons()),
    "file": None,
    "link": None,
    "runs": lambda at: (at / "runs").mkdir(),
    "dataset with notes": lambda at: (at / "notes.txt").write_text("x"),
}


@pytest.mark.parametrize("kind", TREASURES)
def test_an_output_that_is_somebody_elses_is_refused_and_left_alone(
    config, tmp_path, monkeypatch, kind
):
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("x")
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        target.symlink_to("elsewhere")
    elif kind == "dataset with notes":
        shutil.copytree(prepare_data(config).directory, target)
    else:
        target.mkdir()
    if TREASURES[kind]:
        TREASURES[kind](target)
    changes = {"output": target}
    if kind == "raw":
        changes["preferences"] = config.data.preferences.model_copy(
            update={"path": target / "pairs.jsonl"}
        )
    settings = with_data(config, **changes)
    if kind == "runs":
        settings = settings.model_copy(update={"runs": target / "runs"})
    before = sorted(map(str, tmp_path.rglob("*")))
    with pytest.raises(DataError, match=f"{target}: "):
        prepare_data(settings)
    assert sorted(map(str, tmp_path.rglob("*"))) == before


@pytest.mark.parametrize("name", [".", "..", "/", "down/.."])
def test_the_working_directory_and_what_holds_it_are_no_output(config, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    before = sorted(map(str, tmp_path.rglob("*")))
    with pytest.raises(DataError, match="holds"):
        prepare_data(with_data(config, output=Path(name)))
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_a_folder_called_like_that_of_failures_is_left_alone(config, tmp_path):
    failed = tmp_path / "prepared-failed"
    failed.mkdir()
    (failed / "report.json").write_text("mine")
    with pytest.raises(DataError, match=r"failed: holds 'report\.json' and no manifest"):
        prepare_data(config)
    assert (failed / "report.json").read_text() == "mine"


def test_a_folder_of_failures_is_replaced_by_the_next_failure(config, tmp_path):
    strict = with_data(config, min_pairs=10_000)
    for _ in range(2):
        with pytest.raises(DataError, match="expected at least 10000"):
            prepare_data(strict)
        assert (tmp_path / "prepared-failed/failed.json").is_file()
    prepare_data(config)
    assert not (tmp_path / "prepared-failed").exists()


@pytest.mark.parametrize("num_bytes", [4_000, 40_000])
def test_a_full_disk_leaves_nothing_and_the_next_preparation_is_whole(config, tmp_path, num_bytes):
    said = r"prepared(/\S+)? cannot be written: File too large"
    with pytest.raises(StorageError, match=said), no_larger_files(num_bytes):
        prepare_data(config)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    splits = prepare_data(config)
    assert read_splits(splits.directory) == splits


def test_a_refusal_that_the_disk_does_not_take_leaves_no_half_of_it(config, tmp_path, monkeypatch):
    def full(path, directory):
        directory.mkdir(exist_ok=True)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(prepare_checks, "keep", full)
        with pytest.raises(StorageError, match="prepared-failed cannot be written: No space left"):
            prepare_data(with_data(config, min_pairs=10_000))
    assert not (tmp_path / "prepared-failed").exists()
    with pytest.raises(DataError, match=r"10,?000"):
        prepare_data(with_data(config, min_pairs=10_000))
    assert (tmp_path / "prepared-failed").is_dir()
