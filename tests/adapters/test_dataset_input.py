"""What a run keeps of its dataset, in a real MLflow: name, digest, report, pictures, Data Docs."""

import json

from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.adapters.tracking.tracking import open_run


def test_a_run_shows_its_dataset(mlflow_home, config, context, splits):
    """The folder is in no repository, so it is of no version and goes by the folder's name."""
    (splits.directory / "pictures").mkdir(parents=True)
    for name in ("lengths.png", "lengths.csv"):
        (splits.directory / "pictures" / name).write_text(name)
    docs = splits.directory / "docs"
    docs.mkdir()
    (docs / "index.html").write_text("checks")
    (docs / "prompts.html").write_text("")
    splits.report.write_text("{}")
    with open_run(config, context, "sft", inputs={}) as run:
        run.log_dataset(splits)

    client = mlflow_client()
    logged = client.get_run(run.run_id)
    entity = logged.inputs.dataset_inputs[0].dataset
    assert (entity.name, entity.digest, entity.source_type) == ("prepared", "e" * 32, "dvc")
    assert json.loads(entity.source)["dvc_md5"] == splits.dvc_md5
    assert json.loads(entity.source)["version"] is None
    assert json.loads(entity.profile)["reward_train"] == 1

    kept = mlflow_home / "mlartifacts" / run.run_id / "artifacts" / "dataset"
    assert sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()) == [
        "data-docs/index.html",
        "data-docs/prompts.html",
        "pictures/lengths.png",
        "report.json",
    ]
    tags = logged.data.tags
    page = f"/runs/{run.run_id}/artifacts/dataset/data-docs/index.html"
    assert tags["rlhf.data_docs"].endswith(page)
    assert f"[Data Docs](#/experiments/{run.experiment_id}{page})" in tags["mlflow.note.content"]
    assert "not published as a version" in tags["mlflow.note.content"]
    assert "rlhf.dataset_version" not in tags
