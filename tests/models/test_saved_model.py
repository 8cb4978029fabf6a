"""What is saved: the precision of the files, adapters beside the weights, known ids alone."""

import copy
import json

import numpy as np
import pytest
import torch
import transformers as hf
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.architectures import VOCAB, random_model
from rlhf_core.config import ComputeConfig, LoraConfig
from rlhf_core.errors import ConfigError, ModelError
from rlhf_core.models import (
    finish_training,
    hidden_states,
    load_causal,
    load_scalar,
    losses_from_hidden,
    output_head,
    prepare_training,
    save_model,
    scalar_from_causal,
    token_logprobs,
    weights_sha256,
)
from rlhf_core.models.compute import save_in_float32
from rlhf_core.models.known_ids import require_same_ids
from rlhf_core.rollout.decode import Sampling, decode
from rlhf_core.tokenization import pack_responses
from tests.models.conftest import assert_scored_as_sampled

KNOWN = 80


def tokenizer(num_ids=KNOWN):
    words = {f"w{index}": index for index in range(num_ids)}
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="w0", eos_token="w2")


def ids(*tokens):
    return np.asarray(tokens, dtype=np.int32)


def base(folder, name="llama-tied", dtype=torch.float32, num_ids=KNOWN):
    random_model(name).to(dtype).save_pretrained(folder)
    tokenizer(num_ids).save_pretrained(folder)
    return folder


def nudge(model, size=1e-2):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += size * torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize(("size", "kept"), [(1e-6, 0.0), (1e-4, None), (1e-1, 1.0)])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_training_that_rounding_undoes_is_told(tmp_path, caplog, size, kept, lora):
    folder = base(tmp_path / "base", dtype=torch.bfloat16)
    start = {name: weight.clone() for name, weight in load_causal(folder).named_parameters()}
    model = prepare_training(load_causal(folder), ComputeConfig(lora=lora), seed=0)
    nudge(model, size)
    if lora is not None:  # merged into a copy, they tell what was learned
        trained = dict(copy.deepcopy(model).merge_and_unload().named_parameters())
    else:
        trained = {name: weight.clone() for name, weight in model.named_parameters()}
    saved = dict(finish_training(model).named_parameters())
    change, left = (
        torch.cat([(end[name] - start[name]).detach().flatten() for name in start]).double()
        for end in (trained, saved)
    )
    share = float(left @ change / (change @ change))
    assert kept is None or share == pytest.approx(kept, abs=0.05)
    said = [line for line in caplog.messages if line.startswith("training_rounded_away")]
    assert len(said) == (share < 0.95)
    assert all(f"keeps {100 * share:.0f}%" in line for line in said)


def test_a_model_of_half_precision_is_saved_whole_where_that_is_asked_for(tmp_path, caplog):
    folder = base(tmp_path / "base", dtype=torch.bfloat16)
    model = load_causal(folder)
    save_in_float32(model)
    prepare_training(model, ComputeConfig(), seed=0)
    nudge(model, 1e-6)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    save_model(finish_training(model), tokenizer(), tmp_path / "saved")
    again = dict(load_causal(tmp_path / "saved").named_parameters())
    assert all(torch.equal(again[name], weight) for name, weight in before.items())
    assert not caplog.messages


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["llama-tied", "qwen3-next", "gpt-neox"])
def test_a_model_is_saved_in_the_precision_of_its_base(tmp_path, name, dtype):
    model = load_causal(base(tmp_path / "base", name, dtype))
    assert model.dtype == torch.float32
    prepare_training(model, ComputeConfig(), seed=0)
    nudge(model)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    finish_training(model)
    save_model(model, tokenizer(), tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] in str(dtype)
    again = load_causal(tmp_path / "saved")
    for key, weight in again.named_parameters():
        # In memory, in the files and read again: one and the same number.
        assert torch.equal(weight, dict(model.named_parameters())[key])
        assert torch.equal(weight, before[key].to(dtype).float())
    assert hf.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").dtype == dtype


def test_a_reward_model_of_a_half_precision_base_is_half_precision_too(tmp_path):
    made = scalar_from_causal(base(tmp_path / "base", dtype=torch.bfloat16), seed=0)
    save_model(finish_training(made), tokenizer(), tmp_path / "reward")
    stored = load_file(tmp_path / "reward" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert torch.equal(load_scalar(tmp_path / "reward").score.weight, made.score.weight)


@pytest.mark.parametrize("name", ["llama-tied", "gemma3", "lfm2"])
def test_the_adapter_beside_a_model_gives_what_was_merged(tmp_path, name):
    start = base(tmp_path / "base", name)
    model = prepare_training(
        load_causal(start), ComputeConfig(lora=LoraConfig(rank=4, alpha=8.0)), seed=0
    )
    nudge(model, 0.1)
    batch = pack_responses([ids(5, 6, 7)], [ids(8, 9, 10)])
    trained = token_logprobs(model, batch).detach()
    save_model(finish_training(model), tokenizer(), tmp_path / "saved")
    plain = load_causal(start)
    with torch.no_grad():
        merged = token_logprobs(load_causal(tmp_path / "saved"), batch)
        alone = token_logprobs(
            PeftModel.from_pretrained(plain, tmp_path / "saved" / "adapter"), batch
        )
        untouched = token_logprobs(load_causal(start), batch)
    torch.testing.assert_close(merged, trained, atol=1e-4, rtol=0)
    torch.testing.assert_close(alone, merged, atol=1e-4, rtol=0)
    assert float((untouched - merged).abs().max()) > 1e-2
    assert not (tmp_path / "saved" / "adapter_config.json").exists()
    digest = weights_sha256(tmp_path / "saved")
    (tmp_path / "saved" / "adapter" / "adapter_model.safetensors").unlink()
    assert weights_sha256(tmp_path / "saved") == digest


def test_the_adapter_of_a_reward_model_has_its_head(tmp_path):
    start = base(tmp_path / "base")
    model = scalar_from_causal(start, seed=0)
    adapted = prepare_training(model, ComputeConfig(lora=LoraConfig(rank=4)), seed=0)
    nudge(adapted, 0.1)
    save_model(finish_training(adapted), tokenizer(), tmp_path / "saved")
    fresh = hf.AutoModelForSequenceClassification.from_pretrained(start, num_labels=1)
    alone = PeftModel.from_pretrained(fresh, tmp_path / "saved" / "adapter").eval()
    merged = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        scores = alone(input_ids=tokens).logits, merged(input_ids=tokens).logits
    torch.testing.assert_close(*scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "model.embed_tokens"])
def test_settings_refuse_adapters_on_embeddings(target):
    with pytest.raises(ValueError, match="is an embedding or an output head"):
        LoraConfig(targets=("q_proj", target))


def test_an_embedding_of_another_name_is_refused_at_the_model(tmp_path):
    model = load_causal(base(tmp_path / "base", "mamba"))
    lora = LoraConfig(targets=("embeddings",))
    with pytest.raises(ConfigError, match="embeddings is an embedding or the output head of Mamba"):
        prepare_training(model, ComputeConfig(lora=lora), seed=0)


def test_ids_the_tokenizer_has_not_are_never_written(tmp_path):
    model = load_causal(base(tmp_path / "base"))
    assert len(output_head(model)[0]) == KNOWN
    prompts = [ids(5, 6, index) for index in range(3, 67)]
    sampling = Sampling(5.0, [2])
    decoded = decode(model, prompts, uniforms=torch.rand(64, 12), sampling=sampling, budget=10_000)
    assert int(decoded.tokens.max()) < KNOWN
    assert_scored_as_sampled(model, prompts, decoded, temperature=5.0, atol=2e-5)
    save_model(model, tokenizer(), tmp_path / "saved")
    plain = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.manual_seed(0)
    tokens = torch.tensor([prompt.tolist() for prompt in prompts])
    written = plain.generate(
        input_ids=tokens, do_sample=True, temperature=5.0, top_k=0, max_new_tokens=12
    )
    assert int(written.max()) < KNOWN


@pytest.mark.parametrize("name", ["llama-tied", "gemma2"])
def test_ids_below_the_last_that_no_token_has_are_never_written(tmp_path, name):
    with_gap = tokenizer(60)
    with_gap.backend_tokenizer.model = models.WordLevel(
        {**{f"w{index}": index for index in range(60)}, "late": 80}, unk_token="w0"
    )
    random_model(name).save_pretrained(tmp_path)
    with_gap.save_pretrained(tmp_path)
    model = load_causal(tmp_path)
    prompts = [ids(5, 6, index) for index in range(3, 51)]
    decoded = decode(
        model, prompts, uniforms=torch.rand(48, 12), sampling=Sampling(5.0, [2]), budget=10_000
    )
    rows = zip(decoded.tokens.tolist(), decoded.lengths.tolist(), strict=True)
    written = {token for row, length in rows for token in row[:length]}
    assert 80 in written
    assert not written & set(range(60, 80))
    every = [*range(60), 80]
    batch = pack_responses([ids(5, 6)] * len(every), [ids(token) for token in every])
    logprobs = token_logprobs(model, batch)
    assert float(logprobs.detach().exp().sum()) == pytest.approx(1.0, abs=1e-5)
    losses = losses_from_hidden(
        model, hidden_states(model, batch, batch.predictor_positions), batch, lambda x, _: -x
    )
    torch.testing.assert_close(losses.logprobs, logprobs.detach())
    assert torch.isfinite(losses.entropy).all()
    (losses.total - logprobs.sum()).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())
    save_model(model, with_gap, tmp_path / "saved")
    plain = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert plain.generation_config.suppress_tokens == [*range(60, 80), *range(81, VOCAB)]


def test_log_probabilities_sum_to_one_over_the_known_ids(tmp_path):
    model = load_causal(base(tmp_path / "base"))
    batch = pack_responses([ids(5, 6)] * KNOWN, [ids(token) for token in range(KNOWN)])
    logprobs = token_logprobs(model, batch)
    assert float(logprobs.detach().exp().sum()) == pytest.approx(1.0, abs=1e-5)
    logprobs[0].backward()
    assert torch.isfinite(model.lm_head.weight.grad).all()


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(tmp_path):
    with pytest.raises(ModelError, match="highest token is 119, but the model embeds 97"):
        load_causal(base(tmp_path / "base", num_ids=120))


def test_a_reward_model_that_cannot_read_what_the_policy_writes_is_refused(tmp_path):
    policy = load_causal(base(tmp_path / "policy"))
    small = hf.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    hf.LlamaForCausalLM(small).save_pretrained(tmp_path / "small")
    reward = scalar_from_causal(tmp_path / "small", seed=0)
    with pytest.raises(ModelError, match="reward model embeds 40 token ids, but the policy writes"):
        require_same_ids(len(output_head(policy)[0]), {"reward model": reward, "value model": None})


def test_a_special_token_past_the_embeddings_is_never_written(tmp_path):
    start = base(tmp_path / "base", num_ids=97)
    with_image = tokenizer(97)
    with_image.add_special_tokens({"additional_special_tokens": ["<image>"]})
    with_image.save_pretrained(start)
    assert with_image.convert_tokens_to_ids("<image>") == 97
    assert len(output_head(load_causal(start))[0]) == 97


def test_a_tokenizer_that_cannot_be_loaded_is_said(tmp_path, caplog):
    start = base(tmp_path / "base")
    (start / "tokenizer.json").write_text("{")
    assert len(output_head(load_causal(start))[0]) == 97
    assert "cannot load a tokenizer" in caplog.text
    assert "ids past its vocabulary are not kept from being sampled" in caplog.text
