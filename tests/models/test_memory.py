"""A model that does not fit into memory is told, and not loaded."""

from pathlib import Path

import pytest
import torch

from rlhf_core.errors import ModelError
from rlhf_core.models import load_causal, memory

BASE = Path(__file__).parents[2] / "data" / "base"


def test_a_model_that_does_not_fit_says_how_many_bytes_are_needed_and_found(monkeypatch):
    model = load_causal(BASE)
    stored = {p.data_ptr(): p.numel() for p in model.parameters()}
    needed = 4 * sum(stored.values())
    assert memory.weight_bytes(BASE, torch.float32) == needed
    monkeypatch.setattr(memory, "free_memory", lambda: needed - 1)
    with pytest.raises(ModelError, match=f"need {needed:,} bytes .* has {needed - 1:,} free"):
        load_causal(BASE)
    memory.require_memory(BASE, torch.bfloat16, model.device)  # half as many bytes


def control_group(folder, version, limit):
    names = {1: memory._VERSION_1, 2: memory._VERSION_2}[version]
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(names, (limit, "700000", ""), strict=True):
        (folder / name).write_text(f"{text}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} 100000\n")


@pytest.mark.parametrize(("limit", "free"), [("1000000", 400_000), ("max", None), ("500000", 0)])
@pytest.mark.parametrize(
    ("version", "line", "where"),
    [
        (2, "0::/", "."),
        (2, "0::/jobs/one", "jobs/one"),
        (2, "0::/jobs/one", "jobs"),
        (2, "0::/docker/name-of-the-host", "."),
        (1, "4:cpu,memory:/jobs/one", "memory/jobs/one"),
        (1, "4:memory:/docker/name-of-the-host", "memory"),
    ],
)
def test_the_limit_of_every_control_group_above_counts(
    tmp_path, monkeypatch, limit, free, version, line, where
):
    groups = tmp_path / "groups"
    control_group(groups / where, version, limit)
    (tmp_path / "cgroup").write_text(f"1:cpuset:/\n{line}\n")
    monkeypatch.setattr(memory, "_GROUPS", groups)
    monkeypatch.setattr(memory, "_GROUPS_OF_PROCESS", tmp_path / "cgroup")
    found = memory.free_memory()
    assert found == free if free is not None else found > 1_000_000


def test_a_training_is_refused_with_all_its_models_before_one_is_loaded(monkeypatch):
    weights = memory.weight_bytes(BASE, torch.float32)
    trained, read = {"policy": BASE, "value": BASE}, {"reward": BASE, "reference": BASE}
    needed = (2 * 4 + 2) * weights
    monkeypatch.setattr(memory, "free_memory", lambda: needed - 1)
    with pytest.raises(ModelError, match=f"training needs {needed:,} bytes .* {needed - 1:,} free"):
        memory.require_memory_of_training("cpu", trained=trained, read=read)
    monkeypatch.setattr(memory, "free_memory", lambda: needed)
    memory.require_memory_of_training("cpu", trained=trained, read=read)


def test_a_damaged_file_is_left_to_the_loader(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    assert memory.weight_bytes(tmp_path, torch.float32) == 0
