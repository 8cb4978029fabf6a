"""What a model and a training need of memory is said; what does not fit is not loaded."""

from pathlib import Path

import pytest
import torch

from rlhf_core.config import ComputeConfig
from rlhf_core.config.training import LoraConfig
from rlhf_core.errors import ModelError
from rlhf_core.models import load_causal, memory
from rlhf_core.models.layout import hidden_states
from rlhf_core.models.step_memory import step_memory
from rlhf_core.tokenization import pack_prompts

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


def needed_by_ppo(**options):
    trained, read = {"policy": BASE, "value": BASE}, {"reward": BASE, "reference": BASE}
    options = {"step_tokens": 1_000, "sampled_tokens": 2_000, **options}
    return memory.memory_of_training(
        trained, read, options.pop("compute", ComputeConfig()), **options
    )


def test_a_training_is_refused_with_all_its_models_before_one_is_loaded(monkeypatch):
    weights = memory.weight_bytes(BASE, torch.float32)
    needed = needed_by_ppo()
    assert needed.certain == (2 * 4 + 2) * weights  # two trained with gradients and two moments
    monkeypatch.setattr(memory, "free_memory", lambda: needed.certain - 1)
    pattern = f"training policy needs {needed.certain:,} bytes .* {needed.certain - 1:,} free"
    with pytest.raises(ModelError, match=pattern):
        memory.require_memory_of_training(needed, "cpu", what="policy")
    with pytest.raises(ModelError, match=f"in 2 processes needs {2 * needed.certain:,} bytes"):
        memory.require_memory_of_training(needed, "cpu", what="policy", processes=2)


def test_what_a_training_needs_is_said_in_parts_with_what_is_free(monkeypatch):
    needed = needed_by_ppo()
    monkeypatch.setattr(memory, "free_memory", lambda: needed.total)
    line = memory.require_memory_of_training(needed, "cpu", what="policy")
    assert line.startswith("policy needs about ")
    assert line.endswith(" are free")
    for part in ("policy", "value", "reward", "reference", "gradients", "optimiser", "activations"):
        assert f"{part} " in line, line
    monkeypatch.setattr(memory, "free_memory", lambda: needed.total - 1)
    line = memory.require_memory_of_training(needed, "cpu", what="policy")
    assert "lower micro_batch_tokens" in line


def test_activations_are_what_autograd_keeps_of_a_real_forward_pass():
    model = load_causal(BASE).train()
    config, num_tokens = model.config, 128
    batch = pack_prompts([torch.arange(32).numpy()] * (num_tokens // 32))
    kept, weights = {}, {weight.data_ptr() for weight in model.parameters()}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = hidden_states(model, batch)
    seen = sum(kept.values()) / num_tokens
    assert states.requires_grad
    whole = step_memory(BASE, ComputeConfig())
    # One layer's gradients are there as well while the pass goes backwards.
    of_gradients = 1 + 1 / config.num_hidden_layers
    assert whole.per_token == pytest.approx(seen * of_gradients, rel=0.02)
    # By hand, for a Llama layer in float32: both norms' inputs and outputs, query, key, value and
    # what attention gives, the residual's two sums and the gated layer's four products.
    by_hand = (
        4 * config.num_hidden_layers * (10 * config.hidden_size + 4 * config.intermediate_size)
    )
    assert whole.per_token == pytest.approx(by_hand * of_gradients, rel=0.04)


def test_recomputed_activations_halves_and_adapters_take_less():
    whole = step_memory(BASE, ComputeConfig())
    recomputed = step_memory(BASE, ComputeConfig(gradient_checkpointing=True))
    assert recomputed.per_token < whole.per_token / 1.9  # few layers: one of them is whole
    adapted = needed_by_ppo(compute=ComputeConfig(lora=LoraConfig(rank=2)))
    weights = memory.weight_bytes(BASE, torch.float32)
    rank_2 = sum(
        4 * 2 * (layer.in_features + layer.out_features)
        for name, layer in load_causal(BASE).named_modules()
        if isinstance(layer, torch.nn.Linear) and name != "lm_head"
    )
    assert adapted.gradients == 2 * rank_2
    assert adapted.certain == 4 * weights + 2 * rank_2 * (1 + 1 + 2)


def test_keys_and_values_count_while_sampling_and_not_beside_a_step():
    config = load_causal(BASE).config
    a_token = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    few, many = needed_by_ppo(sampled_tokens=10), needed_by_ppo(sampled_tokens=10_000_000)
    assert few.cache == 10 * a_token
    assert few.total == few.certain + few.step
    assert many.total == many.certain + 10_000_000 * a_token


def test_what_is_not_known_is_said_so(tmp_path):
    assert step_memory("someone/on-the-hub", ComputeConfig()) is None
    (tmp_path / "config.json").write_text('{"model_type": "of-tomorrow"}')
    needed = memory.memory_of_training({"sft": tmp_path}, {}, ComputeConfig(), step_tokens=10)
    assert needed.step is None
    assert "activations not known" in str(needed)


def test_divided_layers_are_counted_by_the_part_that_a_process_keeps():
    whole = memory.weight_bytes(BASE, torch.float32)
    layers = memory.weight_bytes(BASE, torch.float32, layers_only=True)
    assert 0.3 * whole < layers < whole
    kept = whole - layers + -(-layers // 2)
    assert needed_by_ppo(parts=2).certain == (2 * 4 + 2) * kept
    adapted = needed_by_ppo(parts=64, compute=ComputeConfig(lora=LoraConfig(rank=2)))
    assert adapted.certain == 4 * whole, "models are whole while they are loaded"


def test_a_damaged_file_is_left_to_the_loader(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    assert memory.weight_bytes(tmp_path, torch.float32) == 0
