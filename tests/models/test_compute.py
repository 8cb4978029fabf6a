"""Precision, recomputation, compilation and adapters: same model before and after, same numbers."""

import numpy as np
import pytest
import torch
from transformers import (
    PhimoeConfig,
    PhimoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from rlhf_core.config import ComputeConfig, LoraConfig
from rlhf_core.errors import ConfigError, ModelError
from rlhf_core.models import (
    adapters_off,
    finish_training,
    load_causal,
    nll_sum,
    prepare_training,
    scalar_from_causal,
    sequence_scores,
    token_logprobs,
)
from rlhf_core.models import compute as module
from rlhf_core.tokenization import pack_grouped_responses


def batch():
    generator = np.random.default_rng(0)

    def ids(length):
        return generator.integers(3, 97, length).astype(np.int32)

    return pack_grouped_responses([ids(5), ids(2)], [[ids(3), ids(6)], [ids(4)]])


def gradients(model):
    nll_sum(model, batch()).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


LORA = ComputeConfig(lora=LoraConfig(rank=4, alpha=8.0))


@pytest.mark.parametrize(
    "compute",
    [
        ComputeConfig(gradient_checkpointing=True),
        # At every change ``test_unread.py`` compiles layers, of a model with more to them.
        pytest.param(ComputeConfig(compile_layers=True), marks=pytest.mark.nightly),
    ],
)
def test_saving_memory_or_time_changes_no_gradient(compute, llama_directory):
    expected = gradients(load_causal(llama_directory))
    model = prepare_training(load_causal(llama_directory), compute, seed=0)
    got = gradients(model)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-3, rtol=1e-4)
    finish_training(model)
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, expected[name])


def test_bfloat16_rounds_while_training_and_not_after(llama_directory):
    model = load_causal(llama_directory)
    with torch.no_grad():
        exact = token_logprobs(model, batch())
        trained = prepare_training(model, ComputeConfig(precision="bfloat16"), seed=0)
        rounded = token_logprobs(trained, batch())
        assert not torch.equal(rounded, exact)
        assert (rounded - exact).abs().median() < 0.2 * exact.abs().median()
        assert rounded.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in gradients(trained).values())
    finish_training(trained)
    assert torch.equal(token_logprobs(model, batch()), exact)


def test_bfloat16_without_instructions_for_it_is_slow_and_says_so(
    llama_directory, monkeypatch, caplog
):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    model = prepare_training(
        load_causal(llama_directory), ComputeConfig(precision="bfloat16"), seed=0
    )
    assert "no instructions for bfloat16" in caplog.text
    assert token_logprobs(model, batch()).isfinite().all()


def test_compiled_layers_without_a_compiler_are_refused(llama_directory, monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("a-compiler-nobody-has",))
    with pytest.raises(ConfigError, match="compile_layers: no C\\+\\+ compiler"):
        prepare_training(load_causal(llama_directory), ComputeConfig(compile_layers=True), seed=0)


def test_adapters_start_at_the_reference_and_switch_off(model_directory):
    model = load_causal(model_directory)
    with torch.no_grad():
        before = token_logprobs(model, batch())
    adapted = prepare_training(model, LORA, seed=0)
    assert torch.equal(token_logprobs(adapted, batch()), before)
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
        moved = token_logprobs(adapted, batch())
        assert not torch.allclose(moved, before)
        with adapters_off(adapted):
            assert torch.equal(token_logprobs(adapted, batch()), before)
        merged = finish_training(adapted)
        assert merged is model
        torch.testing.assert_close(token_logprobs(model, batch()), moved, atol=2e-3, rtol=1e-3)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_adapters_are_seeded_and_leave_the_global_generator_alone(llama_directory):
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        adapted = prepare_training(load_causal(llama_directory), LORA, seed=seed)
        draws.append(next(p.clone() for n, p in adapted.named_parameters() if "lora_A" in n))
        assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_reward_head_is_trained_whole_beside_adapters(llama_directory):
    model = prepare_training(scalar_from_causal(llama_directory, seed=0), LORA, seed=0)
    sequence_scores(model, batch()).sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert any(name.endswith("score.weight") for name in with_gradient)
    assert all("lora" in name or name.endswith("score.weight") for name in with_gradient)


def test_adapters_for_unknown_layers_are_refused(llama_directory):
    compute = ComputeConfig(lora=LoraConfig(targets=("nowhere",)))
    with pytest.raises(ModelError, match="nowhere"):
        prepare_training(load_causal(llama_directory), compute, seed=0)


def test_no_adapters_cannot_be_switched_off(llama_directory):
    with pytest.raises(ModelError, match="no adapters"):
        adapters_off(load_causal(llama_directory))


def test_the_model_that_adapters_were_put_into_is_still_itself(llama_directory):
    model = load_causal(llama_directory)
    assert module.unwrapped(prepare_training(model, LORA, seed=0)) is model
    assert module.unwrapped(model) is model


def test_unwrapping_something_else_is_refused():
    with pytest.raises(ModelError, match="Linear"):
        module.unwrapped(torch.nn.Linear(2, 2))


MIXTURE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "mlp_only_layers": [],
}


def trained_experts(model):
    adapted = prepare_training(model, LORA, seed=0)
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert any("self_attn.q_proj" in name for name in trained)
    return [name for name in trained if ".experts." in name]


def test_experts_that_got_no_adapter_are_named(caplog):
    model = Qwen2MoeForCausalLM(Qwen2MoeConfig(**MIXTURE, shared_expert_intermediate_size=16))
    weights = model.num_parameters()
    assert not trained_experts(model)
    experts = 2 * 4 * 3 * 32 * 16  # layers, experts, gate, up and down projections, sizes
    [record] = caplog.records
    assert "model.layers.0.mlp.experts.gate_up_proj and 3 more" in record.message
    assert f"{100 * experts / weights:.0f}% of the weights" in record.message


def test_experts_that_got_adapters_are_not_named(caplog):
    assert trained_experts(Qwen3MoeForCausalLM(Qwen3MoeConfig(**MIXTURE, head_dim=8)))
    assert not caplog.records


def test_a_router_that_is_a_linear_layer_gets_no_adapter():
    sizes = {name: MIXTURE[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    model = PhimoeForCausalLM(
        PhimoeConfig(
            **sizes,
            intermediate_size=16,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
        )
    )
    adapted = prepare_training(model, LORA, seed=0)
    assert not any("router" in name for name, w in adapted.named_parameters() if w.requires_grad)
    assert adapted(input_ids=torch.arange(8)[None]).logits.isfinite().all()
