"""A tiny model and tiny data with something to learn, for every trainer."""

import pytest
import torch
import transformers as hf

from tests.trainers.toys import toy_config


@pytest.fixture
def causal_directory(tmp_path):
    torch.manual_seed(0)
    hf.LlamaForCausalLM(toy_config()).save_pretrained(tmp_path / "causal")
    return tmp_path / "causal"
