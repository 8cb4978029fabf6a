"""A small dataset, and the shipped base model in every role, registered in a real MLflow."""

import hashlib
import socket
from pathlib import Path

import pytest

from rlhf_core.config import DistributedConfig, PipelineConfig
from rlhf_core.schema import (
    DatasetRef,
    DatasetSplits,
    Demonstration,
    Message,
    PreferencePair,
    Prompt,
    RunContext,
)
from rlhf_core.storage.records import read_records, write_records

BASE = Path(__file__).parents[2] / "data" / "base"
NUM_ROWS = 12
STYLES = ("terse", "polite")
PLACES = ("library", "museum", "pool", "zoo", "market", "theatre", "harbour", "tower", "park")


RATER = """
def rate(prompt, response):
    return {"score": -float(len(response)), "correctness": float("nine" in response)}
"""


@pytest.fixture
def stage_config(tmp_path, monkeypatch):
    """Gates that pass whatever is measured; a test replaces those it is about."""
    (tmp_path / "house_rater.py").write_text(RATER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RLHF_ALLOWED_FUNCTIONS", "house_rater:rate")

    def make(**gates) -> PipelineConfig:
        lenient = {
            "sft": [{"metric": "sft/heldout_nll", "at_most": 99.0, "min_samples": 5}],
            "reward": [{"metric": "reward/heldout_accuracy", "at_least": 1e-9, "min_samples": 5}],
            "policy": [{"metric": "policy/win_rate", "at_least": 1e-9, "min_samples": 5}],
            "reward_hacking": [],
        }
        return PipelineConfig.model_validate(
            {
                "model": {"base": str(BASE), "max_length": 192},
                "data": {"preferences": {"path": "unused.jsonl"}},
                "policy": {"algorithm": "ppo", "max_new_tokens": 16},
                "evaluation": {"num_resamples": 100, "rater": "house_rater:rate"},
                "gates": {**lenient, **gates},
            }
        )

    return make


@pytest.fixture
def stage_context(tmp_path) -> RunContext:
    return RunContext(run_id="20260101-000000-abcd", directory=tmp_path / "runs" / "one")


def question(index: int) -> tuple[Message, ...]:
    place = PLACES[index % len(PLACES)]
    return (Message(role="user", content=f"When does the {place} number {index} open?"),)


@pytest.fixture
def small_splits(tmp_path) -> DatasetSplits:
    folder = tmp_path / "prepared"
    demonstrations = [
        Demonstration(
            demonstration_id=f"d{i}", prompt=question(i), response=f"It opens at {i % 12 + 1}."
        )
        for i in range(NUM_ROWS)
    ]
    pairs = [
        PreferencePair(
            comparison_id=f"c{i}",
            prompt=question(i),
            chosen="It opens at nine, every day of the week." if i % 3 else "It opens at nine.",
            rejected="No idea." if i % 3 else "What a brilliant question! I am not sure at all.",
            agreement=1.0,
        )
        for i in range(NUM_ROWS)
    ]
    prompts = [
        Prompt(prompt_id=f"p{i}", prompt=question(i), tags={"style": STYLES[i % 2]})
        for i in range(NUM_ROWS)
    ]
    rows = {"demonstrations": demonstrations, "prompts": prompts}
    files = {
        name: _written(folder / f"{name}.jsonl", rows.get(name.split("_")[0], pairs))
        for name, field in DatasetSplits.model_fields.items()
        if field.annotation is DatasetRef
    }
    return DatasetSplits(
        directory=folder, sha256="d" * 64, dvc_md5="e" * 32 + ".dir", git_revision=None,
        report=folder / "report.json", **files,
    )  # fmt: skip


def _written(path: Path, records) -> DatasetRef:
    count = write_records(path, records)
    assert read_records(path, type(records[0])) == records
    data = path.read_bytes()
    return DatasetRef(
        path=path, sha256=hashlib.sha256(data).hexdigest(), num_rows=count,
        dvc_md5=hashlib.md5(data).hexdigest(), git_revision=None,
    )  # fmt: skip


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory):
    """The base model as SFT and as policy (weights slightly moved); two heads on its trunk."""
    import torch

    from rlhf_core.models import load_causal, save_model, scalar_from_causal
    from rlhf_core.stages.base_model import model_renderer

    tokenizer = model_renderer(BASE).tokenizer
    moved = load_causal(BASE)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in moved.parameters():
            weight.add_(0.05 * weight.std() * torch.randn(weight.shape, generator=noise))
    models = {
        "sft": load_causal(BASE),
        "policy": moved,
        "reward": scalar_from_causal(BASE, seed=1),
        "judge": scalar_from_causal(BASE, seed=2),
    }
    folder = tmp_path_factory.mktemp("models")
    return {
        role: (folder / role, save_model(model, tokenizer, folder / role))
        for role, model in models.items()
    }


@pytest.fixture
def register_all(mlflow_home, stage_config, stage_context, small_splits):
    """Register a folder for every role, each made with the registered SFT model."""
    from rlhf_core.adapters.registry import register_model
    from rlhf_core.adapters.tracking import open_run, stage_inputs

    def register(folders, run_id=stage_context.run_id, splits=small_splits):
        context = stage_context.model_copy(update={"run_id": run_id})
        models = {}
        for role, (folder, sha256) in folders.items():
            upstream = {"sft": models["sft"]} if models else {}
            inputs = stage_inputs(splits, **upstream)
            with open_run(stage_config(), context, role, inputs=inputs) as run:
                models[role] = register_model(
                    run,
                    directory=folder,
                    name=f"rlhf-{role}",
                    kind="causal" if role in ("sft", "policy") else "scalar",
                    sha256=sha256,
                    tags={},
                )
        return models

    return register


@pytest.fixture
def four_models(register_all, saved_models):
    return register_all(saved_models)


@pytest.fixture
def endpoint():
    """A free port to meet at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def as_node(endpoint):
    """Settings of one of several nodes on this machine."""

    def make(node_rank=0, nnodes=2, **changes):
        given = {"processes": nnodes, "nnodes": nnodes, "node_rank": node_rank}
        return DistributedConfig(**{**given, "rdzv_endpoint": endpoint, **changes})

    return make
