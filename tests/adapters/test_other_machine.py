"""What one machine did of a run reaches another one, which shares no folder with it."""

import json
import logging
from contextlib import suppress
from uuid import uuid4

import pytest

from rlhf_core.adapters.registry.registry import register_model, resolve_model
from rlhf_core.adapters.tracking.checkpoint_copies import WEIGHTS, copies_of, drop_copies
from rlhf_core.adapters.tracking.run_records import fetch_records, keep_absence, keep_record
from rlhf_core.adapters.tracking.tracking import open_run
from rlhf_core.schema import RunContext
from tests.servers import MlflowServer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory, fresh_database, forked):
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(fresh_database.read_bytes())
    made = MlflowServer(folder, forked)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def machines(server, tmp_path, monkeypatch):
    """Go to one of two clones at two paths; returns the context there, of a run of the test's."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("RLHF_TRACKING_PATIENCE", "60")
    run = f"run-{uuid4().hex[:8]}"

    def go_to(name):
        home = tmp_path / name / "clone"
        home.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(home)
        return RunContext(run_id=run, directory=home / "runs" / run)

    return go_to


def do_stage(context, text="done"):
    folder = context.stage_directory("sft")
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "samples").mkdir(exist_ok=True)
    (folder / "model/weights").write_text("large")
    (folder / "samples/a.jsonl").write_text("{}\n")
    result = {"text": text, "path": str(folder / "model"), "other": "/elsewhere"}
    (folder / "result.json").write_text(json.dumps(result))


def read_result(context):
    return json.loads((context.stage_directory("sft") / "result.json").read_text())


def test_a_record_comes_with_paths_of_the_machine_that_reads_it(machines, config):
    there = machines("a")
    do_stage(there)
    keep_record(config, there, "sft")
    here = machines("b")
    assert fetch_records(None, here) == []
    folder = here.stage_directory("sft")
    assert read_result(here) == {
        "text": "done", "path": str(folder / "model"), "other": "/elsewhere",
    }  # fmt: skip
    assert (folder / "samples/a.jsonl").is_file()
    assert not (folder / "model").exists(), "models go by the registry"
    assert (here.directory / "config.json").is_file()


def test_the_later_edition_counts_on_every_machine(machines, config):
    there = machines("a")
    do_stage(there)
    keep_record(config, there, "sft")
    here = machines("b")
    fetch_records(config.project, here)
    (here.stage_directory("sft") / "record.json").unlink()
    do_stage(here, "done again")
    keep_record(config, here, "sft")
    there = machines("a")
    fetch_records(config.project, there)
    assert read_result(there)["text"] == "done again"
    keep_record(config, there, "sft")
    here = machines("b")
    fetch_records(config.project, here)
    assert read_result(here)["text"] == "done again", "what was brought is not kept once more"


def test_a_stage_that_is_to_be_done_again_counts_nowhere(machines, config):
    there = machines("a")
    do_stage(there)
    keep_record(config, there, "sft")
    here = machines("b")
    fetch_records(config.project, here)
    keep_absence(config, here, "sft")
    there = machines("a")
    assert fetch_records(config.project, there) == ["sft"]


def test_a_model_that_was_trained_here_is_not_downloaded(
    machines, config, model_folder, monkeypatch
):
    context = machines("a")
    source, sha256 = model_folder()
    own = context.stage_directory("sft") / "model"
    own.parent.mkdir(parents=True)
    source.rename(own)
    with open_run(config, context, "sft", inputs={}) as run:
        model = register_model(
            run, directory=own, name="rlhf-sft", kind="causal", sha256=sha256, tags={}
        )
    runs, cache = own.parents[2], own.parents[3] / "cache"
    assert resolve_model(model.uri, cache=cache, runs=runs).path == own
    assert not cache.exists()
    (own / "model.safetensors").write_bytes(b"trained again since")
    found = resolve_model(model.uri, cache=cache, runs=runs)
    assert found.path.is_relative_to(cache)
    assert found.sha256 == sha256


def checkpoint(folder, step, content="whole"):
    path = folder / "checkpoints" / f"step-{step:09d}"
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(content)
    return path


def interrupted(config, context, work):
    """Do some work in a stage's run, then press Ctrl-C; returns the run."""
    opened = []
    with suppress(KeyboardInterrupt), open_run(config, context, "sft", inputs={}) as run:
        opened.append(run)
        work(run)
        raise KeyboardInterrupt
    return opened[0]


def test_checkpoints_are_copied_where_the_team_wants_it(machines, config, monkeypatch):
    there = machines("a")
    with open_run(config, there, "sft", inputs={}) as run:
        assert copies_of(run) is None
    monkeypatch.setenv("RLHF_SHARE_CHECKPOINTS", "true")
    made = [checkpoint(there.stage_directory("sft"), step) for step in (1, 2, 3)]

    def copy(run):
        for each in made:
            copies_of(run).keep(each)
            copies_of(run, WEIGHTS, most=5).keep(each)

    run = interrupted(config, there, copy)
    here = machines("b")
    directory = here.stage_directory("sft") / "checkpoints"
    directory.mkdir(parents=True, exist_ok=True)
    with open_run(config, here, "sft", inputs={}) as resumed:
        assert resumed.run_id == run.run_id
        copies = copies_of(resumed)
        assert copies._names() == ["step-000000002", "step-000000003"]
        copies.restore(directory, after="")
        kept = copies_of(resumed, WEIGHTS, most=5)
        kept.restore_all(here.directory / "kept")
    names = [f"step-{step:09d}" for step in (1, 2, 3)]
    assert sorted(path.name for path in (here.directory / "kept").iterdir()) == names
    assert [path.name for path in directory.iterdir()] == ["step-000000003"]
    copies.restore(directory, after="step-000000004")
    assert [path.name for path in directory.iterdir()] == ["step-000000003"]
    drop_copies(here.stage_directory("sft"))
    assert copies._names() == kept._names() == [], "they go with the stage's own"


def test_a_stage_that_starts_over_on_another_machine_says_why(machines, config, caplog):
    there = machines("a")
    checkpoint(there.stage_directory("sft"), 1)
    interrupted(config, there, lambda run: None)
    here = machines("b")
    with caplog.at_level(logging.WARNING), open_run(config, here, "sft", inputs={}):
        pass
    assert "starts_over" in caplog.text
    assert str(there.stage_directory("sft")) in caplog.text
    assert "RLHF_SHARE_CHECKPOINTS" in caplog.text
