"""How a chat template opens and closes turns, learned by rendering conversations of its own."""

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from rlhf_core.errors import DataError, ModelError
from rlhf_core.schema import Conversation, Message
from rlhf_core.tokenization.template import apply_template

ASKED, ANSWERED = "Where is it, say 17?", "Over there: in 42."
"""No template is expected to have these texts."""
QUESTION = Message(role="user", content=ASKED)
ANSWER = Message(role="assistant", content=ANSWERED)


@dataclass(frozen=True)
class Turns:
    """Marks of a template's assistant turns."""

    lead: str
    """What the whole rendering puts between the generation prompt and an answer: white space, or
    an empty ``<think>`` block."""
    closing: str
    """All that follows the last answer."""
    gap: str
    """White space between an answer and its end."""
    end: str
    """Text of the token that ends an answer in training."""
    is_written: bool
    """Whether the template writes that token after a last answer."""
    earlier_end: str
    """Gap and end after an earlier answer; empty where the template writes none."""
    control_tokens: tuple[str, ...]
    """Texts that no user's words may hold: special tokens, and the template's own turn marks."""

    @property
    def num_left_off(self) -> int:
        """Letters at the end of a whole rendering that come after the end of the turn."""
        return len(self.closing) - (len(self.gap + self.end) if self.is_written else 0)

    @cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Matches any control token, the longest first."""
        return _any_of(self.control_tokens)


def find_turns(tokenizer: PreTrainedTokenizerBase) -> Turns:
    """Probe the template of ``tokenizer``.

    Raises:
        ModelError: it fails on a question and an answer, or opens and closes answers in a way
            that training and sampling cannot both follow.
    """
    try:
        prompt = apply_template(tokenizer, (QUESTION,), generation_prompt=True)
        whole = apply_template(tokenizer, (QUESTION, ANSWER), generation_prompt=False)
    except DataError as error:
        raise ModelError(f"the chat template fails on a question and an answer: {error}") from error
    _require_shown(prompt, whole)
    added = _added_tokens(tokenizer)
    lead, closing = whole[len(prompt) :].split(ANSWERED, 1)
    gap, end = _first_token(closing, added)
    earlier = _between_turns(tokenizer, added, likely=gap + (end or ""))
    eos = str(tokenizer.eos_token)
    if end is None and closing.strip():
        raise ModelError(
            f"the chat template ends an answer with the text {closing.strip()!r}, which is no "
            "token of the tokenizer: add it to the tokenizer as a special token, or set "
            "model.chat_template to a template that ends turns with one"
        )
    if gap.strip():
        raise ModelError(
            f"the chat template writes {gap!r} after an answer and before {end!r}: a response "
            "would have to learn both; set model.chat_template to one that ends it with a token"
        )
    return Turns(
        lead=lead,
        closing=closing,
        gap=gap if end else "",
        end=end or earlier.strip() or eos,
        is_written=end is not None,
        earlier_end=earlier,
        control_tokens=_control_tokens(tokenizer, added),
    )


def _require_shown(prompt: str, whole: str) -> None:
    if ASKED not in prompt:
        raise ModelError(f"the chat template does not show the user's text {ASKED!r}")
    if ANSWERED not in whole:
        raise ModelError("the chat template does not show the assistant's turns")
    if whole.startswith(prompt):
        return
    both = enumerate(zip(prompt, whole, strict=False))
    shared = next((at for at, (one, other) in both if one != other), len(whole))
    raise ModelError(
        "the chat template opens an answer in one way when it asks for it and in another when it "
        f"shows it: {prompt[shared:][:60]!r} against {whole[shared:][:60]!r}. What is trained would"
        " not be what is sampled; set model.chat_template_kwargs where the template has a switch"
        " (enable_thinking), or model.chat_template to one that writes both alike"
    )


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, bool]:
    """Added tokens that are more than white space, and whether each is special."""
    named = dict.fromkeys(map(str, tokenizer.all_special_tokens), True)
    found = {
        token.content: bool(token.special) for token in tokenizer.added_tokens_decoder.values()
    }
    return {text: special for text, special in (found | named).items() if text.strip()}


def _between_turns(tokenizer: PreTrainedTokenizerBase, added: dict[str, bool], likely: str) -> str:
    """What ends an answer that is not the last: white space and a token; empty without one.

    ``likely`` is what ends a last one.
    """
    again = Message(role="user", content="And then, 18?")
    try:
        dialogue = apply_template(tokenizer, (QUESTION, ANSWER, again), generation_prompt=False)
    except DataError:  # a template for single questions
        return ""
    opening, _, rest = dialogue.partition(ASKED)
    between = rest.partition(ANSWERED)[2].partition(again.content)[0]
    if likely.strip() and between.startswith(likely):
        return likely
    splitter = re.compile(f"({_any_of(tuple(added)).pattern})")
    before, after = splitter.split(opening), splitter.split(between)
    # What also stands before the first question opens a user's turn and ends nothing.
    while before and after and before[-1] == after[-1]:
        before.pop()
        after.pop()
    gap, end = _first_token("".join(after), added)
    return gap + end if end and not gap.strip() else ""


def _first_token(text: str, added: dict[str, bool]) -> tuple[str, str | None]:
    """What stands before the first added token in ``text``, and that token; None without one."""
    found = _any_of(tuple(added)).search(text)
    return (text, None) if found is None else (text[: found.start()], found.group())


def control_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Return what matches any control token of a tokenizer, with a template of its own or without.

    Special tokens are not only those that have a name: Llama 3's turn marks are added ones.
    """
    added = _added_tokens(tokenizer)
    system = Message(role="system", content=ASKED)
    written: set[str] = set()
    # Some templates want an answer at the end, two turns, or a system message first.
    for shape in ((QUESTION, ANSWER), (system, QUESTION, ANSWER)):
        with suppress(DataError, ModelError, ValueError):
            shown = apply_template(tokenizer, shape, generation_prompt=False)
            written |= set(_any_of(tuple(added)).findall(shown))
    return _any_of(tuple(text for text, special in added.items() if special or text in written))


def without_control(text: str, control: re.Pattern[str]) -> str:
    """Take control tokens out that somebody spelled in letters."""
    before = None
    while text != before:  # what stood around one may now read as another
        before, text = text, control.sub("", text)
    return text


def _control_tokens(tokenizer: PreTrainedTokenizerBase, added: dict[str, bool]) -> tuple[str, ...]:
    """Special tokens, and other added tokens with which the template marks turns.

    An earlier answer is shown without what opens only the last one: ``<think>`` is for answers to
    use.
    """
    try:
        marks = apply_template(tokenizer, (QUESTION, ANSWER, QUESTION), generation_prompt=False)
    except DataError:
        marks = apply_template(tokenizer, (QUESTION,), generation_prompt=False)
    written = set(_any_of(tuple(added)).findall(marks))
    return tuple(text for text, special in added.items() if special or text in written)


def _any_of(texts: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def with_answer(conversation: Conversation, answer: str) -> Conversation:
    """Return the conversation with one more turn of the assistant's."""
    return (*conversation, Message(role="assistant", content=answer))
