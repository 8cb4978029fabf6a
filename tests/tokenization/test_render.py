"""One BOS, one EOS, prompt tokens that never depend on the response, text that comes back."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.errors import DataError, ModelError
from rlhf_core.schema import Demonstration, Message, PreferencePair, Prompt
from rlhf_core.tokenization import TemplateChoice, load_tokenizer, make_renderer
from rlhf_core.tokenization.template import apply_template
from tests.tokenization.conftest import MAKERS

ROOT = Path(__file__).parents[2]
HH = ROOT / "configs" / "templates" / "hh.jinja"
SHARED = Path(os.environ.get("RLHF_SHARED_DATA", ROOT.parent / "shared" / "data"))

QUESTION = (Message(role="user", content="Hello there"),)
DIALOGUE = (
    Message(role="user", content="Hello there"),
    Message(role="assistant", content="How are you?"),
    Message(role="user", content="Second: 7!"),
)


@pytest.fixture
def renderer(tokenizer_directory):
    return make_renderer(load_tokenizer(tokenizer_directory, choice=TemplateChoice(HH)))


@pytest.mark.parametrize("conversation", [QUESTION, DIALOGUE])
def test_a_prompt_is_what_apply_chat_template_gives(renderer, conversation):
    messages = [message.model_dump() for message in conversation]
    ids = renderer.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert renderer.prompt_ids(conversation).tolist() == ids
    assert renderer.prompt_ids(conversation).dtype == np.int32


def test_a_response_ends_with_the_only_eos_and_comes_back(renderer):
    for text in ("Hello there", " two  spaces ", "", "line\nbreak\n\n", "7!", "naïve ☕", "\ttab"):
        ids = renderer.response_ids(text)
        assert ids[-1] == renderer.turn_end_id
        assert (ids == renderer.turn_end_id).sum() == 1
        assert renderer.response_text(ids) == text
        assert renderer.response_text([*ids, *ids]) == text


def test_prompt_and_response_are_the_tokens_of_the_whole_rendering(renderer):
    for text in ("One answer", " two  spaces ", "7!"):
        example = renderer.demonstration(
            Demonstration(demonstration_id="d", prompt=DIALOGUE, response=text)
        )
        messages = [message.model_dump() for message in DIALOGUE]
        messages.append({"role": "assistant", "content": text})
        whole = renderer.tokenizer.apply_chat_template(messages)["input_ids"]
        assert [*example.prompt_ids, *example.response_ids] == whole


def test_both_responses_of_a_pair_follow_the_same_tokens(renderer):
    pair = PreferencePair(
        comparison_id="c",
        prompt=DIALOGUE,
        chosen="Hello",
        rejected=" there",
        agreement=1.0,
        probability=0.8,
    )
    tokens = renderer.pair(pair)
    assert np.array_equal(
        tokens.prompt_ids, renderer.prompt(Prompt(prompt_id="p", prompt=DIALOGUE)).prompt_ids
    )
    assert tokens.probability == 0.8
    assert renderer.response_text(tokens.rejected_ids) == " there"


def test_earlier_assistant_turns_can_count(renderer):
    demonstration = Demonstration(demonstration_id="d", prompt=DIALOGUE, response="Hello")
    assert renderer.demonstration(demonstration).prompt_mask is None
    example = renderer.demonstration(demonstration, all_turns=True)
    counted = example.prompt_ids[example.prompt_mask]
    text = renderer.tokenizer.decode(counted, clean_up_tokenization_spaces=False)
    eos = renderer.tokenizer.eos_token
    assert text.strip().removesuffix(eos) == "How are you?"
    assert text.endswith(eos)


def test_a_response_with_the_end_of_a_turn_inside_is_refused(renderer):
    prompt = renderer.prompt_ids(QUESTION)
    end = np.array([renderer.turn_end_id], dtype=np.int32)
    word = renderer.encode("yes")
    whole = np.concatenate([prompt, word, end])
    np.testing.assert_array_equal(renderer.after_prompt(prompt, whole)[: len(word)], word)
    with pytest.raises(DataError, match="holds a token that ends a turn"):
        renderer.after_prompt(prompt, np.concatenate([prompt, word, end, word, end]))


def test_text_of_a_special_token_is_refused(renderer):
    eos = renderer.tokenizer.eos_token
    with pytest.raises(DataError, match="special token"):
        renderer.response_ids(f"Hello {eos} there")
    with pytest.raises(DataError, match="special token"):
        renderer.prompt_ids((Message(role="user", content=f"{eos}"),))


def test_half_a_surrogate_pair_is_refused(renderer):
    with pytest.raises(DataError, match="surrogate"):
        renderer.response_ids("broken \ud83d emoji")


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=40), maker=st.sampled_from(sorted(MAKERS)))
def test_any_text_comes_back_or_is_refused(text, maker):
    renderer = RENDERERS.setdefault(maker, _renderer(maker))
    try:
        ids = renderer.response_ids(text)
    except DataError:
        return
    assert renderer.response_text(ids) == text


RENDERERS = {}


def _renderer(maker):
    tokenizer = MAKERS[maker]()
    if tokenizer.chat_template is None:
        tokenizer.chat_template = HH.read_text()
    return make_renderer(tokenizer)


def test_a_missing_template_is_an_error_that_names_the_setting(tmp_path):
    MAKERS["gpt2"]().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model\.chat_template"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        load_tokenizer(tmp_path, choice=TemplateChoice(tmp_path / "nowhere.jinja"))


def test_a_directory_without_tokenizer_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="found a file"):
        load_tokenizer(tmp_path / "config.json")
    with pytest.raises(ModelError, match="no such model directory"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_name_that_is_no_folder_and_not_on_the_hub_is_said_to_be_neither(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match=r"^models/mistyped: .+; nor is there a folder of this name$"
    ):
        load_tokenizer("models/mistyped")


def test_a_tokenizer_without_eos_is_an_error(tmp_path):
    tokenizer = MAKERS["chatml"]()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="EOS"):
        load_tokenizer(tmp_path)


def test_a_template_with_an_error_is_refused_at_once():
    tokenizer = MAKERS["chatml"]()
    tokenizer.chat_template = "{{ raise_exception('not today') }}"
    with pytest.raises(ModelError, match="not today"):
        make_renderer(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}"
    with pytest.raises(ModelError, match="chat template"):
        make_renderer(tokenizer)


def test_the_shipped_template_refuses_an_unknown_role_by_name():
    tokenizer = MAKERS["gpt2"](HH.read_text())
    with pytest.raises(DataError, match="tool"):
        apply_template(
            tokenizer,
            (Message.model_construct(role="tool", content="x"),),
            generation_prompt=True,
        )


@pytest.mark.parametrize("name", ["stories3m", "stories260k"])
def test_a_real_pretrained_tokenizer(name):
    directory = SHARED / "models" / name
    if not directory.is_dir():
        pytest.skip(f"no {directory}")
    renderer = make_renderer(load_tokenizer(directory, choice=TemplateChoice(HH)))
    ids = renderer.prompt_ids(QUESTION)
    assert renderer.tokenizer.decode(ids[1:]) == "\n\nHuman: Hello there\n\nAssistant:"
    response = renderer.response_ids("Once upon a time")
    assert renderer.tokenizer.convert_ids_to_tokens([int(response[0])])[0].startswith("▁")
    assert renderer.response_text(response) == "Once upon a time"
    assert ids[0] == 1
    assert response[-1] == 2
