"""What the tokenizer and the chat template make of rows, against a real tokenizer."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rlhf_core.errors import ModelError
from rlhf_core.schema import Message
from rlhf_core.stages.preparation.token_rows import RowTokens
from rlhf_core.stages.preparation.tokens import require_sound_template
from rlhf_core.tokenization import make_renderer
from rlhf_core.tokenization.load import TemplateChoice, load_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
PROMPT = (Message(role="user", content="Where is the cat?"),)


def token_problem(renderer, prompt, responses, max_length):
    [found] = RowTokens(renderer, max_length, max_length // 2).rows([(prompt, responses)])
    return found


@pytest.fixture(scope="module")
def base() -> Path:
    default = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("RLHF_SHARED_DATA", default)) / "models" / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no real tokenizer at {folder}; set RLHF_SHARED_DATA")
    return folder


@pytest.fixture
def renderer_for(base, tmp_path):
    def make(template: str):
        path = tmp_path / "template.jinja"
        path.write_text(template)
        return make_renderer(load_tokenizer(base, choice=TemplateChoice(path)))

    return make


def test_a_plain_row_passes(renderer_for):
    renderer = renderer_for(TEMPLATE)
    require_sound_template(renderer)
    assert token_problem(renderer, PROMPT, ["On the mat.", "Ünter 図書館\n\n."], 200) is None


def test_a_row_that_would_be_cut_is_too_long(renderer_for):
    renderer = renderer_for(TEMPLATE)
    reason, detail = token_problem(renderer, PROMPT, ["mat " * 100], 100)
    assert reason == "too_long"
    assert "at most 100 fit" in detail


def test_text_of_a_special_token_is_not_renderable(renderer_for):
    renderer = renderer_for(TEMPLATE)
    eos = renderer.tokenizer.eos_token
    assert token_problem(renderer, PROMPT, [f"On {eos} the mat."], 200)[0] == "not_renderable"
    bos = (Message(role="user", content=f"{renderer.tokenizer.bos_token} hi"),)
    assert token_problem(renderer, bos, ["x"], 200)[0] == "not_renderable"


def test_a_conversation_the_template_refuses_is_not_renderable(renderer_for):
    refusing = (
        "{% if messages | length > 3 %}{{ raise_exception('too many') }}{% endif %}" + TEMPLATE
    )
    renderer = renderer_for(refusing)
    reason, detail = token_problem(renderer, PROMPT * 4, ["x"], 200)
    assert reason == "not_renderable"
    assert "too many" in detail


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("assistant:{% if add_generation_prompt %} {% endif %}", "does not show the user's text"),
        (TEMPLATE.replace("add_generation_prompt", "false"), "ignores add_generation_prompt"),
        (
            TEMPLATE.replace(
                "{% for m in messages %}", "{% for m in messages if m.role == 'user' %}"
            ),
            "does not show the assistant's turns",
        ),
        ("{{ messages[0].nothing.at_all }}", "the chat template fails"),
    ],
)
def test_a_broken_template_is_refused_before_training(renderer_for, template, says):
    with pytest.raises(ModelError) as raised:
        require_sound_template(renderer_for(template))
    assert says in str(raised.value)


SHIPPED = Path(__file__).parents[2] / "data" / "base"


@pytest.fixture(scope="module")
def renderers(base, tmp_path_factory):
    """A SentencePiece tokenizer, which needs an anchor, and the demo's own."""
    path = tmp_path_factory.mktemp("template") / "template.jinja"
    path.write_text(TEMPLATE)
    return [
        make_renderer(load_tokenizer(base, choice=TemplateChoice(path))),
        make_renderer(load_tokenizer(SHIPPED)),
    ]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(st.text() | st.sampled_from(["</s>", " x ", "\n", "<unk>", "\x01"]), max_size=4)
)
@example(texts=["a\ud800b", "  ", "", "</s>", "\x01 then"])
def test_the_quick_way_says_what_the_renderer_says(renderers, texts):
    for renderer in renderers:
        tokens = RowTokens(renderer, 64, 32)
        assert tokens._backend is not None
        opened = renderer.open(PROMPT)
        quickly = tokens._encode([(opened, text) for text in texts])
        tokens._backend = None
        assert tokens._encode([(opened, text) for text in texts]) == quickly
        for text, found in zip(texts, quickly, strict=True):
            if isinstance(found, int):
                assert found == len(renderer.answer_ids(opened, text))
            else:
                assert found[0] == "not_renderable"


def test_a_tokenizer_the_quick_way_does_not_know_is_asked_slowly(renderers, monkeypatch):
    ids_of = RowTokens._ids_of

    def wrong(self, texts):
        return ids_of(self, [text if self._backend is None else text + "!" for text in texts])

    monkeypatch.setattr(RowTokens, "_ids_of", wrong)
    tokens = RowTokens(renderers[1], 64, 32)
    assert tokens._backend is None
    assert tokens.rows([(PROMPT, ["On the mat."])]) == [None]


def test_a_prompt_must_survive_the_tokenizer_and_leave_room_to_answer(renderer_for):
    renderer = renderer_for(TEMPLATE)
    tokens = RowTokens(renderer, 200, 40)
    assert tokens.prompts([PROMPT]) == [None]
    long = (Message(role="user", content="Where is the cat? " * 6),)
    [(reason, detail)] = tokens.prompts([long])
    assert reason == "too_long"
    assert detail.endswith("at most 40 leave room to answer")
    assert tokens.rows([(long, ["On the mat."])]) == [None]
    cutting = renderer_for(TEMPLATE.replace("m.content", "m.content | truncate(50, true)"))
    assert RowTokens(cutting, 200, 20).prompts([long]) == [
        ("not_renderable", "the prompt does not survive template and tokenizer")
    ]


def test_the_detail_says_which_of_two_responses_is_at_fault(renderer_for):
    tokens = RowTokens(renderer_for(TEMPLATE), 60, 40)
    long, short = "mat " * 40, "On the mat."
    pairs = ((long, short), (short, long), (long, long), ("</s>", short))
    found = tokens.rows([(PROMPT, pair) for pair in pairs])
    begins = [problem[1].split(":")[0] for problem in found]
    assert begins == ["response a", "response b", "both responses", "response a"]
