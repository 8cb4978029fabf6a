"""Trees of ranked replies, as OpenAssistant publishes them: every set of ranked answers is a list.

    {"message_tree_id": "t1", "prompt": {"text": ..., "role": "prompter", "replies": [
        {"text": ..., "role": "assistant", "rank": 0, "replies": [...]}, ...]}}

Rank 0 is best. The row may also be the first message itself. Answers without a rank take part in no
comparison, but what follows them is read.
"""

from collections.abc import Iterator
from typing import Any

from rlhf_core.dataprep.rows import RawRow, UnusableRow
from rlhf_core.dataprep.sources.messages import messages_of
from rlhf_core.dataprep.sources.ranked import ANNOTATOR, all_pairs
from rlhf_core.dataprep.sources.words import finite_number
from rlhf_core.schema import Comparison, Conversation

REPLIES = "replies"


def comparisons_of(row: RawRow) -> Iterator[Comparison]:
    """Yield the comparisons of every set of ranked answers, those to one message as one group."""
    found = False
    waiting: list[tuple[Conversation, Any, str]] = [((), *_root(row))]
    while waiting:
        earlier, node, place = waiting.pop()
        prompt = (*earlier, *messages_of(node, place))
        replies = node.get(REPLIES) or []
        if not isinstance(replies, list):
            raise UnusableRow("unusable_value", f"{place}.{REPLIES}: expected a list")
        ranked = _ranked(replies, f"{place}.{REPLIES}")
        if len(ranked) > 1:
            found = True
            rankings = [(ANNOTATOR, [rank for _, rank in ranked])]
            texts = [text for text, _ in ranked]
            yield from all_pairs(prompt, texts, rankings, (row.source, row.line))
        below = [(prompt, reply, f"{place}.{REPLIES}.{n}") for n, reply in enumerate(replies)]
        waiting += reversed(below)
    if not found:
        raise UnusableRow("too_few_responses", "no message has two ranked answers")


def _root(row: RawRow) -> tuple[Any, str]:
    if REPLIES in row.value:
        for name in row.value:
            row.value[name]
        return row.value, "message"
    for name, value in row.value.items():
        if isinstance(value, dict) and REPLIES in value:
            return row.value[name], name
    raise UnusableRow(
        "missing_column", f"missing column {REPLIES!r}, or one that holds it; found {row.found()}"
    )


def _ranked(replies: list[Any], place: str) -> list[tuple[str, float]]:
    """Return text and rank of the assistant's replies that have one."""
    ranked = []
    for number, reply in enumerate(replies):
        rank = finite_number(reply.get("rank")) if isinstance(reply, dict) else None
        (turn,) = messages_of(reply, f"{place}.{number}") if isinstance(reply, dict) else (None,)
        if turn is None:
            raise UnusableRow("unusable_message", f"{place}.{number}: expected a message")
        if rank is not None and turn.role == "assistant":
            ranked.append((turn.content, rank))
    return ranked
