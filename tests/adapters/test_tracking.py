import errno
import os
import signal
import socket
import subprocess
import textwrap
import time
from functools import partial

import pytest
from mlflow.exceptions import RestException

from rlhf_core.adapters.registry.registry import register_model, resolve_model
from rlhf_core.adapters.tracking.mlflow_client import check_server, mlflow_client, with_retries
from rlhf_core.adapters.tracking.tracking import open_run, rejoin_run, stage_inputs
from rlhf_core.config import config_digest
from rlhf_core.errors import DivergedError, RegistryError, StorageError
from rlhf_core.schema import ModelRef
from tests.disks import no_larger_files


def test_without_a_server_everything_lies_in_the_working_directory(mlflow_home, config, context):
    with open_run(config, context, "sft", inputs={}) as run:
        run.log_metrics({"sft/loss": 1.0}, step=0)
    assert (mlflow_home / "mlflow.db").is_file()
    assert (mlflow_home / "mlartifacts" / run.run_id / "artifacts" / "config.yaml").is_file()
    assert not (mlflow_home / "mlruns").exists()


def test_a_run_says_what_it_was_made_of(mlflow_home, config, context, splits):
    sft = ModelRef(
        name="rlhf-sft", version="3", uri="models:/rlhf-sft/3", path=mlflow_home, sha256="c" * 64,
        kind="causal", run_id="x",
    )  # fmt: skip
    driven = context.model_copy(update={"flow_run_id": "flow-1"})
    with open_run(config, driven, "policy", inputs=stage_inputs(splits, sft=sft)) as run:
        run.log_dataset(splits)
    logged = mlflow_client().get_run(run.run_id)
    tags = logged.data.tags
    assert tags["rlhf.run_id"] == context.run_id
    assert tags["rlhf.stage"] == "policy"
    assert tags["rlhf.config_sha256"] == config_digest(config)
    assert tags["rlhf.dataset_sha256"] == splits.sha256
    assert tags["rlhf.dataset_dvc_md5"] == splits.dvc_md5
    assert tags["rlhf.dataset_git_revision"] == splits.git_revision
    assert tags["rlhf.upstream.sft"] == "models:/rlhf-sft/3"
    assert tags["prefect.flow_run_id"] == "flow-1"
    assert logged.data.params["policy.kl_coef"] == str(config.policy.kl_coef)
    assert logged.inputs.dataset_inputs[0].dataset.digest == "e" * 32
    assert logged.info.status == "FINISHED"


def test_the_git_commit_is_recorded_with_whether_it_tells_the_whole_code(
    mlflow_home, config, context
):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words], check=True)

    git("init", "-q")
    (mlflow_home / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "-q", "-m", "one")
    with open_run(config, context, "sft", inputs={}) as clean:
        pass
    (mlflow_home / "code.py").write_text("2")
    with open_run(config, context, "sft", inputs={}) as dirty:
        pass
    assert len(clean.lineage["rlhf.git_commit"]) == 40
    assert clean.lineage["rlhf.git_dirty"] == "false"
    assert dirty.lineage["rlhf.git_dirty"] == "true"


def test_metrics_travel_in_batches_and_all_arrive(mlflow_home, config, context, monkeypatch):
    client = mlflow_client()
    calls = []
    real = client.log_batch
    with open_run(config, context, "sft", inputs={}) as run:
        monkeypatch.setattr(client, "log_batch", lambda *a, **k: calls.append(1) or real(*a, **k))
        for step in range(700):
            run.log_metrics({"sft/loss": float(step), "sft/grad_norm": 0.5}, step)
    assert len(calls) < 10
    history = client.get_metric_history(run.run_id, "sft/loss")
    assert [point.value for point in history] == [float(step) for step in range(700)]


def test_what_a_checkpoint_covers_is_sent_before_it(mlflow_home, config, context):
    with open_run(config, context, "sft", inputs={}) as run:
        run.log_metrics({"sft/loss": 1.0}, step=7)
        run.send_before_checkpoint()
        (point,) = mlflow_client().get_metric_history(run.run_id, "sft/loss")
    assert point.step == 7


def test_the_last_steps_of_a_rank_that_diverges_are_sent(mlflow_home, config, context):
    """They say why; a rank ended with up to two seconds of them."""

    def diverge(stage):
        with rejoin_run(stage.run_id, stage.lineage, resumed=False) as run:
            run.log_metrics({"sft/grad_norm": 1e30}, step=7)
            raise DivergedError("loss is nan at step 8")

    with open_run(config, context, "sft", inputs={}) as stage:
        with pytest.raises(DivergedError):
            diverge(stage)
        assert mlflow_client().get_run(stage.run_id).data.metrics == {"sft/grad_norm": 1e30}


def test_a_server_lost_for_a_while_costs_no_metric(mlflow_home, config, context, monkeypatch):
    client = mlflow_client()
    real, failures = client.log_batch, iter([True, True])

    def flaky(*args, **kwargs):
        if next(failures, False):
            import requests

            raise requests.ConnectionError("refused")
        return real(*args, **kwargs)

    with open_run(config, context, "sft", inputs={}) as run:
        monkeypatch.setattr(client, "log_batch", flaky)
        for step in range(3):
            run.log_metrics({"sft/loss": 1.0}, step)
            run._next_flush = 0.0
    assert len(client.get_metric_history(run.run_id, "sft/loss")) == 3


def test_a_server_lost_for_longer_than_the_patience_stops_the_stage(
    mlflow_home, config, context, monkeypatch
):
    client = mlflow_client()

    def lost(*args, **kwargs):
        import requests

        raise requests.ConnectionError("refused")

    def train(run):
        while True:
            run.log_metrics({"sft/loss": 1.0}, step=0)
            run._next_flush = 0.0

    monkeypatch.setenv("RLHF_TRACKING_PATIENCE", "0.2")
    run_id = None
    with pytest.raises(RegistryError, match="lost for"):  # noqa: PT012, SIM117
        with open_run(config, context, "sft", inputs={}) as run:
            run_id = run.run_id
            monkeypatch.setattr(client, "log_batch", lost)
            train(run)
    assert client.get_run(run_id).info.status == "RUNNING"  # it could not be told either


def test_an_exception_marks_the_run_failed_and_the_retry_goes_on_in_it(
    mlflow_home, config, context
):
    def divide_by_zero():
        with open_run(config, context, "sft", inputs={}) as run:
            run_ids.append(run.run_id)
            raise ZeroDivisionError

    run_ids = []
    with pytest.raises(ZeroDivisionError):
        divide_by_zero()
    assert mlflow_client().get_run(run_ids[0]).info.status == "FAILED"
    with open_run(config, context, "sft", inputs={}) as second:
        assert second.resumed
    assert second.run_id == run_ids[0]
    assert mlflow_client().get_run(run_ids[0]).info.status == "FINISHED"


def test_a_run_that_cannot_be_noted_is_not_left_running(mlflow_home, config, context, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    context.stage_directory("sft").mkdir(parents=True)
    said = "mlflow-run cannot be written: No space left"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=said), open_run(config, context, "sft", inputs={}):
            pytest.fail("the stage was begun")
    (experiment,) = mlflow_client().search_experiments(filter_string="name = 'rlhf'")
    (run,) = mlflow_client().search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
    with open_run(config, context, "sft", inputs={}) as second:
        assert second.run_id == run.info.run_id


def test_a_full_disk_under_the_database_is_told_at_once(mlflow_home, config, context, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waiting makes no room"))
    opened = partial(open_run, config, context, "sft", inputs={})
    said = f"{mlflow_home / 'mlflow.db'} cannot be written: "
    with pytest.raises(StorageError, match=said), no_larger_files(9_999), opened():
        pytest.fail("the stage was begun")
    with opened() as run:
        assert mlflow_client().get_run(run.run_id).info.status == "RUNNING"


def test_a_full_disk_under_the_files_is_told_and_the_model_stored_once_there_is_room(
    mlflow_home, config, context, model_folder, monkeypatch
):
    monkeypatch.delattr(os, "link")  # a link takes no room
    folder, sha256 = model_folder(bytes(4_000_000))

    def store():
        with open_run(config, context, "sft", inputs={}) as run:
            run_ids.append(run.run_id)
            return register_model(
                run, directory=folder, name="rlhf-sft", kind="causal", sha256=sha256, tags={}
            )

    run_ids = []
    said = r"mlartifacts/models/.*/model\.safetensors cannot be written: File too large"
    with pytest.raises(StorageError, match=said), no_larger_files(3_000_000):
        store()
    assert mlflow_client().get_run(run_ids[0]).info.status == "FAILED"
    model = store()
    assert run_ids[0] == run_ids[1]
    assert resolve_model(model.uri, cache=mlflow_home / "cache").sha256 == sha256


@pytest.mark.parametrize(
    "answer",
    [
        "(sqlite3.OperationalError) database or disk is full",
        '(psycopg2.errors.DiskFull) could not extend file "base/1": No space left on device',
    ],
)
def test_a_server_whose_disk_is_full_is_named_and_not_waited_for(monkeypatch, answer):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:secret@mlflow.example.org")
    error = RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": answer})

    def refuse():
        raise error

    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waiting makes no room"))
    said = (
        "opening: MLflow at https://mlflow.example.org cannot write: No space left on device; free"
    )
    with pytest.raises(RegistryError, match=said):
        with_retries("opening", refuse)


def test_a_finished_stage_run_again_gets_a_run_of_its_own(mlflow_home, config, context):
    with open_run(config, context, "sft", inputs={}) as first:
        pass
    with open_run(config, context, "sft", inputs={}) as second:
        pass
    assert second.run_id != first.run_id


def test_an_attempt_killed_after_its_run_ended_goes_on_in_it(mlflow_home, config, context):
    folder = context.stage_directory("sft")
    folder.mkdir(parents=True)
    runs = []
    for _ in range(2):  # nothing between them: the result was never written
        with open_run(config, context, "sft", inputs={"dataset_sha256": "d"}) as run:
            runs.append(run.run_id)
    assert runs[0] == runs[1]
    with open_run(config, context, "sft", inputs={"dataset_sha256": "e"}) as other:
        assert other.run_id != runs[0]
    folder.rename(folder.with_name("sft.1"))  # as a forced repetition filters it out
    folder.mkdir()
    with open_run(config, context, "sft", inputs={"dataset_sha256": "d"}) as again:
        assert again.run_id not in (*runs, other.run_id)


def test_changed_settings_do_not_go_on_in_the_old_run(mlflow_home, config, context):
    with open_run(config, context, "sft", inputs={}) as old:
        pass
    mlflow_client().update_run(old.run_id, status="RUNNING")  # as SIGKILL leaves it
    changed = config.model_copy(update={"seed": 1})
    with open_run(changed, context, "sft", inputs={}) as new:
        pass
    assert new.run_id != old.run_id
    assert mlflow_client().get_run(old.run_id).info.status == "KILLED"


def test_labels_asked_for_otherwise_do_not_stand_in_the_way_of_a_run(mlflow_home, config, context):
    """MLflow takes a parameter once; a changed ``feedback`` would have refused the resumed run."""
    simulated = {"labeler": {"kind": "simulated", "annotators": "a:b"}}
    asked = [
        type(config).model_validate(
            {**config.model_dump(), "feedback": {**simulated, "seed": seed}}
        )
        for seed in range(2)
    ]
    with open_run(asked[0], context, "sft", inputs={}) as old:
        pass
    mlflow_client().update_run(old.run_id, status="RUNNING")  # as SIGKILL leaves it
    with open_run(asked[1], context, "sft", inputs={}) as again:
        assert again.resumed
    assert again.run_id == old.run_id


KILLED = """
    import os, sys, time
    from pathlib import Path
    from rlhf_core.adapters.tracking.tracking import open_run
    from rlhf_core.config import PipelineConfig
    from rlhf_core.schema import RunContext

    config = PipelineConfig.model_validate_json(sys.argv[1])
    context = RunContext.model_validate_json(sys.argv[2])
    with open_run(config, context, "sft", inputs={}) as run:
        for step in range(5):
            run.log_metrics({"sft/loss": float(step)}, step)
        run.flush()
        print(run.run_id, flush=True)
        time.sleep(60)
"""


@pytest.mark.slow
def test_after_sigkill_the_same_run_goes_on_and_no_step_counts_twice(
    mlflow_home, config, context, forked
):
    given = config.model_dump_json(), context.model_dump_json()
    process = forked.python(textwrap.dedent(KILLED), *given, cwd=mlflow_home)
    run_id = process.stdout.readline().strip()
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert mlflow_client().get_run(run_id).info.status == "RUNNING"
    with open_run(config, context, "sft", inputs={}) as run:
        for step in range(3, 8):  # the checkpoint was at step 3
            run.log_metrics({"sft/loss": float(step)}, step)
    assert run.run_id == run_id
    history = mlflow_client().get_metric_history(run_id, "sft/loss")
    assert sorted(point.step for point in history) == list(range(8))


def test_final_measurements_are_the_latest_of_their_name(mlflow_home, config, context):
    with open_run(config, context, "sft", inputs={}) as run:
        run.log_metrics({"sft/heldout_nll": 3.0}, step=40)
        run.log_evaluation({"sft/heldout_nll": 2.0, "sft/heldout_nll/low": 1.9})
    metrics = mlflow_client().get_run(run.run_id).data.metrics
    assert metrics["sft/heldout_nll"] == 2.0
    assert metrics["sft/heldout_nll/low"] == 1.9


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_closed_port_is_told_in_one_line_at_once(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(RegistryError, match=r"MLflow at http.* cannot be reached") as caught:
        check_server()
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 5


def test_a_server_that_never_answers_is_given_up_within_ten_seconds(monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(RegistryError, match="timed out"):
            check_server()
        assert time.monotonic() - started < 10


def test_a_database_that_cannot_be_opened_is_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/missing/mlflow.db")
    with pytest.raises(RegistryError, match="does not exist"):
        check_server()
    (tmp_path / "mlflow.db").write_text("this is no database, but it is long enough to be one")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(RegistryError, match="not a database"):
        check_server()
