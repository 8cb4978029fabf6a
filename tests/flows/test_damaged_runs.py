"""A damaged folder of a run is one line that says which file, and what to do."""

import pytest

from rlhf_core.errors import CheckpointError, ConfigError, RlhfError
from rlhf_core.schema import ModelRef
from rlhf_core.stages.evaluation.report import write_report
from rlhf_flows.engine.runs.folder import locate_run, open_run, settings_of_run
from rlhf_flows.engine.runs.stage_folder import is_made_from, run_once, saved_result

DAMAGE = {
    "empty": b"",
    "cut": b'{"seed": 1',
    "other": b'{"seed": []}',
    "list": b"[1]",
    "binary": b"\xff\x00\xfe",
    "deep": b'{"a":' * 3_000,
    "digits": b'{"seed": ' + b"9" * 5_000 + b"}",
}


def damage(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("content", [*DAMAGE.values(), None], ids=[*DAMAGE, "folder"])
@pytest.mark.parametrize("name", ["config.json", "sft/result.json", "promote/result.json"])
def test_a_damaged_file_of_a_run_is_named(settings, content, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = settings.config
    run = open_run(config, "one")
    damage(run.directory / name, content)
    if name == "config.json":
        with pytest.raises(ConfigError, match=r"config\.json: .*damaged"):
            settings_of_run(locate_run("one", config.runs))
    elif name == "sft/result.json":
        with pytest.raises(CheckpointError, match=r"result\.json: .*delete the folder"):
            saved_result(run, "sft", ModelRef)
    if content is not None and content != DAMAGE["other"]:  # a promotion is shown as it is
        with pytest.raises(RlhfError) as raised:
            write_report(run.directory)
        assert name in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_stage_whose_noted_inputs_are_damaged_is_repeated(settings, content, tmp_path):
    run = open_run(settings.config.model_copy(update={"runs": tmp_path / "runs"}), "one")
    made = ModelRef(
        uri="models:/m/1",
        name="m",
        version="1",
        kind="causal",
        path=tmp_path,
        sha256="a" * 64,
        run_id="one",
    )
    inputs, done = {"dataset": "1"}, []

    def compute():
        done.append("once more")
        return made

    for _ in range(2):
        assert run_once(run, "sft", inputs, compute, record=ModelRef) == made
    assert is_made_from(run, "sft", inputs)
    damage(run.directory / "sft/inputs.json", content)
    assert not is_made_from(run, "sft", inputs)
    assert run_once(run, "sft", inputs, compute, record=ModelRef) == made
    assert len(done) == 2
    assert is_made_from(run, "sft", inputs)
