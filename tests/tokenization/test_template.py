"""The configured template wins, and says the same everywhere and on every day."""

import logging
from datetime import date, datetime

import pytest
from transformers import AutoTokenizer

from rlhf_core.errors import ModelError
from rlhf_core.tokenization import TemplateChoice, load_tokenizer, make_renderer
from rlhf_core.tokenization.template import reads_clock, variables_of, with_date, with_variables
from tests.tokenization.families import FAMILIES

MESSAGES = [{"role": "user", "content": "Hello there"}]
DAY = date(2024, 2, 29)


class AnotherDay(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2031, 12, 31, 23, 59)


@pytest.fixture
def tomorrow(monkeypatch):
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", AnotherDay)


@pytest.fixture
def saved(tmp_path):
    def save(name):
        FAMILIES[name].tokenizer().save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def render(tokenizer, **variables):
    return tokenizer.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True, **variables
    )


def test_a_configured_template_is_used_and_what_it_replaces_is_said(saved, tmp_path, caplog):
    base, path = saved("chatml-base"), tmp_path / "mine.jinja"
    path.write_text(
        "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    with caplog.at_level(logging.WARNING):
        tokenizer = load_tokenizer(base, choice=TemplateChoice(path))
    assert render(tokenizer) == "user:Hello there<|endoftext|>assistant:"
    assert f"{path} takes the place of that of {base}" in caplog.text
    caplog.clear()
    path.write_text(FAMILIES["chatml-base"].template)
    load_tokenizer(base, choice=TemplateChoice(path))
    assert not caplog.records


def test_a_configured_template_that_is_not_there_is_refused(saved, tmp_path):
    with pytest.raises(ModelError, match=r"model\.chat_template: .*nowhere.*cannot be read"):
        load_tokenizer(saved("gemma"), choice=TemplateChoice(tmp_path / "nowhere.jinja"))


def test_variables_reach_the_template_and_are_saved_with_it(saved, tmp_path):
    base = saved("qwen3-thinking")
    choice = TemplateChoice(variables={"enable_thinking": False})
    load_tokenizer(base, choice=choice).save_pretrained(tmp_path / "ours")
    again = AutoTokenizer.from_pretrained(tmp_path / "ours")
    plain = AutoTokenizer.from_pretrained(base)
    assert render(again) == render(plain, enable_thinking=False) != render(plain)
    assert render(again, enable_thinking=True) == render(plain)
    renderer = make_renderer(again)
    assert renderer.turns.lead == ""
    assert renderer.turns.control_tokens == make_renderer(plain).turns.control_tokens


@pytest.mark.parametrize(
    "value", [True, False, None, 3, -0.5, 'a "quoted" \\ 🙂\nline', ["a", {"b": None}], {}]
)
def test_a_variable_keeps_its_value(value):
    template = "  {%- for x in [1] %}{{ given | tojson }}{% endfor %}"
    wrapped = with_variables(template, {"given": value})
    tokenizer = FAMILIES["gemma"].tokenizer()
    tokenizer.chat_template = template
    expected = render(tokenizer, given=value)
    tokenizer.chat_template = wrapped
    assert render(tokenizer) == expected
    assert render(tokenizer, given="other") == '"other"'


def test_white_space_at_the_beginning_of_a_template_stays(saved):
    for start in ("\n", "  ", "\n\n", "  {% if true %}x{% endif %}\n", "{# note #}\n"):
        template = start + "{{ given }}{{ strftime_now('%Y') }}"
        tokenizer = FAMILIES["gemma"].tokenizer()
        tokenizer.chat_template = template
        expected = render(tokenizer, given="a")
        tokenizer.chat_template = with_date(with_variables(template, {"given": "a"}), date.today())
        assert render(tokenizer) == expected


def test_a_variable_that_the_template_never_reads_is_refused():
    with pytest.raises(ModelError, match=r"never reads 'enable_thinkin'; it reads: .*enable_think"):
        with_variables(FAMILIES["qwen3-thinking"].template, {"enable_thinkin": False})


def test_a_template_that_reads_the_clock_says_the_recorded_day(saved, tmp_path, tomorrow):
    base = saved("llama3-dated")
    assert "31 Dec 2031" in render(AutoTokenizer.from_pretrained(base))
    ours = load_tokenizer(base, choice=TemplateChoice(day=DAY))
    assert "Today Date: 29 Feb 2024\n" in render(ours)
    ours.save_pretrained(tmp_path / "ours")
    again = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert render(again) == render(ours)
    assert not reads_clock(again.chat_template)
    # Whoever gives a date of their own still gets it.
    assert "Today Date: 1 May\n" in render(again, date_string="1 May")


def test_every_directive_of_a_date_is_that_of_the_day():
    wanted = "%d %b %Y|%B %-d, %Y|%A %a %j %m/%y|%H:%M:%S|%%d|%F %e %D|100%% %p"
    tokenizer = FAMILIES["gemma"].tokenizer()
    template = "{{ strftime_now('" + wanted + "') }}"
    tokenizer.chat_template = with_date(template, DAY)
    assert render(tokenizer) == datetime(2024, 2, 29).strftime(wanted)


def test_a_template_without_a_clock_is_left_as_it_is():
    for name, family in FAMILIES.items():
        assert reads_clock(family.template) == (name == "llama3-dated")
        if name != "llama3-dated":
            assert with_date(family.template, DAY) == family.template


def test_named_templates_are_changed_each():
    both = {"default": "{{ strftime_now('%Y') }}", "tool_use": "{{ thinking }}"}
    assert reads_clock(both)
    changed = with_variables(with_date(both, DAY), {"thinking": True})
    assert not reads_clock(changed)
    assert "thinking" not in variables_of(both["default"])


def test_templates_that_mark_generation_are_understood():
    template = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    assert variables_of(template) == {"messages"}
    with pytest.raises(ModelError, match="not valid Jinja"):
        variables_of("{% for %}")
