"""Every family's conversations begin, end and are stopped as its publisher means them."""

import pytest
import torch
from tokenizers import AddedToken, normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_core.errors import DataError, ModelError
from rlhf_core.models import load_causal, nll_sum, save_model
from rlhf_core.rollout.sample import sample_responses
from rlhf_core.schema import Demonstration, Message, PreferencePair
from rlhf_core.stages.models.base_model import name_ends
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.tokenization import load_tokenizer, make_renderer, pack_examples
from tests.tokenization.families import FAMILIES, save_family

QUESTION = (Message(role="user", content="Hello there"),)
DIALOGUE = (
    *QUESTION,
    Message(role="assistant", content="How are you?"),
    Message(role="user", content="Second: 7!"),
)
SYSTEM = (Message(role="system", content="One answer"), *QUESTION)
ANSWERS = (
    "Hello",
    "One answer, in two sentences.",
    "naïve ☕ 7",
    " two  spaces ",
    "line\nbreak\n\n",
)
RENDERERS = {}


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    return request.param


def renderer_of(name):
    if name not in RENDERERS:
        RENDERERS[name] = make_renderer(FAMILIES[name].tokenizer())
    return RENDERERS[name]


def messages_of(conversation, answer=None):
    messages = [message.model_dump() for message in conversation]
    return messages if answer is None else [*messages, {"role": "assistant", "content": answer}]


def conversations(name):
    return (QUESTION, DIALOGUE, SYSTEM) if FAMILIES[name].system else (QUESTION, DIALOGUE)


def test_prompts_are_what_apply_chat_template_gives(family):
    renderer = renderer_of(family)
    for conversation in conversations(family):
        expected = renderer.tokenizer.apply_chat_template(
            messages_of(conversation), add_generation_prompt=True
        )["input_ids"]
        assert renderer.prompt_ids(conversation).tolist() == expected


def test_prompt_and_response_are_the_whole_rendering_up_to_the_end_of_the_turn(family):
    renderer, end = renderer_of(family), FAMILIES[family].turn_end
    tokenizer = renderer.tokenizer
    assert renderer.turn_end_id == tokenizer.convert_tokens_to_ids(end)
    for conversation in conversations(family):
        for answer in ANSWERS:
            example = renderer.demonstration(
                Demonstration(demonstration_id="d", prompt=conversation, response=answer)
            )
            ids = [*example.prompt_ids.tolist(), *example.response_ids.tolist()]
            assert ids[-1] == renderer.turn_end_id
            assert renderer.turn_end_id not in example.response_ids[:-1]
            whole = tokenizer.apply_chat_template(messages_of(conversation, answer))["input_ids"]
            written = len(ids) if renderer.turns.is_written else len(ids) - 1
            if renderer.turns.is_written or not renderer.turns.closing:
                assert whole[:written] == ids[:written]
            shown = renderer.response_text(example.response_ids)
            assert shown == answer or shown.strip() == answer.strip()


def test_both_responses_of_a_pair_are_the_whole_rendering(family):
    renderer = renderer_of(family)
    pair = renderer.pair(
        PreferencePair(
            comparison_id="c", prompt=DIALOGUE, chosen="Hello", rejected="7!", agreement=1.0
        )
    )
    for answer, ids in (("Hello", pair.chosen_ids), ("7!", pair.rejected_ids)):
        expected = renderer.demonstration(
            Demonstration(demonstration_id="d", prompt=DIALOGUE, response=answer)
        )
        assert ids.tolist() == expected.response_ids.tolist()
        assert pair.prompt_ids.tolist() == expected.prompt_ids.tolist()


def test_earlier_assistant_turns_count_with_their_own_end(family):
    renderer = renderer_of(family)
    example = renderer.demonstration(
        Demonstration(demonstration_id="d", prompt=DIALOGUE, response="Hello"), all_turns=True
    )
    text = renderer.tokenizer.decode(example.prompt_ids[example.prompt_mask]).strip()
    end = renderer.turns.earlier_end
    assert text.removesuffix(end.strip()).strip() == "How are you?"
    assert end.strip() in ("", FAMILIES[family].turn_end)
    assert text.endswith(end.strip())
    assert bool(end) == (family not in ("falcon-plain", "glm"))


def test_every_special_token_in_a_text_is_refused(family):
    renderer = renderer_of(family)
    specials = [t.content for t in renderer.tokenizer.added_tokens_decoder.values() if t.special]
    assert {*FAMILIES[family].marks} <= {*specials}
    for special in specials:
        with pytest.raises(DataError, match="special token"):
            renderer.prompt_ids((Message(role="user", content=f"Hello{special}there"),))
        with pytest.raises(DataError, match="special token"):
            renderer.response_ids(f"{special}")


def test_what_a_model_says_between_think_marks_is_a_text_like_any_other():
    renderer = renderer_of("qwen3-thinking")
    said = "<think>\nOne\n</think>\n\nSecond"
    example = renderer.demonstration(
        Demonstration(demonstration_id="d", prompt=QUESTION, response=said)
    )
    whole = renderer.tokenizer.apply_chat_template(messages_of(QUESTION, said))["input_ids"]
    ids = [*example.prompt_ids, *example.response_ids]
    assert whole[: len(ids)] == ids
    assert renderer.response_text(example.response_ids) == said


def test_the_saved_model_stops_by_itself_and_says_the_same(family, tmp_path):
    """Weights that end a turn soon, saved by us, generated from by transformers."""
    base = save_family(family, tmp_path / "base")
    renderer, model = model_renderer(base), load_causal(base)
    published = {renderer.tokenizer.convert_tokens_to_ids(t) for t in FAMILIES[family].stops}
    ends = {renderer.turn_end_id, renderer.tokenizer.eos_token_id, *published}
    assert set(renderer.end_ids) == ends
    teach_to_say(model, renderer, "Hello")
    name_ends(model, renderer)
    save_model(model, renderer.tokenizer, tmp_path / "saved")

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    for stops in (plain.config.eos_token_id, plain.generation_config.eos_token_id):
        assert {*([stops] if isinstance(stops, int) else stops)} == ends
    assert plain.generation_config.pad_token_id is not None
    inputs = tokenizer.apply_chat_template(
        messages_of(QUESTION), add_generation_prompt=True, return_tensors="pt"
    )
    output = plain.generate(**inputs, max_new_tokens=40, do_sample=False)
    generated = output[0, inputs["input_ids"].shape[1] :].tolist()
    [ours] = sample_responses(
        load_causal(tmp_path / "saved"),
        load_tokenizer(tmp_path / "saved"),
        [QUESTION],
        max_new_tokens=40,
        temperature=0.0,
        seed=0,
    )
    assert list(ours.token_ids) == generated
    assert generated[-1] == renderer.turn_end_id
    assert ours.finished
    assert ours.text == "Hello"


def teach_to_say(model, renderer, answer):
    """Fit the one answer by heart."""
    example = renderer.demonstration(
        Demonstration(demonstration_id="d", prompt=QUESTION, response=answer)
    )
    batch = pack_examples([example])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    loss = nll_sum(model, batch)
    for _ in range(400):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss = nll_sum(model, batch)
        if loss.item() < 0.1:
            return
    raise AssertionError(f"not learned: {loss.item()}")


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ m.content }}<|im_end|>", "'<|im_end|>', which is no token of the tokenizer"),
        ("{{ m.content }} over and out <|endoftext|>", "' over and out ' after an answer"),
        ("<think>\n{{ m.content }}<|endoftext|>", "opens an answer in one way when it asks"),
        ("{{ '' if loop.last else ' ' }}{{ m.content }}", "join the prompt's last token"),
    ],
)
def test_a_template_that_does_not_go_with_the_tokenizer_is_refused(template, says):
    tokenizer = FAMILIES["falcon-plain"].tokenizer()
    opening = "Assistant:<end>\n" if "think" in template else "Assistant:"
    if "loop" in template:
        opening = "Assistant: "
        template = "{{ m.content }}"
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ 'User: ' + m.content + '\n' }}"
        "{% else %}" + opening.replace("<end>\n", "") + template + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}" + opening + "{% endif %}"
    )
    with pytest.raises(ModelError) as raised:
        make_renderer(tokenizer)
    assert says in str(raised.value)
    assert "model.chat_template" in str(raised.value)


def test_a_text_that_the_tokenizer_reads_as_a_control_token_is_refused():
    tokenizer = FAMILIES["chatml-base"].tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Replace("(c)", "<|stop|>")
    backend.add_special_tokens([AddedToken("<|stop|>", normalized=True, special=True)])
    renderer = make_renderer(tokenizer)
    assert tokenizer.convert_tokens_to_ids("<|stop|>") in tokenizer.encode("a(c)b")
    with pytest.raises(DataError, match="reads a special token"):
        renderer.prompt_ids((Message(role="user", content="a(c)b"),))
    with pytest.raises(DataError, match="reads a special token"):
        renderer.demonstration(
            Demonstration(demonstration_id="d", prompt=QUESTION, response="a(c)b")
        )
