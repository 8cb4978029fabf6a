"""Which models' layers can be divided; that they train as one does: ``trainers/test_processes``."""

import pytest
import torch

from rlhf_core.errors import ModelError
from rlhf_core.models import (
    hidden_states,
    load_causal,
    nll_sum,
    scalar_from_causal,
    sequence_scores,
)
from rlhf_core.models import sharding as module
from rlhf_core.models.layout import Layout, set_layout
from rlhf_core.tokenization import pack_examples, pack_pairs


def tie_two_layers(model):
    first, second = model.model.layers[:2]
    second.mlp.up_proj.weight = first.mlp.up_proj.weight


def run_apart(model):
    set_layout(model, Layout(packed=False))


def loop(model):
    set_layout(model, Layout(once=False))


def forget_layers(model):
    model.model.layers = torch.nn.ModuleList()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (tie_two_layers, "some of its weights belong to several layers"),
        (loop, "a pass runs some of its layers more than once"),
        (run_apart, "it runs sequences of equal length together"),
        (forget_layers, "its decoder layers are not known here"),
    ],
)
def test_what_cannot_be_divided_is_refused_in_one_line(
    change, reason, llama_directory, monkeypatch
):
    monkeypatch.setattr(module.processes, "size", lambda: 2)
    model = load_causal(llama_directory)
    change(model)
    with pytest.raises(ModelError, match=f"distributed.shard: layers, for {reason}.*shard: none$"):
        module.shard_layers(model, "layers")


def test_what_is_kept_of_a_trunk_shares_what_stays_whole(llama_directory):
    """Else a change of the attention, or a step of the embeddings, would miss it in the end."""
    model = load_causal(llama_directory)
    trunk = model.model
    kept = module._without_weights(trunk, list(trunk.layers))
    assert kept.config is kept.layers[0].self_attn.config is model.config
    assert kept.embed_tokens.weight is trunk.embed_tokens.weight
    assert kept.norm.weight is trunk.norm.weight
    assert all(weight.is_meta for weight in kept.layers.parameters())
    assert not any(weight.is_meta for weight in model.parameters())


def test_one_process_divides_nothing(llama_directory):
    model = load_causal(llama_directory)
    module.shard_layers(model, "layers")
    assert not module.is_sharded(model)
    assert module.in_step(model, [[1], [2, 3]]) == [[1], [2, 3]]


def test_nothing_is_a_token_that_counts_for_nothing(llama_directory):
    """What a process without rows passes while the others have some: zeros in every gradient."""
    model, reward = load_causal(llama_directory), scalar_from_causal(llama_directory, seed=0)
    nll_sum(model, pack_examples([])).backward()
    pairs = pack_pairs([])
    scores = sequence_scores(reward, pairs.tokens)
    (scores[pairs.chosen] - scores[pairs.rejected]).sum().backward()
    for trained in (model, reward):
        layers = trained.model.layers.parameters()
        assert all(weight.grad is not None and not weight.grad.any() for weight in layers)
    assert len(hidden_states(model, pairs.tokens)) == 1
