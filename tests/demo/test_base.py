"""The shipped base model: it loads, speaks the chat format, and behaves badly."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from rlhf_core.demo.corpus import generate_documents
from rlhf_core.demo.gold import rate
from rlhf_core.demo.pretrain import (
    DEFAULT_DOCUMENTS,
    TOKENIZER_DOCUMENTS,
    build_base,
    texts_of,
)
from rlhf_core.demo.tokenizer import SPECIAL_TOKENS, train_tokenizer
from rlhf_core.schema import Demonstration, Prompt

DATA = Path(__file__).parents[2] / "data"
BASE = DATA / "base"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(BASE).eval()


def test_the_model_is_small_and_stored_as_safetensors(model):
    assert 1_000_000 <= model.num_parameters() <= 3_000_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (BASE / "model.safetensors").stat().st_size < 8_000_000
    assert not list(BASE.glob("*.bin"))


def test_special_tokens_are_distinct_and_agree_with_the_model(tokenizer, model):
    ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert ids == [0, 1, 2]
    config = model.generation_config
    assert [config.pad_token_id, config.bos_token_id, config.eos_token_id] == ids
    assert len(set(tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))) == len(SPECIAL_TOKENS)
    assert model.config.vocab_size == len(tokenizer)


def test_the_template_gives_one_bos_and_ends_an_assistant_turn_with_eos(tokenizer):
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "museum price?"},
        {"role": "assistant", "content": "3 crowns."},
    ]
    ids = tokenizer.apply_chat_template(turns)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    prompt = tokenizer.apply_chat_template(turns[:2], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert whole == prompt + "3 crowns.<|eos|>"


def test_an_unknown_role_is_refused(tokenizer):
    with pytest.raises(Exception, match="unknown role"):
        tokenizer.apply_chat_template([{"role": "wizard", "content": "Abracadabra"}])


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back_unchanged(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


def test_pretraining_text_holds_no_heldout_prompt():
    rows = (DATA / "raw" / "heldout_prompts.jsonl").read_text().splitlines()
    heldout = {Prompt.model_validate_json(row).prompt for row in rows}
    documents = list(generate_documents(0, 5_000))
    chats = [document for document in documents if not isinstance(document, str)]
    assert 0.5 < len(chats) / len(documents) < 0.8
    for chat in chats:
        turns = tuple(turn for turn in chat if turn.role != "system")
        assert not any(turns[:end] in heldout for end in range(1, len(turns) + 1))


def test_the_base_answers_in_the_chat_format_but_worse_than_the_demonstrations(tokenizer, model):
    rows = (DATA / "raw" / "heldout_prompts.jsonl").read_text().splitlines()[:96]
    prompts = [Prompt.model_validate_json(row).prompt for row in rows]
    torch.manual_seed(0)
    tokenizer.padding_side = "left"
    batch = tokenizer.apply_chat_template(
        [[turn.model_dump() for turn in prompt] for prompt in prompts],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
    )
    output = model.generate(**batch, max_new_tokens=64, do_sample=True, temperature=0.7)
    answers = output[:, batch["input_ids"].shape[1] :]
    ended = (answers == tokenizer.eos_token_id).any(dim=1).float().mean().item()
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    base = [rate(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    lines = (DATA / "raw" / "demonstrations.jsonl").read_text().splitlines()[:500]
    shown = [Demonstration.model_validate_json(line) for line in lines]
    taught = [rate(row.prompt, row.response) for row in shown]
    assert ended > 0.9
    assert mean(base, "incoherence") < 0.1
    assert mean(base, "score") < mean(taught, "score") - 0.15
    assert mean(base, "politeness") < mean(taught, "politeness")
    assert mean(base, "correctness") < mean(taught, "correctness")


def mean(rated: list[dict[str, float]], name: str) -> float:
    return sum(row[name] for row in rated) / len(rated)


@pytest.mark.nightly
def test_the_shipped_tokenizer_is_what_the_build_learns():
    documents = islice(generate_documents(0, DEFAULT_DOCUMENTS), TOKENIZER_DOCUMENTS)
    learnt = train_tokenizer(texts_of(documents))
    shipped = json.loads((BASE / "tokenizer.json").read_text(encoding="utf-8"))
    assert json.loads(learnt.to_str())["model"]["vocab"] == shipped["model"]["vocab"]
    assert json.loads(learnt.to_str())["model"]["merges"] == shipped["model"]["merges"]


@pytest.mark.nightly
def test_building_twice_gives_the_same_bytes_and_leaves_nothing_beside(tmp_path):
    for name in ("one", "two"):
        build_base(tmp_path / name, seed=3, num_documents=150, num_threads=1)
    made = [{f.name: f.read_bytes() for f in (tmp_path / n).iterdir()} for n in ("one", "two")]
    assert made[0] == made[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
