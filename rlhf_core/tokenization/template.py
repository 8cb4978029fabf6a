"""Chat templates: rendered, and made to say the same everywhere and on every day.

Variables that the settings give and the date go into the template's own text, so that whoever loads
the saved tokenizer renders the same bytes without knowing of them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from rlhf_core.errors import DataError, ModelError
from rlhf_core.schema import Conversation

CLOCK = "strftime_now"
"""The function through which transformers lets a template read the clock."""

_DIRECTIVES = "aAbBcdDeFgGhHIjklmMnNpPrRsStTuUVwWxXyYzZ"
"""Of strftime, that of the C library with glibc's own; each also as ``%-d``."""
_PERCENT = "\x00"

Template = str | dict[str, str]
"""One template, or several by name; conversations are rendered with ``default``."""


def apply_template(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, *, generation_prompt: bool
) -> str:
    """Return the template's text for a conversation.

    Raises:
        DataError: the template refuses the conversation (roles out of order, say).
        ModelError: it is no Jinja template.
    """
    try:
        text = tokenizer.apply_chat_template(
            _messages(conversation), tokenize=False, add_generation_prompt=generation_prompt
        )
    except jinja2.TemplateSyntaxError as error:
        raise _no_template(error) from error
    except Exception as error:  # whatever an expression of the template raises
        roles = ", ".join(message.role for message in conversation)
        raise DataError(
            f"the chat template refuses a conversation of ({roles}): {' '.join(str(error).split())}"
        ) from error
    return str(text)


def apply_to_many(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    generation_prompt: bool,
) -> list[str] | None:
    """Return the template's text for each conversation, for less than one by one.

    None where one is empty or the template refuses it: ``apply_template`` says which and why.
    """
    if not all(conversations):
        return None
    try:
        texts = tokenizer.apply_chat_template(
            [_messages(conversation) for conversation in conversations],
            tokenize=False,
            add_generation_prompt=generation_prompt,
        )
    except Exception:  # whatever an expression of the template raises
        return None
    return [str(text) for text in texts]


def _messages(conversation: Conversation) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in conversation]


def reads_clock(template: Template) -> bool:
    """Tell whether the text of a template depends on the day it is rendered."""
    return any(CLOCK in variables_of(text) for text in _texts(template))


def variables_of(template: str) -> frozenset[str]:
    """Names that a template takes from outside.

    Raises:
        ModelError: it is no Jinja template.
    """
    return frozenset(meta.find_undeclared_variables(parse_template(template)))


def parse_template(template: str) -> nodes.Template:
    """Return the syntax tree of a template, as transformers reads it.

    Raises:
        ModelError: it is no Jinja template.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    try:
        return environment.parse(template)
    except jinja2.TemplateSyntaxError as error:
        raise _no_template(error) from error


def _no_template(error: jinja2.TemplateSyntaxError) -> ModelError:
    return ModelError(f"the chat template is not valid Jinja, line {error.lineno}: {error.message}")


def with_variables(template: Template, variables: Mapping[str, object]) -> Template:
    """Give a template's variables their values, for callers who do not pass them.

    Raises:
        ModelError: the template never reads one of them.
    """
    known = frozenset[str]().union(*(variables_of(text) for text in _texts(template)))
    for name in variables:
        if name not in known:
            raise ModelError(
                f"model.chat_template_kwargs: the chat template never reads {name!r}; it reads: "
                f"{', '.join(sorted(known))}"
            )
    lines = [
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}\n"
        for name, value in sorted(variables.items())
    ]
    return _each(template, lambda text: "".join(lines) + text)


def with_date(template: Template, day: date) -> Template:
    """Let a template that reads the clock see the first minute of ``day``, whenever it is asked."""
    moment = datetime.combine(day, time())
    replaced = [("%%", _PERCENT)]
    for letter in _DIRECTIVES:
        for directive in (f"%-{letter}", f"%{letter}"):
            value = moment.strftime(directive)
            if value != directive:
                replaced.append((directive, value.replace("%", _PERCENT)))
    filters = "".join(f" | replace({_literal(a)}, {_literal(b)})" for a, b in replaced)
    macro = (
        f"{{%- macro {CLOCK}(format) %}}{{{{ format{filters} | replace({_literal(_PERCENT)}, '%')"
        " }}{%- endmacro %}\n"
    )
    return _each(template, lambda text: macro + text if CLOCK in variables_of(text) else text)


def _texts(template: Template) -> list[str]:
    return list(template.values()) if isinstance(template, dict) else [template]


def _each(template: Template, change: Callable[[str], str]) -> Template:
    if isinstance(template, dict):
        return {name: change(text) for name, text in template.items()}
    return change(template)


def _literal(value: object) -> str:
    """Write a JSON value as Jinja reads it: JSON, but for ``none``."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        items = (f"{_literal(name)}: {_literal(item)}" for name, item in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


class _Generation(Extension):
    """Transformers' ``{% generation %}``, which marks what the assistant says."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
