"""Demonstrations and labelled responses as chats and as instructions with their answers.

{"messages": [..., {"role": "assistant", "content": ...}]}           the last turn is the answer
{"conversations": [{"from": "human", ...}, {"from": "gpt", ...}]}
{"prompt": ..., "completion": ...}                                   text or messages
{"instruction": ..., "input": ..., "output": ...}
{"prompt": ..., "completion": ..., "label": true}                    or messages, and a label
"""

from collections.abc import Mapping

from rlhf_core.dataprep.sources.choices import label_of
from rlhf_core.dataprep.sources.messages import (
    answer_of,
    parse_conversation,
    parse_messages,
    readable,
    with_context,
)
from rlhf_core.dataprep.sources.rows import RawRow, UnusableRow
from rlhf_core.schema import Conversation, Demonstration, UnpairedExample

_CHATS = ("messages", "conversations", "conversation")
_ASKED = ("prompt", "instruction", "question")
_ANSWERED = ("completion", "response", "output", "answer")


def demonstration_of(row: RawRow) -> Demonstration:
    """Return the last turn of a chat, or the answer beside a prompt, as a demonstration."""
    prompt, response = _parts(row)
    return Demonstration(
        demonstration_id=f"{row.source}:{row.line}",
        prompt=with_context(row, prompt),
        response=response,
        source=row.source,
    )


def unpaired_of(row: RawRow, labels: Mapping[str, bool]) -> UnpairedExample:
    """Return a response with its ``label``: a truth value, or the word or number for one.

    Args:
        row: as it was read.
        labels: the source's own words for good and bad.
    """
    prompt, response = _parts(row)
    row.require("label")
    label = label_of(row.value["label"], labels)
    return UnpairedExample(
        example_id=f"{row.source}:{row.line}",
        prompt=with_context(row, prompt),
        response=response,
        label=label,
        source=row.source,
    )


def _parts(row: RawRow) -> tuple[Conversation, str]:
    chat = next((name for name in _CHATS if name in row.value), None)
    if chat is not None:
        turns = parse_messages(row, chat)
        is_answered = bool(turns) and turns[-1].role == "assistant"
        return (turns[:-1], turns[-1].content) if is_answered else (turns[:-1], "")
    asked = next((name for name in _ASKED if name in row.value), None)
    answered = next((name for name in _ANSWERED if name in row.value), None)
    if asked is None or answered is None:
        raise UnusableRow(
            "missing_column",
            f"missing column 'messages', or a prompt and its completion; found {row.found()}",
        )
    lead, response = answer_of(readable(row, row.value[answered]), answered)
    return (*parse_conversation(row, asked), *lead), response
