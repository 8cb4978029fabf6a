"""Tokens nobody reads are left out of the last layer, and nothing that is read changes."""

import numpy as np
import pytest
import torch

from rlhf_core.config import ComputeConfig
from rlhf_core.models import (
    finish_training,
    hidden_states,
    last_layer,
    load_causal,
    prepare_training,
)
from rlhf_core.tokenization import pack_grouped_responses


def shared_prompts():
    """Two prompts with three and two responses: the prompts' last tokens are read several times."""
    generator = np.random.default_rng(5)

    def ids(length):
        return generator.integers(3, 97, length).astype(np.int32)

    groups = [[ids(n) for n in (4, 7, 1)], [ids(n) for n in (5, 5)]]
    return pack_grouped_responses([ids(6), ids(9)], groups)


def read_everywhere(model, batch):
    return hidden_states(model, batch).index_select(0, batch.predictor_positions)


def read_where_it_counts(model, batch):
    return hidden_states(model, batch, batch.predictor_positions)


def gradients(model, batch, read):
    model.zero_grad()
    weights = torch.linspace(-1.0, 1.0, batch.num_loss_tokens)[:, None]
    (read(model, batch) * weights).sin().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def count_tokens(model, batch, *names):
    """Tokens that each module of the last layer is given."""
    counts = {}

    def note(name):
        return lambda module, args, _: counts.update({name: args[0].shape[1]})

    handles = [
        module.register_forward_hook(note(name))
        for name, module in final_layer(model).named_modules()
        if name in names
    ]
    read_where_it_counts(model, batch)
    for handle in handles:
        handle.remove()
    return counts


def final_layer(model):
    layers = getattr(model.base_model, "layers", None) or model.base_model.h
    return layers[-1]


def test_every_architecture_gives_the_same_states_and_gradients(model_directory):
    model, batch = load_causal(model_directory), shared_prompts()
    torch.testing.assert_close(
        read_where_it_counts(model, batch), read_everywhere(model, batch), atol=1e-5, rtol=1e-5
    )
    expected = gradients(model, batch, read_everywhere)
    found = gradients(model, batch, read_where_it_counts)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-4)


def test_every_architecture_leaves_the_unread_tokens_out(model_directory):
    model, batch = load_causal(model_directory), shared_prompts()
    read, inner = len(batch.predictor_positions.unique()), ("mlp", *PROJECTIONS)
    counts = count_tokens(model, batch, *inner)
    assert "mlp" in counts
    assert len(counts) == 2
    assert set(counts.values()) == {read}
    assert read < batch.num_tokens


PROJECTIONS = ("self_attn.o_proj", "attn.c_proj", "attention.dense")


def test_a_pass_that_reads_everything_follows_one_that_does_not(llama_directory):
    model, batch = load_causal(llama_directory), shared_prompts()
    before = hidden_states(model, batch)
    read_where_it_counts(model, batch)
    assert torch.equal(hidden_states(model, batch), before)


def require_same_gradients(llama_directory, compute):
    model, batch = load_causal(llama_directory), shared_prompts()
    expected = gradients(model, batch, read_everywhere)
    model = prepare_training(model, compute, seed=0)
    for _ in range(2):
        found = gradients(model, batch, read_where_it_counts)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-4)
    finish_training(model)


def require_compiled(llama_directory):
    require_same_gradients(llama_directory, ComputeConfig(compile_layers=True))
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["calls_captured"]
    assert not counters["graph_break"], "the compiler takes each layer whole"


def test_recomputed_layers_give_the_same_gradients(llama_directory):
    require_same_gradients(llama_directory, ComputeConfig(gradient_checkpointing=True))


COMPILED = """
import sys
from pathlib import Path
import torch._inductor.config
from tests.models.test_last_layer import require_compiled

# Else torch starts as many processes to compile in, each of which imports it first.
torch._inductor.config.compile_threads = 1
require_compiled(Path(sys.argv[1]))
"""


@pytest.mark.nightly
def test_compiled_layers_give_the_same_gradients(llama_directory, forked):
    """In a process of its own: what others compiled, or gave up, would be taken and not counted."""
    assert forked.python(COMPILED, llama_directory).wait() == 0


@pytest.mark.parametrize("operation", [last_layer._take, last_layer._put])
def test_the_compiler_is_told_the_truth(operation):
    states, positions = torch.randn(1, 3, 4, requires_grad=True), torch.tensor([2, 0, 1])
    size = (5,) if operation is last_layer._put else ()
    torch.library.opcheck(operation, (states, positions, *size))


def test_a_feed_forward_block_of_experts_is_given_every_token(tmp_path):
    import transformers as hf

    config = hf.MixtralConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
        router_jitter_noise=0.0,
    )
    torch.manual_seed(0)
    hf.MixtralForCausalLM(config).save_pretrained(tmp_path)
    model, batch = load_causal(tmp_path), shared_prompts()
    counts = count_tokens(model, batch, "mlp")
    assert counts == {"mlp": batch.num_tokens}
    torch.testing.assert_close(
        read_where_it_counts(model, batch), read_everywhere(model, batch), atol=1e-5, rtol=1e-5
    )
