"""A backup taken while a run trains, by the page's own commands, restored at another place."""

import shutil
import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rlhf_core.models.files import weights_sha256
from tests.backups import FILES, PLACES, POSTGRES, POSTGRES_BACK, SQLITE, paste
from tests.flows.conftest import mortal, undisturbed  # noqa: F401 - fixtures
from tests.flows.tiny import CONFIG, Workplace
from tests.postgres import BINARIES, needs_postgres, running_postgres
from tests.stages.data_helpers import call, dvc

pytestmark = [pytest.mark.nightly, pytest.mark.xdist_group("faults")]


def version_the_data(folder, remote):
    """Put the work under git, the raw data under DVC with a remote, and tag it as a version."""
    call("git", "init", "-q", "-b", "main", cwd=folder)
    for key, value in (("user.email", "ann@example.org"), ("user.name", "Ann")):
        call("git", "config", key, value, cwd=folder)
    dvc("init", "-q", cwd=folder)
    dvc("remote", "add", "-q", "-d", "storage", str(remote), cwd=folder)
    dvc("add", "-q", "data/raw/comparisons.jsonl", cwd=folder)
    ignored = "/.venv\n/.rlhf\n/runs\n/mlartifacts\nmlflow.db*\n/data/prepared*\n.*.lock\n*.tmp\n"
    (folder / ".gitignore").write_text(ignored)
    call("git", "add", "-A", cwd=folder)
    call("git", "commit", "-q", "-m", "first", cwd=folder)
    call("git", "tag", "data-v1", cwd=folder)
    dvc("push", "-q", cwd=folder)


def test_a_backup_during_training_restored_elsewhere_is_whole(
    tmp_path,
    fresh_database,
    undisturbed,  # noqa: F811
):
    old, new, backup = tmp_path / "old", tmp_path / "new", tmp_path / "backup"
    old_remote, new_remote = tmp_path / "remote", tmp_path / "elsewhere"
    work = Workplace(old, fresh_database, undisturbed.mortal)
    version_the_data(old, old_remote)
    work.carry_out("prepare", "run-1")
    work.carry_out("sft", "run-1")
    (old / ".rlhf/prefect").mkdir(parents=True, exist_ok=True)
    (old / ".rlhf/prefect/prefect.db").touch()

    training = threading.Thread(target=work.carry_out, args=("reward", "run-1"))
    training.start()
    checkpoints = old / "runs/run-1/reward/checkpoints"
    while training.is_alive() and not any(checkpoints.glob("step-*")):
        training.join(0.02)
    paste(SQLITE, old, backup=backup, remote=old_remote)
    training.join()
    for gone in (old, old_remote):
        shutil.rmtree(gone)

    new.mkdir()
    paste(FILES, new, backup=backup, remote=new_remote)
    paste(PLACES, new, backup=backup, database="sqlite:///mlflow.db")
    dvc("remote", "modify", "--local", "storage", "url", str(new_remote), cwd=new)
    assert call("git", "tag", cwd=new).split() == ["data-v1"]
    (new / "data/raw/comparisons.jsonl").unlink()
    dvc("pull", "-q", cwd=new)
    assert (new / "data/raw/comparisons.jsonl").is_file()

    log = undisturbed.mortal.log
    for words in (
        ("lineage", "models:/rlhf-sft@candidate"),
        ("sample", "models:/rlhf-sft@candidate", "Hello"),
        ("doctor", "--config", CONFIG),
    ):
        said = log.stat().st_size
        undisturbed.mortal.rlhf(new, *words)
        assert str(old) not in log.read_bytes()[said:].decode()
    again = object.__new__(Workplace)
    again.path, again.mortal = new, undisturbed.mortal
    again.carry_out("reward", "run-1")
    for stage in ("sft", "reward"):
        found = weights_sha256(new / f"runs/run-1/{stage}/model")
        assert found == undisturbed.weights("run-1")[stage]
    (experiment,) = again.client.search_experiments(filter_string="name = 'rlhf'")
    runs = again.client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}


@needs_postgres
def test_a_postgresql_is_dumped_restored_and_finds_its_files_elsewhere(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    monkeypatch.setenv("PATH", str(BINARIES[-1]), prepend=":")
    with running_postgres("mlflow", "prefect", "mlflow2", "prefect2") as server:
        address = f"postgresql://{server}"
        client = MlflowClient(f"{address}/mlflow")
        made = client.create_experiment("rlhf", artifact_location=(old / "mlartifacts").as_uri())
        run = client.create_run(made)
        client.log_text(run.info.run_id, "what was measured", "report.txt")
        backup = tmp_path / "backup"
        backup.mkdir()
        names = {"mlflow": f"{address}/mlflow", "prefect": f"{address}/prefect"}
        paste(POSTGRES, old, backup=backup, **names)
        (backup / "place").write_text(str(old))
        old.rename(new)
        (new / "runs").mkdir()
        copies = {name: f"{where}2" for name, where in names.items()}
        paste(POSTGRES_BACK, new, backup=backup, **copies)
        paste(PLACES, new, backup=backup, database=copies["mlflow"])
        restored = MlflowClient(copies["mlflow"])
        found = restored.download_artifacts(run.info.run_id, "report.txt")
        assert Path(found).read_text() == "what was measured"
