"""The smallest things to log to MLflow."""

from pathlib import Path

import pytest

from rlhf_core.config import PipelineConfig
from rlhf_core.schema import DatasetRef, DatasetSplits, RunContext


@pytest.fixture
def config() -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "model": {"base": "base"},
            "data": {"preferences": {"path": "comparisons.jsonl"}},
            "policy": {"algorithm": "ppo"},
            "gates": {
                "sft": [{"metric": "sft/heldout_nll", "at_most": 2.0}],
                "reward": [{"metric": "reward/heldout_accuracy", "at_least": 0.6}],
                "policy": [{"metric": "policy/win_rate", "at_least": 0.55}],
            },
        }
    )


@pytest.fixture
def context(tmp_path) -> RunContext:
    return RunContext(run_id="20260101-000000-abcd", directory=tmp_path / "runs" / "one")


@pytest.fixture
def splits(tmp_path) -> DatasetSplits:
    names = [name for name in DatasetSplits.model_fields if name.rpartition("_")[2] in PARTS]
    files = {
        name: DatasetRef(
            path=Path(f"{name}.jsonl"), sha256="a" * 64, num_rows=1, dvc_md5="b" * 32,
            git_revision=None,
        )
        for name in names
    }  # fmt: skip
    return DatasetSplits(
        directory=tmp_path / "prepared", sha256="d" * 64, dvc_md5="e" * 32 + ".dir",
        git_revision="f" * 40, report=tmp_path / "report.json", **files,
    )  # fmt: skip


PARTS = {"train", "heldout"}


@pytest.fixture
def model_folder(tmp_path):
    """Write a folder that looks like a saved model and return (folder, sha256)."""
    from rlhf_core.models.files import weights_sha256

    def write(weights: bytes = b"weights", name: str = "model", scalar: bool = False):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text('{"reward_shift": 0.0}' if scalar else "{}")
        (folder / "model.safetensors").write_bytes(weights)
        return folder, weights_sha256(folder)

    return write
