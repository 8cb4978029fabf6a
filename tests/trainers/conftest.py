"""A tiny model and tiny data with something to learn, for every trainer."""

import pytest
import torch
import transformers as hf

from tests.trainers.toys import toy_config


def save_causal(folder):
    """Save the tiny model below ``folder``; return where it lies."""
    torch.manual_seed(0)
    hf.LlamaForCausalLM(toy_config()).save_pretrained(folder / "causal")
    return folder / "causal"


@pytest.fixture(scope="session")
def saved_once(tmp_path_factory):
    return save_causal(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def causal_directory(saved_once):
    """Where the tiny model lies; nobody writes there."""
    torch.manual_seed(0)
    return saved_once
