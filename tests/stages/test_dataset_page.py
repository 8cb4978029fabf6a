import pytest

from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.config import ModelConfig, PipelineConfig
from rlhf_core.schema import DatasetRef, DatasetSplits, RunContext
from rlhf_core.stages.models.renderers import base_digest
from rlhf_core.stages.versions.dataset_page import show_dataset


@pytest.fixture
def config():
    return PipelineConfig.model_validate(
        {
            "model": {"base": "base"},
            "data": {"preferences": {"path": "comparisons.jsonl"}},
            "policy": {"algorithm": "ppo"},
            "gates": {stage: [] for stage in ("sft", "reward", "policy")},
        }
    )


@pytest.fixture
def splits(mlflow_home):
    """A prepared dataset with its report and its Data Docs."""
    directory = mlflow_home / "data/prepared"
    docs = directory / "docs"
    for folder in (directory, docs):
        folder.mkdir(parents=True)
    (directory / "report.json").write_text("{}")
    (docs / "index.html").write_text("checks")
    ref = {"num_rows": 1, "sha256": "a" * 64, "dvc_md5": "b" * 32, "git_revision": None}
    names = [name for name, field in DatasetSplits.model_fields.items()
             if field.annotation is DatasetRef]  # fmt: skip
    return DatasetSplits(
        directory=directory,
        sha256="d" * 64,
        dvc_md5="e" * 32 + ".dir",
        git_revision=None,
        report=directory / "report.json",
        **{name: DatasetRef(path=directory / f"{name}.jsonl", **ref) for name in names},
    )


def test_data_docs_and_report_are_kept_with_one_mlflow_run(config, splits, mlflow_home):
    context = RunContext(run_id="one", directory=mlflow_home / "runs/one")
    context.stage_directory("prepare").mkdir(parents=True)
    for _ in range(2):
        assert show_dataset(config, splits, context) is None, "nobody serves a local database"
    client = mlflow_client()
    (run,) = client.search_runs([client.get_experiment_by_name("rlhf").experiment_id])
    assert run.data.tags["rlhf.stage"] == "prepare"
    kept = {item.path for item in client.list_artifacts(run.info.run_id, "dataset")}
    assert {"dataset/data-docs", "dataset/report.json"} <= kept


def test_other_weights_under_the_same_name_are_another_base(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"first")
    settings = ModelConfig(base=str(tmp_path))
    before = base_digest(settings)
    assert base_digest(settings) == before
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert base_digest(settings) != before
