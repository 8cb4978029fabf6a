"""What the tokenizer and the chat template make of rows, against a real tokenizer."""

import os
from pathlib import Path

import pytest

from rlhf_core.errors import ModelError
from rlhf_core.schema import Message
from rlhf_core.stages.prepare_tokens import require_sound_template, token_problem
from rlhf_core.tokenization import make_renderer
from rlhf_core.tokenization.load import load_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
PROMPT = (Message(role="user", content="Where is the cat?"),)


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
        return make_renderer(load_tokenizer(base, chat_template=path))

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
            "does not show earlier assistant turns",
        ),
        ("{{ messages[0].nothing.at_all }}", "the chat template fails"),
    ],
)
def test_a_broken_template_is_refused_before_training(renderer_for, template, says):
    with pytest.raises(ModelError) as raised:
        require_sound_template(renderer_for(template))
    assert says in str(raised.value)
