"""Runs that settings, links, rounds or other runs need stay, with the reason."""

from pathlib import Path

import pytest

from rlhf_core.errors import ConfigError
from rlhf_flows.engine.flow_results import Round, Rounds
from rlhf_flows.engine.runs.cleaning import delete_old_runs, look_for_old_runs
from rlhf_flows.engine.runs.needed import Rule


@pytest.mark.parametrize(
    "path", ["mine.yaml", "mine.yml", "configs/mine.yml", "configs/team/mine.yaml"]
)
@pytest.mark.parametrize("how", ["folder", "version", "link", "bytes"])
def test_settings_files_keep_the_runs_that_they_name(folder, path, how):
    run = folder.run("one")
    folder.run("unneeded")
    model = run.stage_directory("evaluate") / "model"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path("best").symlink_to(model)
    base = {"folder": "runs/one/evaluate/model", "version": "models:/rlhf-policy/1"}
    text = f"model: {{base: {base.get(how, 'best')}}}  # "
    Path(path).write_bytes(text.encode() + (b"\xff" if how == "bytes" else b""))
    assert folder.why("one") == f"{path} names it"
    assert folder.why("unneeded") == ""


def test_settings_that_nobody_can_read_end_the_look(folder, monkeypatch):
    folder.run("one")
    Path("mine.yaml").write_text("model: {base: runs/one/evaluate/model}")
    reading = Path.read_text

    def refuse(path, **how):
        if path.name == "mine.yaml":
            raise PermissionError(13, "Permission denied")
        return reading(path, **how)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigError, match="nobody knows which runs it names"):
        folder.why("one")


@pytest.mark.parametrize("what", ["file", "folder", "stage"])
def test_weights_that_a_kept_run_links_to_stay(folder, what):
    one, two = folder.run("one"), folder.run("two")
    folder.client.set_registered_model_alias("rlhf-policy", "champion", "2")
    source, target = one.stage_directory("evaluate"), two.stage_directory("sft")
    if what == "stage":
        target.symlink_to(source)
    else:
        target.mkdir()
        if what == "file":
            (target / "model").mkdir()
        name = "model" if what == "folder" else "model/model.safetensors"
        (target / name).symlink_to(source / name)
    assert "a link in run two leads into it" in folder.why("one")


def test_weights_of_somebody_else_that_are_linked_into_a_run_outlive_it(folder, tmp_path):
    run = folder.run("one")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "model.safetensors").write_text("weights")
    (theirs / "config.json").write_text("{}")
    (run.stage_directory("sft")).mkdir()
    (run.stage_directory("sft") / "model").symlink_to(theirs)
    (run.stage_directory("evaluate") / "model" / "model-2.safetensors").symlink_to(
        theirs / "model.safetensors"
    )
    (told,) = delete_old_runs(look_for_old_runs(folder.config.runs, Rule()), Rule()).runs
    assert told.deleted
    assert sorted(path.name for path in theirs.iterdir()) == ["config.json", "model.safetensors"]
    assert told.left == (run.stage_directory("sft") / "model",)


def test_runs_whose_folder_was_moved_still_keep_what_they_were_made_from(folder, tmp_path):
    folder.run("one", sha="a" * 64)
    folder.run("two", reads="a" * 64)
    folder.client.set_registered_model_alias("rlhf-policy", "champion", "2")
    moved = tmp_path / "moved"
    folder.config.runs.rename(moved)
    found = {run.run_id: run for run in look_for_old_runs(moved, Rule()).runs}
    assert found["one"].kept_because == ("run two was made from it",)


@pytest.mark.parametrize(
    ("last", "said", "goes"),
    [
        ({"verdict": "HOLD", "awaits": "labels"}, "its rounds wait for labels", False),
        ({"verdict": None}, "its rounds were stopped", True),
        ({"verdict": "HOLD", "policy": "models:/p/1"}, "its rounds were stopped", True),
        ({"verdict": "HOLD"}, "", True),
        ({"verdict": "HOLD", "policy": "models:/p/1", "number": 2}, "", True),
    ],
)
def test_rounds_that_can_be_gone_on_with_keep_their_first_run(folder, last, said, goes):
    """Two were asked for; one that ended without a policy has none to follow it."""
    run = folder.run("one")
    begun = [
        Round(run_id="one", data_version=None, **{**last, "number": number})
        for number in range(1, last.get("number", 1) + 1)
    ]
    record = Rounds(run_id="one", directory=run.directory, rounds=tuple(begun), wanted=2)
    (run.directory / "rounds.json").write_text(record.model_dump_json())
    assert folder.why("one").startswith(said)
    assert bool(folder.why("one")) == bool(said)
    assert bool(folder.why("one", unfinished=True)) != goes


@pytest.mark.parametrize("how", ["digest", "registry", "folder in settings", "settings file"])
def test_runs_that_another_one_was_made_from_stay(folder, how):
    one = folder.run("one", sha="a" * 64)
    folder.run("unneeded", sha="b" * 64)
    more = {}
    if how == "folder in settings":
        base = str(one.stage_directory("evaluate") / "model")
        more = {"model": folder.config.model.model_copy(update={"base": base})}
    folder.run("two", reads="a" * 64 if how == "digest" else "", **more)
    folder.client.set_registered_model_alias("rlhf-policy", "champion", "3")
    if how == "registry":
        folder.version("rlhf-sft", "two", **{"upstream.sft": "models:/rlhf-policy/1"})
    if how == "settings file":
        Path("mine.yaml").write_text("model: {base: runs/one/evaluate/model}")
        assert folder.why("one") == "mine.yaml names it"
    else:
        assert folder.why("one") == "run two was made from it"
    assert folder.why("unneeded") == ""


def test_runs_of_a_chain_that_nothing_needs_go_together(folder):
    folder.run("one", sha="a" * 64)
    folder.run("two", reads="a" * 64)
    assert (folder.why("one"), folder.why("two")) == ("", "")


def test_the_same_weights_made_again_need_no_other_run(folder):
    folder.run("one", sha="a" * 64)
    folder.run("two", reads="a" * 64, sha="a" * 64)
    folder.client.set_registered_model_alias("rlhf-policy", "champion", "2")
    assert folder.why("one") == ""
