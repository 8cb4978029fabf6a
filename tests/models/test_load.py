"""A model that is not whole, or that packed sequences would change, is refused with the reason."""

import json

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from benchmarks.architectures import REFUSED, random_model
from rlhf_core.errors import ModelError
from rlhf_core.models import load_causal, load_scalar, save_model, scalar_from_causal
from tests.models.conftest import ARCHITECTURES, FakeTokenizer

LAYER = "model.layers.1.mlp.up_proj.weight"


def drop(directory, name):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})


def configure(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("load", [load_causal, lambda path: scalar_from_causal(path, seed=0)])
def test_a_model_that_lacks_weights_is_not_filled_with_random_numbers(llama_directory, load):
    drop(llama_directory, LAYER)
    with pytest.raises(ModelError, match=f"hold no weights for {LAYER}; it is not whole"):
        load(llama_directory)


def test_a_reward_model_without_its_head_is_refused(llama_directory, tmp_path):
    save_model(scalar_from_causal(llama_directory, seed=0), FakeTokenizer(), tmp_path / "reward")
    load_scalar(tmp_path / "reward")
    drop(tmp_path / "reward", "score.weight")
    with pytest.raises(ModelError, match=r"hold no weights for score\.weight"):
        load_scalar(tmp_path / "reward")


def test_one_layer_more_than_there_are_weights_is_refused(llama_directory):
    configure(llama_directory, num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"no weights for model\.layers\.2\.\S+ and 8 more"):
        load_causal(llama_directory)


def test_weights_of_another_shape_are_named(llama_directory):
    configure(llama_directory, vocab_size=90)
    with pytest.raises(ModelError, match=r"\[97, 32\] in its files, but by config"):
        load_causal(llama_directory)


def test_a_truncated_file_is_one_line(llama_directory):
    path = llama_directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ModelError, match="cannot load a causal language model: Error while"):
        load_causal(llama_directory)


def test_two_matrices_are_not_called_tied_when_they_are_saved(llama_directory, tmp_path):
    configure(llama_directory, tie_word_embeddings=True)  # its files hold two
    model = load_causal(llama_directory)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    save_model(model, FakeTokenizer(), tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["tie_word_embeddings"] is False


REASONS = {
    "bert": "changes with the tokens after it",
    "xlnet": "changes with the tokens after it",
    "t5": "t5 is an encoder-decoder",
    "modernbert-decoder": "its logits are not a linear layer on its last hidden states",
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_an_architecture_that_cannot_be_honoured_is_refused_with_the_reason(tmp_path, name):
    random_model(name).save_pretrained(tmp_path / name)
    with pytest.raises(ModelError, match=REASONS[name]) as caught:
        load_causal(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_an_architecture_without_a_classifier_of_its_own_gets_the_generic_one(tmp_path):
    kind = ARCHITECTURES["cohere-logit-scale"]()
    assert type(kind) not in hf.models.auto.modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    causal = hf.AutoModelForCausalLM.from_config(kind)
    causal.save_pretrained(tmp_path / "base")
    made = scalar_from_causal(tmp_path / "base", seed=0)
    trunk = dict(made.base_model.named_parameters())
    for name, weight in causal.base_model.named_parameters():
        assert torch.equal(trunk[name], weight)
    save_model(made, FakeTokenizer(), tmp_path / "reward")
    again = load_scalar(tmp_path / "reward")
    assert torch.equal(again.score.weight, made.score.weight)
