"""A run's folder: which of its files are ours, and who may go on while they are deleted."""

from pathlib import Path

import pytest
from torch import nn

from rlhf_core.errors import CheckpointError, ConfigError
from rlhf_core.feedback.ballots import BallotBox
from rlhf_core.stages.training.selection import ANSWERS
from rlhf_core.trainers.checkpoint import KeptWeights
from rlhf_flows.engine.runs.folder import open_run, settings_of_run
from rlhf_flows.engine.runs.locks import hold_run, in_use, is_worked_on
from rlhf_flows.engine.runs.own_files import delete_run, foreign_files

SHARD = "shard-00001-model-00001-of-00001.safetensors"
OURS = [
    "policy/selection-answers.jsonl",
    "evaluate/votes/ai-judge-6d53dcae32b6-c23bee/asked.json",
    "evaluate/votes/ai-judge-6d53dcae32b6-c23bee/ballots.jsonl",
    *(
        f"policy/checkpoints/{place}step-000000002/{name}"
        for place in ("", "kept/")
        for name in (SHARD, "tensors.safetensors", "values.json", "manifest.json")
    ),
    "sft.1/checkpoints/.step-000000004.77.tmp/tensors.safetensors",
]
THEIRS = ["policy/checkpoints/notes.txt", "policy/checkpoints/step-000000002/notes.txt"]


@pytest.fixture
def config(settings, tmp_path):
    return settings.config.model_copy(update={"runs": tmp_path / "runs"})


@pytest.fixture
def run(config):
    return open_run(config, "one")


def test_all_that_stages_write_is_ours(run):
    for name in (*OURS, *THEIRS):
        path = run.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    left = {str(path.relative_to(run.directory)) for path in foreign_files(run.directory)}
    assert left == set(THEIRS)


def test_what_a_policy_keeps_to_choose_from_goes_with_its_run(run):
    checkpoints = run.stage_directory("policy") / "checkpoints"
    kept = KeptWeights(checkpoints / "kept", most=1)
    kept.keep(2, nn.Linear(2, 1), steps=[2], taken=2, fingerprint="f")
    (run.stage_directory("policy") / ANSWERS).write_text("x")
    with BallotBox(run.stage_directory("policy"), "an AI judge").opened({"model": "m"}):
        pass
    assert list(checkpoints.rglob("*.safetensors"))
    assert delete_run(run) == ()
    assert not run.directory.exists()


def test_what_a_kill_left_of_a_deletion_is_not_gone_on_with(config, run):
    """What a new attempt made would be deleted with the rest, promoted or not."""
    (run.directory / ".deleting").touch()
    with pytest.raises(ConfigError, match="a deletion of this run was stopped"):
        open_run(config, "one")
    with pytest.raises(ConfigError, match="a deletion of this run was stopped"):
        settings_of_run(run)


def test_nobody_takes_up_a_run_whose_settings_are_not_gone_yet(run, monkeypatch):
    unlink, seen = Path.unlink, []

    def look(path, missing_ok=False):
        if path.name == "config.json":
            with pytest.raises(CheckpointError, match="is being deleted"), in_use(run):
                pass
            seen.append(path)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", look)
    with hold_run(run):
        delete_run(run)
    assert seen
    assert not run.directory.exists()


def test_a_process_that_keeps_a_run_may_ask_again(run):
    with in_use(run):
        with in_use(run):
            pass
        assert is_worked_on(run)
    assert not is_worked_on(run)
