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


@pytest.mark.parametrize(("limit", "free"), [("1000000", 400_000), ("max", None), ("500000", 0)])
def test_the_limit_of_a_control_group_counts(tmp_path, monkeypatch, limit, free):
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    group = (tmp_path, "memory.max", "memory.current", "inactive_file")
    monkeypatch.setattr(memory, "_CGROUPS", (group,))
    found = memory.free_memory()
    assert found == free if free is not None else found > 1_000_000


def test_a_damaged_file_is_left_to_the_loader(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    assert memory.weight_bytes(tmp_path, torch.float32) == 0
