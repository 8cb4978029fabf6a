"""A model folder is data: its code does not run unasked, and its names do not lead out of it."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import dynamic_module_utils

from rlhf_core.errors import ConfigError, ModelError
from rlhf_core.models import load_causal, load_scalar, save_model, scalar_from_causal
from rlhf_core.tokenization import load_tokenizer, published_ends
from rlhf_core.tokenization.model_folder import code_sha256
from tests.models.conftest import FakeTokenizer
from tests.models.test_load import configure

CONFIGURATION = """
import os, pathlib
from transformers import LlamaConfig

pathlib.Path(os.environ["CODE_RAN"]).touch()

class OwnConfig(LlamaConfig):
    model_type = "own"
"""
MODELING = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
OWN = {
    "model_type": "own",
    "auto_map": {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnModel",
    },
}


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """The file that the model's code makes when it runs."""
    monkeypatch.setenv("CODE_RAN", str(tmp_path / "ran"))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail(f"asked: {asked}"))
    return tmp_path / "ran"


@pytest.fixture
def own(llama_directory):
    """A model whose classes only its folder knows."""
    (llama_directory / "configuration_own.py").write_text(CONFIGURATION)
    (llama_directory / "modeling_own.py").write_text(MODELING)
    configure(llama_directory, **OWN)
    return llama_directory


@pytest.mark.parametrize(
    "load", [load_causal, load_scalar, lambda folder: scalar_from_causal(folder, seed=0)]
)
def test_code_of_a_model_is_neither_asked_about_nor_run(own, ran, load):
    with pytest.raises(ModelError) as caught:
        load(own)
    assert not ran.exists()
    told = str(caught.value)
    assert "\n" not in told
    assert f"RLHF_TRUSTED_CODE={code_sha256(own)}" in told


def test_code_of_a_tokenizer_is_neither_asked_about_nor_run(own, ran):
    (own / "tokenizer.json").write_text("{}")
    (own / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["configuration_own.OwnConfig", None]}})
    )
    with pytest.raises(ModelError, match="cannot load a tokenizer"):
        load_tokenizer(own)
    assert not ran.exists()


def test_a_known_architecture_is_loaded_by_the_library_s_own_code(llama_directory, own, ran):
    configure(own, model_type="llama")
    load_causal(own)
    assert not ran.exists()


def test_code_whose_digest_the_environment_names_runs_and_no_other(own, ran, monkeypatch, tmp_path):
    monkeypatch.setenv("RLHF_TRUSTED_CODE", code_sha256(own))
    model = load_causal(own)
    assert type(model).__name__ == "OwnModel"
    assert ran.exists()
    # What is saved from it carries the same code.
    save_model(model, FakeTokenizer(), tmp_path / "again")
    again = load_causal(tmp_path / "again")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)

    ran.unlink()
    with (own / "modeling_own.py").open("a") as file:
        file.write("\n# one line more\n")
    with pytest.raises(ModelError, match="never run unasked"):
        load_causal(own)
    assert not ran.exists()


@pytest.mark.parametrize("named", ["true", "1", "*", "main", "abc123"])
def test_code_is_not_trusted_without_naming_it(own, ran, monkeypatch, named):
    monkeypatch.setenv("RLHF_TRUSTED_CODE", named)
    with pytest.raises(ConfigError, match="RLHF_TRUSTED_CODE: expected the commit"):
        load_causal(own)
    assert not ran.exists()


@pytest.mark.parametrize("outside", ["../elsewhere.safetensors", "{}/elsewhere.safetensors", ""])
def test_an_index_of_shards_does_not_lead_out_of_its_folder(llama_directory, outside):
    shards = llama_directory.parent / "elsewhere.safetensors"
    shutil.move(llama_directory / "model.safetensors", shards)
    outside = outside.format(llama_directory.parent)
    index = llama_directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": outside}}))
    with pytest.raises(ModelError, match=r"weight_map names '.*', which is not inside the folder"):
        load_causal(llama_directory)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', "{", "\xff"]
)
def test_a_damaged_index_is_one_line(llama_directory, content):
    (llama_directory / "model.safetensors.index.json").write_text(content, encoding="latin-1")
    with pytest.raises(ModelError, match="expected weight_map"):
        load_causal(llama_directory)


def test_an_adapter_alone_is_refused(llama_directory):
    (llama_directory / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "/elsewhere"})
    )
    with pytest.raises(ModelError, match="an adapter names a base model outside its folder"):
        load_causal(llama_directory)


class NotATensor:
    """What a file of weights has no use for."""


def test_weights_in_a_pickle_are_read_as_tensors_alone(llama_directory):
    model = load_causal(llama_directory)
    (llama_directory / "model.safetensors").unlink()
    torch.save(model.state_dict(), llama_directory / "pytorch_model.bin")
    assert torch.equal(load_causal(llama_directory).lm_head.weight, model.lm_head.weight)

    torch.save({"lm_head.weight": NotATensor()}, llama_directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match="a pickle that holds more than tensors"):
        load_causal(llama_directory)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_position_embeddings": "x"}, "Field 'max_position_embeddings' expected int"),
        ({"rope_parameters": {"rope_type": "x"}}, "KeyError: 'x'"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"hidden_act": "x"}, "KeyError: 'x'"),
        ({"dtype": "x"}, "AttributeError: module 'torch' has no attribute 'x'"),
        ({"quantization_config": 3}, "AttributeError"),
    ],
)
def test_a_configuration_that_a_library_fails_on_is_one_line(llama_directory, changes, said):
    configure(llama_directory, **changes)
    with pytest.raises(ModelError) as caught:
        load_causal(llama_directory)
    told = str(caught.value)
    assert told.startswith(f"{llama_directory}: cannot load a causal language model: ")
    assert said in told
    assert "\n" not in told


@pytest.mark.parametrize("content", ["[]", "3", "[" * 50_000, '{"a": ' + "9" * 5_000 + "}"])
def test_a_configuration_that_is_none_is_one_line(llama_directory, content):
    (llama_directory / "config.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        load_causal(llama_directory)
    told = str(caught.value)
    assert told.startswith(f"{llama_directory}: cannot load a causal language model: ")
    assert len(told) < 1_000
    assert "\n" not in told


@pytest.mark.parametrize("load", [load_causal, lambda folder: scalar_from_causal(folder, seed=0)])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda name, weight: weight.fill_(torch.nan), "NaN or infinite"),
        (lambda name, weight: weight[3].fill_(torch.inf) if "up" in name else 0, "NaN or infinite"),
        (lambda name, weight: weight.zero_(), "the same for every token"),
        (lambda name, weight: weight.fill_(1.0), "the same for every token"),
    ],
)
def test_weights_that_say_nothing_are_damaged(llama_directory, load, change, said):
    path = llama_directory / "model.safetensors"
    tensors = load_file(path)
    for name, weight in tensors.items():
        change(name, weight)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=rf"of a probe are {said}; its weights or its config\.json"
    ):
        load(llama_directory)


def test_a_model_that_hardly_tells_tokens_apart_is_none_the_less_one(llama_directory):
    """Weights set by hand: a feature that one token has, and the probe may not hold it."""
    path = llama_directory / "model.safetensors"
    tensors = load_file(path)
    for name, weight in tensors.items():
        if "embed" in name:
            weight.fill_(1.0)
            weight[3] = 2.0
        elif weight.dim() > 1:
            weight.zero_()
    save_file(tensors, path, metadata={"format": "pt"})
    load_causal(llama_directory)


@pytest.mark.parametrize("ends", [{"a": 1}, "x", [10**30], [None], 1.5, [True]])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_ends_that_are_no_tokens_are_refused(tmp_path, file, ends):
    (tmp_path / file).write_text(json.dumps({"model_type": "llama", "eos_token_id": ends}))
    if file == "config.json" and ends != [10**30]:  # transformers does not read it: no ends
        assert published_ends(tmp_path) == ()
        return
    with pytest.raises(ModelError, match=r": eos_token_id: expected a token's number or a list"):
        published_ends(tmp_path)
