"""Prompts and answers in the shapes the field uses: text, transcripts, messages, or lists of them.

Columns beside a prompt that belong to it are read with it: ``input`` (what an instruction is about)
follows it in the user's turn, ``history`` (earlier rounds) goes before, ``system`` goes first.
"""

import re
from typing import Any

from rlhf_core.config.data import word_of
from rlhf_core.dataprep.sources.columns import structured
from rlhf_core.dataprep.sources.rows import RawRow, UnusableRow
from rlhf_core.schema import Conversation, Message
from rlhf_core.storage.records import shorten

_ROLES: dict[str, Any] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "developer": "developer",
}
_FIELDS = (("role", "content"), ("from", "value"), ("role", "text"), ("role", "value"))
_EXCHANGE = {"input", "output"}
_TEXT_PARTS = (None, "text", "input_text", "output_text")
_ANSWERS = (("response_a", "response_b"), ("chosen", "rejected"))
_CALLS = ("tool_calls", "function_call")

_MARKER = re.compile(r"(?:\A\s*|\r?\n\r?\n)(Human|Assistant):")
_WHOLE = re.compile(r"\s*Human:.*?\n\r?\nAssistant:", re.DOTALL)
"""How an answer begins that is the whole transcript."""
_SPEAKERS: dict[str, Any] = {"Human": "user", "User": "user", "Assistant": "assistant"}
_EXTRA_ID = re.compile(r"(?:\A|\r?\n)<extra_id_1>(User|Assistant)(?:\r?\n|\Z)")
"""How HelpSteer and Nemotron mark turns after the first."""


def parse_transcript(text: str) -> Conversation:
    """Split a transcript into turns; empty when it does not begin with a speaker's mark."""
    preamble, *rest = _MARKER.split(text)
    if preamble.strip():
        return ()
    return _turns(rest)


def prompt_transcript(text: str) -> Conversation:
    r"""Return the turns of a prompt that is a transcript; empty where it is none.

    One that is begins with ``\n\nHuman:``, or with ``Human:`` and has an ``\n\nAssistant:`` too, or
    ends with an ``\n\nAssistant:`` to be filled in; then what stands before the first mark is the
    system's turn. The empty last mark is no turn. Another way to mark turns is HelpSteer's.
    """
    if "<extra_id_1>" in text and _EXTRA_ID.search(text):
        return _extra_id_turns(text)
    if not any(f"{speaker}:" in text for speaker in ("Human", "Assistant")):
        return ()
    preamble, *rest = _MARKER.split(text)
    speakers = rest[::2]
    if not speakers:
        return ()
    is_open = speakers[-1] == "Assistant" and not rest[-1].strip() and "Human" in speakers
    is_marked = text.startswith(("\n\n", "\r\n\r\n")) or "Assistant" in speakers
    if preamble.strip() and not is_open:
        return ()
    if not preamble.strip() and (speakers[0] != "Human" or not is_marked):
        return ()
    turns = _turns(rest[:-2] if is_open else rest)
    return (Message(role="system", content=preamble.strip()), *turns) if preamble.strip() else turns


def _extra_id_turns(text: str) -> Conversation:
    r"""Return the turns of a prompt as HelpSteer2 writes it; empty unless the user has the last.

    The first turn has no mark: ``Q\n<extra_id_1>Assistant\nA\n<extra_id_1>User\nQ``.
    """
    first, *rest = _EXTRA_ID.split(text)
    turns = _turns(["User", first, *rest] if first.strip() else rest)
    if turns and turns[-1].role == "assistant" and not turns[-1].content:
        turns = turns[:-1]
    expected = ["user" if number % 2 == 0 else "assistant" for number in range(len(turns))]
    is_alternating = len(turns) % 2 == 1 and [turn.role for turn in turns] == expected
    return turns if is_alternating else ()


def _turns(parts: list[str]) -> Conversation:
    return tuple(
        Message(role=_SPEAKERS[speaker], content=content.strip())
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    )


def parse_prompt(row: RawRow) -> Conversation:
    """Return the conversation to answer: the column ``prompt`` and what belongs to it."""
    return with_context(row, parse_conversation(row, "prompt"))


def parse_conversation(row: RawRow, column: str) -> Conversation:
    """Return a column that holds text (one user turn or a transcript), a message, or several."""
    row.require(column)
    value = readable(row, row.value[column])
    if isinstance(value, str):
        return prompt_transcript(value) or (Message(role="user", content=value),)
    if texts := _texts_or_nulls(value):
        if len(texts) > 1:
            raise UnusableRow(
                "unusable_message", f"{column}: {len(texts)} texts, and no answers between them"
            )
        return (Message(role="user", content=texts[0]),)
    return messages_of(value, column)


def parse_messages(row: RawRow, column: str) -> Conversation:
    """Return a column that holds a list of messages, or writes one as text."""
    row.require(column)
    return messages_of(structured(row.value[column]), column)


def messages_of(value: Any, place: str) -> Conversation:
    """Return the turns of a list of messages, or of a single one."""
    if isinstance(value, dict):
        return (_message(place, value),)
    if not isinstance(value, list):
        raise UnusableRow(
            "unusable_value", f"{place}: expected a list of messages, found {type(value).__name__}"
        )
    return tuple(
        message
        for number, turn in enumerate(value)
        for message in _turn_or_exchange(f"{place}.{number}", turn)
    )


def _turn_or_exchange(place: str, turn: Any) -> Conversation:
    """Return one message, or the two of a question with its answer as Capybara publishes them."""
    if isinstance(turn, dict) and turn.keys() == _EXCHANGE:
        return tuple(
            _message(place, {"role": role, "content": turn[name]})
            for role, name in (("user", "input"), ("assistant", "output"))
        )
    return (_message(place, turn),)


def answer_of(value: Any, place: str) -> tuple[Conversation, str]:
    """Return the turns before an answer (none for plain text) and the answer.

    Raises:
        UnusableRow: it is neither text nor messages that end with the assistant's.
    """
    if isinstance(value, str):
        if not _WHOLE.match(value):
            return (), value
        turns = parse_transcript(value)
    elif isinstance(value, list | dict):
        turns = messages_of(value, place)
    else:
        found = type(value).__name__
        raise UnusableRow("unusable_value", f"{place}: expected text or messages, found {found}")
    if not turns or turns[-1].role != "assistant":
        raise UnusableRow("malformed_transcript", f"{place}: no assistant turn at the end")
    return turns[:-1], turns[-1].content


def readable(row: RawRow, value: Any) -> Any:
    """Return a cell's value: tables, and some exports, write lists of messages as text."""
    if row.is_table and isinstance(value, int | float):
        return word_of(value)  # A workbook makes numbers of texts such as 42.
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    inner = structured(value)
    entries = inner if isinstance(inner, list) else [inner]
    are_messages = bool(entries) and all(_is_message(entry) for entry in entries)
    are_texts = (row.is_table and bool(_only_texts(inner))) or (
        bool(_texts_or_nulls(inner)) and writes_lists(row)
    )
    return inner if are_messages or are_texts else value


def writes_lists(row: RawRow) -> bool:
    """Tell whether a row writes its prompt and both answers as lists of texts, turn by turn.

    One of them alone may be what somebody asked or answered, as in data about code. Lists of one
    length in all three are how LMSYS publishes votes.
    """
    num_asked = _num_written(dict.get(row.value, "prompt"))
    return num_asked > 0 and any(
        all(_num_written(dict.get(row.value, name)) == num_asked for name in pair)
        for pair in _ANSWERS
    )


def _num_written(value: Any) -> int:
    """Return how many texts or nulls a text lists; 0 where it is no such list."""
    if not isinstance(value, str) or value.lstrip()[:1] != "[":
        return 0
    return len(_texts_or_nulls(structured(value)))


def _is_message(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    return any(role in entry and content in entry for role, content in _FIELDS)


def _texts_or_nulls(value: Any) -> list[str]:
    """Return a list's texts, a null as an empty one; none where it holds anything else."""
    if isinstance(value, list) and all(text is None or isinstance(text, str) for text in value):
        return ["" if text is None else text for text in value]
    return []


def _only_texts(value: Any) -> list[str]:
    """Return a list's texts; none where it holds anything else."""
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return value
    return []


def texts_of(row: RawRow, column: str) -> list[str]:
    """Return the texts of a column that is a list of texts; none where it is anything else.

    A null in it is an answer that nobody gave: an empty text.
    """
    return _texts_or_nulls(readable(row, dict.get(row.value, column)))


def with_context(row: RawRow, turns: Conversation) -> Conversation:
    """Return a conversation with what stands in columns of its own: input, history, system."""
    about = dict.get(row.value, "input")
    if len(turns) == 1 and turns[0].role == "user" and isinstance(about, str):
        row.value["input"]
        if about.strip() and about.strip() != turns[0].content.strip():
            turns = (Message(role="user", content=f"{turns[0].content}\n{about}"),)
    history = readable(row, dict.get(row.value, "history"))
    if row.is_table:
        history = structured(history)
    if isinstance(history, list):
        row.value["history"]
        turns = (*_earlier(history), *turns)
    system = dict.get(row.value, "system")
    if isinstance(system, str):
        row.value["system"]
        if system.strip() and (not turns or turns[0].role != "system"):
            turns = (Message(role="system", content=system), *turns)
    return turns


def _earlier(rounds: list[Any]) -> Conversation:
    """Return earlier rounds as turns: pairs of question and answer, or messages."""
    turns: list[Message] = []
    for number, entry in enumerate(rounds):
        if isinstance(entry, list | tuple):
            texts = _only_texts(list(entry))
            if len(texts) != 2:
                raise UnusableRow(
                    "unusable_message",
                    f"history.{number}: expected question and answer, found {shorten(entry)}",
                )
            turns += [
                Message(role="user", content=texts[0]),
                Message(role="assistant", content=texts[1]),
            ]
        else:
            turns.append(_message(f"history.{number}", entry))
    return tuple(turns)


def _message(place: str, turn: object) -> Message:
    if not isinstance(turn, dict):
        raise _no_message(place, turn)
    if call := next((name for name in _CALLS if turn.get(name)), None):
        raise UnusableRow("unusable_message", f"{place}: a turn with {call}; a turn here is text")
    for role_field, content_field in _FIELDS:
        role, content = turn.get(role_field), turn.get(content_field)
        if not isinstance(role, str) or role.lower() not in _ROLES or content is None:
            continue
        text = _joined(f"{place}.{content_field}", content)
        if text is not None:
            return Message(role=_ROLES[role.lower()], content=text)
    raise _no_message(place, turn)


def _joined(place: str, content: object) -> str | None:
    """Return text, or the text parts of a list of parts one after the other."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = []
    for number, part in enumerate(content):
        text = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _TEXT_PARTS or not isinstance(text, str):
            raise UnusableRow(
                "unusable_message", f"{place}.{number}: expected text, found {shorten(part)}"
            )
        texts.append(text)
    return "".join(texts)


def _no_message(place: str, turn: object) -> UnusableRow:
    return UnusableRow(
        "unusable_message",
        f"{place}: expected a message with role (one of {', '.join(_ROLES)}) and content, found"
        f" {shorten(turn)}",
    )
