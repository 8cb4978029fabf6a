"""Conversations filled into one rendering are those that the template gives, for each family."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.errors import DataError
from rlhf_core.schema import Message
from rlhf_core.tokenization import template_cache
from rlhf_core.tokenization.template import apply_template
from rlhf_core.tokenization.template_cache import TemplateCache, passes_texts_on
from tests.tokenization.families import FAMILIES

TEXT = st.sampled_from(
    ["", " ", " a\n", "\u2003b ", "</think>x", "{{ eos_token }}", "0"]
) | st.text(max_size=6)
TURN = st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=TEXT)
LOOKS_INSIDE = ("qwen3-thinking", "llama2")
MADE = {}


def renderings_of(name):
    if name not in MADE:
        tokenizer = FAMILIES[name].tokenizer()
        MADE[name] = tokenizer, TemplateCache(tokenizer)
    return MADE[name]


def one_by_one(tokenizer, conversations, generation_prompt):
    try:
        return [
            apply_template(tokenizer, turns, generation_prompt=generation_prompt)
            for turns in conversations
        ]
    except DataError:
        return None


@pytest.mark.parametrize("name", sorted(FAMILIES))
@settings(max_examples=15, deadline=None)
@given(
    conversations=st.lists(st.lists(TURN, min_size=1, max_size=4).map(tuple), max_size=3),
    asks=st.booleans(),
)
def test_filled_in_is_what_the_template_gives(name, conversations, asks):
    tokenizer, made = renderings_of(name)
    assert made.render(conversations, generation_prompt=asks) == one_by_one(
        tokenizer, conversations, asks
    )


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_most_families_are_rendered_once_for_all_texts(name, monkeypatch):
    tokenizer, _ = renderings_of(name)
    calls = []
    monkeypatch.setattr(
        template_cache, "apply_template", lambda *a, **k: calls.append(1) or apply_template(*a, **k)
    )
    conversations = [(Message(role="user", content=str(number)),) for number in range(20)]
    assert TemplateCache(tokenizer).render(conversations, generation_prompt=True) is not None
    assert len(calls) == (0 if name in LOOKS_INSIDE else 1)


def test_an_empty_conversation_is_nothing_to_render():
    _, made = renderings_of("zephyr")
    assert made.render([(), (Message(role="user", content="a"),)], generation_prompt=True) is None


@pytest.mark.parametrize(
    "body",
    [
        "{% if m.content %}{{ m.content }}{% endif %}",
        "{{ m.content if 'a' in m.content else '' }}",
        "{{ m.content | upper }}",
        "{{ m['content'] | length }}",
        "{{ m.content[0] }}",
        "{{ m.content.split('a')[0] }}",
        "{{ m.content.strip('\n') }}",
        "{{ (m.role + m.content) | trim }}",
        "{% set joined = m.role + m.content %}{{ joined.strip() }}",
        "{{ m | tojson }}",
        "{{ m.values() | list }}",
        "{% for key in m %}{{ m[key] }}{% endfor %}",
        "{{ m['con' + 'tent'] | upper }}",
        "{{ loop.previtem.content | default('') | upper }}",
        "{% set kept = namespace(text='') %}{% set kept.text = m.content %}{{ kept.text | upper }}",
        "{% set kept %}{{ m.content }}{% endset %}{{ kept | upper }}",
        "{% filter upper %}{{ m.content }}{% endfilter %}",
        "{% macro said() %}{{ m.content }}{% endmacro %}{{ said() | upper }}",
        "{% macro said(x) %}{{ x | upper }}{% endmacro %}{{ said(m.content) }}",
        "{{ messages | map(attribute='content') | join | upper }}",
        "{{ [m.content][0] | upper }}",
        "{{ m.content * 2 }}",
        "{{ '%s' % m.content }}",
        "{{ m.content == messages[0].content }}",
        "{% if loop.changed(m.content) %}a{% endif %}",
        "{% set later = before | default('a') | upper %}{{ later }}{% set before = m.content %}",
        "{% with kept = m.content %}{{ kept | upper }}{% endwith %}",
    ],
)
def test_templates_that_look_into_texts_are_rendered_each_time(body):
    assert not passes_texts_on("{% for m in messages %}" + body + "{% endfor %}")


@pytest.mark.parametrize("mark", ["\ue000", "\u2003\u2002\u2005"])
def test_a_template_with_a_mark_of_ours_is_rendered_each_time(mark):
    assert not passes_texts_on("{% for m in messages %}{{ m.content }}{% endfor %}" + mark)
