"""Reward models named by their folder: where they are read, and what their files may not do."""

import json
import re
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from tokenizers import AddedToken
from transformers.utils import chat_template_utils

from rlhf_core.errors import ModelError
from rlhf_core.models import save_model, scalar_from_causal, set_reward_shift
from rlhf_core.models.classifier import Classifier, outside_model
from rlhf_core.models.files import weights_sha256
from rlhf_core.schema import Message
from rlhf_core.stages.export import model_card
from rlhf_core.stages.models.base_model import name_ends
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.stages.models.scoring import load_scorer, open_scorer
from tests.tokenization.conftest import MAKERS

PROMPTS = [(Message(role="user", content=f"What is {n}?"),) for n in range(4)]
ANSWERS = ["One.", "It is two, I think.", "three", "No."]


@pytest.fixture
def folder(tmp_path):
    """A causal model whose template writes a line break behind every turn."""
    tokenizer = MAKERS["chatml"]()
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=None, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    hf.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def ours(folder, tmp_path):
    """A reward model of ours, as a training leaves it."""
    model, renderer = scalar_from_causal(folder, seed=1), model_renderer(folder)
    name_ends(model, renderer)
    set_reward_shift(model, 0.5)
    save_model(model, renderer.tokenizer, tmp_path / "reward")
    return tmp_path / "reward"


@pytest.fixture
def theirs(folder, tmp_path):
    """One that anybody publishes; what a test adds to its tokenizer is saved by ``save``."""
    config = hf.AutoConfig.from_pretrained(folder, num_labels=1)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)

    def save():
        config.vocab_size = len(tokenizer)
        torch.manual_seed(2)
        model = hf.AutoModelForSequenceClassification.from_config(config)
        model.save_pretrained(tmp_path / "theirs")
        tokenizer.save_pretrained(tmp_path / "theirs")
        return tmp_path / "theirs"

    return SimpleNamespace(tokenizer=tokenizer, save=save)


def test_a_judge_by_its_folder_is_one_from_elsewhere_whoever_trained_it(ours):
    """It has passed no gate that a registry knows: it is measured by this run's."""
    assert outside_model("evaluation.judge", str(ours)).kind == "classifier"


def test_a_model_of_ours_is_read_where_it_was_trained_whoever_names_its_folder(ours):
    expected = load_scorer(ours, budget=512)(PROMPTS, [ANSWERS])[0]
    named = outside_model("policy.rewards.0", str(ours))
    assert open_scorer(named, "cpu")(PROMPTS, ANSWERS) == pytest.approx(expected, abs=1e-5)
    assert np.isnan(open_scorer(named, "cpu", max_length=4)(PROMPTS, ANSWERS)).all()
    # The end of the template's whole rendering is another place, and another score.
    whole = Classifier(ours, max_length=None).scores(PROMPTS, ANSWERS)
    assert abs(whole - 0.5 - expected).max() > 1e-3


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json", "chat_template.jinja"])
def test_who_reads_otherwise_is_another_model(theirs, name):
    """The same weights under another template give other scores: what they gave is not reused."""
    file = theirs.save() / name
    before = outside_model("key", str(file.parent)).sha256
    assert outside_model("key", str(file.parent)).sha256 == before
    file.write_text(f"{file.read_text()}\n")
    assert outside_model("key", str(file.parent)).sha256 != before


@pytest.mark.parametrize("written", ["null", "5", "[]", "{"])
def test_a_configuration_that_is_none_is_one_line(theirs, written):
    file = theirs.save() / "config.json"
    file.write_text(written)
    with pytest.raises(ModelError, match=r"config\.json: (expected an object|cannot be read)"):
        outside_model("key", str(file.parent))


def test_one_of_ours_is_known_by_its_weights_as_in_the_registry(ours):
    assert outside_model("key", str(ours)).sha256 == weights_sha256(ours)


@pytest.mark.parametrize("wants", ["assistant last", "two turns", "system first"])
def test_a_template_that_wants_dialogues_of_one_shape_is_read(theirs, wants):
    refusal = {
        "assistant last": "messages[-1].role != 'assistant'",
        "two turns": "messages | length < 2",
        "system first": "messages[0].role != 'system'",
    }[wants]
    raises = "{%- if REFUSAL %}{{ raise_exception('no') }}{% endif %}".replace("REFUSAL", refusal)
    theirs.tokenizer.chat_template = raises + theirs.tokenizer.chat_template
    asked = [(Message(role="system", content="Be brief."), *turns) for turns in PROMPTS]
    scores = Classifier(theirs.save(), max_length=None).scores(asked, ANSWERS)
    assert np.isfinite(scores).all()


def test_the_exported_card_reads_it_there_as_well(ours, monkeypatch):
    expected = load_scorer(ours, budget=512)([PROMPTS[0]], [["Hi there."]])[0]
    model = outside_model("model", str(ours)).model_copy(update={"kind": "scalar"})
    asked = re.sub("Hello", PROMPTS[0][0].content, model_card(model))
    code = re.search(r"```python\n(.*?)```", asked, re.DOTALL).group(1)
    monkeypatch.chdir(ours)
    found = {}
    exec(code, found)
    assert found["score"] == pytest.approx(expected[0], abs=1e-5)


def test_control_tokens_that_somebody_spelled_reach_no_model(theirs):
    theirs.tokenizer.add_tokens([AddedToken("<|eot|>", special=True)])
    assert "<|eot|>" not in theirs.tokenizer.all_special_tokens
    scores = Classifier(theirs.save(), max_length=None).scores
    plain = scores(PROMPTS, ANSWERS)
    spelled = [f"{answer[:2]}<|eo<|eot|>t|>{answer[2:]}" for answer in ANSWERS]
    assert scores(PROMPTS, spelled) == pytest.approx(plain)
    asked = [(Message(role="user", content=f"<|eot|>{turns[0].content}"),) for turns in PROMPTS]
    assert scores(asked, ANSWERS) == pytest.approx(plain)


def test_a_score_is_the_same_on_another_day(theirs, monkeypatch):
    dated = "{{ strftime_now('%d %B %Y') }}" + theirs.tokenizer.chat_template
    theirs.tokenizer.chat_template = dated
    folder, found = theirs.save(), []
    for day in (1, 30):
        moment = datetime(2031, 5, day)
        monkeypatch.setattr(
            chat_template_utils, "datetime", SimpleNamespace(now=lambda m=moment: m)
        )
        found.append(Classifier(folder, max_length=None).scores(PROMPTS, ANSWERS))
    assert found[0] == pytest.approx(found[1], abs=0)


def test_code_in_the_folder_is_neither_asked_about_nor_run(theirs, tmp_path, monkeypatch):
    folder = theirs.save()
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (folder / "config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail(f"asked: {asked}"))
    with pytest.raises(ModelError):
        Classifier(folder, max_length=None)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "model.safetensors.index.json",
            {"weight_map": {"score.weight": "../elsewhere.safetensors"}},
            "is not inside the folder",
        ),
        ("adapter_config.json", {"base_model_name_or_path": "elsewhere"}, "merge it into its base"),
    ],
)
def test_weights_that_its_digest_would_not_cover_are_refused(theirs, name, content, told):
    folder = theirs.save()
    (folder / name).write_text(json.dumps(content))
    for use in (
        lambda: outside_model("key", str(folder)),
        lambda: Classifier(folder, max_length=8),
    ):
        with pytest.raises(ModelError, match=told):
            use()
