"""Tiny models of several architectures, random weights, made on the spot."""

from collections.abc import Callable

import pytest
import torch
import transformers as hf

from rlhf_core.models import token_logprobs
from rlhf_core.tokenization import pack_responses

VOCAB = 97
_SMALL = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA = {
    **_SMALL,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_GEMMA = {**_LLAMA, "head_dim": 8}

ARCHITECTURES: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "llama": lambda: hf.LlamaConfig(**_LLAMA),
    "llama-tied-bias": lambda: hf.LlamaConfig(
        **_LLAMA, tie_word_embeddings=True, attention_bias=True
    ),
    "qwen2": lambda: hf.Qwen2Config(**_LLAMA),
    "qwen3": lambda: hf.Qwen3Config(**_LLAMA, head_dim=16),
    "mistral-window": lambda: hf.MistralConfig(**_LLAMA, sliding_window=4),
    "gpt2": lambda: hf.GPT2Config(**_SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "gemma": lambda: hf.GemmaConfig(**_GEMMA),
    "gemma2-softcap-window": lambda: hf.Gemma2Config(
        **_GEMMA, sliding_window=4, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
    ),
    "cohere-logit-scale": lambda: hf.CohereConfig(**_LLAMA, logit_scale=0.25),
    "granite-logits-scaling": lambda: hf.GraniteConfig(**_LLAMA, logits_scaling=3.0),
    "gpt-neox": lambda: hf.GPTNeoXConfig(
        **_SMALL,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
    ),
}


def sharpen(model: torch.nn.Module) -> None:
    """Scale random weights up, so that attention is not uniform and logits are not near zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)


class FakeTokenizer:
    """Only what ``save_model`` calls."""

    def save_pretrained(self, directory):
        (directory / "tokenizer.json").write_text("{}")


@pytest.fixture(params=sorted(ARCHITECTURES))
def model_directory(request, tmp_path):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(ARCHITECTURES[request.param]())
    sharpen(model)
    model.save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


@pytest.fixture
def llama_directory(tmp_path):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(ARCHITECTURES["llama"]())
    sharpen(model)
    model.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def assert_scored_as_sampled(model, prompts, decoded, *, temperature, atol):
    """The trainer's pass gives each sampled token the log-probability that the sampler gave it."""
    responses = [
        decoded.tokens[row, :n].int().numpy() for row, n in enumerate(decoded.lengths.tolist())
    ]
    batch = pack_responses(prompts, responses)
    again = token_logprobs(model, batch, temperature=temperature).detach()
    mask = torch.arange(decoded.logprobs.shape[1]) < decoded.lengths[:, None]
    torch.testing.assert_close(again, decoded.logprobs[mask], atol=atol, rtol=0)
