"""What cannot run packed runs each length by itself, and gives the model's own numbers."""

import logging

import numpy as np
import pytest
import torch
import transformers as hf
from transformers.modeling_outputs import BaseModelOutputWithPast

from benchmarks.architectures import ARCHITECTURES, random_model
from rlhf_core.models import (
    hidden_states,
    load_causal,
    load_scalar,
    save_model,
    scalar_from_causal,
    sequence_scores,
    token_logprobs,
)
from rlhf_core.models import layout as layouts
from rlhf_core.models.layout import layout_of
from rlhf_core.rollout.decode import Sampling, decode
from rlhf_core.tokenization import pack_grouped_responses, pack_responses
from tests.models.conftest import FakeTokenizer, assert_scored_as_sampled

# A name that the newest transformers gave up would be a warning at every token.
pytestmark = pytest.mark.filterwarnings("error::FutureWarning")
UNPACKED = (
    "mamba", "mamba2", "qwen3-next", "qwen3.5", "falcon-h1", "lfm2", "granite-hybrid", "jamba",
    "bamba", "nemotron-h", "recurrent-gemma", "zamba2", "rwkv", "minimax",
    "gpt-oss", "bloom", "falcon", "llama4-text", "qwen2-moe-windows",
)  # fmt: skip
BY_NIGHT = (
    "mamba2",
    "granite-hybrid",
    "jamba",
    "bamba",
    "nemotron-h",
    "zamba2",
    "qwen3.5",
    "qwen3-vl",
)
"""Put together as others are: Mamba alone or beside attention (Falcon-H1), Qwen3-Next, Qwen2-VL."""
LOOPED = ("dory", "dory-last-loop")
"""Run packed, and sampled from with their own caches."""
COMPOSITE = ("gemma3", "llava", "mistral3", "qwen2-vl", "qwen3-vl", "qwen3.5")
PROMPT, RESPONSES = (5, 6, 7), ((8, 9, 2), (10, 2), (11, 12, 13))


def ids(*tokens):
    return np.asarray(tokens, dtype=np.int32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    windows = {"use_sliding_window": True, "sliding_window": 10, "max_window_layers": 1}
    monkeypatch.setitem(
        ARCHITECTURES,
        "qwen2-moe-windows",
        lambda: hf.Qwen2MoeConfig(**{**ARCHITECTURES["qwen2-moe"]().to_dict(), **windows,
                                     "layer_types": None}),
    )  # fmt: skip

    def make(name):
        random_model(name).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def published(directory):
    """The model as its publisher's users load it."""
    config = hf.AutoConfig.from_pretrained(directory)
    causal = type(config) in hf.AutoModelForCausalLM._model_mapping
    kind = hf.AutoModelForCausalLM if causal else hf.AutoModelForImageTextToText
    return kind.from_pretrained(directory, dtype=torch.float32).eval()


@torch.no_grad()
def plain_logprobs(model, prompt, response):
    tokens = torch.tensor([[*prompt, *response]])
    every = torch.log_softmax(model(input_ids=tokens, use_cache=False).logits[0].float(), -1)
    return every[range(len(prompt) - 1, tokens.shape[1] - 1), list(response)]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.nightly) if name in BY_NIGHT else name
        for name in sorted({*UNPACKED, *COMPOSITE, *LOOPED})
    ],
)
def test_log_probabilities_and_greedy_answers_are_those_of_plain_transformers(folder, name):
    directory = folder(name)
    model, plain = load_causal(directory), published(directory)
    assert layout_of(model).packed == (name not in UNPACKED)
    assert layout_of(model).once == (name not in LOOPED)
    batch = pack_grouped_responses([ids(*PROMPT), ids(20)], [[ids(*r) for r in RESPONSES]] * 2)
    expected = [plain_logprobs(plain, p, r) for p in (PROMPT, (20,)) for r in RESPONSES]
    got = token_logprobs(model, batch).detach()
    torch.testing.assert_close(got, torch.cat(expected), atol=3e-5, rtol=0)
    prompts = [ids(5, 6, 7), ids(30, 31), ids(9, 8, 7), ids(12, 13, 14), ids(40, 41)]
    decoded = decode(
        model, prompts, uniforms=torch.rand(5, 9), sampling=Sampling(0.0, [2, 11]), budget=40
    )
    for row, prompt in enumerate(prompts):
        answer = plain.generate(
            input_ids=torch.from_numpy(prompt)[None].long(), do_sample=False, max_new_tokens=9,
            eos_token_id=[2, 11], pad_token_id=0,
        )  # fmt: skip
        ours = decoded.tokens[row, : int(decoded.lengths[row])].tolist()
        assert ours == answer[0, len(prompt) :].tolist()


class Older(hf.LlamaModel):
    """Takes its cache by the name that code of a model's own may still have for it."""

    def forward(self, input_ids, past_key_values=None, **_):
        seen = [] if past_key_values is None else past_key_values
        seen = [*seen, *input_ids[0].tolist()]
        states = torch.full((1, input_ids.shape[1], 1), float(sum(seen)))
        return BaseModelOutputWithPast(last_hidden_state=states, past_key_values=seen)


def test_a_cache_is_handed_on_by_the_name_that_the_models_code_has_for_it():
    cache = layouts.OwnCache(Older(ARCHITECTURES["llama"]()))
    cache.read(torch.tensor([[1, 2]]))
    assert cache.read(torch.tensor([[4]])).item() == 7


@pytest.mark.parametrize("name", ["mamba2", "qwen3-next", "gpt-oss", "recurrent-gemma", "dory"])
def test_sampler_and_trainer_agree_where_sequences_run_alone(folder, name):
    model = load_causal(folder(name))
    prompts = [ids(5, 6, 7), ids(30, 31), ids(9, 8, 7)]
    decoded = decode(
        model, prompts, uniforms=torch.rand(3, 8), sampling=Sampling(0.9, [2]), budget=500
    )
    assert_scored_as_sampled(model, prompts, decoded, temperature=0.9, atol=3e-5)


def test_gradients_do_not_depend_on_what_shares_a_batch(folder):
    directory = folder("mamba2")
    gradients = []
    together = [pack_grouped_responses([ids(*PROMPT)], [[ids(*r) for r in RESPONSES]])]
    apart = [pack_responses([ids(*PROMPT)], [ids(*response)]) for response in RESPONSES]
    for batches in (together, apart):
        model = load_causal(directory)
        for batch in batches:
            token_logprobs(model, batch).sum().backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_states_lie_where_the_packed_batch_has_its_tokens(folder):
    model = load_causal(folder("mamba"))
    batch = pack_grouped_responses([ids(*PROMPT)], [[ids(*r) for r in RESPONSES]])
    every = hidden_states(model, batch)
    assert len(every) == batch.num_tokens
    whole = model.base_model(input_ids=torch.tensor([[*PROMPT, *RESPONSES[1]]])).last_hidden_state
    start = len(PROMPT) + len(RESPONSES[0])
    torch.testing.assert_close(every[: len(PROMPT)], whole[0, : len(PROMPT)], atol=1e-5, rtol=0)
    torch.testing.assert_close(every[start : start + 2], whole[0, len(PROMPT) :], atol=1e-5, rtol=0)
    read = torch.tensor([4, 0, 4])
    torch.testing.assert_close(hidden_states(model, batch, read), every[read])


@pytest.mark.parametrize("name", ["gemma3", "qwen2-vl", "qwen3.5", "falcon-h1", "gpt-oss"])
def test_a_reward_model_scores_as_plain_transformers_reads_its_folder(folder, tmp_path, name):
    made = scalar_from_causal(folder(name), seed=0)
    save_model(made, FakeTokenizer(), tmp_path / "reward")
    ours = load_scalar(tmp_path / "reward")
    batch = pack_responses([ids(*PROMPT)] * 2, [ids(8, 9, 2), ids(10, 2)])
    scores = sequence_scores(ours, batch).detach()
    torch.testing.assert_close(scores, sequence_scores(made, batch).detach())
    plain = hf.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "reward", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        for score, response in zip(scores, ((8, 9, 2), (10, 2)), strict=True):
            expected = plain(input_ids=torch.tensor([[*PROMPT, *response]])).logits[0, 0]
            torch.testing.assert_close(score, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", COMPOSITE)
def test_a_composite_model_comes_back_from_its_saved_folder(folder, tmp_path, name):
    directory = folder(name)
    model, tokens = load_causal(directory), torch.tensor([[5, 6, 7, 8]])
    save_model(model, FakeTokenizer(), tmp_path / "saved")
    with torch.no_grad():
        expected = published(directory)(input_ids=tokens).logits
        torch.testing.assert_close(published(tmp_path / "saved")(input_ids=tokens).logits, expected)
    config = hf.AutoConfig.from_pretrained(tmp_path / "saved")
    if name not in ("qwen2-vl", "qwen3-vl"):
        assert type(config) in hf.AutoModelForCausalLM._model_mapping
    load_causal(tmp_path / "saved")


def test_the_towers_of_a_composite_model_are_not_trained(folder):
    model = load_causal(folder("gemma3"))
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen == {
        name for name, _ in model.named_parameters()
        if "vision_tower" in name or "multi_modal_projector" in name
    }  # fmt: skip


def test_a_class_that_runs_unpacked_is_told_of_once(folder, caplog, monkeypatch):
    monkeypatch.setattr(layouts, "_warned", set())
    directory = folder("mamba")
    with caplog.at_level(logging.WARNING):
        load_causal(directory)
        load_causal(directory)
    said = [record.getMessage() for record in caplog.records if "not packed" in record.getMessage()]
    assert len(said) == 1
    assert "exact, but slower" in said[0]
