"""The page's own commands: a registry backed up while a run is open, whole at another place."""

import shutil

from rlhf_core.adapters.registry.lineage import trace_lineage
from rlhf_core.adapters.registry.registry import register_model, resolve_model
from rlhf_core.adapters.tracking.tracking import open_run
from tests.backups import FILES, PLACES, SQLITE, paste
from tests.stages.data_helpers import call


def test_a_registry_backed_up_while_a_run_is_open_is_whole_elsewhere(
    mlflow_home, config, context, splits, model_folder, monkeypatch
):
    old, new, backup = (mlflow_home / name for name in ("old", "new", "backup"))
    for folder in (old / ".rlhf/prefect", old / "runs/one", old / "data", old / ".dvc", new):
        folder.mkdir(parents=True)
    shutil.move(mlflow_home / "mlflow.db", old)
    (old / ".rlhf/prefect/prefect.db").touch()
    monkeypatch.chdir(old)
    call("git", "init", "-q", cwd=old)
    author = ("-c", "user.name=Ann", "-c", "user.email=ann@example.org")
    call("git", *author, "commit", "-q", "--allow-empty", "-m", "first", cwd=old)
    call("git", "tag", "data-v1", cwd=old)
    remote = mlflow_home / "remote"
    (remote / "files/md5/ab").mkdir(parents=True)
    (remote / "files/md5/ab/cd").write_text("rows")
    folder, sha256 = model_folder()
    with open_run(config, context, "sft", inputs={"dataset_sha256": "d" * 64}) as run:
        made = register_model(
            run, directory=folder, name="rlhf-sft", kind="causal", sha256=sha256, tags={}
        )
        paste(SQLITE, old, backup=backup, remote=remote)
    assert backup.stat().st_mode & 0o077 == 0
    for gone in (old, remote, folder):
        shutil.rmtree(gone)

    monkeypatch.chdir(new)
    paste(FILES, new, backup=backup, remote=mlflow_home / "elsewhere")
    paste(PLACES, new, backup=backup, database="sqlite:///mlflow.db")
    found = resolve_model(made.uri, cache=new / "cache")
    assert found.sha256 == sha256
    assert found.path.is_relative_to(new)
    lineage = trace_lineage(made.uri)
    assert lineage.dataset_sha256 == "d" * 64
    assert lineage.run_status == "RUNNING"
    assert call("git", "tag", cwd=new).split() == ["data-v1"]
    assert (mlflow_home / "elsewhere/files/md5/ab/cd").read_text() == "rows"
    with open_run(config, context, "sft", inputs={"dataset_sha256": "d" * 64}) as again:
        assert again.run_id == made.run_id
