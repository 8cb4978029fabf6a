"""Tiny models of several architectures and prompts for them."""

import numpy as np
import pytest
import torch
import transformers as hf

from rlhf_core.models import load_causal

VOCAB = 61
SMALL = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA = {
    **SMALL,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GEMMA = {**LLAMA, "head_dim": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**LLAMA),
    "qwen2-tied": lambda: hf.Qwen2Config(**LLAMA, tie_word_embeddings=True),
    "gpt2": lambda: hf.GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gemma2-window-softcap": lambda: hf.Gemma2Config(**GEMMA, sliding_window=6),
    "mistral-window": lambda: hf.MistralConfig(**LLAMA, sliding_window=6),
    "deepseek-value-size": lambda: hf.DeepseekV3Config(
        **{**LLAMA, "num_key_value_heads": 4},
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=4,
        first_k_dense_replace=2,
    ),
}


def save_random_model(name, directory):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(CONFIGS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(params=sorted(CONFIGS))
def any_directory(request, tmp_path):
    return save_random_model(request.param, tmp_path / request.param)


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return load_causal(save_random_model("llama", tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture
def prompts():
    generator = np.random.default_rng(3)
    return [generator.integers(3, VOCAB, n).astype(np.int32) for n in (4, 11, 1, 7, 7, 2, 9, 5)]
