"""Packed sequences give every architecture's own logits, and know nothing of their neighbours."""

import numpy as np
import pytest
import torch
import transformers as hf

from rlhf_core.errors import ModelError
from rlhf_core.models import hidden_states, load_causal, logit_transform, output_head
from rlhf_core.tokenization import pack_grouped_responses, pack_responses

LENGTHS = ((3, 5), (1, 9), (7, 1), (4, 4))


def ids(generator, length):
    return generator.integers(3, 97, length).astype(np.int32)


def logits(model, batch):
    weight, bias = output_head(model)
    raw = torch.nn.functional.linear(hidden_states(model, batch), weight, bias)
    return logit_transform(model).forward(raw)


@torch.no_grad()
def test_packed_logits_equal_the_models_own_one_by_one(model_directory):
    generator = np.random.default_rng(1)
    prompts, responses = zip(
        *((ids(generator, p), ids(generator, r)) for p, r in LENGTHS), strict=True
    )
    model = load_causal(model_directory)
    packed = logits(model, pack_responses(prompts, responses)).split([p + r for p, r in LENGTHS])
    eager = hf.AutoModelForCausalLM.from_pretrained(
        model_directory, attn_implementation="eager", dtype=torch.float32
    ).eval()
    for prompt, response, got in zip(prompts, responses, packed, strict=True):
        tokens = torch.from_numpy(np.concatenate([prompt, response])).long()
        expected = eager(input_ids=tokens[None]).logits[0]
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_shared_prompt_changes_no_logit(model_directory):
    generator = np.random.default_rng(2)
    prompts = [ids(generator, 6), ids(generator, 2)]
    groups = [[ids(generator, n) for n in (4, 7, 1)], [ids(generator, n) for n in (5, 5)]]
    model = load_causal(model_directory)
    shared = pack_grouped_responses(prompts, groups)
    apart = pack_responses(
        [p for p, group in zip(prompts, groups, strict=True) for _ in group],
        [r for group in groups for r in group],
    )
    got = logits(model, shared)[shared.predictor_positions]
    expected = logits(model, apart)[apart.predictor_positions]
    assert shared.num_tokens < apart.num_tokens
    torch.testing.assert_close(shared.targets, apart.targets)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_gradients_of_shared_and_separate_prompts_agree(llama_directory):
    generator = np.random.default_rng(3)
    prompt, group = ids(generator, 6), [ids(generator, n) for n in (4, 7, 2)]
    gradients = []
    for batch in (pack_grouped_responses([prompt], [group]), pack_responses([prompt] * 3, group)):
        model = load_causal(llama_directory)
        torch.nn.functional.cross_entropy(
            logits(model, batch)[batch.predictor_positions], batch.targets, reduction="sum"
        ).backward()
        gradients.append([p.grad for p in model.parameters()])
    for shared, apart in zip(*gradients, strict=True):
        torch.testing.assert_close(shared, apart, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_neighbour_cannot_change_a_sequence(llama_directory):
    generator = np.random.default_rng(4)
    model = load_causal(llama_directory)
    prompt, response = ids(generator, 4), ids(generator, 5)
    results = []
    for neighbour in (ids(generator, 6), ids(generator, 6)):
        batch = pack_responses([neighbour, prompt, neighbour], [neighbour, response, neighbour])
        results.append(hidden_states(model, batch)[12:21])
    assert torch.equal(*results)


@torch.no_grad()
def test_a_plain_call_with_padding_still_works(llama_directory):
    model = load_causal(llama_directory)
    tokens = torch.tensor([[5, 6, 7, 8]])
    padded, mask = torch.tensor([[0, 0, 5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1, 1, 1]])
    positions = torch.tensor([[0, 0, 0, 1, 2, 3]])
    expected = model(input_ids=tokens).logits[0]
    got = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[0, 2:]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_a_directory_without_a_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(ModelError, match="cannot load a causal language model") as caught:
        load_causal(tmp_path)
    assert "\n" not in str(caught.value)
