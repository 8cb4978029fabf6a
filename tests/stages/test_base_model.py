"""A base model whose tokenizer, length or positions cannot serve is refused before training."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from rlhf_core.config import ModelConfig
from rlhf_core.errors import ModelError, NoRoomError
from rlhf_core.models import save_model
from rlhf_core.rollout.chat import ChatModel
from rlhf_core.stages.models.base_model import check_base, load_base
from rlhf_core.stages.models.renderers import base_renderer
from tests.demo.test_base import BASE

SMALL = {
    "vocab_size": 1024,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.fixture
def save(tmp_path):
    """Save a tiny model of a configuration beside the demo's tokenizer."""

    def make(config):
        torch.manual_seed(0)
        hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
        for path in BASE.glob("*token*"):
            shutil.copy(path, tmp_path / "base")
        for path in BASE.glob("chat_template*"):
            shutil.copy(path, tmp_path / "base")
        return str(tmp_path / "base")

    return make


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_refused(save):
    base = save(hf.LlamaConfig(**SMALL | {"vocab_size": 1000}))
    with pytest.raises(ModelError, match="highest token is 1023, but the model embeds 1000"):
        load_base(ModelConfig(base=base, max_length=64))


def test_more_tokens_than_positions_are_refused(save):
    base = save(hf.LlamaConfig(**SMALL, max_position_embeddings=128))
    load_base(ModelConfig(base=base, max_length=128))
    with pytest.raises(ModelError, match=r"max_length is 129, but \S+ has 128 positions; lower"):
        load_base(ModelConfig(base=base, max_length=129))


def test_a_pickle_with_more_than_tensors_is_refused_before_anything_begins(save):
    """By the same line as after the preparation; one of tensors alone serves."""
    base = Path(save(hf.LlamaConfig(**SMALL, max_position_embeddings=128)))
    settings = ModelConfig(base=str(base), max_length=64)
    (weights,) = base.glob("*.safetensors")
    tensors = load_file(weights)
    weights.unlink()
    torch.save(tensors, base / "pytorch_model.bin")
    for look in (check_base, load_base):
        look(settings)
    pickle = base / "pytorch_model.bin"
    cut = pickle.read_bytes()[:-100]
    torch.save({**tensors, "made_by": Fraction(1, 2)}, pickle)
    for content, said in (
        (pickle.read_bytes(), "a pickle that holds more than tensors"),
        (cut, "failed finding central directory"),
    ):
        pickle.write_bytes(content)
        lines = []
        for look in (check_base, load_base):
            with pytest.raises(ModelError, match=said) as refused:
                look(settings)
            lines.append(str(refused.value))
        assert lines[0] == lines[1]


def test_what_its_configuration_tells_is_refused_before_anything_begins(save, tmp_path):
    """By the same line as after the preparation, when the weights are loaded."""
    base = Path(save(hf.LlamaConfig(**SMALL, max_position_embeddings=128)))
    check_base(ModelConfig(base=str(base), max_length=128))
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    for length, changed, said in (
        (129, {}, "has 128 positions; lower"),
        (64, own, "needs Python code of its own, which is never run unasked"),
        (64, {"model_type": "t5", "is_encoder_decoder": True}, "t5 is an encoder-decoder"),
        (64, {"model_type": "no such"}, "no such"),
    ):
        folder = tmp_path / "changed"
        shutil.copytree(base, folder, dirs_exist_ok=True)
        (folder / "own.py").touch()
        written = json.loads((base / "config.json").read_text()) | changed
        (folder / "config.json").write_text(json.dumps(written))
        settings, lines = ModelConfig(base=str(folder), max_length=length), []
        for look in (check_base, load_base):
            with pytest.raises(ModelError, match=said) as refused:
                look(settings)
            lines.append(str(refused.value))
        assert lines[0] == lines[1]


def test_of_longrope_only_the_positions_before_it_stretches_count(save):
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 2.0, 3.0, 4.0],
        "original_max_position_embeddings": 64,
    }
    base = save(
        hf.Phi3Config(
            **SMALL,
            max_position_embeddings=512,
            original_max_position_embeddings=64,
            rope_parameters=rope,
        )
    )
    model, renderer = load_base(ModelConfig(base=base, max_length=64))
    with pytest.raises(ModelError, match="has 64 positions"):
        load_base(ModelConfig(base=base, max_length=65))
    # Nor is more served: the keys that were kept would be of other frequencies than those to come.
    chat = ChatModel(model, renderer)
    assert chat.require_room(60, None) == 4
    with pytest.raises(NoRoomError, match="maximum context length is 64 tokens"):
        chat.require_room(60, 5)


def test_a_special_token_that_the_template_writes_has_to_be_embedded(save):
    base = Path(save(hf.LlamaConfig(**SMALL)))
    tokenizer = hf.AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    beyond = tokenizer.convert_tokens_to_ids("<image>")
    assert beyond == SMALL["vocab_size"]
    tokenizer.save_pretrained(base)
    load_base(ModelConfig(base=str(base), max_length=64))
    tokenizer.chat_template = "<image>" + tokenizer.chat_template
    tokenizer.save_pretrained(base)
    with pytest.raises(ModelError, match=f"template writes token {beyond}, but the model embeds"):
        load_base(ModelConfig(base=str(base), max_length=64))


def test_a_model_of_ours_is_a_base_without_a_word_about_ids_of_no_token(save, tmp_path, caplog):
    base = save(hf.LlamaConfig(**SMALL | {"vocab_size": SMALL["vocab_size"] + 40}))
    model, renderer = load_base(ModelConfig(base=base, max_length=64))
    save_model(model, renderer.tokenizer, tmp_path / "sft")
    saved = hf.GenerationConfig.from_pretrained(tmp_path / "sft")
    unknown = list(range(SMALL["vocab_size"], SMALL["vocab_size"] + 40))
    assert saved.suppress_tokens == unknown
    again, _ = load_base(ModelConfig(base=str(tmp_path / "sft"), max_length=64))
    assert "left out" not in caplog.text
    save_model(again, renderer.tokenizer, tmp_path / "again")
    assert hf.GenerationConfig.from_pretrained(tmp_path / "again").suppress_tokens == unknown


def put(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def template(text):
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


DAMAGES = {
    "padding": (
        lambda folder: put(folder, "tokenizer.json", padding=1e30),
        "cannot load a tokenizer: invalid type: floating point",
    ),
    "positions": (
        lambda folder: put(folder, "config.json", max_position_embeddings="x"),
        "Field 'max_position_embeddings' expected int",
    ),
    "no position": (
        lambda folder: put(folder, "config.json", max_position_embeddings=-1),
        "config.json gives it -1 positions",
    ),
    "not closed": (
        template("{% for m in messages %}\n{{ m.content }}"),
        "the chat template is not valid Jinja, line 2: Unexpected end of template",
    ),
    "divides": (template("{{ 1 / 0 }}"), "refuses a conversation of (user): division by zero"),
    "no end": (
        template("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"),
        "maximum recursion depth exceeded",
    ),
    "too large": (template("{{ 10.0 ** 1000 }}"), "refuses a conversation of (user)"),
    "two lines": (template("{{ raise_exception('not\ntoday') }}"), "not today"),
    "a list": (
        lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
        "cannot load a tokenizer: AttributeError: 'list' object",
    ),
    "length": (
        lambda folder: put(folder, "tokenizer_config.json", model_max_length="x"),
        "the tokenizer fails on a question and an answer: TypeError",
    ),
    "suppressed": (
        lambda folder: put(folder, "generation_config.json", suppress_tokens="x"),
        "suppress_tokens: expected a token's number or a list, found 'x'",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_folder_is_one_line_that_names_it(tmp_path, kind):
    folder = tmp_path / "base"
    shutil.copytree(BASE, folder)
    damage, said = DAMAGES[kind]
    damage(folder)
    with pytest.raises(ModelError) as caught:
        load_base(ModelConfig(base=str(folder), max_length=64))
    told = str(caught.value)
    assert told.startswith(f"{folder}: ")
    assert said in told
    assert "\n" not in told


def test_weights_that_are_not_whole_are_told_before_anything_is_done(save):
    base = Path(save(hf.LlamaConfig(**SMALL)))
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors: damaged or not whole .* copy it"):
        base_renderer(ModelConfig(base=str(base)))


@pytest.mark.parametrize(
    ("published", "kept"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, {"do_sample": True, "temperature": 0.6, "top_p": 0.9}),
        ({"min_p": 0.1}, {"do_sample": True, "min_p": 0.1}),
        ({"do_sample": False, "top_k": 5}, {"do_sample": False, "top_k": None}),
        ({"penalty_alpha": 0.6}, {"penalty_alpha": None}),
        ({"do_sample": True, "top_p": 0.9}, {"do_sample": True, "top_p": 0.9}),
        ({"temperature": 0.0}, {"do_sample": False, "temperature": None}),
        ({"early_stopping": True, "length_penalty": 2.0}, {"early_stopping": None}),
    ],
)
def test_what_is_published_of_sampling_can_be_saved_after_training(save, published, kept, tmp_path):
    base = Path(save(hf.LlamaConfig(**SMALL)))
    file = base / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | published))
    model, renderer = load_base(ModelConfig(base=str(base), max_length=64))
    save_model(model, renderer.tokenizer, tmp_path / "trained")
    saved = hf.GenerationConfig.from_pretrained(tmp_path / "trained")
    assert {name: getattr(saved, name) for name in kept} == kept
